"""The pictures of the summary: a few rows of any number, from everywhere, none twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.prediction.samples import EXTREME, SPREAD, SampleRows
from tests.support.predicting import red_picture


def row(number: int, detections: int, *, status: str = "ok") -> dict[str, Any]:
    return {
        "uri": f"/pictures/{number}.png",
        "height": 30,
        "width": 40,
        "status": status,
        "boxes": [[1.0, 1.0, 9.0, 9.0]] * detections,
        "scores": [0.5] * detections,
        "labels": [0] * detections,
    }


def chosen(rows: list[dict[str, Any]], *, step: int = 7) -> dict[str, list[int]]:
    """The numbers of the rows by title; the rows are seen in tables of `step`."""
    samples = SampleRows(len(rows))
    for start in range(0, len(rows), step):
        samples.see(rows[start : start + step])
    return {
        title: [int(Path(each["uri"]).stem) for each in group] for title, group in samples.chosen()
    }


def test_pictures_come_from_all_over_the_list_then_the_fullest_then_empty_ones() -> None:
    rows = [row(number, number % 5) for number in range(240)]
    rows[100] = row(100, 77)
    found = chosen(rows)
    # 240 rows in twelve sections of 20; the middle of each.
    assert found["From all over the list"] == list(range(10, 240, 20))
    fullest = found["With the most detections"]
    # Of those with four detections each the first ones.
    assert fullest == [100, 4, 9, 14, 19, 24]
    empty = found["Without a detection"]
    assert len(empty) == EXTREME and empty == sorted(empty)
    assert all(number % 5 == 0 for number in empty)
    assert max(empty) - min(empty) > 40, "not the first ones alone"
    everywhere = [number for group in found.values() for number in group]
    assert len(everywhere) == len(set(everywhere)) == SPREAD + 2 * EXTREME


def test_the_choice_does_not_depend_on_the_parts() -> None:
    rows = [row(number, number % 3) for number in range(300)]
    assert chosen(rows, step=1) == chosen(rows, step=64) == chosen(rows, step=300)


def test_errors_are_passed_over_and_a_short_list_is_shown_once() -> None:
    rows = [row(number, 1, status="error" if number in (3, 4) else "ok") for number in range(8)]
    assert chosen(rows) == {"From all over the list": [0, 1, 2, 5, 6, 7]}
    assert chosen([row(0, 0, status="error")]) == {} == chosen([])


def test_few_rows_are_held_whatever_their_number() -> None:
    samples = SampleRows(20_000)
    for number in range(20_000):
        samples.see([row(number, number % 2)])
    held = [value for value in vars(samples).values() if isinstance(value, list | dict)]
    assert sum(map(len, held)) <= SPREAD + 2 * (SPREAD + EXTREME)


def test_a_picture_that_is_gone_is_named_and_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(red_picture())
    samples = SampleRows(2)
    samples.see([{**row(number, 1), "uri": f"{tmp_path}/{number}.png"} for number in range(2)])
    pictures = samples.pictures(["cell"])
    ((group,), (lost,)) = pictures.groups, pictures.lost
    assert [picture.name for picture in group.pictures] == ["0.png"]
    assert lost.startswith(f"{tmp_path}/1.png: FileNotFoundError")

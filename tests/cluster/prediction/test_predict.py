"""A prediction that is killed anywhere is finished by the same call, with exactly one row an image;
another one into the same folder is refused. The workers are in this process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, PlainError, UsageError
from cluster.prediction import overlays, pool, predict
from cluster.prediction.image_list import open_images
from cluster.prediction.plan import OtherPrediction
from cluster.runs.lease import Lease
from cluster.storage import files
from detector.operating_points import OperatingPoint, Thresholds
from tests.support.predicting import InProcess, Kill, red_picture, rows_of, snapshot, write_pictures

IMAGES = 40
"""Parts of 16, 16 and 8."""
DERIVED = (
    *("predictions.parquet", "coco_results.json", "summary.json", "summary.html"),
    "manifest.json",
)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    workers = InProcess()
    monkeypatch.setattr(pool, "run_parts", workers)
    monkeypatch.setattr(pool, "draw_overlays", workers.draw)
    return workers


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures", IMAGES)
    return tmp_path / "pictures"


@pytest.fixture
def run(package: str, pictures: Path, tmp_path: Path, workers: InProcess) -> Callable[..., Any]:
    """Calls `predict` on the pictures into `tmp_path`/out, with changes."""

    def call(images: str | None = None, **changes: Any) -> predict.Predicted:
        options = {
            "output": str(tmp_path / "out"),
            "model_version": "models:/cells/1",
            "connect": lambda: None,
            **changes,
        }
        listed = open_images(images or str(pictures))
        return predict.predict(package, listed, **options)

    return call


def test_every_image_has_one_row_in_the_order_of_the_list(
    run: Callable[..., Any], pictures: Path, tmp_path: Path, workers: InProcess
) -> None:
    (pictures / "015.png").write_bytes(red_picture()[:100])
    done = run(overlays=2)
    rows = rows_of(done.output)
    assert [row["uri"] for row in rows] == sorted(map(str, pictures.iterdir()))
    assert [row["image_id"] for row in rows] == list(range(1, IMAGES + 1))
    assert [row["status"] for row in rows] == ["error" if i == 15 else "ok" for i in range(IMAGES)]
    assert rows[15]["reason"] == "undecodable" and "truncated" in rows[15]["error"]
    # Red from x = 2 * 3 px to 100, on a canvas of the size of the picture.
    assert rows[3]["boxes"] == [[6.0, 20.0, 100.0, 60.0]] and rows[3]["names"] == ["cell"]
    assert (rows[3]["height"], rows[3]["width"]) == (96, 128)
    assert workers.parts == [0, 1, 2] and not done.reused

    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["images"], summary["ok"], summary["errors"]) == (IMAGES, IMAGES - 1, 1)
    assert summary["errors_by_reason"] == {
        "undecodable": {"count": 1, "examples": [str(pictures / "015.png")]}
    }
    found = json.loads((tmp_path / "out/coco_results.json").read_text())
    # XYWH px; the id of class `cell` in the package.
    assert found[3] == {
        "image_id": 4,
        "category_id": 7,
        "bbox": [6.0, 20.0, 94.0, 40.0],
        "score": 1.0,
    }
    assert len(found) == summary["detections_with_image_id"] == IMAGES - 1
    drawn = sorted(path.name for path in (tmp_path / "out/overlays").iterdir())
    assert drawn == ["0000-000.png.png", "0001-001.png.png"]
    assert not (tmp_path / "out/driver.json").exists()


@pytest.mark.parametrize("part", [0, 1, 2])
def test_after_a_kill_the_same_call_does_what_is_missing(
    run: Callable[..., Any], tmp_path: Path, workers: InProcess, part: int
) -> None:
    def kill(number: int) -> None:
        if number == part:
            raise Kill

    whole = snapshot(Path(run(output=str(tmp_path / "whole")).output))
    workers.parts, workers.before = [], kill
    with pytest.raises(Kill):
        run()
    workers.before = lambda number: None
    assert not (tmp_path / "out/manifest.json").exists()
    assert not run().reused
    assert workers.parts == [0, 1, 2], "no part is done twice"
    # All files are those of a run that nobody killed.
    assert snapshot(tmp_path / "out") == whole


def test_any_part_that_is_missing_is_done_again_and_no_other(
    run: Callable[..., Any], tmp_path: Path, workers: InProcess
) -> None:
    run()
    whole = snapshot(tmp_path / "out")
    for missing in range(1, 8):
        numbers = [number for number in range(3) if missing >> number & 1]
        for name in (*DERIVED, *(f"parts/part-{number:06d}.parquet" for number in numbers)):
            (tmp_path / "out" / name).unlink()
        workers.parts = []
        run()
        assert workers.parts == numbers
        assert snapshot(tmp_path / "out") == whole


@pytest.mark.parametrize("gone", DERIVED[:-1])
def test_a_kill_while_the_files_of_the_whole_are_written_needs_no_worker(
    run: Callable[..., Any], tmp_path: Path, workers: InProcess, gone: str
) -> None:
    run()
    whole = snapshot(tmp_path / "out")
    for name in (gone, "manifest.json"):
        (tmp_path / "out" / name).unlink()
    workers.parts = []
    done = run(connect=lambda: pytest.fail("Ray is not needed"))
    timing = done.summary.timing
    assert (timing.images, timing.images_before, timing.images_per_s) == (0, IMAGES, None)
    assert workers.parts == [] and snapshot(tmp_path / "out") == whole


def test_a_kill_while_the_list_is_read_keeps_the_plan(
    run: Callable[..., Any], tmp_path: Path, workers: InProcess
) -> None:
    run()
    whole = snapshot(tmp_path / "out")
    content = json.loads(whole["plan.json"])
    files.write_json(
        f"{tmp_path}/out/plan.json",
        {**content, "parts": None, "images": None, "passed_over": None},
    )
    for name in (*DERIVED, "plan/part-000002.parquet", "parts/part-000002.parquet"):
        (tmp_path / "out" / name).unlink()
    workers.parts = []
    run()
    assert workers.parts == [2] and snapshot(tmp_path / "out") == whole


def test_a_prediction_that_an_earlier_version_finished_gets_its_page(
    run: Callable[..., Any], tmp_path: Path, workers: InProcess
) -> None:
    run()
    whole = snapshot(tmp_path / "out")
    (tmp_path / "out/summary.html").unlink()
    workers.parts = []
    assert not run(connect=lambda: pytest.fail("Ray is not needed")).reused
    assert workers.parts == [] and snapshot(tmp_path / "out") == whole


def test_a_finished_prediction_is_reused(
    run: Callable[..., Any], tmp_path: Path, workers: InProcess
) -> None:
    first = run(overlays=1)
    before = snapshot(tmp_path / "out")
    again = run(overlays=1, connect=lambda: pytest.fail("Ray is not needed"))
    assert again.reused and again.summary == first.summary
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_version": "models:/cells/2"}, 'model_version is "models:/cells/2", there "models'),
        ({"max_pixels": 1000}, "max_pixels is 1000, there 100000000"),
        ({"overlays": 3}, "overlays is 3, there 0"),
        ({"category_ids": [1, None]}, r"category_ids is .1, null., there .7, 9."),
    ],
)
def test_other_settings_are_refused_with_the_fields_that_differ(
    run: Callable[..., Any], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    run()
    before = snapshot(tmp_path / "out")
    with pytest.raises(OtherPrediction, match=f"has another prediction: {said}.*--overwrite true"):
        run(**change)
    assert snapshot(tmp_path / "out") == before


def test_detections_below_the_threshold_of_their_class_are_left_out(
    run: Callable[..., Any], pictures: Path
) -> None:
    def chosen(score: float | None) -> Thresholds:
        point = None if score is None else OperatingPoint(score, 1.0, 1.0, 1.0)
        return Thresholds(None, 0.5, {"cell": point, "platelet": None})

    every = [row["scores"] for row in rows_of(run().output)]
    assert [1.0] in every
    kept = run(thresholds=chosen(1.0), overwrite=True)
    assert [row["scores"] for row in rows_of(kept.output)] == every
    assert kept.summary.validation_images is None
    with pytest.raises(OtherPrediction, match=r"thresholds is \{.*\}, there \{"):
        run(thresholds=chosen(0.5))
    with pytest.raises(OtherPrediction, match=r"thresholds is null, there \{"):
        run()
    none = run(thresholds=chosen(None), overwrite=True)
    assert {tuple(row["scores"]) for row in rows_of(none.output) if row["status"] == "ok"} == {()}


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_source_is_refused_with_the_first_objects_that_differ(
    run: Callable[..., Any], pictures: Path, tmp_path: Path, finished: bool, workers: InProcess
) -> None:
    def kill(number: int) -> None:
        if number == 2:
            raise Kill

    if not finished:
        workers.before = kill
        with pytest.raises(Kill):
            run()
        workers.before = lambda number: None
    else:
        run()
    (pictures / "020.png").rename(pictures / "020b.png")
    with pytest.raises(OtherPrediction) as refused:
        run()
    assert f"{pictures}/020.png is not there any more" in str(refused.value)
    assert f"{pictures}/020b.png is new" in str(refused.value)
    (pictures / "020b.png").rename(pictures / "020.png")
    (pictures / "039.png").write_bytes(red_picture() + b"more")
    with pytest.raises(OtherPrediction, match="039.png has another size, changed"):
        run()
    (pictures / "039.png").unlink()
    with pytest.raises(OtherPrediction, match="039.png is not there any more"):
        run()


def test_overwrite_starts_over_and_leaves_other_files(
    run: Callable[..., Any], pictures: Path, tmp_path: Path, workers: InProcess
) -> None:
    run(overlays=3)
    (tmp_path / "out/mine.txt").write_text("mine")
    (pictures / "039.png").unlink()
    workers.parts = []
    done = run(overwrite=True, overlays=1)
    assert workers.parts == [0, 1, 2] and len(rows_of(done.output)) == IMAGES - 1
    assert len(list((tmp_path / "out/overlays").iterdir())) == 1
    assert (tmp_path / "out/mine.txt").read_text() == "mine"


def test_folders_of_the_user_are_not_taken_for_results(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "out/parts").mkdir(parents=True)
    (tmp_path / "out/parts/screw.step").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds parts/ without plan.json"):
            run(overwrite=overwrite)
    assert (tmp_path / "out/parts/screw.step").read_text() == "mine"


def test_results_of_an_earlier_version_are_not_replaced(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/summary.json").write_text("{}")
    with pytest.raises(UsageError, match="holds summary.json of a prediction that this version"):
        run()
    run(overwrite=True)


def test_a_second_driver_is_refused_and_the_first_is_named(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.runs import lease

    first = lease.this_process()
    with Lease(str(tmp_path / "out"), lambda why: None):
        # Seen from another process on this machine.
        monkeypatch.setattr(lease, "this_process", lambda: lease.replace(first, pid=1, started=0.0))
        with pytest.raises(UsageError, match="has predicted into it since .*another --output"):
            run()


def test_a_part_of_another_prediction_is_found(run: Callable[..., Any], tmp_path: Path) -> None:
    run()
    run(output=str(tmp_path / "other"), model_version="models:/cells/2")
    part = "parts/part-000001.parquet"
    (tmp_path / "out" / part).write_bytes((tmp_path / "other" / part).read_bytes())
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(PlainError, match="part-000001.parquet: has 16 rows of another prediction"):
        run()


def test_a_part_of_other_images_is_found(
    run: Callable[..., Any], pictures: Path, tmp_path: Path
) -> None:
    """Such as the last part of a worker whose driver was killed, after a start-over."""
    run()
    part = tmp_path / "out/parts/part-000001.parquet"
    former = part.read_bytes()
    (pictures / "000.png").unlink()
    run(overwrite=True)
    part.write_bytes(former)
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(DataError, match="part-000001.parquet: has 16 rows of another prediction"):
        run()
    part.unlink()
    assert len(rows_of(run().output)) == IMAGES - 1


def test_ids_and_images_without_one(run: Callable[..., Any], pictures: Path) -> None:
    done = run(ids={f"{pictures}/002.png": 17})
    assert [row["image_id"] for row in rows_of(done.output)][:4] == [None, None, 17, None]
    found = files.read_json(f"{done.output}/coco_results.json")
    assert [entry["image_id"] for entry in found] == [17]
    assert done.summary.detections_with_image_id == 1


def test_further_columns_are_carried_through(
    run: Callable[..., Any], pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "some.csv").write_text("site,uri\nnorth,pictures/003.png\nsouth,pictures/no.png\n")
    rows = rows_of(run(str(tmp_path / "some.csv")).output)
    assert [(row["site"], row["status"], row["reason"]) for row in rows] == [
        ("north", "ok", None),
        ("south", "error", "missing"),
    ]
    assert f"{pictures}/no.png: there is no such file" in rows[1]["error"]


def test_pictures_that_cannot_be_drawn_cost_no_result(
    run: Callable[..., Any], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: bytes, **_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(overlays, "decode_image", fail)
    done = run(overlays=None)
    assert len(done.summary.not_drawn) == IMAGES
    assert done.summary.not_drawn[0] == f"{pictures}/000.png: OSError: no room"
    page = Path(done.output, "summary.html").read_text()
    assert f"Overlays could not be drawn, such as {pictures}/000.png" in page


def test_a_kill_while_overlays_are_drawn_leaves_those_of_a_run_that_nobody_killed(
    run: Callable[..., Any],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 18
    (pictures / "003.png").write_bytes(b"no picture")
    whole = snapshot(Path(run(output=str(tmp_path / "whole"), overlays=count).output))
    drawn = sorted(name for name in whole if name.startswith("overlays/"))
    # Images that cannot be read have no number.
    assert len(drawn) == count and drawn[3] == "overlays/0003-004.png.png"
    decode, left = overlays.decode_image, [7]

    def kill(data: bytes, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Kill
        return decode(data, **options)

    monkeypatch.setattr(overlays, "decode_image", kill)
    with pytest.raises(Kill):
        run(overlays=count)
    assert len(list((tmp_path / "out/overlays").iterdir())) == 7
    # What is drawn is not drawn again.
    left[0] = count - 7
    run(overlays=count)
    assert snapshot(tmp_path / "out") == whole


def test_a_long_name_leaves_room_for_a_number() -> None:
    assert overlays.short_name("\u00e9" * 125 + ".png") == "\u00e9" * 100

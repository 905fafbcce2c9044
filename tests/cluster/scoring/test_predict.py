from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import DataError
from cluster.loading import datasets
from cluster.scoring import actors
from cluster.scoring.actors import Scored
from cluster.scoring.predict import list_images, predict


def test_a_folder_without_a_picture_is_refused_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no picture below it .it is empty.; check the folder"):
        list_images(str(tmp_path))
    for name in ("notes.txt", "a.heic", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r".1 x a hidden file .*; 1 x a .heic picture.* .txt file"):
        list_images(str(tmp_path))
    (tmp_path / "a.PNG").write_bytes(b"")
    assert list_images(str(tmp_path)).uris == [f"{tmp_path}/a.PNG"]


def test_a_loop_of_links_repeats_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list_images(str(tmp_path)).uris == [f"{tmp_path}/a.png"]


def test_a_single_picture_is_a_list_of_one(tmp_path: Path) -> None:
    picture, other = tmp_path / "a", tmp_path / "b.jpg"
    Image.new("RGB", (60, 40)).save(picture, "PNG")
    assert list_images(str(picture)).uris == [str(picture)]
    other.write_text("no picture")
    with pytest.raises(DataError, match=r"b.jpg: is a file and no picture that can be read"):
        list_images(str(other))


class Batches:
    """A scored dataset that is one table."""

    def __init__(self, table: pa.Table):
        self.table = table

    def iter_batches(self, **_: object) -> list[pa.Table]:
        return [self.table]


def scored_as(monkeypatch: pytest.MonkeyPatch, uris: list[str], rows: list[Scored]) -> None:
    """In place of the network: these rows for these files."""
    table = pa.Table.from_pylist(
        [{"uri": uri, **vars(row)} for uri, row in zip(uris, rows, strict=True)],
        schema=pa.schema([pa.field("uri", pa.string()), *actors.SCORED]),
    )
    monkeypatch.setattr(datasets, "file_rows", lambda uris, workers: None)
    monkeypatch.setattr(actors, "score", lambda *_, **__: Batches(table))


def test_files_and_summary_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, folder = tmp_path / "package", tmp_path / "out"
    package.mkdir()
    classes = [{"label": 0, "id": 7, "name": "cell"}, {"label": 1, "id": 9, "name": "platelet"}]
    (package / "classes.json").write_text(json.dumps(classes))
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    uris = [f"{tmp_path}/a.png", f"{tmp_path}/broken.png", f"{tmp_path}/unnamed.png"]
    detected = Scored("ok", None, 40, 60, ((10.0, 5.0, 30.0, 25.0),), (0.75,), (1,), ("platelet",))
    rows = [detected, Scored("error", "it cannot be decoded"), detected]
    scored_as(monkeypatch, uris, rows)

    summary = predict(
        str(package),
        uris,
        str(folder),
        model_version="models:/cells/1",
        ids={uris[0]: 17},
        category_ids=[7, 9],
        passed_over={"a .txt file": 3},
        overlays=1,
        workers=1,
        cpus_per_worker=1,
    )

    stored = json.loads((folder / "summary.json").read_text())
    assert (summary.images, summary.ok, summary.errors) == (3, 2, 1)
    assert stored["first_errors"] == [f"{uris[1]}: it cannot be decoded"]
    assert stored["detections_with_image_id"] == summary.detections_with_image_id == 1
    # XYWH with the data set's own category id; the file without an id is not in it.
    assert json.loads((folder / "coco_results.json").read_text()) == [
        {"image_id": 17, "category_id": 9, "bbox": [10.0, 5.0, 20.0, 20.0], "score": 0.75}
    ]
    predictions = pq.read_table(folder / "predictions.parquet")
    assert predictions.column_names == ["uri", *actors.SCORED.names, "model_version"]
    assert predictions["uri"].to_pylist() == uris
    assert [path.name for path in (folder / "overlays").iterdir()] == ["0000-a.png.png"]
    assert stored["not_drawn"] == []


def test_results_are_complete_when_a_picture_cannot_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name as long as file systems take leaves no room for a number; a file that is gone by then
    cannot be drawn.
    """
    package, folder, pictures = tmp_path / "package", tmp_path / "out", tmp_path / "pictures"
    package.mkdir()
    pictures.mkdir()
    (package / "classes.json").write_text(json.dumps([{"label": 0, "id": 7, "name": "cell"}]))
    long = "\u00e9" * 125 + ".png"
    Image.new("RGB", (1, 3000)).save(pictures / "strip.png")
    Image.new("RGB", (60, 40)).save(pictures / "a.png")
    (pictures / "a.png").rename(pictures / long)
    uris = [f"{pictures}/gone.png", f"{pictures}/strip.png", f"{pictures}/{long}"]
    detected = Scored("ok", None, 40, 60, ((1.0, 5.0, 3.0, 25.0),), (0.75,), (0,), ("cell",))
    scored_as(monkeypatch, uris, [detected] * len(uris))
    summary = predict(
        str(package),
        uris,
        str(folder),
        model_version="models:/cells/1",
        ids={uri: number for number, uri in enumerate(uris)},
        category_ids=[7],
        passed_over={},
        overlays=3,
        workers=1,
        cpus_per_worker=1,
    )
    assert pq.read_table(folder / "predictions.parquet").num_rows == 3
    assert len(json.loads((folder / "coco_results.json").read_text())) == 3
    (line,) = summary.not_drawn
    assert line.startswith(f"{uris[0]}: FileNotFoundError")
    drawn = sorted(path.name for path in (folder / "overlays").iterdir())
    assert drawn == ["0001-strip.png.png", "0002-" + "\u00e9" * 100 + ".png"]
    # Of 1 x 3000 px: 32 inches of picture and not 24,000.
    with Image.open(folder / "overlays" / drawn[0]) as strip:
        assert strip.height < 90 * 33


def test_links_that_lead_nowhere_and_pipes_are_listed(tmp_path: Path) -> None:
    """Each is a row with an error then, like other pictures that cannot be read."""
    (tmp_path / "a.jpg").symlink_to("gone")
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "notes")
    found = list_images(str(tmp_path))
    assert found.uris == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.png"]
    assert found.passed_over == {"neither a file nor a folder: a pipe, a socket or a device": 1}

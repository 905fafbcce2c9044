from __future__ import annotations

import pytest

from cluster.errors import DataError
from cluster.scoring.predict import image_ids, list_images


def test_image_ids_are_those_of_the_json_or_numbers_from_one() -> None:
    uris = ["s3://b/pictures/a.jpg", "s3://b/pictures/below/b.jpg"]
    assert image_ids(uris, "s3://b/pictures", None) == {uris[0]: 1, uris[1]: 2}
    annotations = {"images": [{"file_name": "below/b.jpg", "id": 17}, {"file_name": "c", "id": 3}]}
    # Files that the JSON does not name have no id.
    assert image_ids(uris, "s3://b/pictures/", annotations) == {uris[1]: 17}


def test_images_are_listed_by_suffix_and_sorted(tmp_path) -> None:
    with pytest.raises(DataError, match="no image below it .looked for .jpg"):
        list_images(str(tmp_path))
    (tmp_path / "below").mkdir()
    for name in ("b.PNG", "a.jpg", "notes.txt", "below/c.webp"):
        (tmp_path / name).write_bytes(b"")
    assert list_images(str(tmp_path)) == sorted(
        f"{tmp_path}/{name}" for name in ("a.jpg", "b.PNG", "below/c.webp")
    )

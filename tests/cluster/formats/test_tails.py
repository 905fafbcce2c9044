from __future__ import annotations

import pytest

from cluster.formats.tails import Tails


@pytest.mark.parametrize(
    ("path", "files", "meant"),
    [
        ("data/a.jpg", ["a.jpg", "b.jpg"], "a.jpg"),
        ("data/x/a.jpg", ["x/a.jpg", "y/a.jpg", "a.jpg"], "x/a.jpg"),
        ("data/x/a.jpg", ["train/x/a.jpg", "train/y/a.jpg"], "train/x/a.jpg"),
        # The longest end counts, also where the name alone is a file.
        ("data/x/a.jpg", ["a.jpg", "train/x/a.jpg"], "train/x/a.jpg"),
        # Of two equal ends, that which is a whole name.
        ("data/x/a.jpg", ["x/a.jpg", "train/x/a.jpg"], "x/a.jpg"),
        ("data/x/a.jpg", ["val/x/a.jpg", "train/x/a.jpg"], None),
        # A number alone may be another picture.
        ("data/val/1.jpg", ["train/1.jpg"], None),
        ("1.jpg", ["train/1.jpg"], "train/1.jpg"),
        ("1.jpg", ["train/1.jpg", "val/1.jpg"], None),
        ("data/bär.jpg", ["ba\u0308r.jpg"], "ba\u0308r.jpg"),
        ("data/A.jpg", ["a.jpg"], None),
        ("data/a.jpg", [".hidden/a.jpg", "._a.jpg"], None),
        ("data/a.jpg", [], None),
    ],
)
def test_the_file_that_a_path_means(path: str, files: list[str], meant: str | None) -> None:
    assert Tails(files).find(path) == meant
    assert Tails(files).match([path]) == ({path: meant} if meant else {})
    assert meant is None or Tails(files).match([path], taken={meant}) == {}


def test_a_file_belongs_to_the_path_that_shares_more_with_it() -> None:
    tails = Tails(["val/1.jpg", "2.jpg"])
    paths = ["home/ann/val/1.jpg", "1.jpg", "x/2.jpg", "y/2.jpg", "y/2.jpg"]
    assert tails.match(paths) == {"home/ann/val/1.jpg": "val/1.jpg"}
    assert tails.match(["y/2.jpg", "y/2.jpg"]) == {"y/2.jpg": "2.jpg"}


def test_a_similar_file_is_a_hint() -> None:
    tails = Tails(["train/A.PNG", "val/a.png", "b.png"])
    assert tails.similar("data/val/a.png") == "val/a.png"
    assert tails.similar("TRAIN/a.png") == "train/A.PNG"
    assert tails.similar("c.png") is None

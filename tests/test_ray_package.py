"""What travels with a Ray job of the checkout: its source."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[1]


def test_source_travels_and_nothing_else_that_lies_in_the_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for room in ("cluster", "detector", "pipelines", "tune"):
        shutil.copytree(ROOT / room, checkout / room)
    for name in (".rayignore", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, checkout / name)
    (checkout / "mine.yaml").write_text("training: {epochs: 1}\n")
    source = {
        path.relative_to(checkout).as_posix()
        for path in checkout.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in (
        *(".env", "data/train/a.jpg", "coco/annotations.json", "venv/bin/python", "a.safetensors"),
        *(".git/config", "runs/mlflow.db", "tests/test_a.py", "cluster/__pycache__/a.pyc", "k.pem"),
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    (checkout / "pictures").symlink_to(tmp_path)
    (checkout / "around").symlink_to(checkout)
    packed = tmp_path / "packed.zip"
    create_package(str(checkout), packed, include_gitignore=True)
    with zipfile.ZipFile(packed) as made:
        names = {name for name in made.namelist() if not name.endswith("/")}
    assert names == source - {".rayignore", "README.md"}

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, UsageError
from cluster.workflow import stages
from cluster.workflow.stages import Finished, Results, Stage


def noting(calls: list[str]) -> Any:
    """Work that notes its folder and writes one file there."""

    def work(folder: str, results: Results) -> dict[str, Any]:
        calls.append(folder)
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "out.txt").write_text("x")
        return {"answer": 42}

    return work


def train_stage(call: Any, *, outputs: tuple[str, ...] = (), **identity: Any) -> Stage:
    return Stage("train", "runs", (), lambda results: identity, outputs, call)


def test_a_finished_stage_is_reused_until_its_identity_changes(tmp_path: Path) -> None:
    calls: list[str] = []
    lines: list[str] = []

    def run(**identity: Any) -> Finished:
        stage = train_stage(noting(calls), outputs=("out.txt",), **identity)
        return stages.run_or_reuse(stage, {}, root=str(tmp_path), name="cells", say=lines.append)

    first, again, other = run(rate=1, seed=0), run(seed=0, rate=1), run(rate=2, seed=0)
    assert (first.reused, again.reused, other.reused) == (False, True, False)
    assert calls == [first.folder, other.folder] and first.folder == again.folder == str(
        tmp_path / f"runs/cells-{first.fingerprint[:8]}"
    )
    assert again.values == first.values == {"answer": 42}
    assert (
        lines[1].startswith("[train] done in ")
        and lines[2] == f"[train] reused (fingerprint {first.fingerprint[:8]}) {first.folder}"
    )
    manifest = json.loads((Path(first.folder) / "stage.json").read_text())
    assert (
        manifest["identity"] == {"rate": 1, "seed": 0}
        and manifest["stage"] == "train"
        and manifest["fingerprint"] == first.fingerprint
    )


def test_the_fingerprint_follows_the_inputs_and_not_their_folders() -> None:
    one, two = Finished("a" * 64, "/one", {}), Finished("b" * 64, "/two", {})
    base = stages.fingerprint("train", {"rate": 1}, [one, two])
    assert base == stages.fingerprint(
        "train", {"rate": 1}, [Finished("a" * 64, "s3://elsewhere", {"other": 1}, True), two]
    )
    others = [
        stages.fingerprint("train", {"rate": 1}, [two, one]),
        stages.fingerprint("train", {"rate": 1}, [one]),
        stages.fingerprint("evaluate", {"rate": 1}, [one, two]),
        stages.fingerprint("train", {"rate": 2}, [one, two]),
    ]
    assert len({base, *others}) == 5


def test_a_stage_that_failed_continues_in_the_same_folder(tmp_path: Path) -> None:
    calls: list[str] = []

    def fail(folder: str, results: Results) -> None:
        calls.append(folder)
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        stages.run_or_reuse(train_stage(fail), {}, root=str(tmp_path), name="cells")
    assert not list(tmp_path.rglob("stage.json"))
    again = train_stage(noting(calls))
    assert not stages.run_or_reuse(
        again, {}, root=str(tmp_path), name="cells", say=lambda _: None
    ).reused
    assert calls[0] == calls[1]


def test_a_stage_whose_outputs_are_gone_runs_again(tmp_path: Path) -> None:
    calls: list[str] = []
    lines: list[str] = []
    elsewhere = tmp_path / "store.db"
    elsewhere.touch()

    def gone(folder: str, values: stages.Values) -> str | None:
        assert values == {"answer": 42}
        return None if elsewhere.exists() else f"{elsewhere} of {folder}"

    def run() -> Finished:
        stage = replace(train_stage(noting(calls), outputs=("out.txt",)), gone=gone)
        return stages.run_or_reuse(stage, {}, root=str(tmp_path), name="m", say=lines.append)

    folder = run().folder
    assert run().reused
    (Path(folder) / "out.txt").unlink()
    assert not run().reused and f"{folder}/out.txt is gone" in lines[-2]
    elsewhere.unlink()
    assert not run().reused and f"{elsewhere} of {folder} is gone, running" in lines[-2]
    assert len(calls) == 3


def test_digests_follow_the_content_and_not_the_path(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep/1.jpg").write_bytes(b"1234")
    assert stages.digest_of_folder(str(tmp_path / "a")) == stages.digest_of_folder(
        str(tmp_path / "b") + "/"
    )
    assert stages.digest_of_file(str(tmp_path / "a/deep/1.jpg")) == stages.digest_of_file(
        str(tmp_path / "b/deep/1.jpg")
    )
    (tmp_path / "b/deep/1.jpg").write_bytes(b"12345")
    assert stages.digest_of_folder(str(tmp_path / "a")) != stages.digest_of_folder(
        str(tmp_path / "b")
    )
    assert stages.digest_of_file(str(tmp_path / "a/deep/1.jpg")) != stages.digest_of_file(
        str(tmp_path / "b/deep/1.jpg")
    )
    for digest in (stages.digest_of_file, stages.digest_of_folder):
        with pytest.raises(UsageError, match="there is no such file or folder"):
            digest(str(tmp_path / "nothing"))

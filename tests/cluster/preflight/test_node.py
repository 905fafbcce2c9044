"""What a node measures of itself, and of the storage."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cluster.preflight import node
from cluster.preflight.node import Graphics
from cluster.preflight.storage_speed import FOLDER, StorageSpeed, marked, measure_storage
from cluster.storage import publish


def test_this_machine_says_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with marked(str(tmp_path)) as marker:
        report = node.measure("here", str(tmp_path), marker)
    assert report.packages["ray"] and report.packages["pydantic-settings"]
    assert report.token and 0 < report.disk.free <= report.disk.total
    assert isinstance(report.storage, StorageSpeed) and report.storage.first_writer_wins
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


@pytest.mark.parametrize(
    ("script", "graphics"),
    [
        (
            "echo 'NVIDIA L4, 580.95.05'; echo 'NVIDIA L4, 580.95.05'",
            Graphics(("NVIDIA L4", "NVIDIA L4"), "580.95.05"),
        ),
        ("echo 'NVIDIA-SMI has failed because it could not communicate'; exit 9", None),
        ("exec sleep 60", None),
    ],
    ids=["two", "no driver", "hangs"],
)
def test_gpus_are_those_of_nvidia_smi(
    script: str, graphics: Graphics | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(node, "NVIDIA_SMI_S", 0.5 if "sleep" in script else 20.0)
    assert node.read_graphics() == graphics


def test_a_bucket_is_measured_and_left_as_it_was(bucket: str) -> None:
    from cluster.storage import files

    with marked(f"{bucket}/store") as marker:
        speed = measure_storage(f"{bucket}/store", marker, node="here")
    assert isinstance(speed, StorageSpeed) and speed.first_writer_wins
    assert min(speed.list_s, speed.write_rate, speed.read_rate) > 0
    assert not files.list_files(f"{bucket}/store")


def test_a_missing_bucket_and_a_disk_of_its_own_are_said_in_words(s3: str, tmp_path: Path) -> None:
    with marked("s3://no-such-bucket/store") as marker:
        assert marker == ""
        said = measure_storage("s3://no-such-bucket/store", marker, node="here")
    assert isinstance(said, str) and "there is no bucket" in said
    said = measure_storage(str(tmp_path), "written-elsewhere", node="10.0.0.7")
    assert isinstance(said, str)
    assert "10.0.0.7 does not see what the driver wrote there; give --storage s3://" in said


def test_a_wrong_key_is_said_in_words(
    bucket: str, checks_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    said = measure_storage(f"{bucket}/store", "", node="here")
    assert isinstance(said, str)
    assert "does not know this access key; check AWS_ACCESS_KEY_ID" in said
    assert "verysecret" not in said


def test_a_store_in_which_the_second_writer_wins_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.storage import files

    def overwrite(uri: str, data: bytes) -> bool:
        files.write_bytes(uri, data)
        return True

    monkeypatch.setattr(publish, "write_once", overwrite)
    speed = measure_storage(str(tmp_path), "", node="here")
    assert isinstance(speed, StorageSpeed) and not speed.first_writer_wins
    assert (tmp_path / FOLDER).is_dir()

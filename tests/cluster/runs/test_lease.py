"""A run has one driver: a second one is refused with the name of the first, and the run of a dead
driver is free.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from cluster.errors import DataError, UsageError
from cluster.runs import lease, run_folder
from cluster.runs.lease import DRIVER, Lease, LeaseRecord, read_record, refuse_held, this_process
from cluster.storage import files


def ignore(reason: str) -> None:
    raise AssertionError(reason)


def other_record(**process: object) -> LeaseRecord:
    return LeaseRecord(
        driver="gpu-7 (pid 12)",
        since="2026-01-02 03:04:05 UTC",
        process=replace(this_process(), **process),
        token="its own",
        beat=3,
    )


def leave(run: str, record: LeaseRecord) -> None:
    """The file that a driver leaves behind when it is killed."""
    run_folder.write(run, DRIVER, record.to_json())


def other_process() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_a_run_is_free_before_and_after_a_lease_and_taken_during_it(tmp_path: Path) -> None:
    run = str(tmp_path)
    refuse_held(run)
    with Lease(run, ignore):
        record = read_record(run)
        assert record is not None
        assert record.driver.endswith(f"(pid {os.getpid()})") and record.beat == 0
        assert record.process == this_process()
        # The same process may start the run again.
        refuse_held(run)
    assert read_record(run) is None


def test_a_file_of_the_version_before_is_read(tmp_path: Path) -> None:
    content = {
        "driver": "gpu-7 (pid 12)",
        "since": "2026-01-02 03:04:05 UTC",
        "process": {**asdict(this_process()), "host": "elsewhere"},
        "token": "its own",
        "beat": 3,
    }
    files.write_json(f"{tmp_path}/{DRIVER}", content)
    record = read_record(str(tmp_path))
    assert record == other_record(host="elsewhere") and record.to_json() == content
    files.write_json(f"{tmp_path}/{DRIVER}", {**content, "later": 1})
    assert read_record(str(tmp_path)) == record


@pytest.mark.parametrize("content", [{}, {"driver": "a"}, {"process": 7}])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, content: object) -> None:
    files.write_json(f"{tmp_path}/{DRIVER}", content)
    with pytest.raises(DataError, match=f"{tmp_path}/driver.json: is damaged .*; delete it"):
        refuse_held(str(tmp_path))


def test_a_living_process_of_this_machine_is_named_at_once(tmp_path: Path) -> None:
    run, other = str(tmp_path), other_process()
    with other:
        started = psutil.Process(other.pid).create_time()
        leave(run, other_record(pid=other.pid, started=started))
        message = r"gpu-7 \(pid 12\) has trained it since 2026-01-02 03:04:05 UTC; wait for its end"
        with pytest.raises(UsageError, match=message):
            Lease(run, ignore).__enter__()
        # The start is computed from a clock that may be adjusted by less than a second.
        leave(run, other_record(pid=other.pid, started=started + 0.9))
        with pytest.raises(UsageError, match=message):
            refuse_held(run)
        # A start one second apart is another process with the same id.
        for difference in (1, -1):
            leave(run, other_record(pid=other.pid, started=started + difference))
            refuse_held(run)
        leave(run, other_record(pid=other.pid, started=started))
        other.kill()
        # A killed process stays a zombie until its parent asks for its status.
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            threading.Event().wait(0.01)
        refuse_held(run)
    # Now the process id is unknown.
    refuse_held(run)


class Clock:
    """Time passes in `sleep` alone. `at_second` runs when that second has passed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, second: int, at_second) -> None:
        self.elapsed, self.second, self.at_second = 0.0, second, at_second
        monkeypatch.setattr(lease.time, "sleep", self.sleep)
        monkeypatch.setattr(lease.time, "monotonic", lambda: 1000 + self.elapsed)

    def sleep(self, duration: float) -> None:
        self.elapsed += duration
        if self.elapsed == self.second:
            self.at_second()


ELSEWHERE = pytest.mark.parametrize(
    "process", [{"host": "elsewhere"}, {"boot": "earlier"}, {"table": "of a container"}]
)


@ELSEWHERE
def test_a_driver_elsewhere_that_renews_its_record_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    process: dict[str, str],
) -> None:
    run, record = str(tmp_path), other_record(**process)
    leave(run, record)
    clock = Clock(monkeypatch, 3, lambda: leave(run, replace(record, beat=4)))
    with pytest.raises(UsageError, match="gpu-7"):
        refuse_held(run)
    assert clock.elapsed == 3
    assert capsys.readouterr().err == (
        f"{run} may belong to gpu-7 (pid 12); watching up to 30 s whether that driver is alive\n"
    )


def test_a_driver_elsewhere_that_renews_in_the_last_second_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, record = str(tmp_path), other_record(host="elsewhere")
    leave(run, record)
    Clock(monkeypatch, 30, lambda: leave(run, replace(record, beat=4)))
    with pytest.raises(UsageError, match="gpu-7"):
        refuse_held(run)


@ELSEWHERE
def test_a_driver_elsewhere_that_stays_silent_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: dict[str, str]
) -> None:
    leave(str(tmp_path), other_record(**process))
    clock = Clock(monkeypatch, 0, lambda: None)
    refuse_held(str(tmp_path))
    assert clock.elapsed == 30


def test_a_driver_elsewhere_that_ends_frees_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(str(tmp_path), other_record(host="elsewhere"))
    clock = Clock(monkeypatch, 3, lambda: files.delete_file(f"{tmp_path}/{DRIVER}"))
    refuse_held(str(tmp_path))
    assert clock.elapsed == 3


def test_of_two_drivers_that_start_together_the_overwritten_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other driver writes between this one's write and its check; or its file is gone again."""
    run, write = str(tmp_path), run_folder.write

    def write_and_lose(run: str, name: str, content: dict) -> None:
        write(run, name, content)
        write(run, name, other_record(host="elsewhere").to_json())

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write", write_and_lose)
        with pytest.raises(UsageError, match=r"gpu-7 \(pid 12\) has trained it since 2026"):
            Lease(run, ignore).__enter__()
    files.delete_file(f"{run}/{DRIVER}")
    monkeypatch.setattr(run_folder, "write", lambda *_: None)
    with pytest.raises(UsageError, match="another driver has trained it since just now"):
        Lease(run, ignore).__enter__()


def test_a_driver_whose_file_is_overwritten_ends_and_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    run, lost, reasons = str(tmp_path), threading.Event(), []

    def lose(reason: str) -> None:
        reasons.append(reason)
        lost.set()

    with Lease(run, lose) as own:
        leave(run, other_record(host="elsewhere"))
        assert lost.wait(30)
        own._thread.join(30)
    assert reasons == [
        f"{run}: gpu-7 (pid 12) has trained it since 2026-01-02 03:04:05 UTC, this driver ends"
    ]
    assert read_record(run) == other_record(host="elsewhere")


def beats(run: str, count: int) -> list[int]:
    """The next `count` different beats in the file."""
    seen: list[int] = []
    while len(seen) < count:
        record = read_record(run)
        if record is not None and record.beat not in seen:
            seen.append(record.beat)
    return seen


def test_the_beat_grows_and_a_deleted_file_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    with Lease(str(tmp_path), ignore):
        files.delete_file(f"{tmp_path}/{DRIVER}")
        seen = beats(str(tmp_path), 3)
        assert seen == sorted(seen)


def test_every_beat_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    written, write, enough = [], run_folder.write, threading.Event()

    def record(run: str, name: str, content: dict) -> None:
        write(run, name, content)
        written.append(content["beat"])
        if len(written) == 4:
            enough.set()

    monkeypatch.setattr(run_folder, "write", record)
    with Lease(str(tmp_path), ignore):
        assert enough.wait(30)
    assert written[:4] == [0, 1, 2, 3]


def test_a_file_that_is_deleted_already_at_the_end_is_no_error(tmp_path: Path) -> None:
    with Lease(str(tmp_path), ignore):
        files.delete_file(f"{tmp_path}/{DRIVER}")
    assert read_record(str(tmp_path)) is None


def test_several_beats_fit_into_the_silence_that_counts_as_death() -> None:
    # A driver renews every 5 s, and one slow write or read must not make it look dead.
    assert lease.BEAT_S == 5 and lease.SILENT_S >= 5 * lease.BEAT_S


def test_an_unreachable_storage_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    failed = threading.Semaphore(0)

    def fail(*_: object) -> None:
        failed.release()
        raise OSError("the storage is unreachable")

    with Lease(str(tmp_path), ignore):
        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "read", fail)
            for _ in range(3):
                assert failed.acquire(timeout=30)
        beats(str(tmp_path), 2)


@pytest.mark.parametrize("ended", [True, False])
def test_a_renewal_that_outlives_the_lease_ends_quietly_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """The end of Python closes the client of the storage under it, which is no storage error."""
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    raised: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda given: raised.append(given.exc_value))
    held = Lease(str(tmp_path), ignore)
    write = held._write

    def closed(beat: int) -> None:
        if beat == 0:
            return write(beat)
        if ended:
            held._stopped.set()
        raise ValueError("S3 subsystem is finalized")

    monkeypatch.setattr(held, "_write", closed)
    with held:
        held._thread.join()
    assert len(raised) == (0 if ended else 1)


def test_a_file_that_cannot_be_deleted_at_the_end_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(str(tmp_path), ignore):

        def fail(*_: object) -> None:
            raise OSError("the storage is unreachable")

        monkeypatch.setattr(files, "delete_file", fail)
    assert read_record(str(tmp_path)) is not None


def test_a_trial_waits_for_the_end_of_the_process_that_had_its_run(tmp_path: Path) -> None:
    """Ray ends the processes of a killed driver a moment later."""
    run = str(tmp_path)
    lease.wait_until_free(run)
    with other_process() as ending:
        started = psutil.Process(ending.pid).create_time()
        leave(run, other_record(pid=ending.pid, started=started))
        waiting = threading.Thread(target=lease.wait_until_free, args=(run,))
        waiting.start()
        # While the other one lives, the wait does not end.
        assert waiting.is_alive()
        ending.kill()
        ending.wait()
        waiting.join()
    refuse_held(run)


def test_a_process_that_stays_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENT_S", 0.0)
    with other_process() as living:
        started = psutil.Process(living.pid).create_time()
        leave(str(tmp_path), other_record(pid=living.pid, started=started))
        lease.wait_until_free(str(tmp_path))
        with pytest.raises(UsageError):
            refuse_held(str(tmp_path))
        living.kill()

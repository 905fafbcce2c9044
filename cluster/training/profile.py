"""A torch profile of some steps, put into the run's folder."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import torch

from cluster.errors import PlainError
from cluster.runs.training_config import PROFILE_AFTER
from cluster.storage import files
from cluster.storage.uris import join


def record(steps: int, on_profile: Callable[[Any], None]) -> torch.profiler.profile:
    """A running profiler that lets `PROFILE_AFTER` steps pass, records `steps` and hands itself to
    `on_profile`.
    """
    schedule = torch.profiler.schedule(wait=PROFILE_AFTER - 1, warmup=1, active=steps, repeat=1)
    profiler = torch.profiler.profile(
        schedule=schedule, on_trace_ready=on_profile, record_shapes=True, acc_events=True
    )
    profiler.start()
    return profiler


def publish_profile(
    profiler: Any, run: str, images_seen: int, *, steps: int, tell: Callable[..., None]
) -> threading.Thread:
    """Put a trace for chrome://tracing or ui.perfetto.dev, and a table of the operations by time,
    into the run's folder, and tell its URI. A thread does that, to be joined before the process
    ends: no step waits for storage, and where that fails the run does without.
    """
    uri = join(run, "profile", f"images-{images_seen:012d}")

    def publish() -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="profile-") as folder:
                profiler.export_chrome_trace(os.path.join(folder, "trace.json.gz"))
                averages = profiler.key_averages()
                by = (
                    "self_device_time_total"
                    if any(entry.self_device_time_total for entry in averages)
                    else "self_cpu_time_total"
                )
                with open(os.path.join(folder, "operations.txt"), "w", encoding="utf-8") as file:
                    file.write(averages.table(sort_by=by, row_limit=40))
                files.upload_folder(folder, uri)
        except (PlainError, OSError) as error:
            tell("warning", text=f"the profile is not in storage, training goes on: {error}")
        else:
            tell("profile", uri=uri, steps=steps)

    thread = threading.Thread(target=publish, name="profile", daemon=True)
    thread.start()
    return thread

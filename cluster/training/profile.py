"""A torch profile of some steps, stored in the run's folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import torch

from cluster.errors import PlainError
from cluster.runs.events import ProfileStored, Tell, TrainingWarning
from cluster.runs.training_config import PROFILE_AFTER
from cluster.storage import files, uris
from cluster.storage.scratch import scratch_folder


def start_profiler(
    steps: int, on_profile: Callable[[torch.profiler.profile], None]
) -> torch.profiler.profile:
    """A running profiler that skips `PROFILE_AFTER` steps, records `steps` and passes itself to
    `on_profile`.
    """
    schedule = torch.profiler.schedule(wait=PROFILE_AFTER - 1, warmup=1, active=steps, repeat=1)
    profiler = torch.profiler.profile(
        schedule=schedule, on_trace_ready=on_profile, record_shapes=True, acc_events=True
    )
    profiler.start()
    return profiler


class ProfilePublisher:
    """Stores a trace for chrome://tracing or ui.perfetto.dev, and a table of the operations by
    time, in the run's folder, and tells their URI.

    A thread does it, so that no step waits for storage. If storage fails the run does without the
    profile.
    """

    def __init__(self, run: str, *, steps: int, images_seen: Callable[[], int], tell: Tell):
        self._run, self._steps, self._images_seen, self._tell = run, steps, images_seen, tell
        self._thread: threading.Thread | None = None

    def __call__(self, profiler: torch.profiler.profile) -> None:
        uri = uris.join(self._run, "profile", f"images-{self._images_seen():012d}")
        self._thread = threading.Thread(
            target=self._publish, args=(profiler, uri), name="profile", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until a profile that was begun is stored."""
        if self._thread is not None:
            self._thread.join()

    def _publish(self, profiler: torch.profiler.profile, uri: str) -> None:
        try:
            with scratch_folder("profile") as folder:
                profiler.export_chrome_trace(os.path.join(folder, "trace.json.gz"))
                averages = profiler.key_averages()
                sort_by = (
                    "self_device_time_total"
                    if any(entry.self_device_time_total for entry in averages)
                    else "self_cpu_time_total"
                )
                with open(os.path.join(folder, "operations.txt"), "w", encoding="utf-8") as file:
                    file.write(averages.table(sort_by=sort_by, row_limit=40))
                files.upload_folder(folder, uri)
        except (PlainError, OSError) as error:
            self._tell(
                TrainingWarning(f"the profile is not in storage, training continues: {error}")
            )
        else:
            self._tell(ProfileStored(uri, self._steps))

"""What a person sees of a training run, and what MLflow keeps of it: both made of the workers' events."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from typing import Any, TextIO

from cluster.errors import PlainError
from cluster.runs import evaluations as verdicts
from cluster.runs import folder as run_folder
from cluster.storage import files as storage
from cluster.tracking.client import Run, open_run
from cluster.training.stragglers import Stragglers

RETRY_SECONDS = 30.0
# A run that ends while its server is restarted waits for it this long.
FINISH_SECONDS = 60.0
SHARES = ("data_share", "step_share", "rest_share")
STEP_METRICS = ("classification", "box", "gradient_norm", "positives", "learning_rate", "images_per_second", "epoch", *SHARES)


class Progress:
    """Prints one line that renews itself on a terminal, else one line every `interval` seconds; evaluations and checkpoints always get their own."""

    def __init__(self, name: str, *, out: TextIO | None = None, interval: float = 10.0):
        self.name, self.out, self.interval = name, out or sys.stdout, interval
        self.total, self.last_ap, self.rate = 0, "-", 0.0
        self.printed_at, self.open_line = 0.0, False
        self.stragglers = Stragglers(1)

    def __call__(self, event: dict[str, Any]) -> None:
        getattr(self, "on_" + event["kind"])(event)

    def on_start(self, event: dict[str, Any]) -> None:
        self.total, self.stragglers = event["images_total"], Stragglers(event["ranks"])
        parts = f" in {event['parts']} parts" if event["parts"] > 1 else ""
        if event["ranks"] < event["workers"]:
            asked = f"of {event['workers']} workers"
            kept = event["batch"] == event["batch_size"]
            parts += f" (kept as it is {asked})" if kept else f" (rescaled from the {event['batch_size']} {asked}, and the learning rate with it)"
        self.line(
            f"training on {event['ranks']} workers, {event['threads']} threads each, {event['batch']} images a step{parts}, {event['precision']}; "
            f"{event['images_seen']} of {self.total} images seen"
        )

    def on_workers(self, event: dict[str, Any]) -> None:
        """Which process is where, for whoever has to look at one."""
        shown = [f"{worker['rank']} on {worker['node']} (pid {worker['pid']})" for worker in event["workers"]]
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        self.line(f"ranks: {', '.join(shown[:8])}{more}")

    def on_failure(self, event: dict[str, Any]) -> None:
        details = f"; its traceback is in {event['details']}" if event["details"] else ""
        self.line(f"rank {event['rank']} on {event['node']} (pid {event['pid']}) failed: {event['reason']}; {event['then']}{details}")

    def on_start_failed(self, event: dict[str, Any]) -> None:
        details = f"; the traceback is in {event['details']}" if event["details"] else ""
        self.line(f"{event['who']} failed: {event['reason']}; {event['then']}{details}")

    def on_hang(self, event: dict[str, Any]) -> None:
        who = f"rank {event['rank']} on {event['node']} (pid {event['pid']})"
        self.line(f"{who} made no step for {event['seconds']:.0f} s and is ended: {event['place']}")

    def on_waiting(self, event: dict[str, Any]) -> None:
        self.line(f"waiting for {event['wanted']} since {clock(event['seconds'])}: the cluster has no room for them")

    def on_resize(self, event: dict[str, Any]) -> None:
        how = "from the checkpoint just taken" if event["taken"] else "from the newest checkpoint; one more could not be taken in time"
        self.line(f"{event['before']} workers become {event['workers']}, {how}")

    def on_weights(self, event: dict[str, Any]) -> None:
        text = f"{event['loaded']} tensors loaded from {event['uri']} ({event['source']})"
        for kind, words in (("reinitialised", "new for other classes"), ("missing", "not in the file"), ("unused", "of no use")):
            if event[kind]:
                more = f" and {len(event[kind]) - 3} more" if len(event[kind]) > 3 else ""
                text += f"; {words}: {', '.join(event[kind][:3])}{more}"
        self.line("; ".join([text, *event["notes"]]))

    def on_resume(self, event: dict[str, Any]) -> None:
        self.line(f"continuing from {event['checkpoint']}")

    def on_warning(self, event: dict[str, Any]) -> None:
        self.line(f"warning: {event['text']}")

    def on_step(self, event: dict[str, Any]) -> None:
        # A mean that forgets: one slow interval (an evaluation, a noisy neighbour) must not throw the ETA about.
        self.rate = event["images_per_second"] if not self.rate else 0.8 * self.rate + 0.2 * event["images_per_second"]
        left = (self.total - event["images_seen"]) / max(self.rate, 1e-9)
        data, step, rest = (f"{100 * event[name]:.0f}%" for name in SHARES)
        text = (
            f"epoch {event['epoch']:6.2f}  images {event['images_seen']:>8d}/{self.total}  {event['images_per_second']:6.1f} img/s  "
            f"ETA {clock(left)}  class {event['classification']:.4f}  box {event['box']:.4f}  lr {event['learning_rate']:.2e}  AP {self.last_ap}  "
            f"time: data {data} step {step} rest {rest}"
        )
        now = time.monotonic()
        if self.out.isatty():
            # A line that wraps could not be renewed.
            self.out.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
            self.out.flush()
            self.open_line = True
        elif now - self.printed_at >= self.interval:
            self.printed_at = now
            self.line(text)

    def on_timing(self, event: dict[str, Any]) -> None:
        for text in self.stragglers(event):
            self.line(text)

    def on_profile(self, event: dict[str, Any]) -> None:
        self.line(f"profile of up to {event['steps']} steps in {event['uri']}: operations.txt, and trace.json.gz for ui.perfetto.dev")

    def on_checkpoint(self, event: dict[str, Any]) -> None:
        self.line(f"checkpoint {event['uri']}")

    def on_evaluating(self, event: dict[str, Any]) -> None:
        more = f"; {event['waiting']} more wait" if event["waiting"] else ""
        self.line(f"evaluating the checkpoint at {event['images_seen']} images (epoch {event['epoch']}){more}")

    def on_evaluation(self, event: dict[str, Any]) -> None:
        table = event["table"]
        self.last_ap = f"{table['AP']:.3f}"
        self.line(
            f"evaluation of the checkpoint at {event['images_seen']} images (epoch {event['epoch']}) on {table['images']} images: "
            f"AP {table['AP']:.4f}  AP50 {table['AP50']:.4f}  AP75 {table['AP75']:.4f}"
        )

    def on_evaluation_failed(self, event: dict[str, Any]) -> None:
        self.line(f"warning: {event['what']} failed ({event['reason']}); {event['then']}")

    def on_stopped(self, event: dict[str, Any]) -> None:
        self.line(f"stopped early after epoch {event['epoch']}: {event['reason']}")

    def line(self, text: str) -> None:
        start = "\r\x1b[K" if self.open_line else ""
        self.open_line = False
        self.out.write(f"{start}[{self.name}] {text}\n")
        self.out.flush()


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Tracker:
    """The MLflow run of a training run, opened (or found again) at its first step.

    Importing MLflow and creating its store costs 3 CPU seconds and more, which must not delay the first step; and a store that fails must not end a
    training, so events are kept until it can be opened, which is tried again at most twice a minute. What an earlier driver of the run was told and
    had not sent when it ended is sent from the run's folder.
    """

    def __init__(self, *, uri: str, experiment: str, storage: str, run: str, name: str, params: dict[str, Any], config: str):
        self.uri, self.experiment, self.storage, self.run_folder, self.name = uri, experiment, storage, run, name
        self.params, self.config = params, config
        self.run: Run | None = None
        self.pending: list[dict[str, Any]] = []
        self.tried_at = -RETRY_SECONDS

    def __call__(self, event: dict[str, Any]) -> None:
        self.pending.append(event)
        if self.run is None and event["kind"] not in ("weights", "start", "resume", "warning") and time.monotonic() - self.tried_at >= RETRY_SECONDS:
            self.open()
        if self.run is not None:
            for waiting in self.pending:
                track(self.run, waiting)
            self.pending = []

    def open(self) -> None:
        try:
            before = run_folder.read(self.run_folder, run_folder.TRACKING) or {}
            same_store = before.get("uri") == self.uri
            run = open_run(
                self.uri,
                experiment=self.experiment,
                storage=self.storage,
                name=self.name,
                run_id=before.get("run_id") if same_store else None,
                tags={"run_folder": self.run_folder},
            )
            run_folder.write(self.run_folder, run_folder.TRACKING, self.record(run))
        except PlainError as error:
            print(f"warning: {error}; training goes on, its metrics are kept and sent later", file=sys.stderr)
        else:
            run.log_params(self.params)
            run.log_text(self.config, "config.json")
            self.catch_up(run)
            self.run = run
        self.tried_at = time.monotonic()

    def record(self, run: Run) -> dict[str, Any]:
        return {"uri": self.uri, "experiment": self.experiment, "run_id": run.run_id}

    def catch_up(self, run: Run) -> None:
        """What the run's folder knows; what MLflow has of it is not sent again."""
        try:
            newest = run_folder.checkpoints(self.run_folder)[-1:]
            steps = storage.read_json(storage.join(newest[0], run_folder.STATE_FILE)).get("told", []) if newest else []
            over = verdicts.evaluations(self.run_folder)
        except (PlainError, OSError, ValueError) as error:
            print(f"warning: MLflow gets no metrics from before this start: {error}", file=sys.stderr)
            return
        for step in steps:
            run.log_metrics(step_metrics(step), step["images_seen"])
        for one in over:
            if "error" not in one:
                run.log_metrics(evaluation_metrics(one), one["images_seen"])

    def owes(self) -> bool:
        """Whether the run was trained to its end and an earlier driver was killed, or had no store, before MLflow had all of it."""
        try:
            before = run_folder.read(self.run_folder, run_folder.TRACKING)
            if before is None:
                return run_folder.read(self.run_folder, run_folder.FINISHED) is not None
        except PlainError:
            return False
        return before["uri"] == self.uri and not before.get("complete")

    def finish(self, status: str) -> None:
        """Send everything and end the run as FINISHED, FAILED or KILLED. Nothing is recorded of a training that did not start."""
        if self.run is None and (self.pending or (status == "FINISHED" and self.owes())):
            self.open()
        if self.run is not None:
            for waiting in self.pending:
                track(self.run, waiting)
            # Who interrupts a training waits for nothing.
            complete = self.run.finish(status, patience_s=10.0 if status == "KILLED" else FINISH_SECONDS)
            if complete and status == "FINISHED":
                # Without the mark the next start looks again, and sends nothing twice.
                with contextlib.suppress(PlainError):
                    run_folder.write(self.run_folder, run_folder.TRACKING, {**self.record(self.run), "complete": True})
        elif self.pending:
            print(f"warning: {len(self.pending)} events of {self.name} are not in MLflow at {self.uri}", file=sys.stderr)


def step_metrics(step: dict[str, Any]) -> dict[str, float]:
    """What there is of them: a checkpoint of another version of this code may hold others."""
    return {f"train/{name}": step[name] for name in STEP_METRICS if name in step}


def evaluation_metrics(numbers: dict[str, Any]) -> dict[str, float]:
    """Of `verdicts.numbers`, or of a verdict."""
    values = {f"val/{name}": value for name, value in numbers.items() if isinstance(value, float)}
    return values | {f"val/AP/{name}": value for name, value in numbers.get("per_class", {}).items()}


def track(run: Run, event: dict[str, Any]) -> None:
    """Put an event on its MLflow run; the step axis is images seen."""
    if event["kind"] == "step":
        run.log_metrics(step_metrics(event), event["images_seen"])
    elif event["kind"] == "evaluation":
        run.log_metrics(evaluation_metrics(verdicts.numbers(event["table"])), event["images_seen"])
    elif event["kind"] == "weights":
        # The progress line names three of each kind, this file all.
        run.log_text(json.dumps(event, indent=1), "pretrained.json")
    elif event["kind"] == "timing":
        run.log_metrics({f"system/{event['node']}/{name}": value for name, value in event["system"].items()}, event["images_seen"])
    elif event["kind"] in ("checkpoint", "profile"):
        run.set_tag(event["kind"], event["uri"])
    elif event["kind"] == "stopped":
        run.set_tag("stopped_early", event["reason"])

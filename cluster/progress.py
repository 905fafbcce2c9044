"""What a person sees of a training run, and what MLflow keeps of it: both made of the workers' events."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from cluster.tracking import Run

STEP_METRICS = ("classification", "box", "gradient_norm", "positives", "learning_rate", "images_per_second", "epoch")


class Progress:
    """Prints one line that renews itself on a terminal, else one line every `interval` seconds; evaluations and checkpoints always get their own."""

    def __init__(self, name: str, *, out: TextIO | None = None, interval: float = 10.0):
        self.name, self.out, self.interval = name, out or sys.stdout, interval
        self.total, self.last_ap, self.rate = 0, "-", 0.0
        self.printed_at, self.open_line = 0.0, False

    def __call__(self, event: dict[str, Any]) -> None:
        getattr(self, "on_" + event["kind"])(event)

    def on_start(self, event: dict[str, Any]) -> None:
        self.total = event["images_total"]
        self.line(f"training on {event['ranks']} workers, {event['threads']} threads each; {event['images_seen']} of {self.total} images seen")

    def on_resume(self, event: dict[str, Any]) -> None:
        self.line(f"continuing from {event['checkpoint']}")

    def on_step(self, event: dict[str, Any]) -> None:
        # A mean that forgets: one slow interval (an evaluation, a noisy neighbour) must not throw the ETA about.
        self.rate = event["images_per_second"] if not self.rate else 0.8 * self.rate + 0.2 * event["images_per_second"]
        left = (self.total - event["images_seen"]) / max(self.rate, 1e-9)
        text = (
            f"epoch {event['epoch']:6.2f}  images {event['images_seen']:>8d}/{self.total}  {event['images_per_second']:6.1f} img/s  "
            f"class {event['classification']:.4f}  box {event['box']:.4f}  lr {event['learning_rate']:.2e}  AP {self.last_ap}  ETA {clock(left)}"
        )
        now = time.monotonic()
        if self.out.isatty():
            self.out.write("\r\x1b[K" + text)
            self.out.flush()
            self.open_line = True
        elif now - self.printed_at >= self.interval:
            self.printed_at = now
            self.line(text)

    def on_checkpoint(self, event: dict[str, Any]) -> None:
        self.line(f"checkpoint {event['uri']}")

    def on_evaluation(self, event: dict[str, Any]) -> None:
        table = event["table"]
        self.last_ap = f"{table['AP']:.3f}"
        self.line(f"evaluation after epoch {event['epoch']}: AP {table['AP']:.4f}  AP50 {table['AP50']:.4f}  AP75 {table['AP75']:.4f}  ({table['images']} images)")

    def line(self, text: str) -> None:
        start = "\r\x1b[K" if self.open_line else ""
        self.open_line = False
        self.out.write(f"{start}[{self.name}] {text}\n")
        self.out.flush()


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def track(run: Run, event: dict[str, Any]) -> None:
    """Put an event on its MLflow run; the step axis is images seen."""
    if event["kind"] == "step":
        run.log_metrics({f"train/{name}": event[name] for name in STEP_METRICS}, event["images_seen"])
    elif event["kind"] == "evaluation":
        table = event["table"]
        values = {f"val/{name}": value for name, value in table.items() if isinstance(value, float)}
        run.log_metrics({**values, **{f"val/AP/{name}": row["AP"] for name, row in table["per_class"].items()}}, event["images_seen"])
    elif event["kind"] == "checkpoint":
        run.set_tag("checkpoint", event["uri"])

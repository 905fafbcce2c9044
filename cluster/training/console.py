"""What a person sees of a training run, and what MLflow keeps of it: both made of the workers'
events.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, TextIO

from cluster.runs.evaluations import Evaluation
from cluster.training.stragglers import Stragglers

SHARES = ("data_share", "step_share", "rest_share")


class Progress:
    """Prints one line that renews itself on a terminal, else one line every `interval` seconds;
    evaluations and checkpoints always get their own.
    """

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
            parts += (
                f" (kept as it is {asked})"
                if kept
                else (
                    f" (rescaled from the {event['batch_size']} {asked}, and the learning rate"
                    " with it)"
                )
            )
        self.line(
            f"training on {event['ranks']} workers, {event['threads']} threads each,"
            f" {event['batch']} images a step{parts}, {event['precision']}; {event['images_seen']}"
            f" of {self.total} images seen"
        )

    def on_workers(self, event: dict[str, Any]) -> None:
        """Which process is where, for whoever has to look at one."""
        shown = [
            f"{worker['rank']} on {worker['node']} (pid {worker['pid']})"
            for worker in event["workers"]
        ]
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        self.line(f"ranks: {', '.join(shown[:8])}{more}")

    def on_failure(self, event: dict[str, Any]) -> None:
        details = f"; its traceback is in {event['details']}" if event["details"] else ""
        self.line(
            f"rank {event['rank']} on {event['node']} (pid {event['pid']}) failed:"
            f" {event['reason']}; {event['then']}{details}"
        )

    def on_start_failed(self, event: dict[str, Any]) -> None:
        details = f"; the traceback is in {event['details']}" if event["details"] else ""
        self.line(f"{event['who']} failed: {event['reason']}; {event['then']}{details}")

    def on_hang(self, event: dict[str, Any]) -> None:
        who = f"rank {event['rank']} on {event['node']} (pid {event['pid']})"
        self.line(f"{who} made no step for {event['seconds']:.0f} s and is ended: {event['place']}")

    def on_waiting(self, event: dict[str, Any]) -> None:
        self.line(
            f"waiting for {event['wanted']} since {clock(event['seconds'])}: the cluster has no"
            " room for them"
        )

    def on_resize(self, event: dict[str, Any]) -> None:
        how = (
            "from the checkpoint just taken"
            if event["taken"]
            else "from the newest checkpoint; one more could not be taken in time"
        )
        self.line(f"{event['before']} workers become {event['workers']}, {how}")

    def on_weights(self, event: dict[str, Any]) -> None:
        text = f"{event['loaded']} tensors loaded from {event['uri']} ({event['source']})"
        for kind, words in (
            ("reinitialised", "new for other classes"),
            ("missing", "not in the file"),
            ("unused", "of no use"),
        ):
            if event[kind]:
                more = f" and {len(event[kind]) - 3} more" if len(event[kind]) > 3 else ""
                text += f"; {words}: {', '.join(event[kind][:3])}{more}"
        self.line("; ".join([text, *event["notes"]]))

    def on_resume(self, event: dict[str, Any]) -> None:
        self.line(f"continuing from {event['checkpoint']}")

    def on_warning(self, event: dict[str, Any]) -> None:
        self.line(f"warning: {event['text']}")

    def on_step(self, event: dict[str, Any]) -> None:
        # A mean that forgets: one slow interval (an evaluation, a noisy neighbour) must not throw
        # the ETA about.
        self.rate = (
            event["images_per_second"]
            if not self.rate
            else 0.8 * self.rate + 0.2 * event["images_per_second"]
        )
        left = (self.total - event["images_seen"]) / max(self.rate, 1e-9)
        data, step, rest = (f"{100 * event[name]:.0f}%" for name in SHARES)
        text = (
            f"epoch {event['epoch']:6.2f}  images {event['images_seen']:>8d}/{self.total} "
            f" {event['images_per_second']:6.1f} img/s  ETA {clock(left)}  class"
            f" {event['classification']:.4f}  box {event['box']:.4f}  lr"
            f" {event['learning_rate']:.2e}  AP {self.last_ap}  time: data {data} step {step} rest"
            f" {rest}"
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
        self.line(
            f"profile of up to {event['steps']} steps in {event['uri']}: operations.txt, and"
            " trace.json.gz for ui.perfetto.dev"
        )

    def on_checkpoint(self, event: dict[str, Any]) -> None:
        self.line(f"checkpoint {event['uri']}")

    def on_evaluating(self, event: dict[str, Any]) -> None:
        more = f"; {event['waiting']} more wait" if event["waiting"] else ""
        self.line(
            f"evaluating the checkpoint at {event['images_seen']} images (epoch"
            f" {event['epoch']}){more}"
        )

    def on_evaluation(self, event: dict[str, Any]) -> None:
        evaluation: Evaluation = event["evaluation"]
        metrics = evaluation.metrics
        self.last_ap = f"{evaluation.ap:.3f}"
        self.line(
            f"evaluation of the checkpoint at {evaluation.images_seen} images (epoch"
            f" {evaluation.epoch}) on {evaluation.images_evaluated} images: AP"
            f" {evaluation.ap:.4f}  AP50 {metrics['AP50']:.4f}  AP75 {metrics['AP75']:.4f}"
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

"""The training loop of one worker: resume, iterate, step, evaluate, checkpoint. Runs inside Ray
Train, in an importable module.
"""

from __future__ import annotations

import collections
import copy
import os
import threading
import warnings
from functools import cached_property, partial
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cluster.errors import PlainError
from cluster.loading import epoch_plan
from cluster.loading.stream import Stream
from cluster.runs import evaluations, run_folder
from cluster.runs.evaluations import Evaluation, Request
from cluster.runs.training_config import compiles
from cluster.scoring.detect import detect_share
from cluster.scoring.evaluate import evaluate_checkpoint
from cluster.scoring.truths import read_truths
from cluster.shards.index import open_shard_set
from cluster.training.checkpoints import Checkpoints
from cluster.training.profile import publish_profile
from cluster.training.state import resume
from cluster.training.step_reports import StepReports
from cluster.training.system_metrics import system_metrics
from cluster.training.timing import Timing, shares
from cluster.training.watchdog import Watchdog
from detector.baseline_step import baseline_step
from detector.baselines import Baseline, build_model
from detector.batch import Batch, on_device
from detector.checkpoint import Snapshot, take_snapshot
from detector.choices import LossSettings
from detector.folding import for_detecting
from detector.loss import FIRST_AVERAGE
from detector.optimizer import MovingAverage, batch_factor, build_optimizer, learning_rate_factor
from detector.precision import autocast_dtype, computes_bfloat16
from detector.predict import Predictor
from detector.step import StepReport, compiled_parts, train_step

STEPS_TOLD = 1000
"""Lines about steps that a checkpoint holds, 0.4 KB each: as long as a store may be away, and its
driver be killed meanwhile, without a gap.
"""


class Worker:
    """One rank's model, optimiser, stream and place in the data. All ranks hold the same state and
    make the same number of steps.
    """

    def __init__(self, job: dict[str, Any]):
        context = ray.train.get_context()
        self.job, self.rank, self.ranks, self.local_rank = (
            job,
            context.get_world_rank(),
            context.get_world_size(),
            context.get_local_rank(),
        )
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(threads_each(context.get_local_world_size()))
        # One precision for all: a node without bfloat16 among others that have it would bring other
        # gradients.
        self.amp_dtype = autocast_dtype(
            self.device,
            amp=job["training"]["amp"] and self.everywhere(computes_bfloat16(self.device)),
        )
        self.run: str = job["run"]
        self.train_set = open_shard_set(job["data"]["train"])
        self.val_set = open_shard_set(job["data"]["val"])
        self.epochs: int = job["training"]["epochs"]
        self.batches, self.parts = shared_batch(job["training"], ranks=self.ranks)

        torch.manual_seed(job["training"]["seed"])
        self.model = build_model(**job["package"]["description"]["model"]).to(
            self.device, memory_format=torch.channels_last
        )
        self.network = self.model if self.ranks == 1 else distribute(self.model)
        description = job["package"]["description"]
        canvases = [(height, width) for height, width in description["canvases"]]
        dense = not isinstance(self.model, Baseline)
        self.anchors = (
            {canvas: torch.cat(self.model.anchors(*canvas)) for canvas in canvases} if dense else {}
        )
        chosen = job["optimizer"]
        self.average = (
            MovingAverage(self.model, images=chosen["ema_images"]) if chosen["ema_images"] else None
        )
        self.optimizer = build_optimizer(
            self.model,
            name=chosen["name"],
            learning_rate=chosen["learning_rate"],
            weight_decay=chosen["weight_decay"],
            momentum=chosen["momentum"],
        )
        self.stream = Stream(
            self.train_set,
            rank=self.rank,
            batches=self.batches,
            run=job["training"]["batch_size"],
            canvases=canvases,
            long_side=description["long_side"],
            seed=job["training"]["seed"],
            epochs=self.epochs,
            augmentation=job["augmentation"],
            mirror_later=self.device.type == "cuda",
            threads=job["training"]["decode_threads"],
            decode=job["decode"],
            **job["sampling"],
        )
        self.epoch, self.images_seen, self.left = 0, 0, [(0, self.stream.places)]
        self.loss_normalizer: float | torch.Tensor = FIRST_AVERAGE
        self.reports = StepReports(
            self.device,
            self.rank,
            self.ranks,
            allowed=job["training"]["skip_nonfinite"],
            tell=self.tell,
        )
        self.compiled: dict[str, Any] = {}
        if dense and compiles(
            job["training"]["compile"],
            batch_size=job["training"]["batch_size"],
            device=self.device.type,
            images=self.images_total,
        ):
            self.network, self.compiled = (
                torch.compile(self.network, dynamic=False),
                compiled_parts(),
            )
        self.truths = (
            read_truths(self.val_set) if self.rank == 0 and job["evaluation"] == "between" else []
        )
        self.resumed_from: str | None = None
        self.evaluations = evaluations.read(self.run) if self.rank == 0 else []
        self.checkpoints = Checkpoints(
            self.run,
            run_uuid=job["run_uuid"],
            settings=job["training"],
            tell=self.tell,
            writes=self.rank == 0,
            protected=lambda: set(evaluations.waiting(self.run)),
            ask=lambda uri, images_seen, epoch: evaluations.store_request(
                self.run, Request(uri, images_seen, epoch)
            ),
        )
        profiled = job["training"]["profile_steps"] if self.rank == 0 else 0
        self.publishing: threading.Thread | None = None
        self.timing = Timing(self.device, profile_steps=profiled, on_profile=self.save_profile)
        self.watchdog = Watchdog(
            60 * job["training"]["hang_minutes"],
            lambda kind, **values: self.put(kind, rank=self.rank, **self.place, **values),
        )
        self.window: list[dict[str, float]] = []
        # In every checkpoint: what a driver was told and had not sent to MLflow when it was killed.
        self.told: collections.deque[dict[str, float]] = collections.deque(maxlen=STEPS_TOLD)

    def train(self) -> None:
        resume(self)
        place = {
            "images_seen": self.images_seen,
            "epoch": self.epoch,
            "images_total": self.images_total,
        }
        precision = (
            "bfloat16"
            if self.amp_dtype
            else (
                "float32, bfloat16 is not faster here" if self.job["training"]["amp"] else "float32"
            )
        )
        how = {name: self.job["training"][name] for name in ("workers", "batch_size")}
        how |= {
            "batch": sum(self.batches),
            "parts": self.parts,
            "threads": torch.get_num_threads(),
            "precision": precision,
        }
        self.tell("start", ranks=self.ranks, **how, **place)
        self.model.train()
        stopped = None
        while self.epoch < self.epochs and not stopped:
            # After a resume at the end of an epoch nothing is left of it but its evaluation, if
            # that was not made.
            owed = self.train_epoch()
            done = self.epoch + 1
            evaluate = done == self.epochs or done % self.job["training"]["evaluate_every"] == 0
            if evaluate or owed or done % self.job["training"]["checkpoint_every"] == 0:
                uri = self.save(scored=evaluate)
                if evaluate:
                    self.evaluate(uri, again=uri == self.resumed_from)
                    # The next interval's images/s are of training alone.
                    self.timing.take()
            self.epoch, self.left = done, [(0, self.stream.places)]
            stopped = self.reason_to_stop()
        self.watchdog.stop()
        self.checkpoints.close()
        self.timing.close()
        if self.publishing is not None:
            self.publishing.join()
        if self.rank == 0:
            run_folder.write_finished(
                self.run, run_folder.Finished(self.images_seen, self.epoch, stopped)
            )
            if stopped:
                self.tell("stopped", images_seen=self.images_seen, epoch=self.epoch, reason=stopped)

    def reason_to_stop(self) -> str | None:
        """Why training ends here, before its last epoch; the same on every rank."""
        patience, rise = self.job["training"]["patience"], self.job["training"]["min_improvement"]
        if not patience or self.epoch == self.epochs:
            return None
        if self.rank == 0 and self.job["evaluation"] == "beside":
            try:
                self.evaluations = evaluations.read(self.run)
            except (PlainError, OSError) as error:
                self.tell(
                    "warning",
                    text=(
                        "whether training should stop is judged by the evaluations known before:"
                        f" {error}"
                    ),
                )
        return self.agreed(
            evaluations.reason_to_stop(self.evaluations, patience=patience, min_improvement=rise)
        )

    def train_epoch(self) -> bool:
        """The rest of this epoch, with part-way checkpoints where they are due. Whether one is due
        at its end.
        """
        due, start, optimizer = False, self.left, self.job["optimizer"]
        peak = optimizer["learning_rate"] * batch_factor(
            sum(self.batches), self.job["training"]["batch_size"], name=optimizer["name"]
        )
        for done, batch in enumerate(
            self.timing.batches(on_device(self.stream.epoch(self.epoch, start), self.device)),
            start=1,
        ):
            factor = learning_rate_factor(
                self.images_seen,
                self.images_total,
                schedule=optimizer["schedule"],
                warmup=optimizer["warmup"],
                milestones=optimizer["milestones"],
            )
            with self.timing.step(self.network):
                report = self.step(batch, learning_rate=peak * factor)
                self.reports.wait()
            self.watchdog.progressed()
            self.loss_normalizer = report.loss_normalizer
            self.left = epoch_plan.advance(start, batches=self.batches, done=done)
            before, self.images_seen = (
                self.images_seen,
                (self.epoch + 1) * self.stream.places - epoch_plan.size(self.left),
            )
            if self.average is not None:
                self.average.update(self.model, self.images_seen - before)
            values = {
                "learning_rate": peak * factor,
                "images": self.images_seen - before,
                "images_seen": self.images_seen,
            }
            self.reports.add(report, -(-self.images_seen // sum(self.batches)), values)
            # Not all of them for a checkpoint: on rank 0 alone one may be due, and of a step that
            # is not finite all ranks speak at once.
            for numbers, told in self.reports.read(all=not self.left):
                self.tell_step(numbers, **told)
            due = self.checkpoints.due(before, self.images_seen)
            if due and self.left:
                self.save()
        return due

    def step(self, batch: Batch, *, learning_rate: float) -> StepReport:
        loss = LossSettings(**self.job["loss"])
        common = dict(
            learning_rate=learning_rate,
            clip_norm=self.job["optimizer"]["clip_norm"],
            amp_dtype=self.amp_dtype,
            sum_over_ranks=self.sum_over_ranks,
            ranks=self.ranks,
            accumulate=self.parts,
        )
        if isinstance(self.model, Baseline):
            return baseline_step(
                self.network, self.optimizer, batch, box_weight=loss.box_weight, **common
            )
        anchors_A4 = self.anchors[tuple(batch.images.shape[2:])]
        return train_step(
            self.network,
            self.optimizer,
            batch,
            anchors_A4,
            loss=loss,
            loss_normalizer=self.loss_normalizer,
            **self.compiled,
            **common,
        )

    @property
    def images_total(self) -> int:
        return self.epochs * self.stream.places

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.ranks > 1:
            dist.all_reduce(tensor)
        return tensor

    def everywhere(self, fact: bool) -> bool:
        """Whether it holds on every rank."""
        return bool(self.sum_over_ranks(torch.tensor(int(fact), device=self.device)) == self.ranks)

    def save(self, *, scored: bool = False) -> str:
        """Begin a checkpoint from rank 0, see `Checkpoints.save`; the other ranks go on and meet it
        at the next collective.
        """
        best = evaluations.best_of(self.evaluations)
        state = {
            "images_seen": self.images_seen,
            "epoch": self.epoch,
            "left": self.left,
            "loss_normalizer": float(self.loss_normalizer),
            "left_out": self.reports.left_out,
            "seed": self.job["training"]["seed"],
            "ranks": self.ranks,
            "scored": scored,
            "data_digest": self.train_set.digest,
            "best": best.to_json() if best is not None else None,
            "told": list(self.told),
            "package": self.job["package"],
            "config": self.job["config"],
        }

        def take(memory: Snapshot | None) -> Snapshot:
            return take_snapshot(
                model=self.model,
                optimizer=self.optimizer,
                average=self.average,
                state=state,
                before=memory,
            )

        return self.checkpoints.save(self.images_seen, take, scored=scored)

    def evaluate(self, uri: str, *, again: bool) -> None:
        """Have the checkpoint evaluated, beside training or here. `again`: its evaluation may be
        there from before a restart.
        """
        known = evaluations.find(self.evaluations, self.images_seen) if again else None
        request = Request(uri, self.images_seen, self.epoch + 1)
        if self.job["evaluation"] == "beside":
            if self.rank == 0 and known is None:
                self.checkpoints.once_stored(
                    uri, partial(evaluations.store_request, self.run, request)
                )
            return
        evaluation = self.agreed(known) or self.score(request)
        # A barrier over the ranks that Ray polls every two seconds, so it is used once an
        # evaluation and never in the step loop.
        ray.train.report({**request.to_json(), **evaluation.metrics})

    def score(self, request: Request) -> Evaluation:
        """Score the averaged weights (or the plain ones) on every val image once, sharded over the
        ranks, and store the evaluation.
        """
        model = copy.deepcopy(self.model)
        if self.average is not None:
            model.load_state_dict(self.average.state)
        if self.ranks > 1:
            # Running statistics differ between ranks; what is scored must be what rank 0 has saved.
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)
        description = self.job["package"]["description"]
        frame = dict(canvases=self.stream.canvases, long_side=self.stream.long_side)
        predictor = Predictor(
            for_detecting(model, self.device, amp=description["amp"]),
            **frame,
            **{k: description[k] for k in ("decode", "amp")},
        )
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        share = dict(
            rank=self.rank, ranks=self.ranks, threads=threads, decode_threads=self.stream.threads
        )
        found = detect_share(predictor, self.val_set, progressed=self.watchdog.progressed, **share)
        parts: list[Any] = [found]
        if self.ranks > 1:
            parts = [None] * self.ranks
            dist.all_gather_object(parts, found)
        evaluation = None
        if self.rank == 0:
            evaluation = evaluate_checkpoint(
                request,
                "model" if self.average is None else "ema",
                {k: v for part in parts for k, v in part.items()},
                self.truths,
                self.val_set.class_names,
            )
            self.evaluations = evaluations.insert(self.evaluations, evaluation)
            # Once the checkpoint is in storage, where best.json says that it is.
            self.checkpoints.once_stored(
                request.checkpoint, partial(evaluations.store, self.run, evaluation)
            )
            self.tell("evaluation", evaluation=evaluation)
        return self.agreed(evaluation)

    def agreed(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        values = [value]
        if self.ranks > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def tell(self, kind: str, **values: Any) -> None:
        """Send an event to the driver, who prints and tracks it; fire and forget."""
        if self.rank == 0:
            self.put(kind, **values)

    def put(self, kind: str, **values: Any) -> None:
        """The same from every rank."""
        if self.job["board"] is not None:
            self.job["board"].put.remote({"kind": kind, **values})

    def tell_step(
        self, numbers: dict[str, float], *, learning_rate: float, images: int, images_seen: int
    ) -> None:
        """`numbers` are empty where the update was left out."""
        self.window.append({**numbers, "learning_rate": learning_rate, "images": images})
        if len(self.window) < self.job["training"]["log_steps"] and (
            self.left or self.reports.unread
        ):
            return
        taken = self.timing.take()
        seen = sum(step["images"] for step in self.window)
        epoch, made = (
            images_seen / self.stream.places,
            [step for step in self.window if "box" in step],
        )
        if made:
            means = {
                k: float(np.mean([step[k] for step in made])) for k in made[0] if k != "images"
            }
            told = {
                "images_seen": images_seen,
                "epoch": epoch,
                "images_per_second": seen / taken["seconds"],
                **shares(taken),
                **means,
            }
            self.told.append(told)
            self.tell("step", **told)
        system = system_metrics(self.device, node=self.local_rank == 0)
        self.put(
            "timing", rank=self.rank, images_seen=images_seen, system=system, **taken, **self.place
        )
        self.window = []

    @cached_property
    def place(self) -> dict[str, Any]:
        return {"node": ray.util.get_node_ip_address(), "pid": os.getpid()}

    def save_profile(self, profiler: Any) -> None:
        steps = self.job["training"]["profile_steps"]
        self.publishing = publish_profile(
            profiler, self.run, self.images_seen, steps=steps, tell=self.tell
        )


def shared_batch(training: dict[str, Any], *, ranks: int) -> tuple[list[int], int]:
    """Images of every rank's batch, and in how many parts each runs its own, so that none is larger
    than a part of a group at its full size, or by one image at most. All ranks make as many forward
    passes: normalisation may exchange statistics in them.

    `training` is `TrainingConfig`, dumped.
    """
    batch, workers = training["batch_size"], training["workers"]
    whole = batch // workers
    batches = (
        [whole] * ranks
        if training["resized_batch"] == "scale"
        else epoch_plan.split_batch(batch, ranks=ranks)
    )
    return batches, min(-(-max(batches) // (whole // training["accumulate"])), min(batches))


def threads_each(workers: int) -> int:
    """CPU threads of each of the `workers` on this node: what this process may run on, and no more
    than Ray counts there, which in a container is its quota. More threads than cores wait for each
    other by spinning.
    """
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    here = ray.get_runtime_context().get_node_id()
    counted = next(
        node["Resources"].get("CPU", usable) for node in ray.nodes() if node["NodeID"] == here
    )
    return max(1, int(min(usable, counted)) // workers)


def distribute(model: torch.nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # torch 2.15 renames the argument; 2.11 has only this name. Running statistics stay local:
        # rank 0's are saved.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

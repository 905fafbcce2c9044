"""A config -> TorchTrainer -> result; the one function that `train` and `sweep` share."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from cluster.compute.session import unplaced
from cluster.errors import PlainError, UsageError
from cluster.loading.epoch_plan import READ_CPUS
from cluster.runs import evaluations as verdicts
from cluster.runs import folder as run_folder
from cluster.runs import lease
from cluster.runs import parent_checkpoint as warm_start
from cluster.runs import weight_file as pretrained
from cluster.runs.config import PROFILE_AFTER, SamplingConfig, TrainConfig, identity, package_of
from cluster.shards.format import ShardSet, open_shard_set
from cluster.storage import files as storage
from cluster.training.background_evaluation import Evaluator
from cluster.training.event_channel import Board, Event
from cluster.training.failures import RetriesSpent, plain_failure

RESIZE_LOOK_S = 60.0
"""Seconds between two looks at whether a group with fewer workers than it may have could grow; growing costs a restart."""


@dataclass(frozen=True)
class Checked:
    """A configuration that may be launched: what `check` opened and read on the way."""

    train_set: ShardSet
    identity: dict[str, Any]
    begun: bool
    """Whether the run has a checkpoint to go on from."""
    born: str
    """See `run_folder.claim`."""


def check(config: TrainConfig) -> Checked:
    """Everything that can be wrong before a machine is spent: the data, the storage, the weight file, the run's name."""
    for uri in (config.data.train, config.data.val):
        storage.check_reachable(uri)
    train_set, val_set = open_shard_set(config.data.train), open_shard_set(config.data.val)
    if not train_set.num_rows or not val_set.num_rows:
        empty = "data.train" if not train_set.num_rows else "data.val"
        raise UsageError(f"{empty}: holds no images; prepare it from a JSON that lists some")
    if train_set.categories != val_set.categories:
        raise UsageError(
            f"data.val {config.data.val}: its categories {val_set.class_names[:5]} are not those of data.train {train_set.class_names[:5]}; "
            "prepare both from JSON files with the same categories"
        )
    unknown = sorted(set(config.sampling.source_weights) - set(train_set.source_names))
    if unknown:
        known = ", ".join(train_set.source_names)
        raise UsageError(f"sampling.source_weights {unknown[0]}: is no source of data.train, which has {known}; name one of these")
    check_profile(config, train_set)
    storage.check_writable(config.run_uri)
    lease.refuse_held(config.run_uri)
    begun = bool(run_folder.checkpoints(config.run_uri))
    weights = weights_digest(config, train_set, begun=begun)
    same = identity(config, train_set, val_set, weights=weights)
    born = run_folder.claim(config.run_uri, config.model_dump(mode="json"), same, begun=begun)
    return Checked(train_set, same, begun, born)


def check_profile(config: TrainConfig, train_set: ShardSet) -> None:
    training = config.training
    steps = training.epochs * math.ceil(train_set.num_rows / training.batch_size)
    # With another sampling an epoch has another number of images, which only workers count.
    if config.sampling == SamplingConfig() and 0 < training.profile_steps and steps < PROFILE_AFTER + training.profile_steps:
        raise UsageError(
            f"training.profile_steps {training.profile_steps}: the run has {steps} steps in all and the first {PROFILE_AFTER} are not recorded; "
            f"take {'at most ' + str(steps - PROFILE_AFTER) if steps > PROFILE_AFTER else '0'}, or more epochs"
        )


def weights_digest(config: TrainConfig, train_set: ShardSet, *, begun: bool) -> str | None:
    """Digest of the weight file or the checkpoint that the run starts from, which must be there and fit until the run has `begun`; after that it may
    be gone, but not be another one.
    """
    name = "pretrained" if config.pretrained is not None else "from_checkpoint"
    if getattr(config, name) is None:
        return None
    try:
        if name == "pretrained":
            return pretrained.check(config.pretrained, None if begun else package_of(config, train_set)["description"]["model"])
        return warm_start.digest(config.from_checkpoint) if begun else warm_start.check(config, train_set)
    except UsageError:
        before = run_folder.read(config.run_uri, run_folder.CONFIG)
        if not begun or before is None or before["config"].get(name) != getattr(config, name):
            raise
        return before["identity"][name]


def launch(
    config: TrainConfig, *, checked: Checked | None = None, on_event: Callable[[Event], None] | None = None, callbacks: Sequence[Any] = ()
) -> dict[str, Any]:
    """Train, or continue, or find it finished; Ray must be connected. Returns the run's best.json.

    `checked` is what `check` returned for this configuration, where it was called before. `on_event` gets the events of workers and controller
    (weights, start, workers, resume, step, timing, checkpoint, evaluating, evaluation, evaluation_failed, stopped, profile, warning, hang, failure,
    start_failed, waiting, resize) in this process; `callbacks` go to Ray Train. Raises `PlainError` with the failing rank's last line when the
    retries are spent, or at once where they would not help (`failures.LASTING`), and `UsageError` where another driver trains the run.
    """
    checked = checked or check(config)
    run = config.run_uri
    finished = run_folder.read(run, run_folder.FINISHED) is not None
    if not finished or verdicts.waiting(run):
        outcome: Future[None] = Future()
        with lease.Lease(run, lambda reason: end(outcome, PlainError(reason))), Board(on_event) as board:
            evaluator = evaluator_of(config, board)
            if not finished:
                train(config, held(config, checked), outcome, board=board, evaluator=evaluator, callbacks=callbacks)
            evaluator.finish(workers_share(config))
    return run_folder.best_checkpoint(run)


def held(config: TrainConfig, checked: Checked) -> Checked:
    """`checked` as it is now that this driver has the lease: another one may have claimed the folder, or trained, between the two."""
    begun = bool(run_folder.checkpoints(config.run_uri))
    born = run_folder.claim(config.run_uri, config.model_dump(mode="json"), checked.identity, begun=begun)
    return replace(checked, begun=begun, born=born)


def train(config: TrainConfig, checked: Checked, outcome: Future[None], *, board: Any, evaluator: Evaluator, callbacks: Sequence[Any]) -> None:
    # Imported here: the sections above are read by `--help`, and this import takes seconds.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from cluster.training.supervisor import Retries, Supervisor, is_of_the_start

    training, run = config.training, config.run_uri
    evaluation = evaluation_place(config)
    retries = Retries(run, allowed=training.retries, board=board)
    job = {**job_of(config, checked), "evaluation": evaluation, "board": board}
    scaling = ScalingConfig(
        num_workers=training.workers if training.min_workers is None else (training.min_workers, training.workers),
        use_gpu=training.gpus_per_worker > 0,
        resources_per_worker=booked(training.cpus_per_worker + READ_CPUS, training.gpus_per_worker),
        elastic_resize_monitor_interval_s=RESIZE_LOOK_S,
    )

    def attempt() -> None:
        TorchTrainer(
            train_on_worker,
            train_loop_config=job,
            torch_config=TorchConfig(backend="nccl" if training.gpus_per_worker else "gloo"),
            scaling_config=scaling,
            # Our own checkpoints carry a run on, under any Ray version; Ray's record of one attempt is never resumed, so each has a name of its own.
            run_config=RunConfig(
                name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000:06d}",
                storage_path=storage.join(run, "ray"),
                # The supervisor counts.
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=-1),
                callbacks=[*callbacks, Supervisor(retries, wait_s=60 * training.wait_minutes, wanted=wanted(config))],
            ),
        ).fit()

    def fit() -> None:
        while True:
            try:
                return attempt()
            except TrainingFailedError as error:
                if not is_of_the_start(error):
                    raise
                retries.spend_on_start(error.controller_failure)

    try:
        with evaluator if evaluation == "beside" else nullcontext():
            in_thread(fit, outcome)
    except (TrainingFailedError, RetriesSpent) as error:
        raise plain_failure(error, config.name) from error


def job_of(config: TrainConfig, checked: Checked) -> dict[str, Any]:
    """What every worker is told, but for where it evaluates and whom it tells."""
    sections, run = config.model_dump(mode="json"), config.run_uri
    weights, start = None, None
    if config.pretrained is not None and not checked.begun:
        weights = pretrained.publish(config.pretrained, run, digest=checked.identity["pretrained"], root=config.storage)
    if config.from_checkpoint is not None and not checked.begun:
        start = warm_start.publish(config.from_checkpoint, run, name=checked.identity["from_checkpoint"], root=config.storage)
    return {
        **{name: sections[name] for name in ("sampling", "loss", "augmentation", "optimizer", "training")},
        "decode": decode_place(config.training.decode, gpus_per_worker=config.training.gpus_per_worker),
        "data": {"train": storage.absolute(config.data.train), "val": storage.absolute(config.data.val)},
        "run": run,
        "born": checked.born,
        "pretrained": weights,
        "start": start,
        "from_state": config.from_state,
        "package": package_of(config, checked.train_set),
        "config": sections,
    }


def in_thread(work: Callable[[], Any], outcome: Future[None]) -> None:
    """Wait for `work`, done in a thread so that Ctrl-C reaches this one as `KeyboardInterrupt`: in the main thread Ray Train's handler ends the
    process with code 1 and no word (Ray 2.60). Raises what it raised, or what `outcome` was given before.
    """

    def run() -> None:
        try:
            work()
        except BaseException as error:
            end(outcome, error)
        else:
            end(outcome, None)

    threading.Thread(target=run, daemon=True, name="fit").start()
    outcome.result()


def end(outcome: Future[None], error: BaseException | None) -> None:
    """The first end counts."""
    with suppress(InvalidStateError):
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)


def train_on_worker(job: dict[str, Any]) -> None:
    """What Ray Train runs on every worker. The loop is imported there: driver and controller do without torch's compiler and the rest (5 CPU
    seconds each).
    """
    from cluster.training.worker import Worker

    worker = Worker(job)
    # After an error threads would go on reading the epoch that was begun ahead.
    with closing(worker.stream):
        worker.train()


def evaluator_of(config: TrainConfig, board: Any) -> Evaluator:
    def tell(kind: str, **values: Any) -> None:
        if board is not None:
            board.put.remote({"kind": kind, **values})

    weights = "ema" if config.optimizer.ema_images else "model"
    return Evaluator(config.run_uri, storage.absolute(config.data.val), weights=weights, share=config.evaluation_share, tell=tell)


def workers_share(config: TrainConfig) -> dict[str, Any]:
    return config.training.model_dump(include={"workers", "cpus_per_worker", "gpus_per_worker"})


def evaluation_place(config: TrainConfig) -> str:
    """`beside` or `between`, see `TrainingConfig.evaluation`; Ray must be connected."""
    from ray._private.state import available_resources_per_node

    if config.training.evaluation != "auto":
        return config.training.evaluation
    # All workers: one that comes later would find an evaluation in its place.
    asked = needs(config, workers=config.training.workers, evaluation="beside")
    return "between" if unplaced(asked, list(available_resources_per_node().values())) else "beside"


def decode_place(choice: str, *, gpus_per_worker: float) -> str:
    """`threads` or `tasks`, see `TrainingConfig.decode`; Ray must be connected."""
    import ray

    if choice != "auto":
        return choice
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return "tasks" if gpus_per_worker and any(held.get("CPU") and not held.get("GPU") for held in resources) else "threads"


def needs(config: TrainConfig, *, workers: int | None = None, evaluation: str | None = None) -> list[dict[str, float]]:
    """The processes of a training with the CPUs and GPUs that each books: with so many `workers`, unset as few as it may have, and with an evaluation
    beside it where that is `beside`; a task that decodes needs a core, and a share to read, of its own.
    """
    number = {"workers": workers or config.training.min_workers or config.training.workers}
    beside = (evaluation or config.training.evaluation) == "beside"
    shares = [workers_share(config) | number, *([config.evaluation_share] if beside else [])]
    return [
        *(booked(share["cpus_per_worker"] + READ_CPUS, share["gpus_per_worker"]) for share in shares for _ in range(share["workers"])),
        *([booked(1 + READ_CPUS, 0)] if config.training.decode == "tasks" else []),
    ]


def booked(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def wanted(config: TrainConfig) -> str:
    """The fewest workers in words, with what each books."""
    training = config.training
    gpus = f" and {training.gpus_per_worker:g} GPUs" if training.gpus_per_worker else ""
    return f"{training.min_workers or training.workers} workers of {training.cpus_per_worker:g} CPUs{gpus}"

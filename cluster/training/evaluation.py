"""Evaluation of checkpoints during training, as a worker sees it: on the ranks between two epochs,
or requested from the driver, which evaluates beside training.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from cluster.errors import PlainError
from cluster.runs import evaluations
from cluster.runs.evaluations import Evaluation, Request
from cluster.runs.events import EvaluationDone, Tell, TrainingWarning
from cluster.scoring.detect import detect_share
from cluster.scoring.evaluate import evaluate_checkpoint
from cluster.shards.index import ShardSet
from cluster.training.checkpoints import Checkpoints
from cluster.training.ranks import Ranks
from cluster.training.state import TrainingState
from detector.decode import DecodeSettings
from detector.folding import for_detecting
from detector.metrics import Truth
from detector.model_config import DecodeConfig
from detector.predict import Predictor

Judge = Callable[[Evaluation], str | None]
"""Says why a training ends after this evaluation; None: it goes on. A sweep has one for each
trial.
"""


class RankEvaluator:
    """Evaluates the weights of a training on every image of a set once, sharded over its ranks."""

    def __init__(
        self,
        ranks: Ranks,
        val_set: ShardSet,
        truths: Sequence[Truth],
        class_names: Sequence[str],
        *,
        frequencies: Mapping[str, str],
        canvases: Sequence[tuple[int, int]],
        long_side: int | None,
        decode: DecodeConfig,
        amp: bool,
        decode_threads: int,
        progressed: Callable[[], None],
    ):
        """Rank 0 needs the `truths` of the set, whose labels are places in `class_names`, the
        model's classes; `frequencies` are those of LVIS by class name. `progressed` is called after
        every batch.
        """
        self._ranks, self._val_set = ranks, val_set
        self._frame = {"canvases": canvases, "long_side": long_side}
        self._decode, self._amp = decode, amp
        self._decode_threads, self._progressed = decode_threads, progressed
        self._truths, self._class_names = truths, class_names
        self._frequencies = frequencies

    def __call__(self, request: Request, state: TrainingState) -> Evaluation | None:
        """The evaluation on rank 0, None on the others: of the averaged weights, if there are any.
        Collective.
        """
        ranks, device = self._ranks, self._ranks.device
        model = copy.deepcopy(state.model)
        if state.average is not None:
            model.load_state_dict(state.average.state)
        # Running statistics differ between ranks; evaluate what rank 0 has saved.
        ranks.broadcast(model.buffers())
        predictor = Predictor(
            for_detecting(model, device, amp=self._amp),
            decode=DecodeSettings(**self._decode.model_dump()),
            amp=self._amp,
            **self._frame,
        )
        start = time.perf_counter()
        parts = ranks.gather(
            detect_share(
                predictor,
                self._val_set,
                rank=ranks.rank,
                ranks=ranks.size,
                threads=torch.get_num_threads() if device.type == "cpu" else 1,
                decode_threads=self._decode_threads,
                progressed=self._progressed,
            )
        )
        seconds = time.perf_counter() - start
        if ranks.rank:
            return None
        return evaluate_checkpoint(
            request,
            "model" if state.average is None else "ema",
            {image_id: boxes for part in parts for image_id, boxes in part.items()},
            self._truths,
            self._class_names,
            frequencies=self._frequencies,
            seconds=seconds,
        )


class EpochEvaluations:
    """Has checkpoints evaluated at the end of epochs and decides whether training stops early."""

    def __init__(
        self,
        run: str,
        *,
        ranks: Ranks,
        checkpoints: Checkpoints,
        evaluator: Callable[[Request, TrainingState], Evaluation | None] | None,
        patience: int,
        min_improvement: float,
        tell: Tell,
        judge: Judge | None = None,
    ):
        """`evaluator` (a `RankEvaluator`) evaluates on the ranks; without one the driver does it
        beside training. `patience` and `min_improvement` are those of `TrainingConfig`. Rank 0 asks
        the `judge` after each evaluation on the ranks, when the checkpoint is in storage.
        """
        self._run, self._ranks, self._checkpoints = run, ranks, checkpoints
        self._evaluator, self._judge, self._tell = evaluator, judge, tell
        self._verdict: str | None = None
        self._patience, self._min_improvement = patience, min_improvement
        self._finished = evaluations.read(run) if ranks.rank == 0 else []

    @property
    def best(self) -> Evaluation | None:
        """The best evaluation so far that rank 0 knows."""
        return evaluations.best_of(self._finished)

    def evaluate(self, uri: str, state: TrainingState, *, resumed: bool) -> None:
        """Have the checkpoint of the current state evaluated, beside training or here. `resumed`:
        training continued from this very checkpoint, so its evaluation may exist already.
        """
        request = Request(uri, state.progress.images_seen, state.progress.epoch + 1)
        existing = evaluations.find(self._finished, request.images_seen) if resumed else None
        if self._evaluator is None:
            if self._ranks.rank == 0 and existing is None:
                self._checkpoints.once_stored(
                    uri, partial(evaluations.store_request, self._run, request)
                )
            return
        evaluation = self._ranks.agreed(existing)
        if evaluation is None:
            made = self._evaluator(request, state)
            if made is not None:
                self._store(made)
            evaluation = self._ranks.agreed(made)
        assert evaluation is not None, "rank 0 has evaluated"
        if self._judge is not None:
            self._verdict = self._ranks.agreed(self._ask(self._judge, evaluation))

    def _ask(self, judge: Judge, evaluation: Evaluation) -> str | None:
        if self._ranks.rank:
            return None
        # What the judge has seen must not be trained again after a kill.
        self._checkpoints.settle()
        return judge(evaluation)

    def _store(self, evaluation: Evaluation) -> None:
        self._finished = evaluations.insert(self._finished, evaluation)
        # Only when the checkpoint is in storage, where best.json says that it is.
        self._checkpoints.once_stored(
            evaluation.checkpoint, partial(evaluations.store, self._run, evaluation)
        )
        self._tell(EvaluationDone(evaluation))

    def reason_to_stop(self) -> str | None:
        """Why training should end before its last epoch; the same on every rank. Collective if
        there is a patience.
        """
        if self._verdict is not None or not self._patience:
            return self._verdict
        if self._ranks.rank == 0 and self._evaluator is None:
            try:
                self._finished = evaluations.read(self._run)
            except (PlainError, OSError) as error:
                self._tell(
                    TrainingWarning(
                        "early stopping is decided without the newest evaluations, storage did not"
                        f" answer: {error}"
                    )
                )
        return self._ranks.agreed(
            evaluations.reason_to_stop(
                self._finished, patience=self._patience, min_improvement=self._min_improvement
            )
        )

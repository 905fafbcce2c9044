"""The search for anchors that fit the boxes of a set, without pixels and without training.

Each candidate is measured on a sample of the boxes, at their own positions and by RetinaNet's own
rule (`tune.placed_boxes.fit_of`), and the best few on all boxes. Shapes alone would mislead: a
coarse level has few positions, so an anchor of the right shape may lie far from every object.
Measured on COCO's boxes: anchors that were fitted to shapes alone raised the mean IoU of shapes
from 0.765 to 0.796 and lowered the true one from 0.717 to 0.694.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add
from typing import Protocol, TypeVar

import numpy as np
from scipy.optimize import differential_evolution
from threadpoolctl import threadpool_limits

from cluster.errors import DataError, UsageError
from cluster.shards.index import ShardSet
from cluster.shards.statistics import read_objects
from detector.image_config import CanvasConfig
from detector.model_config import AnchorConfig
from tune.anchor_genes import AnchorGenes
from tune.placed_boxes import Fit, PlacedBoxes, fit_of, place_boxes, sample_boxes

SAMPLE = 3000
"""Boxes that each candidate is measured on."""
RECALL_ERROR, DIFFERENCE_ERROR = 0.003, 0.0015
"""Standard deviation of a recall on the sample from that on all boxes, and of the difference of two
recalls: measured on COCO's boxes, with fewer strata than now.
"""
PRICE = 0.008
"""Mean worth of the objects that one more anchor at every position must bring. On boxes like COCO's
each anchor brings 0.013 from 6 to 9 at a position, 0.006 from 9 to 12 and 0.004 from 12 to 16, so
the search stays near the paper's nine.
"""
PART = 100_000
"""Boxes of a task. It does not follow the number of CPUs, so that sums are the same to the bit."""
LEAST_CANDIDATES = 100
POPULATION, MUTATION = 30, (0.4, 0.9)
"""Candidates of a generation, and the factor of their differences. One half of the first generation
is drawn near the given anchors, the other anywhere. Score after 3,000 candidates on 1,000 boxes
like COCO's, for three seeds: 0.624 each; with a population of 50 and SciPy's mutation 0.618 to
0.624; with one of 100 that is drawn anywhere 0.609 to 0.615.
"""
NEAR = 0.1
"""Standard deviation of those near the given anchors, a share of each number's range."""
RATIO_TAILS, RATIO_MARGIN = (0.005, 0.995), 2
"""Ratios are searched between these quantiles of the boxes' ratios, and an octave beyond: where
positions lie far apart, an anchor of another shape may hit more of them.
"""

Part = TypeVar("Part")
Result = TypeVar("Result")


class Spread(Protocol):
    """Calls a function for each part, here or on other machines; results in the parts' order."""

    def __call__(
        self, function: Callable[[Part], Result], parts: Sequence[Part], /
    ) -> list[Result]: ...


def in_process(function: Callable[[Part], Result], parts: Sequence[Part], /) -> list[Result]:
    return [function(part) for part in parts]


@dataclass(frozen=True)
class Candidate:
    """Anchors and how they fit the sample and all boxes."""

    anchors: AnchorConfig
    sample: Fit
    whole: Fit

    @property
    def per_position(self) -> int:
        return _per_position(self.anchors)

    def score(self, price: float) -> float:
        """Mean worth of all objects, less the price of the anchors."""
        return self.whole.mean_worth - price * self.per_position


@dataclass(frozen=True)
class AnchorSearch:
    """What a search found. `best` is the given candidate where none has a higher score."""

    given: Candidate
    best: Candidate
    confirmed: tuple[Candidate, ...]
    """All that were measured on all boxes, by falling score; the given one is among them."""
    price: float
    foreground: float
    tried: int
    """Number of candidates that were measured on the sample."""
    sample: PlacedBoxes = field(repr=False, compare=False)


def search_anchors(
    *,
    shard_set: ShardSet,
    canvas: CanvasConfig,
    anchors: AnchorConfig,
    scale_range: tuple[float, float] = (1.0, 1.0),
    short_sides: tuple[int, int] | None = None,
    min_visible: float = 0.25,
    foreground: float = 0.5,
    background: float = 0.4,
    price: float = PRICE,
    candidates: int = 10_000,
    confirm: int = 5,
    seed: int = 0,
    spread: Spread = in_process,
) -> AnchorSearch:
    """Search base sizes, scales and ratios for the objects of `shard_set`; strides and convention
    stay those of `anchors`. The same arguments give the same result, whatever `spread` is.

    `scale_range`, `short_sides` and `min_visible` are those of the augmentation, because training
    matches its anchors with augmented objects; without them objects are where evaluation has them.
    About `candidates` are measured on a sample, `confirm` of them on all boxes, spread over tasks.
    A candidate's score is the mean worth of the objects (see `fit_of`) less `price` for each anchor
    at a position. `UsageError` for a wrong argument, `DataError` for a set without objects or a
    damaged shard.
    """
    _check(foreground, background, price=price, candidates=candidates, confirm=confirm)
    objects = read_objects(shard_set, subject=f"data {shard_set.uri}")
    placing, sampling, searching = np.random.default_rng(seed).spawn(3)
    boxes = place_boxes(
        objects,
        canvas=canvas,
        scale_range=scale_range,
        short_sides=short_sides,
        min_visible=min_visible,
        generator=placing,
    )
    if not len(boxes):
        raise DataError(
            f"data {shard_set.uri}: none of its {len(objects.labels_N)} objects has sides of 1 px"
            " on the canvas, so no anchor fits one; take a larger canvas"
        )
    sample = sample_boxes(boxes, SAMPLE, sampling)
    rule = partial(fit_of, foreground=foreground, background=background)
    tried, proposals = _propose(
        sample, anchors, rule, price=price, candidates=candidates, generator=searching
    )
    few = [anchors, *(one for one in proposals[:confirm] if one != anchors)]
    parts = spread(partial(_fits, anchors=few, rule=rule), boxes.split(PART))
    measured = [
        Candidate(one, rule(sample, one), reduce(add, fits))
        for one, fits in zip(few, zip(*parts, strict=True), strict=True)
    ]
    # The sort is stable: of equal candidates the given one is the best.
    ranked = sorted(measured, key=lambda candidate: -candidate.score(price))
    return AnchorSearch(
        given=measured[0],
        best=ranked[0],
        confirmed=tuple(ranked),
        price=price,
        foreground=foreground,
        tried=tried,
        sample=sample,
    )


def _propose(
    sample: PlacedBoxes,
    given: AnchorConfig,
    rule: Callable[[PlacedBoxes, AnchorConfig], Fit],
    *,
    price: float,
    candidates: int,
    generator: np.random.Generator,
) -> tuple[int, list[AnchorConfig]]:
    """The number of candidates tried, and for each number of scales and ratios the best anchors on
    the sample, by falling score.

    Different shapes, because the runners-up of one shape are nearly the same anchors with the same
    luck on the sample.
    """
    genes = _genes(sample, given)
    best: dict[tuple[int, int], tuple[float, AnchorConfig]] = {}
    tried = 0

    def loss(vector: np.ndarray) -> float:
        nonlocal tried
        tried += 1
        anchors = genes.decode(vector)
        if anchors is None:  # as bad as the worst
            return price * genes.most_scales * genes.most_ratios
        score = rule(sample, anchors).mean_worth - price * _per_position(anchors)
        shape = (len(anchors.scales), len(anchors.ratios))
        if shape not in best or score > best[shape][0]:
            best[shape] = (score, anchors)
        return -score

    bounds = genes.bounds()
    population = min(POPULATION, candidates // 5)
    low, high = bounds.T
    first = generator.uniform(low, high, (population, len(bounds)))
    for row in range(population // 2):
        noise = NEAR * (high - low) * generator.standard_normal(len(bounds)) if row else 0.0
        first[row] = np.clip(genes.encode(generator) + noise, low, high)
    # `tol` below 0: it ends after its generations, not when the population is alike. One thread:
    # several have little to share in 3,000 boxes, and on a busy machine they wait for each other.
    with threadpool_limits(1, user_api="openmp"):
        differential_evolution(
            loss,
            bounds,
            # SciPy's signature names the strings alone.
            init=first,  # pyright: ignore[reportArgumentType]
            maxiter=candidates // population - 1,
            mutation=MUTATION,
            tol=-1,
            polish=False,
            rng=generator,
        )
    ranked = sorted(best.values(), key=lambda one: -one[0])
    return tried, [anchors for _, anchors in ranked]


def _genes(sample: PlacedBoxes, given: AnchorConfig) -> AnchorGenes:
    """Genes with the limits of the objects in the sample."""
    width_N, height_N = (sample.boxes_N4[:, 2:] - sample.boxes_N4[:, :2]).T
    low, high = np.quantile(height_N / width_N, RATIO_TAILS).tolist()
    ratios = (min(low / RATIO_MARGIN, *given.ratios), max(high * RATIO_MARGIN, *given.ratios))
    return AnchorGenes(given, ratios, largest=float(np.maximum(width_N, height_N).max()))


def _fits(
    boxes: PlacedBoxes,
    *,
    anchors: Sequence[AnchorConfig],
    rule: Callable[[PlacedBoxes, AnchorConfig], Fit],
) -> list[Fit]:
    return [rule(boxes, one) for one in anchors]


def _per_position(anchors: AnchorConfig) -> int:
    return len(anchors.scales) * len(anchors.ratios)


def _check(
    foreground: float, background: float, *, price: float, candidates: int, confirm: int
) -> None:
    if not 0 < background <= foreground <= 1:
        raise UsageError(
            f"background {background:g} and foreground {foreground:g}: must be IoU with 0 <"
            " background <= foreground <= 1; the paper uses 0.4 and 0.5"
        )
    if price < 0:
        raise UsageError(f"price {price:g}: must not be below 0; {PRICE} is the default")
    if candidates < LEAST_CANDIDATES:
        raise UsageError(
            f"candidates {candidates}: must be at least {LEAST_CANDIDATES}, a search needs several"
            " generations; 10000 is the default"
        )
    if confirm < 1:
        raise UsageError(
            f"confirm {confirm}: must be at least 1, the number of candidates that are measured on"
            " all boxes; 5 is the default"
        )

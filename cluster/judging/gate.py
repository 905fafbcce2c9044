"""Whether a model may take the place of the champion: limits, what was measured, the verdict.

Better and worse are decided by a paired bootstrap over the images of one shard set, see
`detector.resampling`: not worse by more than `epsilon` is a claim about the lower end of the
interval of the difference of AP, as in a test of non-inferiority. A difference that chance explains
thus passes only where the set is large enough to say that it is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.judging.gate_config import GateConfig
from detector.coco_matching import Matches
from detector.metrics import CocoTable
from detector.resampling import PairedDifference, paired_difference, said
from detector.scores import shown
from detector.text_table import text_table

VERSION = 1
SIZES = {"small": "AP_small", "medium": "AP_medium", "large": "AP_large"}
"""COCO's names: area below 32^2 px, to 96^2 px, above."""


@dataclass(frozen=True)
class Check:
    """One question to the model, and the answer."""

    name: str
    passed: bool
    found: str
    """What was measured, in words."""
    limit: str
    """What it had to be, in words."""


@dataclass(frozen=True)
class Scored:
    """What a model has on the shard set of the gate."""

    version: str
    table: CocoTable
    matches: Matches


@dataclass(frozen=True)
class Loaded:
    """What was seen when the package was loaded in a fresh process."""

    error: str | None
    """Why it did not load, or did not give the recorded detections."""
    compared: str
    """The images on which its detections were compared, in words."""
    milliseconds: float | None
    """Median time of one image."""
    device: str
    megabytes: float


@dataclass(frozen=True)
class Verdict:
    """Whether the model may be promoted, and every number behind that."""

    version: str
    champion: str | None
    data: str
    data_digest: str
    limits: Mapping[str, Any]
    checks: tuple[Check, ...]
    comparison: str
    """The difference to the champion in words; empty without a champion."""
    numbers: Mapping[str, float | None]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def refusal(self) -> str:
        """One line that says why not."""
        failed = [check for check in self.checks if not check.passed]
        reasons = "; ".join(f"{one.name}: {one.found} (limit: {one.limit})" for one in failed)
        return f"{self.version} is not promoted: {reasons}"

    def lines(self) -> list[str]:
        """For a terminal."""
        against = f" against {self.champion}" if self.champion else ", the first to be judged"
        checks = [
            ("ok" if one.passed else "NO", one.name, one.found, one.limit) for one in self.checks
        ]
        return [
            f"gate     {self.version}{against} on {self.data}",
            *text_table(("", "check", "found", "limit"), checks),
            *([f"compared {self.comparison}"] if self.comparison else []),
        ]

    def to_json(self) -> dict[str, Any]:
        """gate.json."""
        return {"version_of_file": VERSION, "passed": self.passed, **asdict(self)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Verdict:
        values = {name: stored[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "checks": tuple(Check(**one) for one in stored["checks"])})


def judge(
    candidate: Scored,
    champion: Scored | None,
    loaded: Loaded,
    limits: GateConfig,
    *,
    data: str,
    data_digest: str,
) -> Verdict:
    """The verdict on `candidate`. Both models were scored with the same settings on the same set.
    `ValueError` where they were not.
    """
    ap = candidate.table.summary["AP"]
    checks = [_floor(ap, limits), *_package_checks(loaded, limits)]
    numbers: dict[str, float | None] = {"AP": ap, "ms an image": loaded.milliseconds}
    comparison = ""
    if champion is not None:
        numbers["AP of the champion"] = champion.table.summary["AP"]
        difference = _difference(champion, candidate, limits)
        checks[1:1] = [_not_worse(difference, limits), *_groups(champion, candidate, limits)]
        if difference is not None:
            comparison = said(difference)
            interval = difference.interval
            numbers |= {
                "difference": interval.estimate,
                "low": interval.low,
                "high": interval.high,
            }
    return Verdict(
        candidate.version,
        champion and champion.version,
        data,
        data_digest,
        limits.model_dump(mode="json"),
        tuple(checks),
        comparison,
        numbers,
    )


def _floor(ap: float | None, limits: GateConfig) -> Check:
    passed = ap is not None and ap >= limits.min_ap
    return Check("AP", passed, shown(ap), f"at least {limits.min_ap:g}")


def _difference(champion: Scored, candidate: Scored, limits: GateConfig) -> PairedDifference | None:
    """Its interval has two ends, of which the lower one alone holds with the confidence: below it
    lies half of what the interval leaves out.
    """
    return paired_difference(
        champion.matches,
        candidate.matches,
        seed=limits.seed,
        resamples=limits.resamples,
        confidence=2 * limits.confidence - 1,
    )


def _not_worse(difference: PairedDifference | None, limits: GateConfig) -> Check:
    name = "difference of AP to the champion"
    limit = f"lower end {-limits.epsilon:g} or more ({100 * limits.confidence:g} %, one-sided)"
    if difference is None:
        return Check(name, False, "the set has no object", limit)
    interval = difference.interval
    found = f"{interval.estimate:+z.4f}, lower end {interval.low:+z.4f}"
    return Check(name, interval.low >= -limits.epsilon, found, limit)


def _groups(champion: Scored, candidate: Scored, limits: GateConfig) -> list[Check]:
    """The largest loss of a class and of a size, among those with enough objects."""
    before, after = champion.table, candidate.table
    classes = {
        name: (before.per_class[name]["AP"], after.per_class[name]["AP"])
        for name, count in _objects_of_classes(candidate.matches).items()
        if count >= limits.min_objects
    }
    sizes = {
        size: (before.summary[name], after.summary[name])
        for (size, name), count in zip(
            SIZES.items(), _objects_of_sizes(candidate.matches), strict=True
        )
        if count >= limits.min_objects
    }
    return [
        _largest_loss("largest loss of a class", classes, limits.class_drop, limits),
        _largest_loss("largest loss of a size", sizes, limits.size_drop, limits),
    ]


def _largest_loss(
    name: str,
    pairs: Mapping[str, tuple[float | None, float | None]],
    drop: float,
    limits: GateConfig,
) -> Check:
    limit = f"at most {drop:g} AP"
    losses = {
        group: one - other
        for group, (one, other) in pairs.items()
        if one is not None and other is not None
    }
    if not losses:
        found = f"none has {limits.min_objects} objects, so none is judged"
        return Check(name, True, found, limit)
    worst = max(losses, key=lambda group: losses[group])
    one, other = pairs[worst]
    lost = f"{losses[worst]:.4f}" if losses[worst] > 0 else "none, the least gain"
    found = f"{lost}, {worst}: {shown(one)} -> {shown(other)}"
    return Check(name, losses[worst] <= drop, found, limit)


def _objects_of_classes(matches: Matches) -> dict[str, int]:
    """Objects that count, by class."""
    return {
        name: int(of_class.counted_SG[0].sum())
        for name, of_class in zip(matches.class_names, matches.classes, strict=True)
    }


def _objects_of_sizes(matches: Matches) -> Sequence[int]:
    """Objects that count: small, medium, large."""
    return [sum(int(each.counted_SG[size].sum()) for each in matches.classes) for size in (1, 2, 3)]


def _package_checks(loaded: Loaded, limits: GateConfig) -> list[Check]:
    checks = [
        Check(
            "loads in a fresh process",
            loaded.error is None,
            loaded.error or f"as recorded on {loaded.compared}",
            "the same detections, without pickle",
        )
    ]
    if limits.latency_ms is not None:
        took = loaded.milliseconds
        found = "not measured" if took is None else f"{took:.1f} ms on {loaded.device}"
        within = took is not None and took <= limits.latency_ms
        checks.append(Check("time of an image", within, found, f"at most {limits.latency_ms:g} ms"))
    if limits.megabytes is not None:
        found, limit = f"{loaded.megabytes:.1f} MB", f"at most {limits.megabytes:g} MB"
        within = loaded.megabytes <= limits.megabytes
        checks.append(Check("size of the package", within, found, limit))
    return checks

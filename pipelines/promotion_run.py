"""A registered version against the champion: the gate, and what follows from it. `promote`,
`approve` and `register` share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.compute.session import RayConfig
from cluster.errors import GateError, UsageError
from cluster.judging.gate import Scored, Verdict, judge
from cluster.judging.gate_config import GateConfig
from cluster.scoring import evaluate
from cluster.scoring.compare_packages import Candidate, detect_as, refuse_other_classes
from cluster.scoring.truths import read_frequencies, read_truths
from cluster.shards.index import ShardSet
from cluster.storage.scratch import scratch_folder
from cluster.storage.uris import absolute
from cluster.tracking import promotion, verdicts
from cluster.tracking.client import connected
from cluster.tracking.config import TrackingConfig
from cluster.tracking.fresh_load import load
from cluster.tracking.logged_package import download_model, package_folder
from cluster.tracking.promotion import Evidence
from cluster.tracking.register_run import DATA_TAG
from cluster.tracking.registry import CHAMPION, Version
from detector.coco_matching import match
from pipelines.scoring_inputs import (
    Replicas,
    connect_for,
    find_model,
    given_classes,
    matched_classes,
    open_set,
)


@dataclass(frozen=True)
class Promoted:
    """What became of a promotion that was not refused."""

    version: Version
    verdict: Verdict | None
    """None: nothing was judged."""
    outcome: str
    """In words."""

    def lines(self) -> list[str]:
        """The result, for a terminal."""
        table = self.verdict.lines() if self.verdict else []
        return [*table, f"result   {self.outcome}"]


@dataclass(frozen=True)
class Asked:
    """What the person who promotes says beside the model."""

    reason: str | None = None
    force: bool = False
    """Promote although the gate says no."""
    needs_approval: bool = False


def promote_run(
    model: str,
    data: str | None,
    *,
    gate: GateConfig,
    asked: Asked,
    class_map: str | None = None,
    replicas: Replicas,
    ray: RayConfig,
    tracking: TrackingConfig,
    storage: str,
) -> Promoted:
    """Judge a registered version against the champion on the shard set `data`, by default the one
    on which its run was evaluated, and make it the champion. The verdict is a tag of the version.

    `GateError` where the gate says no and `asked.force` is not said. Then nothing moves.
    """
    version, store = find_model(model, tracking, storage)
    with connected(store) as client:
        number = promotion.champion_of(client, version.name)
        tags = client.get_model_version(version.name, str(version.version)).tags
    champion = None if number is None else Version(version.name, number)
    if champion == version:
        return Promoted(version, None, f"{version} is the {CHAMPION} already; nothing was done")
    uri = data or tags.get(DATA_TAG)
    if uri is None:
        raise UsageError(
            f"{version}: does not say on which shard set it was evaluated; give --data"
        )
    shard_set = open_set(absolute(uri))
    given = given_classes(class_map)
    versions = [version, *([champion] if champion else [])]
    with scratch_folder("promote") as scratch:
        models = [
            download_model(each, tracking=store, folder=f"{scratch}/{each.version}")
            for each in versions
        ]
        candidates = [
            _candidate(model, each, shard_set, given)
            for model, each in zip(models, versions, strict=True)
        ]
        refuse_other_classes(candidates[0], candidates[-1])
        connect_for(replicas, ray)
        print(f"judging  {' against '.join(map(str, versions))} on {shard_set.uri}", flush=True)
        loaded = load(models[0], version, tags)
        scored = _score(candidates, shard_set, replicas)
    verdict = judge(
        scored[0],
        scored[1] if champion else None,
        loaded,
        gate,
        data=shard_set.uri,
        data_digest=shard_set.digest,
    )
    verdicts.keep(version, verdict, tracking=store)
    if not verdict.passed and not asked.force:
        print("\n".join(verdict.lines()))
        raise GateError(verdict.refusal())
    return _promote(version, champion, verdict, asked, store)


def _promote(
    version: Version, champion: Version | None, verdict: Verdict, asked: Asked, store: str
) -> Promoted:
    """Move the champion, or ask a second person to."""
    old = champion and champion.version
    evidence = Evidence(old, verdict.data, verdict.data_digest, verdict.numbers)
    reason = asked.reason or verdict.comparison or "it passes the gate; there was no champion"
    is_forced = not verdict.passed
    if asked.needs_approval:
        verdicts.request(
            version, reason=reason, is_forced=is_forced, evidence=evidence, tracking=store
        )
        outcome = f"{version} waits for a second person: approve --model {version}"
        return Promoted(version, verdict, outcome)
    kind = "forced" if is_forced else "promotion"
    promotion.promote(version, reason=reason, tracking=store, kind=kind, evidence=evidence)
    return Promoted(version, verdict, _became(version, old))


def approve_run(model: str, *, tracking: TrackingConfig, storage: str) -> Promoted:
    """See `verdicts.approve`."""
    version, store = find_model(model, tracking, storage)
    asked = verdicts.approve(version, tracking=store)
    return Promoted(version, None, _became(version, asked.evidence.champion))


def _became(version: Version, old: int | None) -> str:
    before = f"; version {old} is previous, rollback gives it back" if old else ""
    return f"{version} is the {CHAMPION} now{before}"


def _candidate(
    model: str, version: Version, shard_set: ShardSet, given: dict[str, str] | None
) -> Candidate:
    package = package_folder(model, version)
    classes = matched_classes(shard_set, package, str(version), given)
    return Candidate(package, str(version), classes)


def _score(
    candidates: Sequence[Candidate], shard_set: ShardSet, replicas: Replicas
) -> list[Scored]:
    """With the classes of the first in its order."""
    classes = candidates[0].classes
    truths = read_truths(shard_set, classes)
    metrics = evaluate.metrics_of(read_frequencies(shard_set, classes))
    scored = []
    for each in candidates:
        detections = detect_as(classes.names, each, shard_set, **vars(replicas))
        table = evaluate.evaluate_detections(detections, truths, classes.names, metrics)
        scored.append(Scored(each.name, table, match(truths, detections, classes.names)))
    return scored

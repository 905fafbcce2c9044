"""A registered version against the champion: the gate, and what follows from it. `promote`,
`approve` and `register` share it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cluster.compute.session import RayConfig
from cluster.errors import GateError, UsageError, on_one_line
from cluster.judging.gate import Loaded, Scored, Verdict, judge
from cluster.judging.gate_config import GateConfig
from cluster.runs.package_files import read_classes, read_package
from cluster.scoring import evaluate
from cluster.scoring.detect import detect_set
from cluster.scoring.truths import read_truths
from cluster.shards.classes import ClassMatch, match_classes
from cluster.shards.index import ShardSet, open_shard_set
from cluster.shards.statistics import read_objects
from cluster.storage import preflight
from cluster.storage.uris import absolute
from cluster.tracking import promotion, registry
from cluster.tracking.client import connected
from cluster.tracking.config import TrackingConfig, tracking_uri
from cluster.tracking.examples import Example, as_detections, difference, read_examples
from cluster.tracking.history import TIME_FORMAT
from cluster.tracking.logged_package import (
    EXAMPLES,
    LOADER,
    artifact_folder,
    download_model,
    package_folder,
)
from cluster.tracking.preflight import check_server
from cluster.tracking.promotion import APPROVAL_TAG, GATE_TAG, REFUSED, Evidence
from cluster.tracking.register_run import DATA_TAG
from cluster.tracking.registry import CHAMPION, Version
from detector.coco_matching import match
from detector.decode import Detections
from pipelines.scoring_run import MAP_REMEDY, Replicas, connect_for, given_classes


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
    store = tracking_uri(tracking.uri, storage)
    registry.parse_model_uri(model)
    check_server(store, must_exist=True)
    version = registry.resolve(model, tracking=store)
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
    shard_set = _open(uri)
    verdict = _judge(
        version,
        champion,
        shard_set,
        gate,
        class_map=class_map,
        replicas=replicas,
        ray=ray,
        store=store,
    )
    evidence = Evidence(number, verdict.data, verdict.data_digest, verdict.numbers)
    _keep(version, verdict, store)
    if not verdict.passed and not asked.force:
        print("\n".join(verdict.lines()))
        raise GateError(verdict.refusal())
    reason = asked.reason or verdict.comparison or f"AP {verdict.numbers['AP']:.4f}"
    if asked.needs_approval:
        waiting = {"reason": reason, "forced": not verdict.passed, **vars(evidence)}
        _tag(version, APPROVAL_TAG, waiting, store)
        outcome = f"{version} waits for a second person: approve --model {version}"
        return Promoted(version, verdict, outcome)
    kind = "promotion" if verdict.passed else "forced"
    promotion.promote(version, reason=reason, tracking=store, kind=kind, evidence=evidence)
    return Promoted(version, verdict, _became(version, champion))


def approve(model: str, *, tracking: TrackingConfig, storage: str) -> Promoted:
    """Make a version the champion that a promotion has put before a second person. `UsageError`
    where there is none, or the same person asks.
    """
    store = tracking_uri(tracking.uri, storage)
    registry.parse_model_uri(model)
    check_server(store, must_exist=True)
    version = registry.resolve(model, tracking=store)
    with connected(store) as client:
        tags = client.get_model_version(version.name, str(version.version)).tags
    if APPROVAL_TAG not in tags:
        raise UsageError(
            f"{version}: no promotion waits for approval; promote --needs_approval true asks for it"
        )
    waiting = json.loads(tags[APPROVAL_TAG])
    if waiting["by"] == promotion.user():
        raise UsageError(
            f"{version}: {waiting['by']} has asked for this promotion; another person must approve"
        )
    evidence = Evidence(*(waiting[name] for name in Evidence.__dataclass_fields__))
    reason = f"{waiting['reason']} (asked by {waiting['by']}, approved)"
    kind = "forced" if waiting["forced"] else "promotion"
    promotion.promote(version, reason=reason, tracking=store, kind=kind, evidence=evidence)
    with connected(store) as client:
        client.delete_model_version_tag(version.name, str(version.version), APPROVAL_TAG)
    old = None if evidence.champion is None else Version(version.name, evidence.champion)
    return Promoted(version, None, _became(version, old))


def _became(version: Version, old: Version | None) -> str:
    before = f"; version {old.version} is previous, rollback gives it back" if old else ""
    return f"{version} is the {CHAMPION} now{before}"


def _open(uri: str) -> ShardSet:
    preflight.check_reachable(uri)
    shard_set = open_shard_set(absolute(uri))
    read_objects(shard_set, subject=f"data {shard_set.uri}")
    return shard_set


def _keep(version: Version, verdict: Verdict, store: str) -> None:
    """The verdict as a tag, a refusal as one more that stays. An earlier request for approval
    rested on another verdict and is withdrawn.
    """
    with connected(store) as client:
        number = str(version.version)
        if APPROVAL_TAG in client.get_model_version(version.name, number).tags:
            client.delete_model_version_tag(version.name, number, APPROVAL_TAG)
    _tag(version, GATE_TAG, verdict.to_json(), store)
    if not verdict.passed:
        now = datetime.now(UTC).strftime(TIME_FORMAT)
        _tag(version, REFUSED + now, verdict.to_json(), store)


def _tag(version: Version, name: str, content: dict[str, Any], store: str) -> None:
    now = datetime.now(UTC).strftime(TIME_FORMAT)
    text = json.dumps({"by": promotion.user(), "at": now, **content})
    with connected(store) as client:
        client.set_model_version_tag(version.name, str(version.version), name, text)


def _judge(
    version: Version,
    champion: Version | None,
    shard_set: ShardSet,
    gate: GateConfig,
    *,
    class_map: str | None,
    replicas: Replicas,
    ray: RayConfig,
    store: str,
) -> Verdict:
    """Score both versions with the same settings on the same set."""
    versions = [version, *([champion] if champion else [])]
    with tempfile.TemporaryDirectory(prefix="promote-") as scratch:
        models = [
            download_model(each, tracking=store, folder=f"{scratch}/{each.version}")
            for each in versions
        ]
        packages = [package_folder(*pair) for pair in zip(models, versions, strict=True)]
        classes = [
            match_classes(
                shard_set.class_names,
                [category.name for category in read_classes(package)],
                subject=f"data {shard_set.uri}",
                of=f"the model {each}",
                remedy=MAP_REMEDY,
                given=given_classes(class_map),
            )
            for package, each in zip(packages, versions, strict=True)
        ]
        loaded = load(models[0], packages[0], version, scratch)
        connect_for(replicas, ray)
        scored = [
            _score(str(each), package, shard_set, matched, replicas)
            for each, package, matched in zip(versions, packages, classes, strict=True)
        ]
    return judge(
        scored[0],
        scored[1] if champion else None,
        loaded,
        gate,
        data=shard_set.uri,
        data_digest=shard_set.digest,
    )


def _score(
    version: str, package: str, shard_set: ShardSet, classes: ClassMatch, replicas: Replicas
) -> Scored:
    """In the labels of the set, so that models whose classes have another order are comparable."""
    found = detect_set(read_package(package), shard_set.uri, **vars(replicas))
    detections = {image_id: _in_labels_of_set(each, classes) for image_id, each in found.items()}
    kept = [label for label, to in enumerate(classes.labels) if to >= 0]
    names = [shard_set.class_names[label] for label in kept]
    own = ClassMatch(
        tuple(names),
        tuple(kept.index(n) if n in kept else -1 for n in range(len(classes.labels))),
    )
    truths = read_truths(shard_set, own)
    table = evaluate.evaluate_detections(detections, truths, names, evaluate.METRICS)
    return Scored(version, table, match(truths, detections, names))


def _in_labels_of_set(detections: Detections, classes: ClassMatch) -> Detections:
    """With the place among the classes of the set that are kept; others are left out."""
    place_K = np.full(len(classes.names), -1, np.int64)
    kept = [to for to in classes.labels if to >= 0]
    place_K[kept] = np.arange(len(kept))
    labels_N = place_K[detections.labels_N]
    kept_N = labels_N >= 0
    return Detections(detections.boxes_N4[kept_N], detections.scores_N[kept_N], labels_N[kept_N])


def load(model: str, package: str, version: Version, scratch: str) -> Loaded:
    """Load a downloaded model in a fresh process, without pickle and with its own code, and compare
    what it detects in its example pictures.
    """
    folder = artifact_folder(model, EXAMPLES, version)
    examples = [] if folder is None else read_examples(folder)
    size = sum(path.stat().st_size for path in Path(package).rglob("*") if path.is_file()) / 1e6
    if not examples:
        compared = "no picture: it was registered without examples"
    else:
        compared = f"{len(examples)} pictures"
    kept_out = {"PYTHONPATH", "PYTHONSTARTUP"}
    clean = {name: value for name, value in os.environ.items() if name not in kept_out}
    done = subprocess.run(
        [sys.executable, str(LOADER), model, *(example.path for example in examples)],
        cwd=scratch,
        env={**clean, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Loaded(f"does not load: {on_one_line(last)[:300]}", compared, None, "", size)
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return Loaded(
        _not_as_recorded(examples, answer["found"]),
        compared,
        answer["milliseconds"],
        answer["device"],
        size,
    )


def _not_as_recorded(examples: list[Example], found: list[dict[str, Any]]) -> str | None:
    for example, each in zip(examples, found, strict=True):
        wrong = difference(example.detections, as_detections(each))
        if wrong is not None:
            return f"{os.path.basename(example.path)}: {wrong}"
    return None

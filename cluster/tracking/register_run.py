"""The best checkpoint of a training run becomes a version of a registered model."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import DataError, UsageError, on_one_line
from cluster.runs import evaluations, run_folder
from cluster.runs.evaluations import Evaluation
from cluster.runs.package_files import (
    build_package,
    package_digest,
    write_thresholds,
    write_validation,
)
from cluster.storage import preflight, uris
from cluster.storage.scratch import scratch_folder
from cluster.tracking import registry
from cluster.tracking.client import connected
from cluster.tracking.config import refuse_second_store, ui_command
from cluster.tracking.evaluation import logged_interval
from cluster.tracking.examples import write_examples
from cluster.tracking.file_digests import FILES_TAG, as_tag
from cluster.tracking.logged_package import EXAMPLES, download_model, log_package, logged_digests
from cluster.tracking.model_card import model_card, short_card
from cluster.tracking.preflight import check_model_name, check_server
from cluster.tracking.promotion import give_aliases, register
from cluster.tracking.registry import Version
from cluster.tracking.run import attach_run, read_record

DATA_TAG = "data_val"
"""Of a version: the shard set on which its run was evaluated."""


@dataclass(frozen=True)
class Registered:
    """A version of a model. `is_new` is False where the version had this very checkpoint already;
    `is_final` is False where the training is not finished.
    """

    version: Version
    best: Evaluation
    aliases: list[str]
    is_new: bool
    is_final: bool
    tracking_uri: str
    note: str | None = None
    """What a reader should know."""

    def lines(self) -> list[str]:
        """The result, for a terminal."""
        lines = [
            (
                f"model    {self.version}   AP {self.best.shown('AP', 3)}, AP50"
                f" {self.best.shown('AP50', 3)} at {self.best.images_seen} images"
            ),
            f"aliases  {', '.join(self.aliases) or 'none'}",
            f"see it   {ui_command(self.tracking_uri)}",
        ]
        if not self.is_final:
            lines.insert(1, "note     training is not finished; this is its best checkpoint so far")
        if self.note:
            lines.append(f"note     {self.note}")
        if not self.is_new:
            lines.insert(0, f"{self.version} already holds this checkpoint; nothing was added")
        return lines


def register_run(
    run: str, name: str, *, uri: str | None = None, licence: str | None = None
) -> Registered:
    """Register the best checkpoint of the training run in the folder `run` as a version of the
    model `name`, unless a version has it already. `uri`: the MLflow store, by default the one that
    has the run, whatever MLFLOW_TRACKING_URI says. `licence`: for the model card. `UsageError`
    where the run has no checkpoint or no MLflow run.
    """
    folder = uris.absolute(run)
    preflight.check_reachable(folder)
    best = evaluations.best_checkpoint(folder)
    recorded = read_record(folder)
    if recorded is None:
        raise UsageError(
            f"{folder}: no {run_folder.TRACKING}, so its MLflow run is unknown; repeat the train"
            " command, it writes this file"
        )
    store = uri or recorded.uri
    refuse_second_store(store)
    check_server(store, must_exist=True)
    check_model_name(store, name, option="name")
    with scratch_folder("register") as scratch:
        package = f"{scratch}/package"
        _write_package(best, package)
        digest = package_digest(package)
        version, note = registry.find_package(digest, name, tracking=store), None
        damage = None if version is None else _damage(version, store, f"{scratch}/registered")
        if damage is not None:
            version = None
        is_new = version is None
        if version is None:
            config = (run_folder.read(folder, run_folder.CONFIG) or {}).get("config", {})
            data = config.get("data", {}).get("val")
            examples, note = _write_examples(data, package, f"{scratch}/{EXAMPLES}")
            card = model_card(
                name,
                best,
                config,
                interval=logged_interval(store, recorded.run_id, step=best.images_seen),
                run=folder,
                digest=digest,
                licence=licence,
            )
            mlflow_run = attach_run(store, recorded.run_id)
            try:
                mlflow_run.log_text(card, "model_card.md")
                model_uri = log_package(
                    mlflow_run, package, step=best.images_seen, examples=examples
                )
            finally:
                mlflow_run.close()
            tags = {
                registry.DIGEST_TAG: digest,
                FILES_TAG: as_tag(logged_digests(model_uri, tracking=store)),
                **_tags(folder, best, data),
            }
            version = register(model_uri, name, tracking=store, tags=tags, card=short_card(card))
        else:
            give_aliases(version, tracking=store)
    return Registered(
        version,
        best,
        registry.aliases(version, tracking=store),
        is_new,
        run_folder.read_finished(folder) is not None,
        store,
        damage or note,
    )


def _write_package(best: Evaluation, package: str) -> None:
    """The package of a checkpoint, with what is known of its detections, in a local folder."""
    build_package(best.checkpoint, package, weights=best.weights)
    if best.detected is not None:
        write_validation(package, best.detected)
    if best.thresholds is not None:
        write_thresholds(package, best.thresholds)


def _tags(run: str, best: Evaluation, data: str | None) -> dict[str, str]:
    """Where a version comes from, and how good it is."""
    scores = {name: best.metrics.get(name) for name in ("AP", "AP50")}
    return {
        **({DATA_TAG: data} if data else {}),
        "run_folder": run,
        "checkpoint": best.checkpoint,
        registry.SEEN_TAG: str(best.images_seen),
        **{name: str(value) for name, value in scores.items() if value is not None},
    }


def _damage(version: Version, store: str, folder: str) -> str | None:
    """What to say of a version whose files are no longer those that were registered, or cannot be
    compared.
    """
    with connected(store) as client:
        tags = client.get_model_version(version.name, str(version.version)).tags
    if FILES_TAG not in tags:
        return f"this is a new version, because {version} has no digests of its files"
    try:
        download_model(version, tracking=store, folder=folder)
    except DataError as error:
        return f"this is a new version, because {error}"
    return None


def _write_examples(data: str | None, package: str, folder: str) -> tuple[str | None, str | None]:
    """The folder with the examples, or what to say where there are none: they are not worth the
    registration.
    """
    if data is None:
        return None, "no example pictures: the run does not say what it was evaluated on"
    try:
        write_examples(package, data, folder)
    except Exception as error:
        return None, f"no example pictures from {data}: {on_one_line(str(error))[:200]}"
    return folder, None

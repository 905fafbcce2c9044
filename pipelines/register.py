"""Register the best checkpoint of a training run as a version of a model in MLflow.

python -m pipelines.register --run ./runs/runs/quickstart --name quickstart
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cluster.tracking.config import TrackingConfig
from pipelines.command_line import run_verb


class RegisterConfig(BaseModel):
    """Which run becomes a version of which model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(
        min_length=1,
        description=(
            "folder of a training run, <storage>/runs/<run name>: a local path or s3://bucket/key"
        ),
    )
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description=(
            "registered model that gets the version, created when new: at most 100 letters, digits,"
            " . _ -"
        ),
    )
    tracking: TrackingConfig = Field(
        TrackingConfig(),
        description="MLflow; without a uri the one that the training run used (its tracking.json)",
    )


def main(config: RegisterConfig) -> str:
    """Returns the version, models:/NAME/3, new or found."""
    import tempfile

    from cluster.errors import UsageError
    from cluster.runs import evaluations, run_folder
    from cluster.runs.package_files import build_package, package_digest
    from cluster.storage import preflight, uris
    from cluster.tracking import registry
    from cluster.tracking.config import check_server, ui_command
    from cluster.tracking.logged_package import log_package
    from cluster.tracking.run import attach_run

    folder = uris.absolute(config.run)
    preflight.check_readable(folder)
    best = evaluations.best_checkpoint(folder)
    recorded = run_folder.read_tracking(folder)
    if recorded is None:
        raise UsageError(
            f"{folder}: no {run_folder.TRACKING}, so its MLflow run is unknown; repeat the train"
            " command, it writes this file"
        )
    uri = config.tracking.uri or recorded.uri
    check_server(uri)

    with tempfile.TemporaryDirectory(prefix="retinaray-register-") as scratch:
        package = f"{scratch}/package"
        build_package(best.checkpoint, package, weights=best.weights)
        digest = package_digest(package)
        version = registry.find_package(digest, config.name, tracking=uri)
        if version is not None:
            print(f"{version} already holds this checkpoint; nothing was added")
        else:
            run = attach_run(uri, recorded.run_id)
            try:
                model_uri = log_package(run, package, step=best.images_seen)
            finally:
                run.close()
            tags = {registry.DIGEST_TAG: digest, "run_folder": folder} | {
                "checkpoint": best.checkpoint,
                "images_seen": str(best.images_seen),
                **{name: str(best.metrics[name]) for name in ("AP", "AP50")},
            }
            version = registry.register(model_uri, config.name, tracking=uri, tags=tags)

    aliases = registry.aliases(version, tracking=uri)
    print(
        f"model    {version}   AP {best.ap:.3f}, AP50 {best.metrics['AP50']:.3f} at"
        f" {best.images_seen} images"
    )
    if run_folder.read_finished(folder) is None:
        print("note     training is not finished; this is its best checkpoint so far")
    print(f"aliases  {', '.join(aliases) or 'none'}")
    print(f"see it   {ui_command(uri)}")
    return str(version)


if __name__ == "__main__":
    run_verb(
        RegisterConfig,
        main,
        description="Register the best checkpoint of a training run in MLflow.",
    )

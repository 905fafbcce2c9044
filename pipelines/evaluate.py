"""Score a training run's best checkpoint, or a registered model, on a shard set.

python -m pipelines.evaluate --run runs/runs/cells --data runs/data/val python -m pipelines.evaluate
--model models:/cells@champion --data s3://bucket/data/val --output s3://bucket/evaluation
"""

from __future__ import annotations

from pydantic import Field, model_validator

from cluster.compute.session import RayConfig
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.command_line import run_verb


class EvaluateConfig(Section):
    """Evaluate a detector."""

    run: str | None = Field(
        None,
        description=(
            "folder of a training run, <storage>/runs/<name>: its best checkpoint is scored"
        ),
    )
    model: str | None = Field(
        None, description="or a registered model: models:/NAME@champion or models:/NAME/3"
    )
    data: str = Field(description="shard set to score on, a local folder or s3://bucket/key")
    output: str | None = Field(
        None,
        description=(
            "folder for table and pictures; unset: <run>/evaluation/<first 12 characters of the"
            " data's digest>"
        ),
    )
    storage: str = Field(
        "runs", description="storage root, where the embedded MLflow lies; only used with --model"
    )
    max_detections: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description=(
            "best detections kept an image, for AP, and for AR beside 1 and 10; unset: the model's"
            " own, scored at 100"
        ),
    )
    overlays: int = Field(8, ge=0, le=1000, description="pictures drawn with detections and truth")
    workers: int = Field(2, ge=1, le=4096, description="model replicas")
    cpus_per_worker: float = Field(0.75, gt=0, le=256, description="CPUs each replica books")
    gpus_per_worker: float = Field(0, ge=0, le=1, description="GPUs each replica books")
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def one_model(self) -> EvaluateConfig:
        if (self.run is None) == (self.model is None):
            raise ValueError("give either --run or --model, the detector that is to be scored")
        if self.model is not None and self.output is None:
            raise ValueError("--model needs --output, the folder for the table and the pictures")
        return self


def main(config: EvaluateConfig) -> None:
    import tempfile

    from cluster.compute import resources, session
    from cluster.runs import evaluations, run_folder
    from cluster.runs.package_files import build_package
    from cluster.scoring.evaluate_package import evaluate_package
    from cluster.shards.index import open_shard_set
    from cluster.storage import files, preflight, uris
    from cluster.tracking.config import check_server, tracking_uri
    from cluster.tracking.evaluation import log_evaluation
    from cluster.tracking.logged_package import download_package
    from cluster.tracking.registry import resolve

    preflight.check_reachable(config.data)
    shard_set = open_shard_set(config.data)
    best = evaluations.best_checkpoint(uris.absolute(config.run)) if config.run else None
    output = uris.absolute(config.output or f"{config.run}/evaluation/{shard_set.digest[:12]}")
    preflight.check_writable(output)
    with tempfile.TemporaryDirectory(prefix="evaluate-") as scratch:
        if best is not None:
            package, scored = f"{scratch}/package", best.checkpoint
            build_package(best.checkpoint, package, weights=best.weights)
        else:
            uri = tracking_uri(config.tracking.uri, config.storage)
            check_server(uri)
            version = resolve(config.model, tracking=uri)
            package, scored = download_package(version, tracking=uri, folder=scratch), str(version)
        session.connect(config.ray.address, num_cpus=config.ray.num_cpus, logs=config.ray.logs)
        what = (
            f"workers {config.workers} x cpus_per_worker {config.cpus_per_worker:g} + 0.25 for"
            " reading"
        )
        processes = [
            {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
        ] * config.workers + [{"CPU": 0.25}]
        resources.check_resources(processes, what=what, autoscaling=config.ray.autoscaling)
        resources = dict(
            workers=config.workers,
            cpus_per_worker=config.cpus_per_worker,
            gpus_per_worker=config.gpus_per_worker,
        )
        folder, asked = (
            f"{scratch}/evaluation",
            dict(overlays=config.overlays, max_detections=config.max_detections),
        )
        table = evaluate_package(package, shard_set, folder, scored=scored, **asked, **resources)
        files.upload_folder(folder, output, last="metrics.json")
        recorded = run_folder.read_tracking(uris.absolute(config.run)) if config.run else None
        if recorded is not None and best is not None:
            log_evaluation(recorded.uri, recorded.run_id, folder, step=best.images_seen)
    print(table.as_text())
    print(f"scored   {scored}")
    print(f"written  {output}: metrics.json, table.txt, precision_recall.png, overlays/")


if __name__ == "__main__":
    run_verb(
        EvaluateConfig,
        main,
        description=(
            "Score a run's best checkpoint or a registered model: COCO table, per-class AP, PR"
            " curves, overlays."
        ),
    )

"""Run a registered detector over a folder or bucket of images.

python -m pipelines.predict --model models:/cells@champion --images s3://bucket/pictures --output
s3://bucket/predictions
"""

from __future__ import annotations

from pydantic import Field

from cluster.compute.session import RayConfig
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.command_line import run_verb


class PredictConfig(Section):
    """Batch prediction."""

    model: str = Field(
        description=(
            "registered model: models:/NAME@champion or models:/NAME/3; an alias is resolved once,"
            " to a version"
        )
    )
    images: str = Field(
        description=(
            "folder or s3://bucket/prefix; every file below it that is named like an image is taken"
        )
    )
    output: str = Field(
        description=(
            "folder for predictions.parquet, coco_results.json, overlays/ and summary.json (written"
            " last)"
        )
    )
    annotations: str | None = Field(
        None,
        description=(
            "COCO JSON whose file names give the image ids of coco_results.json; unset: places in"
            " the sorted list, from 1"
        ),
    )
    overwrite: bool = Field(False, description="replace what a finished prediction left in output")
    overlays: int = Field(0, ge=0, le=1000, description="pictures drawn with their detections")
    storage: str = Field("runs", description="storage root, where the embedded MLflow lies")
    workers: int = Field(2, ge=1, le=4096, description="model replicas")
    cpus_per_worker: float = Field(0.75, gt=0, le=256, description="CPUs each replica books")
    gpus_per_worker: float = Field(0, ge=0, le=1, description="GPUs each replica books")
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()


def main(config: PredictConfig) -> None:
    import tempfile

    from cluster.compute import resources, session
    from cluster.errors import UsageError, on_one_line
    from cluster.scoring.predict import (
        PREDICTIONS,
        RESULTS,
        SUMMARY,
        image_ids,
        list_images,
        predict,
    )
    from cluster.storage import files, preflight, uris
    from cluster.tracking.config import check_server, tracking_uri
    from cluster.tracking.logged_package import download_package
    from cluster.tracking.registry import resolve

    images, output = uris.absolute(config.images), uris.absolute(config.output)
    preflight.check_readable(images)
    preflight.check_writable(output)
    if files.exists(uris.join(output, SUMMARY)) and not config.overwrite:
        raise UsageError(
            f"output {output}: holds a finished prediction; choose another folder or say"
            " --overwrite true"
        )
    uris = list_images(images)
    uri = tracking_uri(config.tracking.uri, config.storage)
    check_server(uri)
    version = resolve(config.model, tracking=uri)
    annotations = files.read_json(config.annotations) if config.annotations else None
    ids = image_ids(uris, images, annotations)

    session.connect(config.ray.address, num_cpus=config.ray.num_cpus, logs=config.ray.logs)
    what = (
        f"workers {config.workers} x cpus_per_worker {config.cpus_per_worker:g} + 0.25 for reading"
    )
    processes = [
        {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    ] * config.workers + [{"CPU": 0.25}]
    resources.check_resources(processes, what=what, autoscaling=config.ray.autoscaling)
    with tempfile.TemporaryDirectory(prefix="predict-") as scratch:
        package = download_package(version, tracking=uri, folder=scratch)
        folder = f"{scratch}/out"
        resources = dict(
            workers=config.workers,
            cpus_per_worker=config.cpus_per_worker,
            gpus_per_worker=config.gpus_per_worker,
        )
        summary = predict(
            package,
            uris,
            folder,
            model_version=str(version),
            ids=ids,
            overlays=config.overlays,
            **resources,
        )
        files.upload_folder(folder, output, last=SUMMARY)
    print(f"model    {version}")
    print(f"images   {summary.images}: {summary.ok} predicted, {summary.errors} could not be read")
    for line in summary.first_errors[:5]:
        print(f"         {on_one_line(line)}")
    print(f"written  {output}: {PREDICTIONS}, {RESULTS}{', overlays/' if config.overlays else ''}")


if __name__ == "__main__":
    run_verb(
        PredictConfig,
        main,
        description=(
            "Run a registered detector over a folder or bucket of images: one Parquet row an image."
        ),
    )

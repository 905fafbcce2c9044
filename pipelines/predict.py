"""Run a registered detector over a folder or bucket of images.

    retinaray predict --model models:/cells@champion --images s3://bucket/pictures \
        --output s3://bucket/predictions
"""

from __future__ import annotations

from pipelines.command_line import run_verb
from pipelines.predict_config import PredictConfig
from pipelines.view_options import view_settings
from pipelines.worker_range import worker_range


def main(config: PredictConfig) -> None:
    from pipelines.scoring_inputs import Replicas
    from pipelines.scoring_run import predict_run

    fewest, most = worker_range(config.workers or "2")
    predicted = predict_run(
        config.model,
        config.images,
        column=config.column,
        annotations=config.annotations,
        class_map=config.classes,
        output=config.output,
        overwrite=config.overwrite,
        overlays=None if config.overlays == "all" else config.overlays,
        max_pixels=config.max_pixels,
        thresholds=config.thresholds,
        views=view_settings(config.tile, config.overlap, config.flip),
        replicas=Replicas(fewest, config.cpus_per_worker, config.gpus_per_worker),
        most_workers=most,
        few_here=config.workers is None and not config.gpus_per_worker,
        ray=config.ray,
        tracking=config.tracking,
        storage=config.storage,
    )
    print("\n".join(predicted.lines()))


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        PredictConfig,
        main,
        description=__doc__,
    )


if __name__ == "__main__":
    run()

"""Score a training run's best checkpoint, or a registered model, on a shard set or on annotated
images.

    retinaray evaluate --run runs/runs/cells --data runs/data/val
    retinaray evaluate --run runs/runs/cells --annotations val.json --images val/
    retinaray evaluate --model models:/cells@champion --data s3://bucket/data/val \
        --output s3://bucket/evaluation
    retinaray evaluate --compare runs/runs/cells models:/cells@champion \
        --data runs/data/val --output runs/compared
"""

from __future__ import annotations

from os.path import basename
from typing import Any

from pipelines.command_line import run_verb
from pipelines.evaluate_config import EvaluateConfig
from pipelines.terminal import next_command
from pipelines.view_options import view_settings


def main(config: EvaluateConfig) -> None:
    from cluster.scoring.evaluate_package import Wanted
    from pipelines.comparison_run import compare
    from pipelines.evaluation_run import evaluate
    from pipelines.scoring_inputs import Replicas

    options: dict[str, Any] = {
        "max_detections": config.max_detections,
        "class_map": config.classes,
        "views": view_settings(config.tile, config.overlap, config.flip),
        "replicas": Replicas(config.workers, config.cpus_per_worker, config.gpus_per_worker),
        "ray": config.ray,
        "tracking": config.tracking,
        "storage": config.storage,
    }
    if config.compare:
        assert config.output is not None
        found = compare(
            config.scored_on(),
            config.compare,
            output=config.output,
            precision=config.precision,
            **options,
        )
    else:
        found = evaluate(
            config.scored_on(),
            run=config.run,
            model=config.model,
            output=config.output,
            wanted=Wanted(config.overlays, config.precision, config.slices),
            **options,
        )
    print("\n".join(found.lines()))
    # A checkpoint is in a folder of its run, and only a run is registered.
    if config.run and not config.compare and "/checkpoints/" not in config.run:
        print(next_command("register", run=config.run, name=basename(config.run.rstrip("/"))))


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        EvaluateConfig,
        main,
        resumes=False,
        description=__doc__,
    )


if __name__ == "__main__":
    run()

"""Annotated images to a model in one command: prepare -> sweep (if asked) -> train -> evaluate ->
register -> predict.

    python -m cluster.prepare.synthetic data/quickstart
    retinaray run --config quickstart

A finished stage is reused as long as its inputs and options are the same, and an interrupted stage
continues: repeat the command.
"""

from __future__ import annotations

from pipelines.command_line import run_verb
from pipelines.run_config import RunConfig


def main(config: RunConfig) -> None:
    from cluster.compute.session import connect
    from cluster.storage import files
    from cluster.tracking.config import ui_command
    from cluster.workflow.graph import run_stages
    from pipelines.workflow import check, stages_of

    def connect_ray() -> None:
        # One Ray for all stages, and none where all are reused. Ray Train is imported while the
        # data is prepared.
        ray = config.ray
        connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs, needs=["ray.train.torch"])

    checked = check(config)
    finished = run_stages(
        stages_of(checked), root=checked.root, name=config.name, before_call=connect_ray
    )

    table = f"{finished['evaluate'].folder}/table.txt"
    overlays = ", overlays/" if config.overlays else ""
    dashed = f"{overlays} with the truth dashed" if overlays else ""
    print(f"\n{files.read_bytes(table).decode().rstrip()}\n")
    print(f"table        {finished['evaluate'].folder}: table.txt, report.html{dashed}")
    print(f"training     {finished['train'].folder}")
    print(f"model        {finished['register'].values['version']}")
    print(
        f"predictions  {finished['predict'].folder}: predictions.parquet,"
        f" coco_results.json, summary.html{overlays}"
    )
    print(f"see it       {ui_command(checked.tracking_uri)}")


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        RunConfig,
        main,
        description=__doc__,
    )


if __name__ == "__main__":
    run()

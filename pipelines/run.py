"""Annotated images to a model in one command: prepare -> sweep (if asked) -> train -> evaluate ->
register -> predict.

    python -m cluster.prepare.synthetic data/quickstart
    retinaray run --config quickstart
    retinaray run FOLDER

FOLDER, a zip, s3://bucket/prefix or an annotation file: its format and splits are recognised, and
the settings are chosen from its pictures, its boxes and the machine. Each is said with its reason
and the flag that changes it, and all are written as a YAML file that repeats the run.

A finished stage is reused as long as its inputs and options are the same, and an interrupted stage
continues: repeat the command.
"""

from __future__ import annotations

from pipelines.command_line import run_verb
from pipelines.folder_run import read
from pipelines.run_config import RunConfig


def main(config: RunConfig) -> None:
    from cluster.compute.session import connect
    from cluster.storage import files
    from cluster.storage.uris import refuse_job_folder
    from cluster.tracking.config import ui_command
    from cluster.workflow.graph import Selection, run_stages
    from cluster.workflow.planned import plan_stages
    from pipelines.workflow import check, stages_of

    refuse_job_folder("--storage", config.storage)

    def connect_ray() -> None:
        # One Ray for all stages, and none where all are reused. Ray Train is imported while the
        # data is prepared.
        ray = config.ray
        connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs, needs=["ray.train.torch"])

    checked = check(config)
    stages = stages_of(checked)
    selection = Selection(
        config.only_stage or config.from_stage, config.only_stage or config.until_stage
    )
    if config.plan:
        wanted, _ = selection.of(stages)
        for planned in plan_stages(wanted, root=checked.root, name=config.name):
            print("\n".join(planned.lines()))
        return
    finished = run_stages(
        stages,
        root=checked.root,
        name=config.name,
        selection=selection,
        before_call=connect_ray,
    )

    drawn = ", overlays/" if config.overlays else ""
    if done := finished.get("evaluate"):
        dashed = f"{drawn} with the truth dashed" if drawn else ""
        table = files.read_bytes(f"{done.folder}/table.txt").decode().rstrip()
        print(f"\n{table}\n")
        print(f"table        {done.folder}: table.txt, report.html{dashed}")
    if done := finished.get("train"):
        print(f"training     {done.folder}")
    if done := finished.get("register"):
        print(f"model        {done.values['version']}")
    if done := finished.get("predict"):
        print(
            f"predictions  {done.folder}: predictions.parquet,"
            f" coco_results.json, summary.html{drawn}"
        )
    print(f"see it       {ui_command(checked.tracking_uri)}")
    if done := finished.get("evaluate"):
        print(
            f"open         {done.folder}/report.html in a browser: how good it is, and on which"
            " pictures it is wrong"
        )


def run() -> None:
    """The verb, with what was typed."""
    run_verb(RunConfig, main, description=__doc__, read=read)


if __name__ == "__main__":
    run()

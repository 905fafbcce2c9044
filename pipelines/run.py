"""The whole way in one command: prepare -> sweep (if asked) -> train -> evaluate -> register ->
predict.

    python -m cluster.prepare.synthetic data/quickstart && python -m pipelines.run --config
    pipelines/recipes/quickstart.yaml

A finished stage is reused as long as its inputs and options are the same, and an interrupted one
goes on: repeat the command.
"""

from __future__ import annotations

from cluster.runs.config import TrainConfig
from pipelines.command_line import run_verb
from pipelines.workflow import RunConfig, Verbs


def main(config: RunConfig) -> None:
    from cluster.runs.identity import identity
    from cluster.shards.index import open_shard_set
    from cluster.storage import files
    from cluster.tracking.config import check_server, tracking_uri, ui_command
    from tune import space

    check_server(tracking_uri(config.tracking.uri, config.storage))
    verbs = Verbs(config)
    train_shards = verbs.prepare("train")
    shards = [train_shards, verbs.prepare("val", train_shards)]
    sets = [open_shard_set(done.folder) for done in shards]
    data = {"train": shards[0].folder, "val": shards[1].folder}
    training = TrainConfig.model_validate(
        {
            **config.model_dump(include=set(TrainConfig.model_fields)),
            "storage": verbs.root,
            "data": data,
        }
    )
    if config.tune:
        searched = verbs.sweep(
            training, identity(training, *sets, weights=verbs.weights_digest), shards
        )
        training = space.apply(training, searched.values["records"][0]["sample"])
    trained = verbs.train(training, identity(training, *sets, weights=verbs.weights_digest), shards)
    evaluated = verbs.evaluate(trained, shards[1])
    registered = verbs.register(trained)
    predicted = verbs.predict(registered)

    print(f"\n{files.read_bytes(evaluated.folder + '/table.txt').decode().rstrip()}\n")
    print(
        f"table        {evaluated.folder}: table.txt, precision_recall.png, overlays/ with the"
        " truth dashed"
    )
    print(f"training     {trained.folder}")
    print(f"model        {registered.values['version']}")
    print(f"predictions  {predicted.folder}: predictions.parquet, coco_results.json, overlays/")
    print(f"see it       {ui_command(verbs.tracking_uri)}")


if __name__ == "__main__":
    run_verb(
        RunConfig,
        main,
        description=(
            "COCO data to a registered model and its predictions; finished stages are reused."
        ),
    )

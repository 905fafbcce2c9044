"""The whole way in one command: prepare -> sweep (if asked) -> train -> evaluate -> register -> predict.

    python -m cluster.synthetic data/quickstart && python -m pipelines.run --config pipelines/recipes/quickstart.yaml

A finished stage is reused as long as its inputs and options are the same, and an interrupted one goes on: repeat the command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from cluster.launch import TrainConfig
from cluster.stages import Finished
from detector.config import Section
from pipelines.command_line import run_verb
from pipelines.train import TrainVerb
from tune.space import SweepConfig

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"


class SplitConfig(Section):
    """One split of a COCO data set."""

    annotations: str = Field(min_length=1, description="COCO JSON: a local path or s3://bucket/key")
    images: str = Field(min_length=1, description="folder that the file_name fields of the JSON are relative to: a local path or s3://bucket/key")


class SourceConfig(Section):
    """COCO data, before it is prepared."""

    train: SplitConfig = Field(description="what is trained on")
    val: SplitConfig = Field(description="what is evaluated on")


class RunConfig(TrainVerb):
    """A training run, where its data comes from and what follows it."""

    name: str = Field("run", pattern=NAME, description="how the outputs are called; each folder's name also carries its stage's fingerprint")
    data: SourceConfig = Field(description="COCO data")
    tune: bool = Field(False, description="search with `sweep` before training, and train with the best configuration")
    sweep: SweepConfig = Field(SweepConfig(), description="what is searched, with what budget; only with tune")
    registered_name: str | None = Field(None, pattern=NAME, description="name of the registered model; unset: name")
    pictures: str | None = Field(
        None, description="folder or s3://bucket/prefix to predict on at the end; unset: data.val.images, with the ids of its JSON"
    )
    overlays: int = Field(8, ge=0, le=1000, description="pictures drawn by evaluate, and by predict")


def main(config: RunConfig) -> None:
    from cluster import launch, storage, tracking
    from cluster.shards import open_shard_set
    from tune import space

    tracking.check_server(tracking.tracking_uri(config.tracking.uri, config.storage))
    verbs = Verbs(config)
    shards = [verbs.prepare(split) for split in ("train", "val")]
    sets = [open_shard_set(done.folder) for done in shards]
    data = {"train": shards[0].folder, "val": shards[1].folder}
    training = TrainConfig.model_validate({**config.model_dump(include=set(TrainConfig.model_fields)), "storage": verbs.root, "data": data})
    if config.tune:
        searched = verbs.sweep(training, launch.identity(training, *sets), shards)
        training = space.apply(training, searched.values["records"][0]["sample"])
    trained = verbs.train(training, launch.identity(training, *sets), shards)
    evaluated = verbs.evaluate(trained, shards[1])
    registered = verbs.register(trained)
    predicted = verbs.predict(registered)

    print(f"\n{storage.read_bytes(evaluated.folder + '/table.txt').decode().rstrip()}\n")
    print(f"table        {evaluated.folder}: table.txt, precision_recall.png, overlays/ with the truth dashed")
    print(f"training     {trained.folder}")
    print(f"model        {registered.values['version']}")
    print(f"predictions  {predicted.folder}: predictions.parquet, coco_results.json, overlays/")
    print(f"see it       {tracking.ui_command(verbs.tracking_uri)}")


class Verbs:
    """Each verb as a stage: the call, what it builds on and what identifies it. The sources are looked at first: a wrong path costs nothing."""

    def __init__(self, config: RunConfig):
        from cluster import stages, storage, tracking

        self.config, self.root = config, storage.absolute(config.storage)
        storage.check_writable(self.root)
        self.tracking_uri = tracking.tracking_uri(config.tracking.uri, config.storage)
        self.sources = {split: [stages.digest_of_file(place.annotations), stages.digest_of_folder(place.images)] for split, place in config.data}
        # Pictures of one's own have no image ids; those of the val split have.
        self.pictures = {"images": config.pictures} if config.pictures else config.data.val.model_dump()
        self.pictures_digest = stages.digest_of_folder(config.pictures) if config.pictures else self.sources["val"]
        self.services = {"ray": config.ray, "tracking": config.tracking}
        self.machines = config.training.model_dump(include={"workers", "cpus_per_worker", "gpus_per_worker"})

    def stage(self, verb: str, parent: str, work: Callable[[str], Any], *upstream: Finished, outputs: Sequence[str], **identity: Any) -> Finished:
        from cluster.stages import run_or_reuse

        return run_or_reuse(verb, f"{self.root}/{parent}", self.config.name, work, identity=identity, upstream=upstream, outputs=outputs)

    def prepare(self, split: str) -> Finished:
        from pipelines.prepare import PrepareConfig, main

        def work(folder: str) -> None:
            main(PrepareConfig(**getattr(self.config.data, split).model_dump(), output=folder, ray=self.config.ray))

        return self.stage(f"prepare-{split}", f"data/{split}", work, outputs=["index.json"], source=self.sources[split])

    def sweep(self, training: TrainConfig, identity: dict[str, Any], shards: Sequence[Finished]) -> Finished:
        from pipelines.sweep import sweep
        from tune.space import EXECUTION

        def work(folder: str) -> dict[str, Any]:
            return sweep(called(training, folder), self.config.sweep, **self.services)

        budget = self.config.sweep.model_dump(mode="json", exclude=EXECUTION)
        return self.stage("sweep", "sweeps", work, *shards, outputs=["best.yaml"], training=identity, sweep=budget)

    def train(self, training: TrainConfig, identity: dict[str, Any], shards: Sequence[Finished]) -> Finished:
        from pipelines.train import train

        def work(folder: str) -> dict[str, Any]:
            return train(called(training, folder), **self.services)

        return self.stage("train", "runs", work, *shards, outputs=["best.json", "finished.json"], training=identity)

    def evaluate(self, trained: Finished, val: Finished) -> Finished:
        from pipelines.evaluate import EvaluateConfig, main

        def work(folder: str) -> None:
            main(EvaluateConfig(run=trained.folder, data=val.folder, output=folder, overlays=self.config.overlays, **self.machines, **self.services))

        return self.stage("evaluate", "evaluations", work, trained, val, outputs=["metrics.json", "table.txt"], overlays=self.config.overlays)

    def register(self, trained: Finished) -> Finished:
        from pipelines.register import RegisterConfig, main

        name = self.config.registered_name or self.config.name

        def work(_: str) -> dict[str, str]:
            return {"version": main(RegisterConfig(run=trained.folder, name=name, tracking=self.config.tracking))}

        # A version lives in its registry: a stage whose embedded store was deleted, or that goes to another server, is run again.
        store = [self.tracking_uri.removeprefix("sqlite:///")] if self.tracking_uri.startswith("sqlite:") else []
        return self.stage("register", "models", work, trained, outputs=store, name=name, server=self.config.tracking.uri)

    def predict(self, registered: Finished) -> Finished:
        from pipelines.predict import PredictConfig, main

        def work(folder: str) -> None:
            options = {"overlays": self.config.overlays, "overwrite": True, "storage": self.root, **self.machines, **self.services}
            main(PredictConfig(model=registered.values["version"], **self.pictures, output=folder, **options))

        outputs = ["summary.json", "predictions.parquet"]
        return self.stage("predict", "predictions", work, registered, outputs=outputs, pictures=self.pictures_digest, overlays=self.config.overlays)


def called(training: TrainConfig, folder: str) -> TrainConfig:
    """The name that makes train and sweep write into the stage's folder."""
    return training.model_copy(update={"name": os.path.basename(folder)})


if __name__ == "__main__":
    run_verb(RunConfig, main, description="COCO data to a registered model and its predictions; finished stages are reused.")

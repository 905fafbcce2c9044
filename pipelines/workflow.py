"""The verbs as stages of one workflow: what each is called with, what it builds on and what
identifies it. `pipelines/run.py` calls them in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from cluster.runs.config import TrainConfig
from cluster.workflow.stages import Finished
from detector.config import Section
from pipelines.train import TrainVerb
from tune.space import SweepConfig

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"


class SplitConfig(Section):
    """One split of a COCO data set."""

    annotations: str = Field(min_length=1, description="COCO JSON: a local path or s3://bucket/key")
    images: str = Field(
        min_length=1,
        description=(
            "folder that the file_name fields of the JSON are relative to: a local path or"
            " s3://bucket/key"
        ),
    )


class SourceConfig(Section):
    """COCO data, before it is prepared."""

    train: SplitConfig = Field(description="what is trained on")
    val: SplitConfig = Field(description="what is evaluated on")


class RunConfig(TrainVerb):
    """A training run, where its data comes from and what follows it."""

    name: str = Field(
        "run",
        pattern=NAME,
        description=(
            "how the outputs are called; each folder's name also carries its stage's fingerprint"
        ),
    )
    data: SourceConfig = Field(description="COCO data")
    tune: bool = Field(
        False,
        description="search with `sweep` before training, and train with the best configuration",
    )
    sweep: SweepConfig = Field(
        SweepConfig(), description="what is searched, with what budget; only with tune"
    )
    registered_name: str | None = Field(
        None, pattern=NAME, description="name of the registered model; unset: name"
    )
    pictures: str | None = Field(
        None,
        description=(
            "folder or s3://bucket/prefix to predict on at the end; unset: data.val.images, with"
            " the ids of its JSON"
        ),
    )
    overlays: int = Field(
        8, ge=0, le=1000, description="pictures drawn by evaluate, and by predict"
    )


class Verbs:
    """Each verb as a stage: the call, what it builds on and what identifies it. The sources are
    looked at first: a wrong path costs nothing.
    """

    def __init__(self, config: RunConfig):
        from cluster.runs import parent_checkpoint, weight_file
        from cluster.storage import preflight, uris
        from cluster.tracking.config import tracking_uri
        from cluster.workflow import stages

        self.config, self.root = config, uris.absolute(config.storage)
        preflight.check_writable(self.root)
        self.tracking_uri = tracking_uri(config.tracking.uri, config.storage)
        self.sources = {
            split: [stages.digest_of_file(place.annotations), stages.digest_of_folder(place.images)]
            for split, place in config.data
        }
        # Pictures of one's own have no image ids; those of the val split have.
        self.pictures = (
            {"images": config.pictures} if config.pictures else config.data.val.model_dump()
        )
        self.pictures_digest = (
            stages.digest_of_folder(config.pictures) if config.pictures else self.sources["val"]
        )
        self.weights_digest = (
            weight_file.check(config.pretrained, None) if config.pretrained else None
        )
        if config.from_checkpoint:
            self.weights_digest = parent_checkpoint.digest(config.from_checkpoint)
        self.services = {"ray": config.ray, "tracking": config.tracking}
        self.machines = config.training.model_dump(
            include={"workers", "cpus_per_worker", "gpus_per_worker"}
        )

    def stage(
        self,
        verb: str,
        parent: str,
        work: Callable[[str], Any],
        *upstream: Finished,
        outputs: Sequence[str],
        **identity: Any,
    ) -> Finished:
        from cluster.compute.session import connect
        from cluster.workflow import stages

        def connected(folder: str) -> Any:
            # One Ray for all stages, and none where all are reused. The training's imports begin
            # while the data is prepared.
            ray = self.config.ray
            connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs, needs=["ray.train.torch"])
            return work(folder)

        return stages.run_or_reuse(
            verb,
            f"{self.root}/{parent}",
            self.config.name,
            connected,
            identity=identity,
            upstream=upstream,
            outputs=outputs,
        )

    def prepare(self, split: str, *others: Finished) -> Finished:
        """Pictures that one of the `others` holds too are named."""
        from pipelines.prepare import PrepareConfig, main

        def work(folder: str) -> None:
            source, against = (
                getattr(self.config.data, split).model_dump(),
                tuple(other.folder for other in others),
            )
            main(PrepareConfig(**source, against=against, output=folder, ray=self.config.ray))

        return self.stage(
            f"prepare-{split}",
            f"data/{split}",
            work,
            *others,
            outputs=["index.json"],
            source=self.sources[split],
        )

    def sweep(
        self, training: TrainConfig, identity: dict[str, Any], shards: Sequence[Finished]
    ) -> Finished:
        from pipelines.sweep import sweep
        from tune.space import EXECUTION

        def work(folder: str) -> dict[str, Any]:
            return sweep(called(training, folder), self.config.sweep, **self.services)

        budget = self.config.sweep.model_dump(mode="json", exclude=EXECUTION)
        return self.stage(
            "sweep", "sweeps", work, *shards, outputs=["best.yaml"], training=identity, sweep=budget
        )

    def train(
        self, training: TrainConfig, identity: dict[str, Any], shards: Sequence[Finished]
    ) -> Finished:
        from pipelines.train import train

        def work(folder: str) -> dict[str, Any]:
            return train(called(training, folder), **self.services).to_json()

        return self.stage(
            "train",
            "runs",
            work,
            *shards,
            outputs=["best.json", "finished.json"],
            training=identity,
        )

    def evaluate(self, trained: Finished, val: Finished) -> Finished:
        from pipelines.evaluate import EvaluateConfig, main

        def work(folder: str) -> None:
            main(
                EvaluateConfig(
                    run=trained.folder,
                    data=val.folder,
                    output=folder,
                    overlays=self.config.overlays,
                    **self.machines,
                    **self.services,
                )
            )

        return self.stage(
            "evaluate",
            "evaluations",
            work,
            trained,
            val,
            outputs=["metrics.json", "table.txt"],
            overlays=self.config.overlays,
        )

    def register(self, trained: Finished) -> Finished:
        from pipelines.register import RegisterConfig, main

        name = self.config.registered_name or self.config.name

        def work(_: str) -> dict[str, str]:
            return {
                "version": main(
                    RegisterConfig(run=trained.folder, name=name, tracking=self.config.tracking)
                )
            }

        # A version lives in its registry: a stage whose embedded store was deleted, or that goes to
        # another server, is run again.
        store = (
            [self.tracking_uri.removeprefix("sqlite:///")]
            if self.tracking_uri.startswith("sqlite:")
            else []
        )
        return self.stage(
            "register",
            "models",
            work,
            trained,
            outputs=store,
            name=name,
            server=self.config.tracking.uri,
        )

    def predict(self, registered: Finished) -> Finished:
        from pipelines.predict import PredictConfig, main

        def work(folder: str) -> None:
            options = {
                "overlays": self.config.overlays,
                "overwrite": True,
                "storage": self.root,
                **self.machines,
                **self.services,
            }
            main(
                PredictConfig(
                    model=registered.values["version"], **self.pictures, output=folder, **options
                )
            )

        outputs = ["summary.json", "predictions.parquet"]
        return self.stage(
            "predict",
            "predictions",
            work,
            registered,
            outputs=outputs,
            pictures=self.pictures_digest,
            overlays=self.config.overlays,
        )


def called(training: TrainConfig, folder: str) -> TrainConfig:
    """The name that makes train and sweep write into the stage's folder."""
    return training.model_copy(update={"name": os.path.basename(folder)})

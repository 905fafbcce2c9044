"""The stages of `run`, made of its configuration: prepare-train, prepare-val, sweep (if asked),
train, evaluate, register, predict. Each calls the function that its verb calls.

A new stage is a function here that returns it, and its line in `stages_of`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cluster.runs.config import TrainOptions, TrainSections
from cluster.runs.data_config import DataConfig
from cluster.workflow.stages import Finished, Results, Stage, Values
from pipelines.run_config import RunConfig
from tune.build_space import space_of
from tune.config import EXECUTION

if TYPE_CHECKING:
    from pipelines.scoring_run import Predicted

TRAIN_SET, VAL_SET = "prepare-train", "prepare-val"
NO_DATA = {"train": "train", "val": "val"}
"""For a configuration that is checked before its sets are prepared."""


@dataclass(frozen=True)
class Checked:
    """A configuration whose inputs are there, and what was read of them."""

    config: RunConfig
    root: str
    """The storage root, absolute."""
    tracking_uri: str
    sources: Mapping[str, Mapping[str, Any]]
    """Identity of the sections data.train and data.val."""
    pictures: Any
    """Digest of the images to predict on."""
    weights: str | None
    """Digest of the weight file or checkpoint that the training starts from."""


def check(config: RunConfig) -> Checked:
    """Look at every input, so that a wrong path costs no machine. `UsageError` where one is not
    there or the storage cannot be written.
    """
    from cluster.prediction.image_list import open_images
    from cluster.runs import parent_checkpoint, weight_file
    from cluster.storage import preflight, uris
    from cluster.tracking.config import experiment_name, tracking_uri
    from cluster.tracking.preflight import check_experiment, check_model_name, check_server
    from cluster.workflow.stages import digest_of_folder
    from pipelines.data_section import identity

    uri = tracking_uri(config.tracking.uri, config.storage)
    root = uris.absolute(config.storage)
    preflight.check_writable(root)
    check_server(uri)
    check_experiment(uri, experiment_name(config.tracking.experiment))
    option = "registered_name" if config.registered_name else "name"
    check_model_name(uri, config.registered_name or config.name, option=option)
    sources = {"train": identity(config.data.train), "val": identity(config.data.val)}
    weights = weight_file.check(config.pretrained, None) if config.pretrained else None
    if config.from_checkpoint:
        weights = parent_checkpoint.digest(config.from_checkpoint)
    if config.pictures:
        next(open_images(config.pictures).rows())
    if config.tune:
        from tune.plan import of_a_trial

        # The data sets are those of stages: their places do not matter here.
        fields = config.model_dump(include=set(TrainSections.model_fields))
        training = TrainOptions.model_validate({**fields, "data": NO_DATA})
        space_of(config.sweep.preset, config.sweep.space, of_a_trial(training, config.sweep))
    val = sources["val"]
    pictures = (
        digest_of_folder(config.pictures)
        if config.pictures
        # A section that names nothing but a source is known by the source's digests alone.
        else (val["source"] if set(val) == {"source"} else val)
    )
    return Checked(config, root, uri, sources, pictures, weights)


def stages_of(checked: Checked) -> tuple[Stage, ...]:
    """Every stage of the run, in order."""
    return (
        _prepare("train", TRAIN_SET, (), checked),
        _prepare("val", VAL_SET, (TRAIN_SET,), checked),
        *((_sweep(checked),) if checked.config.tune else ()),
        _train(checked),
        _evaluate(checked),
        _register(checked),
        _predict(checked),
    )


def _prepare(
    split: Literal["train", "val"], name: str, inputs: tuple[str, ...], checked: Checked
) -> Stage:
    section = checked.config.data.train if split == "train" else checked.config.data.val

    def call(folder: str, results: Results) -> None:
        from cluster.reports.anchor_fit import View
        from pipelines.data_section import prepare_shards, summary

        config = checked.config
        against = tuple(results[other].folder for other in inputs)
        _, prepared = prepare_shards(
            section,
            output=folder,
            against=against,
            ray=config.ray,
            view=View(config.canvas, config.model.anchors),
        )
        print("\n".join(summary(prepared)))

    return Stage(
        name,
        folder=f"data/{split}",
        inputs=inputs,
        identity=lambda results: checked.sources[split],
        outputs=("index.json",),
        call=call,
    )


def _sweep(checked: Checked) -> Stage:
    config = checked.config

    def identity(results: Results) -> dict[str, Any]:
        budget = config.sweep.model_dump(mode="json", exclude=EXECUTION)
        return {"training": _training_identity(checked, results), "sweep": budget}

    def call(folder: str, results: Results) -> dict[str, Any]:
        from tune.plan import of_a_trial
        from tune.sweep import sweep

        options = _named_like(_training(checked, results), folder)
        training = of_a_trial(options, config.sweep)
        swept = sweep(training, config.sweep, ray=config.ray, tracking=config.tracking)
        print("\n".join(swept.lines()))
        return {"best": swept.best, "records": [record.to_json() for record in swept.records]}

    return Stage(
        "sweep",
        folder="sweeps",
        inputs=(TRAIN_SET, VAL_SET),
        identity=identity,
        outputs=("best.yaml",),
        call=call,
    )


def _train(checked: Checked) -> Stage:
    def call(folder: str, results: Results) -> dict[str, Any]:
        from pipelines.training_run import train

        training = _named_like(_training(checked, results), folder)
        trained = train(training, ray=checked.config.ray, tracking=checked.config.tracking)
        print("\n".join(trained.lines()))
        return trained.best.to_json()

    def gone(folder: str, values: Values) -> str | None:
        from cluster.tracking.training_run import is_recorded

        return None if is_recorded(folder, checked.tracking_uri) else "its MLflow run"

    return Stage(
        "train",
        folder="runs",
        inputs=(TRAIN_SET, VAL_SET),
        # The best sample of a sweep is part of the configuration, which is the identity.
        reads=("sweep",) if checked.config.tune else (),
        identity=lambda results: {"training": _training_identity(checked, results)},
        outputs=("best.json", "finished.json"),
        call=call,
        gone=gone,
    )


def _evaluate(checked: Checked) -> Stage:
    def call(folder: str, results: Results) -> None:
        from cluster.scoring.evaluate_package import Wanted
        from pipelines.evaluation_run import evaluate

        evaluated = evaluate(
            results[VAL_SET].folder,
            run=results["train"].folder,
            output=folder,
            wanted=Wanted(checked.config.overlays),
            **_scoring_options(checked),
        )
        print("\n".join(evaluated.lines()))

    return Stage(
        "evaluate",
        folder="evaluations",
        inputs=("train", VAL_SET),
        identity=lambda results: {"overlays": checked.config.overlays},
        outputs=("metrics.json", "table.txt"),
        call=call,
    )


def _register(checked: Checked) -> Stage:
    from cluster.tracking.config import given_uri

    config = checked.config
    name = config.registered_name or config.name

    def call(folder: str, results: Results) -> dict[str, Any]:
        from cluster.tracking.register_run import register_run

        registered = register_run(results["train"].folder, name, uri=checked.tracking_uri)
        print("\n".join(registered.lines()))
        return {"version": str(registered.version)}

    def gone(folder: str, values: Values) -> str | None:
        from cluster.tracking.preflight import has_version
        from cluster.tracking.registry import parse_model_uri

        model, _, number = parse_model_uri(values["version"])
        there = has_version(checked.tracking_uri, model, number)
        return None if there else f"{values['version']} in {checked.tracking_uri}"

    # A version lies in its registry: where another server is given, the stage runs again.
    server = given_uri(config.tracking.uri)
    return Stage(
        "register",
        folder="models",
        inputs=("train",),
        identity=lambda results: {"name": name, "server": server},
        outputs=(),
        call=call,
        gone=gone,
    )


def _predict(checked: Checked) -> Stage:
    config = checked.config

    def call(folder: str, results: Results) -> None:
        from cluster.prediction.image_list import given_images
        from cluster.prediction.plan import OtherPrediction
        from cluster.shards.index import open_shard_set
        from pipelines.data_section import pictures
        from pipelines.scoring_run import predict_images, predict_run

        model = results["register"].values["version"]

        def predict(overwrite: bool) -> Predicted:
            options = {"output": folder, "overwrite": overwrite, **_scoring_options(checked)}
            options["overlays"] = config.overlays
            if config.pictures:
                return predict_run(model, config.pictures, **options)
            of_val = pictures(config.data.val, open_shard_set(results[VAL_SET].folder))
            print(f"predicts on the {len(of_val)} pictures of data.val (--pictures names others)")
            return predict_images(model, given_images(results[VAL_SET].folder, of_val), **options)

        try:
            # What an interrupted run has predicted stays.
            predicted = predict(overwrite=False)
        except OtherPrediction:
            # The model was registered again: its version is part of the results.
            predicted = predict(overwrite=True)
        print("\n".join(predicted.lines()))

    return Stage(
        "predict",
        folder="predictions",
        inputs=("register",),
        # The ids of its images; the model was trained beside this set, so the fingerprint has it.
        reads=(VAL_SET,),
        identity=lambda results: {"pictures": checked.pictures, "overlays": config.overlays},
        outputs=("summary.json", "predictions.parquet"),
        call=call,
    )


def _scoring_options(checked: Checked) -> dict[str, Any]:
    """What `evaluate` and `predict` take alike: as many processes as the training has."""
    from cluster.compute.resources import node_resources
    from cluster.training.automatic import choose
    from pipelines.scoring_inputs import Replicas

    training = checked.config.training
    chosen = choose(training, node_resources())
    return {
        "replicas": Replicas(chosen.workers, training.cpus_per_worker, chosen.gpus_per_worker),
        "ray": checked.config.ray,
        "tracking": checked.config.tracking,
        "storage": checked.root,
    }


def _training(checked: Checked, results: Results) -> TrainOptions:
    """The training run on the prepared sets, with the best sample of the sweep if there was one."""
    from tune import space

    fields = checked.config.model_dump(include=set(TrainSections.model_fields))
    data = DataConfig(train=results[TRAIN_SET].folder, val=results[VAL_SET].folder)
    training = TrainOptions.model_validate({**fields, "storage": checked.root, "data": data})
    swept: Finished | None = results.get("sweep")
    if swept is not None:
        training = space.apply(training, swept.values["records"][0]["sample"])
    return training


def _training_identity(checked: Checked, results: Results) -> dict[str, Any]:
    from cluster.runs.identity import identity
    from cluster.shards.index import open_shard_set
    from cluster.training.automatic import fit_to_pictures

    sets = [open_shard_set(results[name].folder) for name in (TRAIN_SET, VAL_SET)]
    fitted, _ = fit_to_pictures(_training(checked, results))
    return identity(fitted, *sets, weights=checked.weights)


def _named_like(training: TrainOptions, folder: str) -> TrainOptions:
    """The name that makes train and sweep write into the stage's folder."""
    return training.model_copy(update={"name": os.path.basename(folder)})

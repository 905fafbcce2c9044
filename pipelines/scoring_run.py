"""A registered model over images: `predict` and `run` share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

from cluster.compute import session
from cluster.compute.session import RayConfig
from cluster.errors import UsageError, on_one_line
from cluster.prediction import image_list, results
from cluster.prediction import predict as prediction
from cluster.prediction.image_list import ImageList
from cluster.prediction.summary import PAGE, Summary
from cluster.runs.package_files import read_classes, read_thresholds
from cluster.scoring import coco_ids
from cluster.storage import files, preflight, uris
from cluster.storage.pictures import PREDICTIONS
from cluster.storage.scratch import scratch_folder
from cluster.tracking.config import TrackingConfig
from cluster.tracking.logged_package import download_package
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.image import MAX_PIXELS
from detector.operating_points import Thresholds
from pipelines.scoring_inputs import Replicas, connect_for, find_model, given_classes

IN_THIS_PROCESS = "few images: predicted in this process; --workers 2 does it on Ray"
UNNAMED = "pictures are not named in the annotations, so coco_results.json lacks them"


@dataclass(frozen=True)
class Predicted:
    """A finished prediction, and what a terminal shows of it."""

    done: prediction.Predicted
    store: str
    """URI of the MLflow store that has the model."""
    notes: tuple[str, ...] = ()
    """What a reader of the results should know."""
    thresholds: Thresholds | None = None
    """Those that the detections had to reach."""

    def lines(self) -> list[str]:
        """The result, for a terminal."""
        summary = self.done.summary
        overlays = "" if self.done.overlays == 0 else ", overlays/"
        written = f"{PREDICTIONS}, {results.RESULTS}{overlays}"
        reasons = [
            f"         {each.count} x {why}, such as {on_one_line(each.examples[0])}"
            for why, each in summary.errors_by_reason.items()
        ]
        return [
            f"model    {summary.model_version} in {self.store}",
            (
                f"images   {summary.images}: {summary.ok} predicted, {summary.errors} could not be"
                " read"
            ),
            *reasons,
            *(f"         {on_one_line(line)}" for line in summary.first_errors[:5]),
            *(f"passed over {n} x {why}" for why, n in summary.passed_over.items()),
            *(f"note     {note}" for note in self.notes),
            *([f"note     {IN_THIS_PROCESS}"] if self.done.here else []),
            *(f"not drawn {on_one_line(line)}" for line in summary.not_drawn[:5]),
            f"drift    {_drift(summary, self.thresholds)}",
            f"{'reused ' if self.done.reused else 'written'}  {self.done.output}: {written}",
            f"see it   {uris.join(self.done.output, PAGE)}",
        ]


def _drift(summary: Summary, thresholds: Thresholds | None) -> str:
    """In one line."""
    if thresholds is not None:
        return f"not compared: only detections are kept that reach {thresholds.words()}"
    if summary.validation_images is None:
        return "not known: the package does not say what the model detected in validation"
    if not summary.drift:
        few = f" that could be told from {summary.ok} and {summary.validation_images} images"
        return f"none{few if summary.too_few_images else ''}"
    more = len(summary.drift) - 1
    return on_one_line(summary.drift[0]) + (f"; and {more} more, see the page" if more else "")


class PredictOptions(TypedDict):
    """What `predict_run` and `predict_images` take alike."""

    overlays: int | None
    """Pictures to draw; None: all."""
    replicas: Replicas
    most_workers: NotRequired[int]
    """Up to which the workers grow; by default as many as `replicas` has."""
    few_here: NotRequired[bool]
    """Without a cluster a few images are done in this process."""
    ray: RayConfig
    tracking: TrackingConfig
    storage: str
    max_pixels: NotRequired[int]
    thresholds: NotRequired[str]
    """none, f1, or the URI of a thresholds.json."""
    views: NotRequired[ViewSettings]
    """Tiles and mirror images; by default the whole picture once."""


def predict_run(
    model: str,
    images: str,
    *,
    column: str = "uri",
    annotations: str | None = None,
    class_map: str | None = None,
    output: str,
    overwrite: bool = False,
    **options: Unpack[PredictOptions],
) -> Predicted:
    """`predict_images` for what `images` names, see `image_list.open_images`. The ids of images and
    classes in the results are those of a COCO JSON or, without `annotations`, the positions in the
    list, from 1, and the ids that the model was trained with. `class_map`: as for `evaluate`.
    """
    images = uris.absolute(images)
    annotations = annotations and uris.absolute(annotations)
    class_map = class_map and uris.absolute(class_map)
    for option, uri in (("annotations", annotations), ("classes", class_map)):
        if uri is not None:
            preflight.check_readable(uri)
            if files.size(uri) is None:
                raise UsageError(f"--{option} {uri}: is a folder, a file is needed; give the file")
    preflight.check_writable(uris.absolute(output))
    target = uris.absolute(output)
    if images == target or uris.is_below(images, target):
        raise UsageError(
            f"--output {output}: is --images {images} or lies above it, and later predictions would"
            " pass over its pictures as drawn ones; give another folder"
        )
    listed = image_list.open_images(images, column=column)
    # A list without an image ends here, before the model is asked for.
    next(listed.rows())
    ids, theirs, notes = None, None, list[str]()
    if annotations is not None:
        theirs = coco_ids.read_coco_ids(annotations)
        pictures = list(listed.uris())
        ids = coco_ids.ids_of_images(pictures, listed.folder, theirs)
        unnamed = [uri for uri in pictures if uri not in ids]
        notes = [f"{len(unnamed)} {UNNAMED} (such as {unnamed[0]})"] if unnamed else []
    return predict_images(
        model,
        listed,
        column=column,
        ids=ids,
        theirs=theirs,
        class_map=class_map,
        notes=notes,
        output=output,
        overwrite=overwrite,
        **options,
    )


def predict_images(
    model: str,
    images: ImageList,
    *,
    column: str = "uri",
    ids: Mapping[str, int] | None = None,
    theirs: coco_ids.CocoIds | None = None,
    class_map: str | None = None,
    notes: Sequence[str] = (),
    output: str,
    overwrite: bool = False,
    **options: Unpack[PredictOptions],
) -> Predicted:
    """Detections of a registered model for every image of a list. `ids` by URI replace those of the
    list; an image without one is left out of coco_results.json, whose category ids are `theirs`.
    """
    preflight.check_writable(uris.absolute(output))
    replicas = options["replicas"]
    with scratch_folder("predict") as scratch:
        found, store = find_model(model, options["tracking"], options["storage"])
        package, version = download_package(found, tracking=store, folder=scratch), str(found)
        categories = coco_ids.category_ids(
            [(category.name, category.id) for category in read_classes(package)],
            theirs,
            given=given_classes(class_map),
        )
        thresholds = find_thresholds(options.get("thresholds", "none"), package, version)
        predicted = prediction.predict(
            package,
            images,
            output,
            model_version=version,
            column=column,
            ids=ids,
            category_ids=categories,
            max_pixels=options.get("max_pixels", MAX_PIXELS),
            overlays=options["overlays"],
            views=options.get("views", WHOLE_PICTURE),
            thresholds=thresholds,
            overwrite=overwrite,
            connect=lambda: connect_for(replicas, options["ray"], output),
            most_workers=options.get("most_workers"),
            few_here=options.get("few_here", False) and session.would_start(options["ray"].address),
            **vars(replicas),
        )
    return Predicted(predicted, store, tuple(notes), thresholds)


def find_thresholds(given: str, package: str, version: str) -> Thresholds | None:
    """The thresholds that `--thresholds` names; None for `none`."""
    if given == "none":
        return None
    names = [category.name for category in read_classes(package)]
    if given == "f1":
        stored = read_thresholds(package)
        if stored is None:
            raise UsageError(
                f"--thresholds f1: {version} has none; give the thresholds.json that evaluate"
                " writes, or train and register again"
            )
        return stored
    uri = uris.absolute(given)
    if not files.exists(uri) or files.size(uri) is None:
        raise UsageError(
            f"--thresholds {given}: is neither none nor f1 nor a file; give one of them"
        )
    try:
        found = Thresholds.from_json(files.read_json(uri))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"--thresholds {given}: is no file of thresholds ({error}); give the thresholds.json"
            " that evaluate writes"
        ) from error
    if sorted(found.classes) != sorted(names):
        raise UsageError(
            f"--thresholds {given}: has the classes {', '.join(sorted(found.classes)[:5])}, the"
            f" model {version} has {', '.join(sorted(names)[:5])}; give those of this model"
        )
    return found

"""A model package over a list of images -> one Parquet row for each, COCO results and pictures.

It can be killed anywhere: the same call does what is missing. The folder holds the plan (see
`plan`), the results of each part (see `part`) and, at the end, the files of the whole (see
`results`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from cluster.compute import resources, session
from cluster.errors import PlainError, UsageError
from cluster.prediction import image_list, in_process, pool, results
from cluster.prediction import plan as plans
from cluster.prediction.image_list import ImageList
from cluster.prediction.overlays import NOT_DRAWN, OverlayJob, first_overlays
from cluster.prediction.part import PARTS, PartJob
from cluster.prediction.plan import Claim, OtherPrediction, Plan
from cluster.prediction.planner import Planner
from cluster.prediction.progress import Progress
from cluster.prediction.results import MANIFEST
from cluster.prediction.summary import PAGE, SUMMARY, Summary, Timing
from cluster.runs.lease import PREDICTING, Lease
from cluster.runs.package_files import (
    package_digest,
    read_classes,
    read_package,
    read_validation,
)
from cluster.storage import files
from cluster.storage.pictures import OVERLAYS, PREDICTIONS
from cluster.storage.uris import absolute, join
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.image import MAX_PIXELS
from detector.operating_points import Thresholds
from detector.predict import MODEL_FILE, read_json


@dataclass(frozen=True)
class Predicted:
    """A finished prediction."""

    summary: Summary
    output: str
    overlays: int | None
    reused: bool
    """It was finished before, and nothing was done."""
    here: bool = False
    """In this process, without Ray."""


def predict(
    package: str,
    images: ImageList,
    output: str,
    *,
    model_version: str = "",
    column: str = "uri",
    ids: Mapping[str, int | None] | None = None,
    category_ids: Sequence[int | None] | None = None,
    max_pixels: int = MAX_PIXELS,
    overlays: int | None = 0,
    views: ViewSettings = WHOLE_PICTURE,
    thresholds: Thresholds | None = None,
    overwrite: bool = False,
    workers: int = 2,
    most_workers: int | None = None,
    cpus_per_worker: float = 0.75,
    gpus_per_worker: float = 0,
    few_here: bool = False,
    connect: Callable[[], object] = session.connect,
) -> Predicted:
    """Predict with the model package in a local folder on every image of the list, into the folder
    `output` on a disk or in object storage. The same call continues what was interrupted.

    An image that cannot be used is a row with status `error` and a reason. COCO results have XYWH
    boxes; the ids of images are `ids` by URI, else those of the list, else the positions from 1;
    `category_ids` has one for each class of the model, by default those of the training. Images and
    classes without an id are not in them. `overlays` pictures are drawn; None: all. `views`: tiles.
    `thresholds`: only detections that reach that of their class are kept.

    `OtherPrediction` where `output` has results of another model, other settings or other images
    and `overwrite` is not said; `UsageError` where another driver works there. `PlainError` where
    the storage fails for longer than it is retried: the same call then goes on. `connect` joins or
    starts Ray for it. `workers` processes grow to `most_workers`, by default as many. `few_here`:
    a few images (`in_process.FEW_IMAGES`) are done in this process, without Ray.
    """
    output = absolute(output)
    classes = read_classes(package)
    claim = Claim(
        model_version=model_version,
        package_digest=package_digest(package),
        decode=read_json(package, MODEL_FILE)["decode"],
        images=images.uri,
        column=column,
        max_pixels=max_pixels,
        category_ids=list(category_ids or (category.id for category in classes)),
        overlays=overlays,
        views=views.as_dict(),
        thresholds=None if thresholds is None else thresholds.scores(),
    )
    lost, parts = list[str](), partial(_parts, images, ids)
    with ExitStack() as stack:
        stack.enter_context(Lease(output, lost.append, words=PREDICTING))
        here = few_here and (overwrite or not plans.read_plan(output)) and in_process.is_few(images)
        plan = _open_plan(output, claim, parts, overwrite=overwrite)
        if (summary := results.read_summary(output)) is not None:
            return Predicted(summary, output, overlays, reused=True)
        planner = stack.enter_context(Planner(output, plan, parts, images.passed_over))
        look = partial(_check_lease, lost)
        lowest = _lowest_scores(thresholds, [category.name for category in classes])
        job = PartJob(output, 0, claim.digest, model_version, max_pixels, views, lowest)
        number, booked = (workers, most_workers or workers), (cpus_per_worker, gpus_per_worker)
        if here:
            number, connect = (1, in_process.thread_count()), lambda: None
        made = pool.Workers(*number, *booked, read_package(package))
        timing = _run_parts(made, planner, job, look, connect, here=here)
        draw = partial(_draw, overlays, workers=made, look=look, connect=connect, here=here)
        summary = _finish(output, planner.plan, claim, package, timing=timing, draw=draw, look=look)
    return Predicted(summary, output, overlays, reused=False, here=here)


def _lowest_scores(thresholds: Thresholds | None, names: list[str]) -> tuple[float, ...] | None:
    return None if thresholds is None else tuple(thresholds.lowest_of(names).tolist())


def _finish(
    output: str,
    plan: Plan,
    claim: Claim,
    package: str,
    *,
    timing: Timing,
    draw: results.Draw,
    look: Callable[[], None],
) -> Summary:
    return results.finish(
        output,
        plan,
        class_names=[category.name for category in read_classes(package)],
        category_ids=claim.category_ids,
        timing=timing,
        # With thresholds fewer are kept here than were in validation.
        validation=read_validation(package) if claim.thresholds is None else None,
        draw=draw,
        look=look,
    )


def _check_lease(lost: Sequence[str]) -> None:
    if lost:
        raise PlainError(lost[0])


def _parts(images: ImageList, ids: Mapping[str, int | None] | None) -> Iterator[pa.Table]:
    """The parts of the plan: a function of the list and the ids alone."""
    tables = images.rows()
    if ids is not None:
        tables = (
            image_list.with_ids(table, [ids.get(uri) for uri in table["uri"].to_pylist()])
            for table in tables
        )
    elif not images.has_ids:
        tables = image_list.numbered(tables)
    return plans.cut(tables)


def _open_plan(
    output: str, claim: Claim, parts: Callable[[], Iterator[pa.Table]], *, overwrite: bool
) -> Plan:
    """The plan in the folder, which is that of this claim and these images, or a new one."""
    if overwrite:
        _clear(output)
    former = plans.read_plan(output)
    if former is None:
        for name in (SUMMARY, PREDICTIONS):
            if files.exists(join(output, name)):
                raise OtherPrediction(
                    f"output {output}: holds {name} of a prediction that this version did not"
                    f" make; {plans.REMEDY}"
                )
        if files.list_names(join(output, PARTS)):
            raise UsageError(
                f"output {output}: holds {PARTS}/ without {plans.PLAN}; {plans.REMEDY}"
            )
        stored = json.loads(json.dumps(claim.to_json()))
        plan = Plan(stored, claim.digest)
        plans.write_plan(output, plan)
        return plan
    plans.check_claim(output, former, claim)
    if former.parts is not None:
        plans.check_images(output, former, parts())
    return former


def _clear(output: str) -> None:
    """Delete the files of a prediction and no others. The plan goes last: what it belongs to is
    known until it is gone.
    """
    planned = files.exists(join(output, plans.PLAN))
    drawn = planned or files.exists(join(output, SUMMARY))
    for name in (MANIFEST, PAGE, SUMMARY, PREDICTIONS, results.RESULTS):
        files.delete_file(join(output, name))
    if drawn:
        files.delete_folder(join(output, OVERLAYS))
    if planned:
        files.delete_folder(join(output, PARTS))
        files.delete_folder(join(output, plans.FOLDER))
    files.delete_file(join(output, plans.PLAN))


def _run_parts(
    workers: pool.Workers,
    planner: Planner,
    job: PartJob,
    look: Callable[[], None],
    connect: Callable[[], object],
    *,
    here: bool,
) -> Timing:
    """Do the parts that are missing, and say how long it took. `PlainError` says how many are
    done.
    """
    there = {name for name in files.list_names(join(job.output, PARTS)) if plans.is_part(name)}
    plan, progress = planner.plan, Progress()
    if plan.parts is not None and all(
        plans.name_of(number) in there for number in range(len(plan.parts))
    ):
        progress.reused = plan.images or 0
        return progress.timing(workers.most)
    connect()

    def done(number: int, images: int) -> bool:
        if plans.name_of(number) not in there:
            return False
        progress.reused += images
        return True

    wanted = resources.shown(resources.reading_worker(workers.cpus, workers.gpus))

    def say(crew: pool.Crew) -> None:
        look()
        progress.look(planner.total, crew.loaded)
        progress.wait(crew.missing, f"{wanted} on one node")

    finished, run_parts = 0, in_process.run_parts if here else pool.run_parts
    try:
        for report in run_parts(workers, planner, job, done=done, look=say):
            finished += 1
            progress.add(report)
    except PlainError as error:
        if type(error) is not PlainError:
            # The list of images is wrong or another one.
            raise
        total = "" if planner.plan.parts is None else f" of {len(planner.plan.parts)}"
        raise PlainError(
            f"{error}; {finished + len(there)}{total} parts are done and stay: the same command"
            " goes on with the rest"
        ) from error
    finally:
        progress.end()
    return progress.timing(workers.most)


def _draw(
    most: int | None,
    jobs: Iterable[OverlayJob],
    *,
    workers: pool.Workers,
    look: Callable[[], None],
    connect: Callable[[], object],
    here: bool,
) -> list[str]:
    """The first `NOT_DRAWN` overlays that cannot be drawn, of `most` or, for None, of all."""
    wanted, lost = list(first_overlays(jobs, most)), list[str]()
    if not wanted:
        return lost
    connect()
    progress, total = Progress("overlays"), sum(job.count for job in wanted)

    def say() -> None:
        look()
        progress.look(total, workers.most)

    draw_overlays = in_process.draw_overlays if here else pool.draw_overlays
    for each in draw_overlays(wanted, number=workers.most, cpus=workers.cpus, look=say):
        progress.add(each)
        lost += each.lost[: NOT_DRAWN - len(lost)]
    progress.end()
    return lost

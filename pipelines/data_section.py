"""Annotated images as a section of a configuration, and the shard set that they become. `prepare`
and `run` share it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.compute.session import RayConfig
from cluster.formats.kinds import Format
from cluster.formats.read import READERS
from cluster.prepare.plausibility import Fault

if TYPE_CHECKING:
    from cluster.formats.read import SourcePaths
    from cluster.prepare.plan import Plan
    from cluster.prepare.write import Prepared
    from cluster.reports.anchor_fit import View
    from cluster.shards.index import ShardSet

_READ = dict.fromkeys(reader.annotations for reader in READERS.values())
ANNOTATIONS = ", ".join([*_READ, "the folder or zip of an export"])
FORMAT = "format of the annotations; unset: what they are recognised as"


class SourceConfig(BaseModel):
    """One of several sources. Classes of the same name become one class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200, description="name of the source in index.json")
    format: Format | None = Field(default=None, description=FORMAT)
    annotations: str = Field(min_length=1, description=f"one of: {ANNOTATIONS}")
    images: str | None = Field(
        default=None,
        min_length=1,
        description="folder of its images; unset: found beside them, or in Parquet files",
    )


class DataSection(BaseModel):
    """Annotated images and how they become a shard set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    annotations: str | None = Field(
        default=None,
        description=f"one of: {ANNOTATIONS}; a local path or s3://bucket/key",
    )
    images: str | None = Field(
        default=None,
        description=(
            "folder that the file names of the annotations are relative to: a local path or"
            " s3://bucket/key; unset: found beside them, or in Parquet files"
        ),
    )
    format: Format | None = Field(default=None, description=FORMAT)
    sources: tuple[SourceConfig, ...] = Field(
        default=(), description="several sources instead of annotations, images and format"
    )
    split: Literal["all", "train", "val"] = Field(
        default="all",
        description="which part of the images to take; a hash of the file name decides",
    )
    val_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the images, 0 to 1, in split val; the others are in split train",
    )
    against: tuple[str, ...] = Field(
        default=(),
        description=(
            "other shard sets, such as the training set: images that are in them too are reported"
        ),
    )
    duplicates: Literal["report", "drop"] = Field(
        default="report",
        description=(
            "report or drop images that occur twice, or that are in a shard set of `against`"
        ),
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="seed of the order in which images are stored"
    )
    shard_size_mib: int = Field(
        default=64,
        ge=1,
        le=1024,
        description="MiB of images in a shard; a task has one shard in memory",
    )
    row_group_rows: int = Field(
        default=32, ge=1, le=4096, description="images in a row group, the unit of reading"
    )
    # At most `detector.image.MAX_PIXELS`: everything after this must be able to read the images.
    max_pixels: int = Field(
        default=100_000_000,
        ge=1,
        le=100_000_000,
        description="pixels (width x height) of the largest image; larger ones are left out",
    )
    max_quarantined: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description=(
            "largest share of the images, 0 to 1, that may be left out; above it nothing is written"
        ),
    )
    max_quarantined_annotations: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="the same for the annotations of images that are not left out",
    )

    accept: tuple[Fault, ...] = Field(
        default=(),
        description=(
            "faults for which the set is not refused, although it cannot be trained on or scored"
        ),
    )

    @model_validator(mode="after")
    def _one_kind_of_source(self) -> DataSection:
        if self.sources and (self.annotations or self.images):
            raise ValueError(
                "sources is given together with annotations or images; give one or the other"
            )
        if not self.sources and not self.annotations:
            raise ValueError("annotations must be given, or sources for several")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(
                f"sources: two have the name {max(names, key=names.count)!r}; give each its own"
            )
        return self

    def source_paths(self, say: Callable[[str], None] = lambda line: None) -> list[SourcePaths]:
        """Every source with its name; a single one is named like its annotations. What was not
        given is looked for, and `say` gets a line about it. Errors: see `find_set`.
        """
        from cluster.prepare.plan import source_name

        if self.sources:
            return [
                _complete(one.name, one.annotations, one.images, one.format, say)
                for one in self.sources
            ]
        annotations = self.annotations or ""
        return [_complete(source_name(annotations), annotations, self.images, self.format, say)]


def _complete(
    name: str,
    annotations: str,
    images: str | None,
    format_: Format | None,
    say: Callable[[str], None],
) -> SourcePaths:
    from cluster.formats.layout import find_set
    from cluster.formats.read import SourcePaths
    from cluster.storage import uris, zips

    whole_zip = (parts := zips.split(annotations)) is not None and not parts[1]
    if images and format_ and not whole_zip:
        return SourcePaths(name, format_, annotations, images)
    found, line = find_set(annotations, images, format_)
    if not images or found.annotations != uris.absolute(annotations):
        say(line)
    return SourcePaths(name, *found)


def prepare_shards(
    section: DataSection,
    *,
    output: str | None,
    against: tuple[str, ...] = (),
    overwrite: bool = False,
    ray: RayConfig,
    view: View,
) -> tuple[Plan, Prepared]:
    """Write the shard set, or find it finished; without an `output`, look at everything and write
    nothing. `against` are shard sets beside those of the section. The report is made for the
    network of `view`. Connects Ray only where there is work. Errors: see `plan_shards` and
    `write_shards`.
    """
    from cluster.compute.session import connect
    from cluster.prepare.write import write_shards

    plan = _plan(section, output, against=against, overwrite=overwrite)
    if plan.finished is None:
        connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs)
    return plan, write_shards(plan, view=view, say=_say)


def _say(line: str) -> None:
    print(line, flush=True)


def _plan(
    section: DataSection,
    output: str | None,
    *,
    against: tuple[str, ...] = (),
    overwrite: bool,
    say: Callable[[str], None] = _say,
) -> Plan:
    from cluster.prepare.plan import Options, plan_shards

    return plan_shards(
        section.source_paths(say),
        output=output,
        overwrite=overwrite,
        options=Options(
            split=section.split,
            val_share=section.val_share,
            seed=section.seed,
            shard_bytes=section.shard_size_mib << 20,
            row_group_rows=section.row_group_rows,
            max_pixels=section.max_pixels,
            max_quarantined=section.max_quarantined,
            max_quarantined_annotations=section.max_quarantined_annotations,
            drop_duplicates=section.duplicates == "drop",
            against=(*against, *section.against),
            accept=section.accept,
        ),
    )


def plan_of(section: DataSection) -> Plan:
    """What the section holds, before any picture is read. Errors: see `plan_shards`."""
    return _plan(section, None, overwrite=False, say=lambda line: None)


def plan_lines(section: DataSection, output: str | None, *, overwrite: bool) -> list[str]:
    """What `prepare_shards` would do, in lines for a terminal. No image is read and nothing is
    written. Errors: see `plan_shards`.
    """
    plan = _plan(section, output, overwrite=overwrite)
    images = sum(len(cut) for cut in plan.cuts)
    size = sum(int(plan.sizes_I[cut].sum()) for cut in plan.cuts) / (1 << 20)
    left_out = len(plan.quarantined)
    return [
        f"read     {images} images, {size:.1f} MiB, in {', '.join(plan.folders)}",
        *([f"         {left_out} images or annotations are left out already"] if left_out else []),
        f"book     up to {len(plan.cuts)} tasks of a CPU, one a shard",
        f"write    {len(plan.cuts)} shards in {plan.output}",
        (
            "begin    nothing: the set is finished"
            if plan.finished is not None
            else "begin    shards that an earlier run has finished are kept"
        ),
    ]


def summary(prepared: Prepared, view: View | None = None) -> list[str]:
    """What came of it, in lines for a terminal; with a `view`, also how its anchors fit."""
    from cluster.reports import anchor_fit
    from cluster.reports.summary import summary_lines
    from cluster.shards import statistics

    shard_set = prepared.shard_set
    lines = summary_lines(prepared.index, prepared.quarantined)
    if shard_set is None:
        return lines
    if view is not None:
        objects = statistics.read(shard_set).objects()
        unfit = anchor_fit.warning(objects, shard_set.class_names, view)
        lines += [f"warning     {unfit}"] if unfit else []
    return [f"set         {shard_set.uri}", *lines]


# What does not change the bytes of the shard set, or is in the identity in another form.
NOT_IDENTITY = {
    "annotations",
    "images",
    "format",
    "sources",
    "against",
    "accept",
    "max_quarantined",
    "max_quarantined_annotations",
}


def identity(section: DataSection) -> dict[str, Any]:
    """What makes two sections the same data: the contents of the annotations, the names and sizes
    of the images, and the options that differ from their defaults. `UsageError` where something is
    not there.
    """
    from cluster.shards.index import open_shard_set

    parts = [[place.name, *_source_digests(place)] for place in section.source_paths()]
    # A single source has no name of its own.
    fields: dict[str, Any] = {"source": parts if section.sources else parts[0][1:]}
    if section.against:
        fields["against"] = [open_shard_set(uri).digest for uri in section.against]
    return fields | section.model_dump(mode="json", exclude=NOT_IDENTITY, exclude_defaults=True)


def _source_digests(place: SourcePaths) -> list[str]:
    from cluster.formats.read import check_paths, read_source
    from cluster.workflow.stages import digest_of_file, digest_of_folder

    place = place.absolute()
    check_paths(place)
    pictures = [] if place.images is None else [digest_of_folder(place.images)]
    if place.format == "coco":
        # All of it is in one file, and reading its records would take seconds.
        return [digest_of_file(place.annotations), *pictures]
    # The digest of all that was read: the annotations and, beside them, files such as classes.txt.
    return [f"{place.format} {read_source(place).digest}", *pictures]


def pictures(section: DataSection, shard_set: ShardSet) -> dict[str, int | None]:
    """The images that the annotations of a section list and that are there, by their URI, in the
    order of the sources, with their ids in the shard set that was made of it; None for an image
    that the set left out. The folder may hold those of other sections too.
    """
    from cluster.formats.read import in_val, read_source
    from cluster.prediction.image_list import open_images
    from cluster.shards.read import read_columns
    from cluster.storage import parquet_pictures, uris

    rows = read_columns(shard_set, ["source", "file_name", "image_id"]).to_pylist()
    ids = {(row["source"], row["file_name"]): row["image_id"] for row in rows}
    found: dict[str, int | None] = {}
    for number, place in enumerate(section.source_paths()):
        place = place.absolute()
        folder = place.folder()
        listed = read_source(place).images.names
        stored = [name for source, name in ids if source == number]
        if READERS[place.format].has_pictures:
            inside = [name for name in listed if parquet_pictures.split(name)]
            names = dict.fromkeys([*inside, *sorted(stored)])
        else:
            wanted = {*listed, *stored}
            there = (uri[len(folder) + 1 :] for uri in open_images(folder).uris())
            names = [name for name in there if name in wanted]
        for name in names:
            if section.split == "all" or in_val(name, section.val_share) == (
                section.split == "val"
            ):
                found[uris.join(folder, name)] = ids.get((number, name))
    return found

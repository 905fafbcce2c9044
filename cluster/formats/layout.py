"""Where the annotations and the pictures lie in a folder or a zip, as tools export them: it is then
one argument.

    Roboflow      train/_annotations.coco.json, train/_annotations.csv or train/*.xml, beside the
                  pictures of train/; train/labels and train/images; the same for valid/ and test/
    CVAT          annotations.xml, images/; annotations/instances_default.json, images/default/;
                  obj.names, obj_train_data/; Annotations/, JPEGImages/
    Label Studio  result.json, images/; classes.txt, labels/, images/; Annotations/, images/
    COCO, YOLO    annotations/instances_train2017.json, train2017/; labels/train, images/train

A folder around all of it does no harm. What is there decides, not who made it: a file's first bytes
say its format; labels and pictures that share their names belong together.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cluster.errors import DataError, UsageError
from cluster.formats.kinds import Format, kind_of
from cluster.formats.read import READERS
from cluster.storage import files, uris, zips
from cluster.storage.pictures import is_left_by_tools, suffix_of
from cluster.storage.preflight import check_readable
from detector.image import SUFFIXES

_PARQUET = [format_ for format_, reader in READERS.items() if reader.has_pictures]
_TABLES: tuple[Format, ...] = ("openimages", "csv")
_LABEL_FOLDERS = frozenset(("annotations", "labels", "xml", "xmls", "obj_train_data"))
_PICTURE_FOLDERS = ("images", "JPEGImages", "Images", "imgs", "img")
_SPLITS = ("train", "val", "test", "dev")
_FEW = 20
"""More files of one kind in a folder are one a picture; the first of them tells for all."""


class Set(NamedTuple):
    """Annotations with their pictures; both are URIs."""

    format: Format
    annotations: str
    images: str | None
    """None where the pictures are in the annotations."""

    @property
    def pictures(self) -> str:
        return self.images or self.annotations


def find_set(annotations: str, images: str | None, format_: Format | None) -> tuple[Set, str]:
    """The one set in the folder, zip or file `annotations`, and a line that says where it is. What
    is given of `images` and `format_` is heeded. `UsageError` where nothing is there or several
    sets are; `DataError` where the folder or zip has no annotations or no pictures.
    """
    look = _look(annotations, images, format_)
    found, tree = look.sets, look.tree
    if len(found) > 1:
        raise UsageError(_several(annotations, tree, found))
    if found[0].images is None:
        return found[0], f"{annotations}: format {found[0].format}"
    place = "" if look.is_file else f", annotations in {tree.relative(found[0].annotations)}"
    pictures = tree.relative(found[0].pictures)
    return found[0], f"{annotations}: format {found[0].format}{place}, pictures in {pictures}"


def find_sets(root: str) -> list[tuple[str, Set]]:
    """Every set in the folder, zip or file `root`, with the name of its annotations relative to it.
    Errors: see `find_set`; several sets are none.
    """
    look = _look(root, None, None)
    return [(look.tree.relative(one.annotations), one) for one in look.sets]


class _Look(NamedTuple):
    tree: _Tree
    is_file: bool
    sets: list[Set]
    """At least one."""


def _look(annotations: str, images: str | None, format_: Format | None) -> _Look:
    """What `find_set` finds, before it chooses."""
    root = uris.absolute(annotations)
    check_readable(root)
    given = None if images is None else uris.absolute(images)
    is_file = files.size(root) is not None
    kind = kind_of(root) if is_file else None
    if kind is not None and kind.format is None:
        raise UsageError(f"--annotations {annotations}: is {kind.what}; {kind.remedy}")
    tree = _Tree(root, [] if is_file else [uri for uri, _ in files.list_files(root)])
    if given is None and (format_ or _parquet_of(tree, is_file)) in _PARQUET:
        return _Look(tree, is_file, [Set(format_ or "parquet", root, None)])
    if is_file:
        alone = _set_of_file(tree, root, given, format_ or _format_of(root) or "coco")
        return _Look(tree, is_file, [alone])
    if given is None and not tree.pictures:
        given = _pictures_of_folder(tree, root)
    if given is None and not tree.pictures:
        raise DataError(f"{annotations}: {tree.lacks('pictures')}")
    there = list(_sets(tree, given))
    # Many a tool puts lists beside its annotations: a table counts where nothing else does.
    if not there or format_ in _TABLES:
        there += _tables(tree, given)
    if not there:
        raise DataError(f"{annotations}: {tree.lacks('annotations')}")
    found = [one for one in there if format_ in (None, one.format)]
    if not found:
        raise UsageError(
            f"--format {format_}: {annotations} has annotations of another format; say --format"
            f" {there[0].format}"
        )
    return _Look(tree, is_file, found)


def _parquet_of(tree: _Tree, is_file: bool) -> Format | None:
    """Whether it is a Parquet file, or a folder of them without other pictures."""
    if is_file:
        return _format_of(tree.root)
    return "parquet" if not tree.pictures and tree.by_folder(".parquet") else None


def _format_of(uri: str) -> Format | None:
    kind = kind_of(uri)
    return None if kind is None else kind.format


class _Tree:
    """What lies below a folder or zip, listed once. Files that tools leave behind are not in it."""

    def __init__(self, root: str, listing: Sequence[str]):
        self.root = root
        self.uris = [uri for uri in listing if not is_left_by_tools(uri[len(root) + 1 :])]
        self.pictures = [uri for uri in self.uris if suffix_of(uri) in SUFFIXES]
        self.direct = {posixpath.dirname(uri) for uri in self.pictures}

    def by_folder(self, suffix: str) -> dict[str, list[str]]:
        """The files with a suffix, sorted, by the folder that they lie in."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for uri in self.uris:
            if suffix_of(uri) == suffix:
                found[posixpath.dirname(uri)].append(uri)
        return dict(sorted(found.items()))

    def has(self, uri: str) -> bool:
        """Whether `uri` is in what was given, or in the same zip."""
        in_zip = (parts := zips.split(uri)) is not None and uris.is_below(self.root, parts[0])
        return uri == self.root or uris.is_below(uri, self.root) or in_zip

    def has_pictures(self, folder: str) -> bool:
        """Whether a picture lies in the folder or below it."""
        if folder == self.root or uris.is_below(folder, self.root):
            return any(one == folder or uris.is_below(one, folder) for one in self.direct)
        return any(suffix_of(uri) in SUFFIXES for uri, _ in files.list_files(folder))

    def relative(self, uri: str) -> str:
        if uri == self.root:
            return "it"
        inside = uris.is_below(uri, self.root)
        return uris.relative_to(uri, self.root) if inside else uri

    def lacks(self, what: str) -> str:
        """The refusal of what holds none of `what`."""
        kinds = Counter(suffix_of(uri) or "without a suffix" for uri in self.uris).most_common(6)
        there = ", ".join(f"{count} x {kind}" for kind, count in kinds) or "nothing"
        return (
            f"no {what} are recognised in it (it has {there}); name what there is with"
            " --annotations, --images and --format"
        )


def _set_of_file(tree: _Tree, uri: str, images: str | None, format_: Format) -> Set:
    images = images or _folder_beside(uri) or _pictures_of_file(tree, uri)
    if images is None:
        raise UsageError(
            f"--annotations {uri}: is a file; name the folder of its pictures with --images"
        )
    return Set(format_, uri, images)


def _folder_beside(uri: str) -> str | None:
    """The folder of a file, where pictures lie right in it."""
    folder = posixpath.dirname(uri)
    names = files.list_names(folder)
    there = any(suffix_of(name) in SUFFIXES and not is_left_by_tools(name) for name in names)
    return folder if there else None


def _sets(tree: _Tree, images: str | None) -> Iterator[Set]:
    """Every set, by its annotations. Where `images` is given, it has the pictures of each."""
    voc: set[str] = set()
    for suffix in (".json", ".xml"):
        for folder, names in tree.by_folder(suffix).items():
            for uri in names if len(names) <= _FEW else names[:1]:
                kind = _format_of(uri)
                if kind == "voc":
                    voc.add(_label_folder(folder, tree.root))
                elif kind == "coco" and _is_other_coco(uri, names):
                    continue
                elif kind is not None and (own := images or _pictures_of_file(tree, uri)):
                    yield Set(kind, uri, own)
    for folder in sorted(voc):
        if own := images or _pictures_of_folder(tree, folder):
            yield Set("voc", folder, own)
    yield from _yolo_sets(tree, images)


def _tables(tree: _Tree, images: str | None) -> Iterator[Set]:
    """CSV files with a box in each line."""
    for names in tree.by_folder(".csv").values():
        for uri in names if len(names) <= _FEW else names[:1]:
            kind = _format_of(uri)
            if kind in _TABLES and (own := images or _pictures_of_file(tree, uri)):
                yield Set(kind, uri, own)


def _yolo_sets(tree: _Tree, images: str | None) -> Iterator[Set]:
    """Folders with text files that are named like pictures."""
    listed = tree.pictures if images is None else [uri for uri, _ in files.list_files(images)]
    pictures = set(map(_stem, listed))
    folders: dict[str, str] = {}
    for folder, texts in tree.by_folder(".txt").items():
        if any(_stem(text) in pictures for text in texts):
            top = _label_folder(folder, tree.root)
            own = images or _pictures_of_folder(tree, top) or _pictures_of_folder(tree, folder)
            if own is not None:
                folders.setdefault(top, own)
    for folder, own in folders.items():
        yield Set("yolo", folder, own)


def _stem(uri: str) -> str:
    return posixpath.splitext(posixpath.basename(uri))[0]


def _is_other_coco(uri: str, names: Sequence[str]) -> bool:
    """Whether a file is one of the captions or keypoints that COCO has beside its instances."""
    instances = [name for name in names if posixpath.basename(name).startswith("instances")]
    return bool(instances) and uri not in instances


def _label_folder(folder: str, root: str) -> str:
    """The folder of labels that `folder` belongs to: annotations/ of annotations/day/, but
    labels/train of labels/train/day, because each split is a set.
    """
    if folder == root:
        return folder
    parts = uris.relative_to(folder, root).split("/")
    for number, part in enumerate(parts, start=1):
        if part.lower() in _LABEL_FOLDERS:
            split = number < len(parts) and parts[number].lower().startswith(_SPLITS)
            return uris.join(root, *parts[: number + split])
    return folder


def _pictures_of_file(tree: _Tree, uri: str) -> str | None:
    """The folder of the pictures of a COCO, CVAT or Label Studio file."""
    folder = posixpath.dirname(uri)
    parent = posixpath.dirname(folder)
    stem = posixpath.basename(uri).split(".")[0].removeprefix("instances_")
    if folder in tree.direct:
        return folder
    candidates = [
        *(uris.join(above, name, stem) for above in (folder, parent) for name in _PICTURE_FOLDERS),
        *(uris.join(above, stem) for above in (folder, parent)),
        *(uris.join(above, name) for above in (folder, parent) for name in _PICTURE_FOLDERS),
        *(above for above in (folder, parent) if tree.has(above)),
    ]
    return next((one for one in candidates if tree.has_pictures(one)), None)


def _pictures_of_folder(tree: _Tree, folder: str) -> str | None:
    """The folder of the pictures of a folder of VOC or YOLO files."""
    if folder in tree.direct:
        return folder
    head, name = posixpath.split(folder)
    above, parent = posixpath.split(head)
    candidates = [
        *(uris.join(head, pictures) for pictures in _PICTURE_FOLDERS if name),
        *(uris.join(above, pictures, name) for pictures in _PICTURE_FOLDERS if parent),
        *(one for one in (folder, head) if tree.has(one)),
    ]
    # labels/train has its pictures in images/train, not in an images/ of labels/.
    if parent.lower() in _LABEL_FOLDERS:
        candidates = candidates[len(_PICTURE_FOLDERS) :] + candidates[: len(_PICTURE_FOLDERS)]
    return next((one for one in candidates if tree.has_pictures(one)), None)


def _several(annotations: str, tree: _Tree, found: Sequence[Set]) -> str:
    given = annotations.rstrip("/")
    formats = sorted({one.format for one in found})
    if len(formats) > 1:
        return (
            f"--annotations {given}: holds annotations of several formats; choose one:"
            f" --format {' or '.join(formats)}"
        )
    names = [_telling(one, tree, found) for one in found]
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return (
        f"--annotations {given}: holds {len(found)} sets: {shown}; give one of them:"
        f" --annotations {given}/{names[0]}"
    )


def _telling(one: Set, tree: _Tree, found: Sequence[Set]) -> str:
    """The name, relative to the tree, of the folder that has the annotations and the pictures of a
    set or, where other sets lie there too, of its annotations.
    """
    annotations, images = tree.relative(one.annotations), tree.relative(one.pictures)
    inside = uris.is_below(one.annotations, tree.root) and uris.is_below(one.pictures, tree.root)
    common = posixpath.commonpath([annotations, images]) if inside else ""
    others = [tree.relative(other.annotations) for other in found if other is not one]
    others += [tree.relative(other.pictures) for other in found if other is not one]
    taken = not common or any(f"{path}/".startswith(f"{common}/") for path in others)
    return annotations if taken else common

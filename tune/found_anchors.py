"""The presets `anchors` and `focal+anchors`: anchors that fit the boxes of data.train are searched
without pixels, and then trained beside the given ones. What fits better on paper is adopted only
where it trains better. The sweep's folder gets

anchors.json
    the candidates: [[base sizes, scales, ratios], ...], the given ones first
anchors.txt, anchors.yaml, anchors.png
    the best of them beside the given ones: table, recipe, picture
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.runs.config import TrainConfig
from cluster.shards.index import ShardSet
from cluster.storage import files
from cluster.storage.uris import join
from detector import scores
from tune.dimensions import four_digits
from tune.presets import Preset
from tune.trials import TrialRecord

if TYPE_CHECKING:
    from tune.anchors import Spread

FIELDS = ("model.anchors.base_sizes", "model.anchors.scales", "model.anchors.ratios")
FOUND, TABLE, RECIPE, PICTURE = "anchors.json", "anchors.txt", "anchors.yaml", "anchors.png"
MOST = 4
"""Found candidates that are trained."""
_WITHOUT: dict[Preset, Preset] = {"anchors": "none", "focal+anchors": "focal"}


def searches_anchors(preset: Preset, entries: Mapping[str, Any], config: TrainConfig) -> bool:
    """Whether a sweep looks for anchors: not where its own entries say which to try."""
    own = any(field in name.split("+") for name in entries for field in FIELDS)
    return preset in _WITHOUT and not own and config.model.architecture == "retinanet"


def is_found(uri: str) -> bool:
    """Whether the sweep at `uri` has looked for anchors."""
    return files.exists(join(uri, FOUND))


def with_found_anchors(
    preset: Preset, entries: Mapping[str, Any], uri: str
) -> tuple[Preset, dict[str, Any]]:
    """Preset and entries of the space whose anchors are the given ones and those that the sweep at
    `uri` has found.
    """
    found = files.read_json(join(uri, FOUND))
    return _WITHOUT[preset], {**entries, "+".join(FIELDS): found}


def find_anchors(
    config: TrainConfig,
    train_set: ShardSet,
    uri: str,
    *,
    say: Callable[[str], None],
    spread: Spread | None = None,
) -> None:
    """Search anchors for the sweep at `uri`, once. `spread`: see `search_anchors`; without one all
    is done in this process.
    """
    # Imported here: SciPy and matplotlib take seconds, and most sweeps do without.
    from tune import anchor_report
    from tune.anchors import in_process, search_anchors

    say("anchors that fit the boxes of data.train are searched")
    augmentation, loss = config.augmentation, config.loss
    search = search_anchors(
        shard_set=train_set,
        canvas=config.canvas,
        anchors=config.model.anchors,
        scale_range=(augmentation.scale_min, augmentation.scale_max),
        short_sides=augmentation.short_sides,
        min_visible=augmentation.min_visible,
        foreground=loss.positive_iou,
        background=loss.negative_iou,
        spread=spread or in_process,
    )
    table = anchor_report.table(search)
    for line in table.splitlines():
        say(line)
    files.write_bytes(join(uri, TABLE), (table + "\n").encode())
    recipe = anchor_report.recipe(search, data=train_set.uri)
    files.write_bytes(join(uri, RECIPE), recipe.encode())
    files.write_bytes(join(uri, PICTURE), anchor_report.picture(search))
    given = config.model.anchors
    others = [one.anchors for one in search.confirmed if one.anchors != given][:MOST]
    triples = [
        [list(map(four_digits, values)) for values in (one.base_sizes, one.scales, one.ratios)]
        for one in (given, *others)
    ]
    # Written last: with it the search is done.
    files.write_json(join(uri, FOUND), triples)


def adoption(records: Sequence[TrialRecord], config: TrainConfig) -> str | None:
    """Which anchors trained better, in words; None where not both have a result. `records` are
    those of a sweep that has looked for anchors, best first. One of them may have been stopped
    early, so they are compared at the length that both have.
    """
    anchors = config.model.anchors
    given = [list(map(four_digits, getattr(anchors, field.split(".")[-1]))) for field in FIELDS]
    best: dict[bool, TrialRecord] = {}
    for record in records:
        if record.ap is not None:
            is_given = [record.sample.get(field) for field in FIELDS] == given
            best.setdefault(is_given, record)
    if len(best) < 2:
        return None
    epochs = min(record.epochs_done for record in best.values())
    found, own = (_ap_within(best[is_given], epochs) for is_given in (False, True))
    return (
        f"after epoch {epochs} the found ones had AP {scores.shown(found)}, the given ones"
        f" {scores.shown(own)}: {'adopted' if found > own else 'the given ones stay'}"
    )


def _ap_within(record: TrialRecord, epochs: int) -> float:
    return max((point.ap or 0.0 for point in record.curve if point.epoch <= epochs), default=0.0)

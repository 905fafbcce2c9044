"""The option names of every verb, frozen.

Command lines, recipes and RETINARAY_ variables of users hold these names. In a block a line
`section: a b` stands for `--section.a` and `--section.b`, a line without a colon for options of no
section, and `sources[]: name` for a field of each item in the list `--sources`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from pipelines.approve import ApproveConfig
from pipelines.evaluate_config import EvaluateConfig
from pipelines.export import ExportConfig
from pipelines.history import HistoryConfig
from pipelines.options import all_fields, item_of, section_of
from pipelines.predict import PredictConfig
from pipelines.preflight import PreflightConfig
from pipelines.prepare import PrepareConfig
from pipelines.promote import PromoteConfig
from pipelines.register import RegisterConfig
from pipelines.rollback import RollbackConfig
from pipelines.run_config import RunConfig
from pipelines.shards import ShardsConfig
from pipelines.sweep import SweepVerb
from pipelines.train import TrainVerb
from pipelines.versions import VersionsConfig

CONFIGS: dict[str, type[BaseModel]] = {
    "approve": ApproveConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "history": HistoryConfig,
    "predict": PredictConfig,
    "preflight": PreflightConfig,
    "prepare": PrepareConfig,
    "promote": PromoteConfig,
    "register": RegisterConfig,
    "rollback": RollbackConfig,
    "run": RunConfig,
    "shards": ShardsConfig,
    "sweep": SweepVerb,
    "train": TrainVerb,
    "versions": VersionsConfig,
}

# What train, sweep and run share.
TRAINING = """
    name storage pretrained from_checkpoint from_state
    sampling: repeat_threshold source_weights
    model: architecture backbone norm frozen_stages stride_in head_norm width p6_from prior
    model.anchors: strides base_sizes scales ratios convention
    canvas: height width shapes long_side
    loss: classification gamma alpha box box_weight beta normalizer positive_iou negative_iou
    augmentation: flip vertical_flip scale_min scale_max short_sides min_visible
    augmentation: iou_crop iou_minima photometric brightness contrast saturation hue mosaic mixup
    optimizer: name learning_rate weight_decay momentum clip_norm
    optimizer: schedule milestones warmup ema_images
    decode: score_threshold top_per_level nms_threshold max_detections
    training: epochs batch_size accumulate seed amp compile skip_nonfinite
    training: evaluate_every evaluation evaluation_workers evaluation_cpus evaluation_gpus
    training: patience min_improvement
    training: checkpoint_every checkpoint_images checkpoint_minutes checkpoint_folder
    training: keep_checkpoints log_steps log_seconds profile_steps
    training: workers min_workers resized_batch cpus_per_worker gpus_per_worker
    training: decode decode_threads retries hang_minutes wait_minutes
    ray: address num_cpus logs autoscaling
    tracking: uri experiment
"""

SEARCH = """
    sweep: trials concurrent epochs grace_epochs seed workers cpus_per_worker gpus_per_worker
    sweep: preset space searcher grid_points stopping images hours seeds confirm
    sweep: keep same_failures retries
"""

GATE = """
    gate: min_ap epsilon confidence class_drop size_drop min_objects latency_ms megabytes
    gate: resamples seed
"""

OPTIONS = {
    "approve": """
        model storage
        tracking: uri experiment
    """,
    "evaluate": """
        run model compare data annotations images format output storage max_detections classes
        tile overlap flip overlays precision slices
        workers cpus_per_worker gpus_per_worker
        ray: address num_cpus logs autoscaling
        tracking: uri experiment
    """,
    "export": """
        model output int8 data calibration storage
        tracking: uri experiment
    """,
    "history": """
        name as_json storage
        tracking: uri experiment
    """,
    "predict": """
        model images column output annotations classes overwrite overlays max_pixels thresholds
        tile overlap flip storage
        workers cpus_per_worker gpus_per_worker
        ray: address num_cpus logs autoscaling
        tracking: uri experiment
    """,
    "preflight": """
        storage network
        ray: address num_cpus logs autoscaling
        tracking: uri experiment
    """,
    "prepare": """
        annotations images format sources output check plan split val_share against duplicates
        seed shard_size_mib row_group_rows max_pixels
        max_quarantined max_quarantined_annotations accept overwrite
        sources[]: name format annotations images
        canvas: height width shapes long_side
        ray: address num_cpus logs autoscaling
    """,
    "promote": GATE
    + """
        model data classes force reason needs_approval storage
        workers cpus_per_worker gpus_per_worker
        ray: address num_cpus logs autoscaling
        tracking: uri experiment
    """,
    "register": GATE
    + """
        run sweep name licence promote
        ray: address num_cpus logs autoscaling
        tracking: uri experiment
    """,
    "rollback": """
        name reason storage
        tracking: uri experiment
    """,
    "run": TRAINING
    + SEARCH
    + """
        data.train: annotations images format sources split val_share against duplicates
        data.train: seed shard_size_mib row_group_rows max_pixels
        data.train: max_quarantined max_quarantined_annotations accept
        data.train.sources[]: name format annotations images
        data.val: annotations images format sources split val_share against duplicates
        data.val: seed shard_size_mib row_group_rows max_pixels
        data.val: max_quarantined max_quarantined_annotations accept
        data.val.sources[]: name format annotations images
        tune registered_name pictures minutes overlays
        plan from_stage until_stage only_stage
    """,
    "shards": "data verify samples output",
    "sweep": TRAINING + SEARCH + "data: train val",
    "train": TRAINING + "plan\n data: train val",
    "versions": """
        name storage
        tracking: uri experiment
    """,
}


def names_in(block: str) -> list[str]:
    """The dotted names that a block stands for."""
    names = []
    for line in block.strip().splitlines():
        section, colon, fields = line.partition(":")
        prefix = section.strip() + "." if colon else ""
        names += [prefix + field for field in (fields if colon else line).split()]
    return names


def names_of(config_class: type[BaseModel]) -> list[str]:
    """The dotted names that a verb takes."""
    names = []
    for name, field in all_fields(config_class).items():
        if item := item_of(field):
            names += [f"{name}[].{inner}" for inner in item.model_fields]
        if not section_of(field):
            names.append(name)
    return names


def complaint(verb: str, frozen: list[str], actual: list[str]) -> str:
    """Which names changed and what to do about it; empty where none did."""
    new, gone = sorted(set(actual) - set(frozen)), sorted(set(frozen) - set(actual))
    twice = sorted({name for name in frozen if frozen.count(name) > 1})
    if not new and not gone and not twice:
        return ""
    lines = [
        f"the option names of `{verb}` are not those frozen in tests/pipelines/test_options.py"
    ]
    if new:
        lines.append(f"new: {', '.join(new)}. Add each to the block of `{verb}` there, and to")
        lines.append("  CHANGELOG.md. An option is a promise: is it needed?")
    if gone:
        lines.append(f"gone: {', '.join(gone)}. Command lines and recipes of users hold this name:")
        lines.append("  put it back. If it must go, or change, take it out of the block there, and")
        lines.append("  say in CHANGELOG.md what to write instead.")
    if twice:
        lines.append(f"twice in the block: {', '.join(twice)}. Write it once.")
    return "\n".join(lines)


@pytest.mark.parametrize("verb", sorted(OPTIONS))
def test_the_options_of_a_verb_have_the_frozen_names(verb: str) -> None:
    message = complaint(verb, names_in(OPTIONS[verb]), names_of(CONFIGS[verb]))
    if message:
        pytest.fail(message, pytrace=False)


def test_every_verb_has_a_block() -> None:
    folder = Path(__file__).parents[2] / "pipelines"
    verbs = {
        p.stem for p in folder.glob("*.py") if re.search(r"^ +run_verb\(", p.read_text(), re.M)
    }
    verbs -= {"command_line"}
    assert verbs == set(OPTIONS) == set(CONFIGS), "give the verb a block in OPTIONS and CONFIGS"


def test_the_complaint_names_what_changed_and_the_remedy() -> None:
    class Data(BaseModel):
        train: str

    class Item(BaseModel):
        url: str

    class Config(BaseModel):
        model_config = ConfigDict(frozen=True)
        name: str
        data: Data
        items: tuple[Item, ...] = ()

    same = "name items\n data: train\n items[]: url"
    assert complaint("toy", names_in(same), names_of(Config)) == ""
    changed = complaint("toy", names_in("name items\n data: val\n items[]: url"), names_of(Config))
    assert "new: data.train. Add each to the block of `toy`" in changed
    assert "gone: data.val. " in changed and "CHANGELOG.md" in changed
    assert "twice in the block: name" in complaint(
        "toy", names_in(same + "\nname"), names_of(Config)
    )

"""What a checkpoint folder and a model package give back is what was put in, and the weights of
another network are refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from detector.batch import Sample, collate
from detector.checkpoint import STATE_FILE, load_checkpoint, load_weights, take_snapshot
from detector.choices import LossSettings
from detector.decode import Detections
from detector.model import RetinaNet
from detector.optimizer import MovingAverage, build_optimizer
from detector.predict import Predictor, rescale, write_package
from detector.step import train_step
from tests.detector.toy import TOY, toy_backbones
from tests.support.saved_checkpoint import save_checkpoint

KEYWORDS = TOY | {"head_norm": "group"}
CANVAS = (64, 96)


@pytest.fixture(scope="module", autouse=True)
def _toys():
    with toy_backbones():
        yield


class Training:
    """A network with its optimiser and its average, and steps on one picture."""

    def __init__(self, seed: int, *, name: str = "adamw", average: bool = True):
        torch.manual_seed(seed)
        self.model = RetinaNet(**KEYWORDS).to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(
            self.model, name=name, learning_rate=1e-3, weight_decay=0.01, momentum=0.9
        )
        self.average = MovingAverage(self.model, images=50) if average else None
        random = np.random.default_rng(5)
        image = torch.from_numpy(random.integers(0, 256, (3, *CANVAS), dtype=np.uint8))
        self.batch = collate(
            [
                Sample(image, np.array([[8, 8, 40, 40]], np.float32), np.array([1]), CANVAS, 3)
                for _ in range(2)
            ]
        )

    def step(self, times: int = 1) -> None:
        anchors = torch.cat(self.model.anchors(*CANVAS))
        settings = dict(loss=LossSettings(), learning_rate=1e-3, clip_norm=10.0, amp_dtype=None)
        for _ in range(times):
            train_step(self.model, self.optimizer, self.batch, anchors, **settings)
            if self.average is not None:
                self.average.update(self.model, 2)

    def parts(self) -> dict:
        return dict(model=self.model, optimizer=self.optimizer, average=self.average)


STATE = {"images_seen": 4, "epoch": 0, "left": [[4, 20]], "seed": 0, "best": None}


@pytest.mark.parametrize(("name", "average"), [("adamw", True), ("sgd", False)])
def test_training_continues_from_a_checkpoint_as_if_uninterrupted(tmp_path, name, average):
    first = Training(0, name=name, average=average)
    first.step(2)
    save_checkpoint(str(tmp_path), **first.parts(), state=STATE)
    first.step(2)

    second = Training(1, name=name, average=average)
    state = load_checkpoint(str(tmp_path), **second.parts())
    assert {key: state[key] for key in STATE} == STATE
    second.step(2)
    ours = second.model.state_dict()
    for key, value in first.model.state_dict().items():
        assert torch.equal(ours[key], value), key
    if average:
        assert second.average.seen == first.average.seen == 8
        assert all(
            torch.equal(second.average.state[key], value)
            for key, value in first.average.state.items()
        )


def test_the_folder_holds_what_the_contract_names(tmp_path):
    training = Training(0)
    training.step()
    save_checkpoint(str(tmp_path / "new"), **training.parts(), state=STATE)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "ema.safetensors",
        "model.safetensors",
        "optimizer.pt",
        "state.json",
    ]
    assert json.loads((tmp_path / "new" / STATE_FILE).read_text())["left"] == [[4, 20]]
    # Nothing pickled: torch refuses code here.
    torch.load(tmp_path / "new" / "optimizer.pt", weights_only=True)
    assert set(load_file(tmp_path / "new" / "model.safetensors")) == set(
        training.model.state_dict()
    )
    plain = Training(0, average=False)
    save_checkpoint(str(tmp_path / "plain"), **plain.parts(), state=STATE)
    assert not (tmp_path / "plain" / "ema.safetensors").exists()


def test_a_state_with_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(str(tmp_path), **Training(0).parts(), state={"loss": float("nan")})


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"classes": 3}, r"class_head.output.bias is \(18,\) where the model has \(27,\)"),
        ({"head_norm": "none"}, "is missing|is unknown"),
        ({"norm": "frozen"}, "bn1.scale is missing"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(tmp_path, changed, complaint):
    save_checkpoint(str(tmp_path), **Training(0).parts(), state=STATE)
    other = RetinaNet(**(KEYWORDS | changed))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=complaint):
        load_weights(other, str(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose network finds much: its class head starts at 0.3."""
    folder = tmp_path_factory.mktemp("package")
    torch.manual_seed(2)
    model = RetinaNet(**KEYWORDS, prior=0.3)
    with torch.no_grad():
        for p in model.class_head.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    training = Training(0)
    training.model = model
    save_checkpoint(
        str(folder / "checkpoint"),
        model=model,
        optimizer=training.optimizer,
        average=None,
        state=STATE,
    )
    decode = {
        "score_threshold": 0.05,
        "top_per_level": 100,
        "nms_threshold": 0.5,
        "max_detections": 7,
    }
    description = {"model": KEYWORDS, "canvases": [list(CANVAS)], "decode": decode, "amp": False}
    classes = [{"label": 0, "id": 3, "name": "cat"}, {"label": 1, "id": 17, "name": "dog"}]
    write_package(
        str(folder / "package"),
        weights=str(folder / "checkpoint" / "model.safetensors"),
        description=description,
        classes=classes,
    )
    return folder / "package"


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [
        random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        for shape in ((64, 96), (200, 100), (31, 77))
    ]


def test_the_package_gives_detections_in_each_pictures_own_frame(package):
    found = Predictor.load(str(package))(pictures())
    for its, picture in zip(found, pictures(), strict=True):
        height, width = picture.shape[:2]
        assert len(its.scores_N) == 7
        assert (
            (its.boxes_N4 >= 0).all()
            and its.boxes_N4[:, [0, 2]].max() <= width
            and its.boxes_N4[:, [1, 3]].max() <= height
        )
        assert (np.diff(its.scores_N) <= 0).all() and set(its.labels_N) <= {0, 1}
    # The second is 200 px high and shown at 64: its boxes must use the height, not the canvas's 64.
    assert found[1].boxes_N4[:, 3].max() > 100


def test_a_moved_package_gives_the_same_detections(package, tmp_path):
    moved = tmp_path / "elsewhere"
    package.rename(moved)
    try:
        one, two = (
            Predictor.load(str(moved))(pictures()),
            Predictor.load(str(moved), batch_size=1)(pictures()),
        )
    finally:
        moved.rename(package)
    for left, right in zip(one, two, strict=True):
        # One at a time or all together; convolutions of another batch size may round otherwise.
        np.testing.assert_allclose(left.scores_N, right.scores_N, atol=1e-5)
        np.testing.assert_allclose(left.boxes_N4, right.boxes_N4, atol=1e-2)


def test_the_package_is_plain_json_and_safetensors(package):
    assert sorted(path.name for path in package.iterdir()) == [
        "classes.json",
        "model.json",
        "model.safetensors",
    ]
    assert json.loads((package / "classes.json").read_text())[1] == {
        "label": 1,
        "id": 17,
        "name": "dog",
    }
    assert json.loads((package / "model.json").read_text())["model"]["width"] == 64


def test_no_pictures_no_detections(package):
    assert Predictor.load(str(package))([]) == []


def test_prediction_does_not_change_the_mode_of_the_network(package):
    predictor = Predictor.load(str(package))
    # As it is while it trains, with batch normalisation that a forward pass in the wrong mode would
    # move.
    predictor.model = RetinaNet(**KEYWORDS).train()
    statistics = predictor.model.backbone.stem[1].running_mean.clone()
    predictor(pictures()[:1])
    assert predictor.model.training and torch.equal(
        predictor.model.backbone.stem[1].running_mean, statistics
    )


def test_a_package_whose_parts_do_not_belong_together_is_refused(package, tmp_path):
    description = json.loads((package / "model.json").read_text())
    description["model"]["classes"] = 5
    write_package(
        str(tmp_path),
        weights=str(package / "model.safetensors"),
        description=description,
        classes=[],
    )
    with pytest.raises(ValueError, match="another network"):
        Predictor.load(str(tmp_path))


def test_rescale_by_hand():
    # A picture of 200 x 100 (height x width) shown at 50 x 40: y by 4, x by 2.5; the borders 50 and
    # 40 become 200 and 100.
    found = Detections(
        np.array([[4, 20, 40, 50]], np.float32), np.array([0.5], np.float32), np.array([1])
    )
    moved = rescale(found, (50.0, 40.0), (200, 100))
    np.testing.assert_allclose(moved.boxes_N4, [[10, 80, 100, 200]], rtol=1e-6)
    assert (moved.scores_N, moved.labels_N) == (found.scores_N, found.labels_N)


def test_a_snapshot_is_not_touched_by_what_follows_and_its_memory_is_used_again() -> None:
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(torch.ones(1, 3, 8, 8)).sum().backward()
        optimizer.step()

    step()
    first = take_snapshot(model=model, optimizer=optimizer, average=None, state={"images_seen": 1})
    before = model.weight.detach().clone()
    step()
    assert torch.equal(first.model["weight"], before) and not torch.equal(model.weight, before)
    again = take_snapshot(
        model=model, optimizer=optimizer, average=None, state={"images_seen": 2}, before=first
    )
    assert torch.equal(again.model["weight"], model.weight)
    assert again.model["weight"].data_ptr() == first.model["weight"].data_ptr()
    assert (
        again.optimizer["state"][0]["exp_avg"].data_ptr()
        == first.optimizer["state"][0]["exp_avg"].data_ptr()
    )
    assert again.optimizer["state"][0]["step"] == 2

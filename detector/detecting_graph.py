"""The network with anchors, decoding and NMS as one graph without branches, for other runtimes.
Shapes: B images, K classes, a anchors of a level, T the best entries of a level, M
candidates of an image, D its most detections, N detections of all images.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from detector.boxes import clip, decode
from detector.decode import DecodeSettings
from detector.model import RetinaNet

INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "labels", "image_indices")

_DROPPED = -1.0
"""The score of a candidate that is none."""


class DetectingGraph(nn.Module):
    """Pixels -> detections, as `RetinaNet.detect` gives them: the same thresholds, and NMS within
    each class. Of two candidates whose scores are equal after rounding, that with the higher logit
    is the better one, and the first of equal logits.
    """

    def __init__(self, model: RetinaNet, decode: DecodeSettings):
        super().__init__()
        self.model = model
        self.decode = decode

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """uint8 (B, 3, H, W) RGB pixels and the int64 (B, 2) sizes (height, width) px of the
        pictures on this canvas -> float32 (N, 4) boxes, XYXY px on the canvas, clipped to the
        picture; float32 (N,) scores; int64 (N,) labels; int64 (N,) the number of each one's image
        in the batch. Image by image, best first.
        """
        logits, deltas = self.model(images, by_level=True)
        anchors = self.model.anchors(images.shape[2], images.shape[3])
        levels = [self._candidates(*level) for level in zip(logits, deltas, anchors, strict=True)]
        scores_BM, labels_BM, boxes_BM4 = (
            torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)
        )
        boxes_BM4 = clip(boxes_BM4, sizes[:, 0, None], sizes[:, 1, None])
        labels_K1 = torch.arange(self.model.classes)[:, None]
        scores_BKM = torch.where(
            labels_BM[:, None] == labels_K1, scores_BM[:, None], scores_BM.new_tensor(_DROPPED)
        )
        most = self.decode["max_detections"]
        kept_BM = suppress(
            boxes_BM4,
            scores_BKM,
            self.decode["score_threshold"],
            self.decode["nms_threshold"],
            most,
        )
        best_BD, place_BD = torch.where(kept_BM, scores_BM, scores_BM.new_tensor(_DROPPED)).topk(
            min(most, len(levels) * self.decode["top_per_level"])
        )
        image_N, rank_N = torch.nonzero(best_BD > _DROPPED, as_tuple=True)
        place_N = place_BD[image_N, rank_N]
        return (
            boxes_BM4[image_N, place_N],
            best_BD[image_N, rank_N],
            labels_BM[image_N, place_N],
            image_N,
        )

    def _candidates(
        self, logits_BaK: Tensor, deltas_Ba4: Tensor, anchors_a4: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best scores of a level, their labels and boxes: (B, T), (B, T) and (B, T, 4), where T
        is `top_per_level`. A level with fewer entries has further ones of score 0.
        """
        most = self.decode["top_per_level"]
        # Logits are sorted, and only the best become scores; a level can have fewer than `most`.
        flat = torch.cat(
            [logits_BaK.flatten(1), logits_BaK.new_full((logits_BaK.shape[0], most), -1e4)], dim=1
        )
        logits_BT, place_BT = flat.topk(most)
        anchor_BT = (place_BT // self.model.classes).clamp(max=anchors_a4.shape[0] - 1)
        deltas_BT4 = deltas_Ba4.gather(1, anchor_BT[..., None].expand(-1, -1, 4))
        return (
            logits_BT.sigmoid(),
            place_BT % self.model.classes,
            decode(deltas_BT4, anchors_a4[anchor_BT]),
        )


@torch.library.custom_op("retinaray::suppress", mutates_args=())
def suppress(
    boxes_BM4: Tensor,
    scores_BKM: Tensor,
    score_threshold: float,
    nms_threshold: float,
    most: int,
) -> Tensor:
    """bool (B, M): the candidates that NMS keeps of those above `score_threshold`, at most `most`
    of a class. Each candidate has a score in one class; in ONNX one node does all images and
    classes, see `suppress_in_onnx`.
    """
    kept_BM = torch.zeros(boxes_BM4.shape[:2], dtype=torch.bool)
    for image, scores_KM in enumerate(scores_BKM):
        for scores_M in scores_KM:
            (above_m,) = torch.nonzero(scores_M > score_threshold, as_tuple=True)
            nms_m = torchvision.ops.nms(
                boxes_BM4[image, above_m].double(), scores_M[above_m].double(), nms_threshold
            )
            kept_BM[image, above_m[nms_m[:most]]] = True
    return kept_BM


@suppress.register_fake
def _(
    boxes_BM4: Tensor,
    scores_BKM: Tensor,
    score_threshold: float,
    nms_threshold: float,
    most: int,
) -> Tensor:
    return boxes_BM4.new_empty(boxes_BM4.shape[:2], dtype=torch.bool)


def suppress_in_onnx(
    boxes_BM4: Any, scores_BKM: Any, score_threshold: float, nms_threshold: float, most: int
) -> Any:
    """`suppress` by the standard operator, whose result is a list of (image, class, candidate)."""
    from onnxscript import opset18

    # onnxscript's annotations know no result of an operator as the input of another one.
    op: Any = opset18
    chosen_n3 = op.NonMaxSuppression(
        boxes_BM4,
        scores_BKM,
        op.Constant(value_ints=[most]),
        op.Constant(value_floats=[nms_threshold]),
        op.Constant(value_floats=[score_threshold]),
    )
    chosen_n2 = op.Gather(chosen_n3, op.Constant(value_ints=[0, 2]), axis=1)
    none_BM = op.Expand(op.Constant(value_floats=[0.0]), op.Shape(boxes_BM4, start=0, end=2))
    ones_n = op.Expand(op.Constant(value_floats=[1.0]), op.Shape(chosen_n3, start=0, end=1))
    return op.Cast(op.ScatterND(none_BM, chosen_n2, ones_n), to=9)  # 9: BOOL

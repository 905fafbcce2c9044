"""The focal loss of all anchors and classes in bounded memory, with its gradient. Shapes: B batch,
A anchors, K classes, N rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detector.anchors import IGNORED

_CHUNK = 1 << 18
"""Logits that a CPU works on at a time: five temporaries in float32 take 5 MiB. On two cores 2^20
is as fast, and 2^16 takes 1.7 times as long.
"""


def focal_term(logits: Tensor, *, positive: bool, gamma: float, alpha: float | None) -> Tensor:
    """FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t) (section 3.2), elementwise, for entries that are
    all positive or all negative.

    `alpha` is the weight of positives, 1 - alpha that of negatives; None: both weigh 1. (1 -
    p_t)^gamma is computed as exp(gamma * log(1 - p_t)): value and gradient are finite for every
    finite logit, also for gamma below 1.
    """
    signed = logits if positive else -logits
    weight = 1.0 if alpha is None else alpha if positive else 1 - alpha
    entropy = weight * F.softplus(-signed)
    return entropy if gamma == 0 else torch.exp(-gamma * F.softplus(signed)) * entropy


def focal_sums(
    logits_BAK: Tensor, class_BA: Tensor, *, gamma: float, alpha: float | None
) -> Tensor:
    """Sum of FL over the classes and the anchors of each image, (B,), in float32 or the logits'
    larger dtype.

    `class_BA` is 0..K-1 for a positive anchor, `IGNORED` for one that counts nothing, and
    `BACKGROUND` otherwise. No one-hot target is built. A compiler fuses the plain formula; without
    a compiler `_FocalSums` computes the same in chunks.
    """
    if torch.compiler.is_compiling():
        return plain_focal_sums(logits_BAK, class_BA, gamma=gamma, alpha=alpha)
    return _FocalSums.apply(logits_BAK, class_BA, gamma, alpha)


def plain_focal_sums(
    logits_BAK: Tensor, class_BA: Tensor, *, gamma: float, alpha: float | None
) -> Tensor:
    """`focal_sums` by its definition, with tensors of (B, A, K): for a compiler, which makes one
    pass of it, and for tests.
    """
    logits_BAK = logits_BAK.to(torch.promote_types(logits_BAK.dtype, torch.float32))
    own_BAK = torch.arange(logits_BAK.shape[2], device=class_BA.device) == class_BA[..., None]
    signed_BAK = torch.where(own_BAK, logits_BAK, -logits_BAK)
    loss_BAK = focal_term(signed_BAK, positive=True, gamma=gamma, alpha=None)
    if alpha is not None:
        loss_BAK = torch.where(own_BAK, alpha * loss_BAK, (1 - alpha) * loss_BAK)
    return (loss_BAK * (class_BA != IGNORED)[..., None]).sum(dim=(1, 2))


class _FocalSums(torch.autograd.Function):
    """`focal_sums` whose forward pass also computes the gradient: the logits are read once, and
    only the gradient, in their dtype, stays in memory.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_BAK: Tensor, class_BA: Tensor, gamma: float, alpha: float | None
    ) -> Tensor:
        ctx.gamma, ctx.alpha = gamma, alpha
        ctx.save_for_backward(logits_BAK, class_BA)
        ctx.gradient_BAK = torch.empty_like(logits_BAK) if ctx.needs_input_grad[0] else None
        return _sums_and_gradient(logits_BAK, class_BA, ctx.gradient_BAK, gamma=gamma, alpha=alpha)

    @staticmethod
    @once_differentiable
    # torch gives once_differentiable no types, so the signature is not seen through it.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *outers: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (outer_B,) = outers
        gradient_BAK, ctx.gradient_BAK = ctx.gradient_BAK, None
        if gradient_BAK is None:
            # The first backward pass scaled the stored gradient in place and returned it; a second
            # pass over the same graph computes it again.
            logits_BAK, class_BA = ctx.saved_tensors
            gradient_BAK = torch.empty_like(logits_BAK)
            _sums_and_gradient(logits_BAK, class_BA, gradient_BAK, gamma=ctx.gamma, alpha=ctx.alpha)
        return gradient_BAK.mul_(outer_B.to(gradient_BAK.dtype)[:, None, None]), None, None, None


def _sums_and_gradient(
    logits_BAK: Tensor,
    class_BA: Tensor,
    gradient_BAK: Tensor | None,
    *,
    gamma: float,
    alpha: float | None,
) -> Tensor:
    """`focal_sums` in chunks of rows; writes its gradient into `gradient_BAK`, where given."""
    classes = logits_BAK.shape[2]
    chunk = _CHUNK
    if logits_BAK.device.type != "cpu":
        # Few kernel launches, in the memory of a float32 gradient plus a twelfth of it: 10 chunks
        # of bfloat16 logits, 80 of float32 ones.
        chunk = max(_CHUNK, logits_BAK.numel() // (80 if logits_BAK.itemsize >= 4 else 10))
    rows = max(1, chunk // classes)
    precise = torch.promote_types(logits_BAK.dtype, torch.float32)
    # (B, A, K) -> (B * A, K) -> chunks of (N, K)
    gradients = (
        [None] * (-(-class_BA.numel() // rows))
        if gradient_BAK is None
        else gradient_BAK.view(-1, classes).split(rows)
    )
    parts = [
        _focal_rows(logits_NK.to(precise), class_N, gradient_NK, gamma=gamma, alpha=alpha)
        for logits_NK, class_N, gradient_NK in zip(
            logits_BAK.reshape(-1, classes).split(rows),
            class_BA.reshape(-1).split(rows),
            gradients,
            strict=True,
        )
    ]
    return torch.cat(parts).view(class_BA.shape).sum(dim=1)


def _focal_rows(
    logits_NK: Tensor,
    class_N: Tensor,
    gradient_NK: Tensor | None,
    *,
    gamma: float,
    alpha: float | None,
) -> Tensor:
    """The loss of each row, (N,). All entries are computed as negatives first; then the entry of a
    row's own class is corrected.

    Of a negative with p = sigmoid(x): FL = p^gamma * -log(1 - p) and dFL/dx = p^gamma (gamma (1 -
    p) * -log(1 - p) + p), of a positive FL(-x) and -dFL/dx(-x), and the weight of each.
    """
    negative, positive = (1.0, 1.0) if alpha is None else (1 - alpha, alpha)
    weight_N = negative * (class_N != IGNORED).to(logits_NK.dtype)
    p_NK = torch.sigmoid(logits_NK)
    loss_NK = F.softplus(logits_NK)
    focus_NK = p_NK.pow(gamma) if gamma else None
    if focus_NK is not None:
        loss_NK.mul_(focus_NK)
    own_N1 = class_N.clamp(min=0)[:, None]
    own_logit_N1 = logits_NK.gather(1, own_N1)
    right_N1 = focal_term(own_logit_N1, positive=True, gamma=gamma, alpha=alpha)
    wrong_N1 = focal_term(own_logit_N1, positive=False, gamma=gamma, alpha=alpha)
    correction_N = (right_N1 - wrong_N1)[:, 0]
    loss_N = weight_N * loss_NK.sum(dim=1) + torch.where(class_N >= 0, correction_N, 0.0)
    if gradient_NK is not None:
        slope_NK = p_NK
        if focus_NK is not None:
            # (1 - p) * loss
            scaled_NK = torch.addcmul(loss_NK, p_NK, loss_NK, value=-1)
            slope_NK = focus_NK.mul_(p_NK).add_(scaled_NK, alpha=gamma)
        slope_NK.mul_(weight_N[:, None])
        own_slope_N1 = torch.where(
            class_N[:, None] >= 0,
            -positive * _focal_slope(-own_logit_N1, gamma),
            slope_NK.gather(1, own_N1),
        )
        gradient_NK.copy_(slope_NK.scatter_(1, own_N1, own_slope_N1))
    return loss_N


def _focal_slope(logits: Tensor, gamma: float) -> Tensor:
    """dFL/dx of negatives with weight 1, elementwise."""
    p = torch.sigmoid(logits)
    return p.pow(gamma) * (gamma * (1 - p) * F.softplus(logits) + p)

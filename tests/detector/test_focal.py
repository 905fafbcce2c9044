"""The focal loss: its formula, its derivative, extreme logits, chunks and memory."""

from __future__ import annotations

import decimal
import itertools
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import torch

from detector.anchors import IGNORED
from detector.focal import focal_sums, focal_term, plain_focal_sums


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("alpha", [0.25, None])
def test_value_and_derivative_of_the_focal_term_are_the_papers(gamma, positive, alpha):
    logits = torch.linspace(-12, 12, 97, dtype=torch.float64, requires_grad=True)
    y, alpha_t = (1, 0.25) if positive else (-1, 0.75)
    alpha_t = alpha_t if alpha else 1.0
    found = focal_term(logits, positive=positive, gamma=gamma, alpha=alpha)
    found.sum().backward()
    # x_t = y x, p_t = sigmoid(x_t). Section 3.2: FL = -alpha_t (1 - p_t)^gamma log(p_t).
    p_t = torch.sigmoid(y * logits.detach())
    assert torch.allclose(
        found.detach(), -alpha_t * (1 - p_t) ** gamma * torch.log(p_t), rtol=1e-6, atol=0
    )
    # Appendix B: dFL/dx = y (1 - p_t)^gamma (gamma p_t log(p_t) + p_t - 1), and alpha_t times that;
    # dCE/dx = y (p_t - 1) is gamma 0.
    derivative = alpha_t * y * (1 - p_t) ** gamma * (gamma * p_t * torch.log(p_t) + p_t - 1)
    assert torch.allclose(logits.grad, derivative, rtol=1e-6, atol=0)
    assert torch.autograd.gradcheck(
        lambda x: focal_term(x, positive=positive, gamma=gamma, alpha=alpha), (logits,)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("positive", [True, False])
def test_extreme_logits_agree_with_eighty_digits(gamma, positive):
    values = [-1e4, -300.0, -60.0, -25.0, -19.0, 19.0, 25.0, 60.0, 300.0, 1e4]
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    found = focal_term(logits, positive=positive, gamma=gamma, alpha=0.25)
    found.sum().backward()
    y, alpha_t = (1, Decimal("0.25")) if positive else (-1, Decimal("0.75"))
    with decimal.localcontext(prec=80):
        for value, loss, slope in zip(values, found.tolist(), logits.grad.tolist(), strict=True):
            x_t = y * Decimal(value)
            p_t, other = (
                1 / (1 + (-x_t).exp()),
                1 / (1 + x_t.exp()),
            )  # other = 1 - p_t, with all its digits
            # log(p_t) = -log(1 + e^-x_t); below 1e-70 the logarithm is its argument.
            log_p_t = -(-x_t).exp() if x_t > 161 else p_t.ln()
            focus = other ** Decimal(gamma) if gamma else Decimal(1)
            expected = -alpha_t * focus * log_p_t
            derivative = alpha_t * y * focus * (Decimal(gamma) * p_t * log_p_t - other)
            # Under 1e-300 float64 runs out of digits, and 0 is right.
            assert loss == pytest.approx(float(expected), rel=1e-6, abs=1e-300), value
            assert slope == pytest.approx(float(derivative), rel=1e-6, abs=1e-300), value


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("positive", [True, False])
def test_extreme_logits_stay_finite_in_float32(gamma, positive):
    logits = torch.tensor([-1e4, -100.0, -20, 20, 100, 1e4], requires_grad=True)
    loss = focal_term(logits, positive=positive, gamma=gamma, alpha=0.25)
    loss.sum().backward()
    loss = loss.detach()
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()
    # Wholly wrong: log p_t is the logit itself. Wholly right: nothing.
    wrong, right = (0, -1) if positive else (-1, 0)
    assert (
        float(loss[wrong]) == pytest.approx(1e4 * (0.25 if positive else 0.75))
        and float(loss[right]) == 0.0
    )


def test_focal_term_by_hand():
    # p = 0.5 at logit 0: positive -0.25 * 0.5^2 * log 0.5 = 0.0433217, negative three times that.
    zero = torch.zeros(())
    assert float(focal_term(zero, positive=True, gamma=2.0, alpha=0.25)) == pytest.approx(
        0.0625 * math.log(2)
    )
    assert float(focal_term(zero, positive=False, gamma=2.0, alpha=0.25)) == pytest.approx(
        0.1875 * math.log(2)
    )


@pytest.mark.parametrize(
    ("gamma", "alpha"), [(2.0, 0.25), (0.5, 0.6), (5.0, None), (0.0, 0.25), (0.0, None)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_chunks_have_the_sum_and_the_gradient_of_the_formula(monkeypatch, dtype, gamma, alpha):
    """Fresh logits, cut into chunks that end inside an image and leave a rest, against the plain
    formula in float64.
    """
    monkeypatch.setattr("detector.focal._CHUNK", 7 * 5 + 3)
    generator = torch.Generator().manual_seed(4)
    logits = (4 * torch.randn(3, 40, 5, generator=generator)).to(dtype).requires_grad_()
    classes = torch.randint(IGNORED, 5, (3, 40), generator=generator)
    exact = logits.detach().double().requires_grad_()
    outer = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    found, expected = (
        focal_sums(logits, classes, gamma=gamma, alpha=alpha),
        plain_focal_sums(exact, classes, gamma=gamma, alpha=alpha),
    )
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    (found * outer).sum().backward()
    (expected * outer).sum().backward()
    # The sums are of float32 whatever the logits are; a gradient in bfloat16 is rounded twice, by
    # 2^-9 each time.
    digits, rounding = {
        torch.float64: (1e-9, 1e-9),
        torch.float32: (1e-6, 1e-5),
        torch.bfloat16: (1e-6, 1e-2),
    }[dtype]
    assert torch.allclose(found.detach().double(), expected.detach(), rtol=digits)
    assert torch.allclose(logits.grad.double(), exact.grad, rtol=rounding, atol=rounding * 1e-3)


def test_a_second_backward_pass_has_the_gradient_of_the_first():
    logits = 3 * torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    classes = torch.arange(2 * 40).view(2, -1) % 5 + IGNORED
    sums = focal_sums(logits, classes, gamma=2.0, alpha=0.25)
    first, second = (
        torch.autograd.grad(sums.sum() * scale, logits, retain_graph=True)[0]
        for scale in (1.0, 3.0)
    )
    assert torch.allclose(second, 3 * first) and first.data_ptr() != second.data_ptr()
    # Where no gradient is asked for, none is made.
    with torch.no_grad():
        assert torch.equal(focal_sums(logits, classes, gamma=2.0, alpha=0.25), sums)


def peak_memory(work: Callable[[], object]) -> float:
    """The most memory that tensors made by `work` took at one time, MiB, from torch's allocator:
    what the process has does not count.
    """
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event for event in events if event.name() == "[memory]"), key=start)
    assert changes
    return max(itertools.accumulate(event.nbytes() for event in changes)) / 2**20


def start(event: Any) -> int:
    return event.start_ns()


def test_the_loss_takes_no_more_memory_than_its_gradient_and_a_chunk():
    # 2 x 60,000 anchors x 91 classes in float32: 41.7 MiB of logits and as many of gradient. The
    # temporaries of a chunk are 5 MiB; the formula without chunks takes 458 MiB.
    logits = torch.empty(2, 60_000, 91).normal_().requires_grad_()
    classes = torch.randint(-2, 91, (2, 60_000))
    taken = peak_memory(lambda: focal_sums(logits, classes, gamma=2.0, alpha=0.25).sum().backward())
    assert 41 < taken < 60

"""Optimizers by name, and the precision in which a training computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.training import Distillation, RateDistillation, Training
from tests import zoo
from tests.live import live_inputs, make_live

T = 3


def test_relative_rates_move_layers_of_any_size_alike():
    """Of a parameter eight times as large, whatever its gradient, every step is eight times as large."""
    torch.manual_seed(0)
    value, noise = torch.randn(5, 4, dtype=torch.float64), torch.randn(6, 5, 4, dtype=torch.float64)
    small, large = nn.Parameter(value.clone()), nn.Parameter(8 * value)
    zero = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = Training(optimizer="relative", rate=0.01).optimizer_of([small, large, zero], False)
    for step in noise:
        small.grad, large.grad, zero.grad = step.clone(), 32 * step, torch.ones_like(zero)
        optimizer.step()
    torch.testing.assert_close(large.detach(), 8 * small.detach(), rtol=1e-6, atol=1e-6)
    moved = (small.detach() - value).abs().max() / value.square().mean().sqrt()
    assert 0.01 < moved <= 0.061  # Adam: at most about the rate in each of six steps
    assert (zero.detach() + 0.06).abs().max() < 1e-3  # 1 stands for the size of what is 0


def case():
    torch.manual_seed(0)
    ann = make_live(zoo.Residual(), *zoo.IMAGE)
    x = live_inputs(ann, *zoo.IMAGE, samples=96)
    return ann, cx.convert(ann, x[:32], T=T, backend="reference", progress=False), x


def trained(ann, snn, x, **options):
    terms = (Distillation(2.0), RateDistillation(10.0))
    return cx.finetune(
        snn, x, teacher=ann, T=T, epochs=8, gradient="fused", normalize=True, learn=("weights", "potentials"),
        distillation=terms, training=Training("relative", rate=0.01, **options), progress=False,
    )  # fmt: skip


def test_a_training_in_bfloat16_learns_and_is_judged_in_float32():
    ann, snn, x = case()
    wide, narrow = trained(ann, snn, x), trained(ann, snn, x, precision="bfloat16")
    losses = [[epoch.loss for epoch in result.history[1:]] for result in (wide, narrow)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[1][-1] < losses[1][0]
    assert narrow.history[0].score == wide.history[0].score
    for result in (wide, narrow):
        assert {v.dtype for v in result.snn.state_dict().values() if isinstance(v, torch.Tensor)} == {torch.float32}
    assert {p.dtype for p in ann.parameters()} == {torch.float32}


def test_a_precision_is_one_that_is_known_and_not_the_accelerators():
    with pytest.raises(ValueError, match="float32, bfloat16"):
        Training(precision="int8")
    with pytest.raises(ValueError, match="mixed_precision"):
        Training(precision="bfloat16", accelerator=object())

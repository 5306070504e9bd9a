"""The spiking magnitude against a loop in numpy, and in converted networks against the ANN of rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.capture.preparation import prepare
from conversion_ext.encoders import Poisson
from conversion_ext.nn import SpikingMagnitude
from conversion_ext.types import Family
from tests import laws


@pytest.mark.parametrize("values", ["signed", "analog"])
def test_outputs_add_up_to_the_magnitude_of_the_sum(values):
    x_seq = torch.randn(30, 4, 5, dtype=torch.float64)
    x_seq = x_seq.round().clamp(-1, 1) if values == "signed" else x_seq
    y_seq = SpikingMagnitude(step_mode="m")(x_seq)
    for t in range(1, 31):
        assert np.allclose(y_seq[:t].numpy().sum(0), np.abs(x_seq[:t].numpy().sum(0)), rtol=0, atol=1e-13)
    if values == "signed":
        assert set(y_seq.unique().tolist()) == {-1.0, 0.0, 1.0}
        one_sign = x_seq * (x_seq == x_seq[x_seq != 0][0])
        assert torch.equal(SpikingMagnitude(step_mode="m")(one_sign), one_sign.abs())


def test_steps_chunks_and_resets_agree():
    x_seq = torch.randn(9, 2, 3)
    module, single = SpikingMagnitude(step_mode="m"), SpikingMagnitude()
    expected = module(x_seq)
    module.reset()
    assert torch.equal(torch.cat([module(x_seq[:4]), module(x_seq[4:])]), expected)
    assert torch.equal(torch.stack([single(x) for x in x_seq]), expected)
    counts = SpikingMagnitude(step_mode="m")(torch.ones(300, 1, 1, dtype=torch.bfloat16))
    assert float(counts.float().sum()) == 300  # a bfloat16 count stops at 256


class Distance(nn.Module):
    """Magnitudes of signed differences of branches, of the input and of sums, as functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.abs(x)
        x = abs(self.a(x).relu() - self.b(x).relu())
        return self.head(self.c(x).relu().mean((2, 3)).abs())


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
def test_converted_networks_take_magnitudes_of_rates(backend, fold):
    ann = Distance().double().eval()
    x = torch.randn(20, 2, 6, 6, dtype=torch.float64)
    recipe = cx.Recipe(cx.Percentile(99.0, granularity=cx.PerChannel()))
    snn = cx.convert(ann, x, recipe=recipe, fold=fold, backend=backend, graded=False, progress=False)
    assert sum(isinstance(m, SpikingMagnitude) for m in snn.modules()) == 3
    laws.assert_sites_exact(snn, (x[:3],), T=12)
    laws.assert_is_ann_of_rates(ann, snn, (x[:3],), T=12)
    with torch.no_grad():
        rounded = laws.Rounded(prepare(ann, (x,)), snn, 4).run(x)
        torch.testing.assert_close(cx.twin(snn, 4)(x), rounded)
        torch.testing.assert_close(cx.simulate(snn, x, 4, block=4).output, rounded)


def test_a_magnitude_of_signed_random_input_hands_on_spikes():
    ann = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    with torch.no_grad():
        x = torch.rand(5, 1, 6, 6) * 2 - 1
        ready = cx.recipes.adapt_cao2015(ann)
        assert torch.equal(ready(x), ann(x.abs()))
        snn = cx.convert(ready, x, recipe=cx.Recipe(encoder=Poisson(signed=True)), backend="reference", progress=False)
        seen: list[Tensor] = []
        snn.get_submodule("body.0").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        cx.simulate(snn, x, 400)
    steps = torch.cat(seen).view(400, 5, 1, 6, 6)
    assert set(steps.unique().tolist()) == {0.0, 1.0}
    p = x.abs()
    assert ((steps.mean(0) - p).abs() <= 5 * (p * (1 - p) / 400).sqrt() + 1e-6).all()


def test_it_says_what_it_emits():
    assert SpikingMagnitude().binary
    assert SpikingMagnitude().family_out(Family.SIGNED) is Family.SIGNED
    sizes = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert not cx.check(sizes, torch.rand(2, 3))

"""SpikingJelly's own conversion flow and habits: Converter, reset_net, set_step_mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import conversion_ext as cx
from tests import zoo
from tests.live import live_inputs, make_live

pytest.importorskip("spikingjelly")
from spikingjelly.activation_based import functional, neuron


def converter():
    """Return SpikingJelly's converter and our recipe for it; 0.0.0.0.14 has no recipes."""
    ann2snn = pytest.importorskip("spikingjelly.activation_based.ann2snn")
    if not hasattr(ann2snn, "RateCodingRecipe"):
        with pytest.raises(cx.errors.BackendError, match=r"SpikingJelly 2\.0"):
            from conversion_ext.spikingjelly import ExtensionRecipe
        pytest.skip("this SpikingJelly has no recipes, and importing ours says so")
    from conversion_ext.spikingjelly import ExtensionRecipe

    return ann2snn.Converter, ExtensionRecipe


def residual() -> tuple[nn.Module, torch.Tensor]:
    ann = make_live(zoo.Residual(), *zoo.IMAGE)
    return ann, live_inputs(ann, *zoo.IMAGE, samples=12, seed=3)


@pytest.mark.parametrize("recipe", ["rueckauer2017", "default"])
def test_the_converter_runs_our_recipe(recipe):
    build, extension = converter()
    ann, x = residual()
    ann.train()
    before = copy.deepcopy(ann.state_dict())
    loader = DataLoader(TensorDataset(x, torch.zeros(12)), batch_size=5)
    snn = build(extension(loader, recipe=recipe, progress=False)).convert(ann)
    direct = cx.convert(ann, x, recipe=recipe, backend="spikingjelly", progress=False)
    assert list(snn.conversion.thresholds) == list(direct.conversion.thresholds)
    assert torch.equal(cx.simulate(snn, x, 8).outputs, cx.simulate(direct, x, 8).outputs)
    assert all(m.training for m in ann.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), ann.state_dict().values(), strict=True))


def test_reset_net_and_step_modes():
    ann, x = residual()
    snn = cx.convert(ann, x, backend="spikingjelly", progress=False)
    assert any(isinstance(m, neuron.IFNode) for m in snn.modules())
    with torch.no_grad():
        functional.set_step_mode(snn, "s")
        single = torch.stack([snn(x) for _ in range(8)])
        functional.reset_net(snn)
        functional.set_step_mode(snn, "m")
        multi = snn(x.expand(8, *x.shape).contiguous())
        functional.reset_net(snn)
        again = snn(x.expand(8, *x.shape).contiguous())
    assert torch.equal(multi, again)
    torch.testing.assert_close(single, multi, rtol=1e-4, atol=1e-4)
    assert torch.equal(multi.double().cumsum(0).argmax(2)[-1], cx.simulate(snn, x, 8).output.argmax(1))


def test_gradients_reach_every_weight():
    ann, x = residual()
    snn = cx.convert(ann, x, backend="spikingjelly", progress=False)
    functional.set_step_mode(snn, "m")
    snn.train()  # in evaluation mode 0.0.0.0.14 runs kernels without gradients
    snn(x.expand(4, *x.shape).contiguous()).mean(0).pow(2).sum().backward()
    missing = [name for name, p in snn.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing
    functional.reset_net(snn)

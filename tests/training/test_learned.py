"""What else fine-tuning learns: leaks, graded spikes; and losses that read spikes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.neurons import PLIF
from conversion_ext.training import ActivityBand, Training, losses
from conversion_ext.training.student import Student, in_spikes

BACKENDS = available()
T = 3


def problem(samples: int = 200, outputs: int = 2) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network that was not trained, inputs, and classes that it does not know."""
    torch.manual_seed(0)
    x = torch.rand(samples, 8)
    ann = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs))
    return ann, x, (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()


def batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(20), y.split(20), strict=True))


def convert(backend: str, fold: bool = True, **changes: Any) -> tuple[Any, Tensor, Tensor]:
    ann, x, y = problem()
    recipe = replace(cx.recipes.get("bu2022_opi"), **changes)
    return cx.convert(ann, x, recipe=recipe, backend=backend, fold=fold, progress=False), x, y


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beta", [1.0, 0.9])
def test_leaks_are_learned_from_where_conversion_left_them(backend, beta):
    snn, x, y = convert(backend, neuron=PLIF(beta=beta))
    start = snn.state_dict()
    options: dict[str, Any] = {"T": T, "epochs": 4, "validation": (x, y), "progress": False}
    options["training"] = Training(rate=0.02)
    result = cx.finetune(snn, (x, y), learn=("weights", "neurons"), **options)
    if beta == 1:
        plain, *_ = convert(backend)
        assert cx.finetune(plain, (x, y), **options).history[0].accuracy == result.history[0].accuracy
    assert result.best > 0
    leaks = [name for name in start if ".neuron." in name and name.endswith((".beta", ".w"))]
    assert len(leaks) == 2
    learned = result.snn.state_dict()
    assert all(learned[name] != start[name] for name in leaks)
    assert all(torch.equal(start[name], snn.state_dict()[name]) for name in leaks)  # the network given is not changed
    again = cx.evaluate(result.snn, [(x, y)], T, progress=False).accuracy[-1]
    assert again == pytest.approx(result.history[result.best].accuracy)


def test_leaks_alone_have_the_gradient_of_constants_in_a_reset():
    """detach_reset holds where nothing but the neuron itself requires a gradient: v = m - s, s a constant."""
    _, x, _ = problem()
    found = []
    for name in BACKENDS:
        backend = get_backend(name)
        neuron: Any = backend.neuron(PLIF()).train()
        backend.set_surrogate(neuron, None, True)
        backend.run(neuron, x.expand(T, *x.shape), 0.5).sum().backward()
        found.append(neuron.beta.grad.item())
    expected = 0.0
    v, dv = torch.full_like(x, 0.5), torch.zeros_like(x)
    for _ in range(T):
        m, dv = v + x, v + dv
        expected += (dv / (1 + (torch.pi * (m - 1)) ** 2)).sum().item()
        v = m - (m >= 1).float()
    assert found == pytest.approx([expected] * len(found), rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_graded_spikes_are_learned(backend):
    """From spikes that are worth far too little."""
    ann, x, y = problem()
    optimizer = torch.optim.Adam(ann.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(ann(x), y).backward()
        optimizer.step()
    recipe = cx.recipes.get("bu2022_opi")
    snn = cx.convert(ann, x, recipe=recipe, backend=backend, fold=False, progress=False)
    for site in snn.sites().values():
        site.gain.fill_(0.2)
    options: dict[str, Any] = {"T": T, "epochs": 4, "validation": (x, y), "progress": False}
    options["training"] = Training(rate=0.1)
    result = cx.finetune(snn, batches(x, y), learn=("gains",), **options)
    assert result.history[result.best].accuracy > result.history[0].accuracy + 0.05
    for key, site in result.snn.sites().items():
        assert site.gain > 0.4
        assert torch.equal(site.threshold, snn.sites()[key].threshold)
    emitted = []
    site = next(iter(result.snn.sites().values()))
    site.register_forward_hook(lambda module, args, output: emitted.append(output.detach()))
    cx.reset(result.snn)
    result.snn(x)
    assert set(emitted[0].unique().tolist()) == {0.0, float(site.threshold * site.gain)}


def test_a_gain_is_snntorchs_factor_of_graded_spikes():
    snntorch = pytest.importorskip("snntorch")
    leaky = snntorch.Leaky(beta=1.0, graded_spikes_factor=0.7, learn_graded_spikes_factor=True)
    snn, x, _ = convert("snntorch", fold=False)
    student = Student(snn, ("gains",), None, True, False)
    site = next(iter(student.snn.sites().values()))
    with torch.no_grad():
        site.gain.fill_(0.7)
    current = x @ snn.body.get_parameter("0.weight").detach().T
    emitted = site.emitted(site.run(current[None] / site.threshold)[0])
    spikes, _ = leaky(current / site.threshold.detach(), torch.full_like(current, 0.5))
    torch.testing.assert_close(emitted / site.threshold, spikes)
    (ours,) = torch.autograd.grad((emitted / site.threshold).sum(), site.gain)
    (theirs,) = torch.autograd.grad(spikes.sum(), leaky.graded_spikes_factor)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ["count", "mse_count", "spike_time", "ce_spike_time"])
def test_losses_of_spikes_get_spikes(fold, name):
    snn, x, y = convert("reference", fold, readout=cx.readouts.SpikeCount())
    seen: list[Tensor] = []

    class Spy(type(losses.loss_of(name))):  # type: ignore[misc]
        def of(self, outputs, target):
            seen.append(outputs.detach())
            return super().of(outputs, target)

    result = cx.finetune(snn, batches(x, y), T=T, epochs=4, training=Training(rate=0.01), loss=Spy(), progress=False)
    values = torch.cat([outputs.flatten() for outputs in seen])
    torch.testing.assert_close(values, values.round(), atol=1e-6, rtol=0)
    assert set(values.round().unique().tolist()) == {0.0, 1.0}
    assert result.history[-1].loss < result.history[1].loss


def test_losses_of_spikes_need_output_neurons():
    snn, x, y = convert("reference")
    with pytest.raises(ValueError, match=r"CountCrossEntropy\(\) reads spikes.*no output neurons"):
        cx.finetune(snn, (x, y), T=T, loss="count", progress=False)
    with_neurons, *_ = convert("reference", readout=cx.readouts.FirstSpike())
    assert in_spikes(losses.CountCrossEntropy(), with_neurons)(torch.zeros(T, 3, 2), y[:3]) > 0


@pytest.mark.parametrize(
    "of", [losses.RateCrossEntropy(), losses.CountCrossEntropy()], ids=lambda of: type(of).__name__
)
def test_a_population_of_outputs_learns_and_decides_together(of):
    ann, x, y = problem(outputs=6)
    readout = cx.readouts.Population(2, cx.readouts.SpikeCount() if of.spiking else cx.readouts.MeanOutput())
    recipe = replace(cx.recipes.get("bu2022_opi"), readout=readout)
    snn = cx.convert(ann, x, recipe=recipe, backend="reference", progress=False)
    result = cx.finetune(
        snn, batches(x, y), T=T, epochs=6, training=Training(rate=0.01), loss=losses.Population(2, of),
        validation=(x, y), progress=False,
    )  # fmt: skip
    assert result.history[result.best].accuracy > max(0.7, result.history[0].accuracy)


def test_a_band_of_activity_draws_in_neurons_from_both_sides():
    snn, x, y = convert("reference")
    band = ActivityBand(0.15, 0.3)
    before = cx.simulate(snn, x, T).firing_rate
    result = cx.finetune(
        snn, batches(x, y), T=T, epochs=8, training=Training(rate=0.02), regularizers=(band,),
        loss=lambda o, y: 0 * o.sum(), validation=[(x, y)], progress=False,
    )  # fmt: skip
    assert result.history[-1].loss < 0.2 * band(before)

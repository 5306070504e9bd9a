"""Spikes that take steps to arrive: against a loop of two layers written out, in runs, sequences and chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.simulation import engine
from tests import zoo
from tests.live import perceptron

T = 12


def network() -> nn.Sequential:
    return perceptron(6, 8, 7, 3).double()


def inputs(*shape: int) -> Tensor:
    return torch.rand(*shape, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def converted(backend: str = "reference", **options: Any) -> Any:
    return cx.convert(network(), inputs(40), backend=backend, progress=False, **options)


def oracle(snn: Any, x_seq: Tensor, d: int, constant: bool) -> tuple[list[Tensor], Tensor]:
    """Return the spikes of both sites and the outputs, each [T, N, ...]; spikes of step t - d reach layers at t."""
    first, second, last = (snn.body.get_submodule(name) for name in ("0", "2", "4"))
    v = [torch.full((x_seq.shape[1], n), 0.5, dtype=torch.float64) for n in (8, 7)]
    spikes: list[list[Tensor]] = [[], []]
    outputs = []
    for t, x in enumerate(x_seq):
        before = [
            kept[t - d] if t >= d else torch.zeros_like(potential) for kept, potential in zip(spikes, v, strict=True)
        ]
        arrived = x if constant else (x_seq[t - d] if t >= d else torch.zeros_like(x))
        outputs.append(last(before[1]))
        for i, current in enumerate((first(arrived), second(before[0]))):
            m = v[i] + current
            s = (m >= 1).double()
            v[i] = m - s
            spikes[i].append(s)
    return [torch.stack(kept) for kept in spikes], torch.stack(outputs)


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "sequence"])
def test_spikes_arrive_late_and_biases_do_not(backend: str, d: int, constant: bool) -> None:
    snn = converted(backend)
    x_seq = inputs(9).expand(T, 9, 6) if constant else inputs(T, 9)
    given = {"x": x_seq[0], "T": T} if constant else {"x_seq": x_seq}
    with torch.no_grad():
        spikes, outputs = oracle(snn, x_seq, d, constant)
    expected = outputs.cumsum(0) / torch.arange(1, T + 1).view(-1, 1, 1)
    for chunk in (None, 1, 5):
        run = cx.simulate(snn, **given, record=("spikes",), delay_per_layer=d, time_chunk=chunk)
        torch.testing.assert_close(run.outputs, expected)
        assert all(torch.equal(a, b) for a, b in zip(run.recorded["spikes"].values(), spikes, strict=True))
    assert all(float(s.sum()) > 0 for s in spikes)
    assert torch.equal(run.outputs, cx.simulate(snn, **given, delay_per_layer=d).outputs)  # nothing is left behind
    assert not torch.equal(run.outputs, cx.simulate(snn, **given).outputs)
    assert cx.simulate(snn, **given).outputs.isfinite().all()


def test_a_batch_in_slices_and_an_evaluation_are_delayed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CACHE", 4 * 6 * 20)
    snn, x = converted(), inputs(64)
    whole = cx.simulate(snn, x, T=T, delay_per_layer=1)
    parts = [cx.simulate(snn, part, T=T, delay_per_layer=1).outputs for part in x.split(10)]
    torch.testing.assert_close(whole.outputs, torch.cat(parts, 1))
    target = whole.output.argmax(1)
    assert cx.evaluate(snn, [(x, target)], T, delay_per_layer=1, progress=False).accuracy[-1] == 1


def test_branches_and_pools_lose_their_layers_in_step() -> None:
    """A shortcut around one layer arrives a step before what goes through it: the network still computes and resets."""
    build, shape = zoo.SMALL["residual"]
    torch.manual_seed(0)
    x = torch.rand(4, *shape)
    snn = cx.convert(build().eval(), x, backend="spikingjelly", progress=False)
    runs = [cx.simulate(snn, x, T=T, delay_per_layer=1, time_chunk=chunk).outputs for chunk in (None, 1)]
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(runs[0][-1], cx.simulate(snn, x, T=T).output)


def test_wrong_delays() -> None:
    snn = converted()
    for d in (-1, 1.0, "1", True):
        with pytest.raises(ValueError, match=r"delay_per_layer=.*a number of steps >= 1, or 0"):
            cx.simulate(snn, inputs(3), T=T, delay_per_layer=d)
    with pytest.raises(ValueError, match=r"single steps from a reset"):
        cx.simulate(snn, inputs(3), T=T, delay_per_layer=1, block=4)
    with pytest.raises(ValueError, match=r"single steps from a reset"):
        cx.simulate(snn, inputs(3), T=T, delay_per_layer=1, reset=False)
    ahead = converted(recipe="default-lookahead", T=T)
    with pytest.raises(ValueError, match=r"look ahead, and their clocks"):
        cx.simulate(ahead, inputs(3), T=T, delay_per_layer=1)

"""Early exit: every sample gets what it would have got alone, and no later than its decision is stable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.readouts import Confidence
from tests import zoo
from tests.live import live_inputs, make_live

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")


def network(name: str, backend: str = "reference"):
    build, shape = zoo.SMALL[name]
    torch.manual_seed(0)
    ann = make_live(build(), *shape).double()
    x = live_inputs(ann, *shape, samples=24, seed=5)
    return cx.convert(ann, x, backend=backend, progress=False), x


def by_hand(outputs: Tensor, rule: Confidence) -> list[int]:
    """Return the step at which each sample of outputs [T, N, classes] leaves, one after the other."""
    steps = []
    for series in outputs.unbind(1):
        looks, last, left = 0, None, len(series)
        for t in range(rule.every, len(series), rule.every):
            p = series[t - 1].softmax(0).sort(descending=True)
            sure = float(p.values[0] - p.values[1]) >= rule.threshold
            best = int(p.indices[0])
            looks = (looks + 1 if best == last else 1) if sure else 0
            last = best
            if looks == rule.stable:
                left = t
                break
        steps.append(left)
    return steps


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", ["chain", "residual", "inception", "gated"])
@pytest.mark.parametrize("backend", available())
def test_samples_get_what_they_would_have_got_in_a_full_simulation(name, backend, every):
    snn, x = network(name, backend)
    full = cx.simulate(snn, x, 32, record=("spikes",))
    margins = full.outputs.softmax(2).topk(2, 2).values
    rule = Confidence(float((margins[..., 0] - margins[..., 1])[8:].median()), every=every, stable=2)
    result = cx.simulate(snn, x, 32, exit=rule)
    expected = by_hand(full.outputs, rule)
    assert result.steps is not None
    assert result.steps.tolist() == expected
    assert len(set(expected)) > 1  # some leave, some stay
    assert torch.equal(rule.steps(full.outputs), result.steps)
    for n, t in enumerate(expected):
        torch.testing.assert_close(result.output[n], full.outputs[t - 1, n], rtol=1e-9, atol=1e-9)
        for key, spikes in full.recorded["spikes"].items():
            torch.testing.assert_close(result.firing_rate[key][n], spikes[:t, n].abs().sum(0) / t)
    assert torch.equal(cx.simulate(snn, x, 32).outputs, full.outputs)  # the network starts anew afterwards


def test_calibration_costs_no_more_than_stated():
    """Outputs whose early decisions are wrong for a known part of the samples: the threshold keeps them in."""
    T, N = 16, 200
    target = torch.zeros(N, dtype=torch.long)
    outputs = torch.zeros(T, N, 2)
    margin = torch.linspace(0.1, 4, N)
    outputs[:, :, 0] = margin
    outputs[:8, :50, 0] = -margin[:50]  # these 50, of small margin, decide wrongly for half of the time
    strict = Confidence.calibrate(outputs, target, loss=0.0)
    assert bool((outputs[strict.steps(outputs) - 1, torch.arange(N), 0] > 0).all())
    loose = Confidence.calibrate(outputs, target, loss=0.1)
    wrong = int((outputs[loose.steps(outputs) - 1, torch.arange(N), 0] < 0).sum())
    assert 15 <= wrong <= 20
    assert loose.threshold < strict.threshold
    assert float(loose.steps(outputs).double().mean()) < float(strict.steps(outputs).double().mean()) < T


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.5}, {"threshold": 0.5, "every": 0},
                                     {"threshold": 0.5, "stable": 1.5}])  # fmt: skip
def test_refuses_what_is_no_rule(options):
    with pytest.raises(ValueError, match=r"Confidence\((threshold|every|stable)="):
        Confidence(**options)


def test_refuses_what_cannot_let_go():
    snn, x = network("chain")
    with pytest.raises(ValueError, match="exit= lets samples go"):
        cx.simulate(snn, x, 8, exit=Confidence(0.5), at=[4])
    unet, images = network("unet")
    with pytest.raises(ValueError, match="exit= looks at class scores"):
        cx.simulate(unet, images, 8, exit=Confidence(0.5))

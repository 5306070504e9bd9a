"""Early exit: every sample gets what it would have got alone, and leaves when its decision is safe."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.readouts.confidence import Confidence
from tests.live import live


def network(name: str, backend: str = "reference"):
    ann, x = live(name, samples=24, seed=5)
    return cx.convert(ann, x, backend=backend, progress=False), x


def by_hand(outputs: Tensor, rule: Confidence) -> list[int]:
    """Return the step at which each sample of outputs [T, N, classes] leaves, one after the other."""
    steps = []
    for series in outputs.unbind(1):
        left = len(series)
        for t in range(rule.every, len(series), rule.every):
            y = (t * series[t - 1]).sort(descending=True).values
            if float(y[0] - y[1]) > rule.threshold:
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
    best = full.outputs.topk(2, 2).values[11]
    leads = (12 * (best[:, 0] - best[:, 1])).unique()
    middle = leads[len(leads) // 2 - 1 :][:2]
    rule = Confidence(float(middle.mean()), every=every)  # no sample's own lead, which rounding would decide
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


def test_a_lead_beyond_what_neurons_can_owe_is_never_lost() -> None:
    """The count of an IF neuron is off by less than 1/2 at any t, which bounds the error of a sum of outputs."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 4)).double()
    x = torch.randn(200, 8, dtype=torch.float64)
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)
    weight = ann.state_dict()["2.weight"] * snn.conversion.thresholds["1"]
    owed = float((weight[:, None] - weight).abs().sum(2).max()) / 2
    result = cx.simulate(snn, x, 400, exit=Confidence(owed, every=1))
    assert result.steps is not None
    safe = result.steps < 400
    assert safe.double().mean() > 0.9
    assert torch.equal(result.output.argmax(1)[safe], ann(x).argmax(1)[safe])


def series(N: int, seed: int, T: int = 9) -> Tensor:
    """Return mean outputs [T, N, 3] of steps that are noisy around a mean, so that early decisions are often wrong."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    noise = 2 * torch.randn(T, N, 3, generator=generator, dtype=torch.float64)
    return (means + noise).cumsum(0) / torch.arange(1, T + 1).view(-1, 1, 1)


def lost(outputs: Tensor, target: Tensor, rule: Confidence) -> Tensor:
    """Return which samples are right after all steps and wrong when they are let go."""
    steps = rule.steps(outputs)
    early = outputs[steps - 1, torch.arange(len(steps))].argmax(1)
    return (outputs[-1].argmax(1) == target) & (early != target)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(("loss", "allowed"), [(0.01, 1), (0.05, 9), (0.2, 39)])
def test_calibration_returns_the_smallest_threshold_that_keeps_the_loss(loss: float, allowed: int, every: int) -> None:
    outputs = series(199, seed=1)
    target = torch.randint(3, (199,), generator=torch.Generator().manual_seed(2))
    target = torch.where(torch.arange(199) < 150, outputs[-1].argmax(1), target)
    rule = Confidence.calibrate(outputs, target, loss=loss, every=every)
    best = outputs.topk(2, 2).values
    gaps = ((best[..., 0] - best[..., 1]) * torch.arange(1, 10)[:, None]).flatten().sort(descending=True).values
    ever = torch.zeros(199, dtype=torch.bool)  # lost for some gap so far: a smaller one never counts as less of a risk
    for gap in gaps.tolist():
        ever |= lost(outputs, target, Confidence(gap, every))
        if gap < rule.threshold:
            break
        assert int(ever.sum()) <= allowed
    assert int(ever.sum()) == allowed + 1


def test_the_loss_holds_for_other_samples_on_average() -> None:
    """Samples that calibration has not seen lose no more than stated, and not much less where it is tight."""
    losses, exceeded, N = [], [], 39
    for seed in range(800):
        outputs = series(N + 1, seed)
        target = outputs[-1].argmax(1)
        rule = Confidence.calibrate(outputs[:, :N], target[:N], loss=0.1, every=1)
        losses.append(float(lost(outputs, target, rule)[N]))
        exceeded.append(float(lost(outputs, target, rule)[:N].double().mean()))
    error = 3 * (0.1 * 0.9 / len(losses)) ** 0.5
    assert 0.05 < sum(losses) / len(losses) < 0.1 + error
    assert max(exceeded) <= 3 / N  # 0.1 of 40, less one


@pytest.mark.parametrize(
    "options", [{"threshold": -1.0}, {"threshold": "1"}, {"threshold": 0.5, "every": 0}, {"threshold": 1, "every": 1.5}]
)
def test_refuses_what_is_no_rule(options) -> None:
    with pytest.raises(ValueError, match=r"Confidence\((threshold|every)="):
        Confidence(**options)


def test_refuses_a_loss_that_the_samples_cannot_bound() -> None:
    outputs = series(99, seed=0)
    with pytest.raises(ValueError, match=r"loss=0\.001\) with 99 samples: they can bound a loss of 0\.01"):
        Confidence.calibrate(outputs, outputs[-1].argmax(1))
    with pytest.raises(ValueError, match=r"outputs \[T, N, classes\]"):
        Confidence.calibrate(outputs[0], outputs[0].argmax(1))
    assert Confidence.calibrate(outputs, outputs[-1].argmax(1), loss=0.01).threshold > 0


def test_refuses_what_cannot_let_go():
    snn, x = network("chain")
    with pytest.raises(ValueError, match="exit= lets samples go"):
        cx.simulate(snn, x, 8, exit=Confidence(0.5), at=[4])
    unet, images = network("unet")
    with pytest.raises(ValueError, match="exit= looks at class scores"):
        cx.simulate(unet, images, 8, exit=Confidence(0.5))

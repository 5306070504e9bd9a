"""Losses: hand-written formulas, snnTorch's own where it is right, gradients."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from conversion_ext.readouts.membrane_potential import MembranePotential
from conversion_ext.readouts.population import Population as PopulationReadout
from conversion_ext.training import ActivityBand, Distillation
from conversion_ext.training.losses import (
    TET,
    CountCrossEntropy,
    Loss,
    MeanSquareCount,
    MeanSquareMembrane,
    MembraneCrossEntropy,
    Population,
    RateCrossEntropy,
    SpikeTime,
    SpikeTimeCrossEntropy,
    loss_of,
    losses,
)
from conversion_ext.training.task_losses import BinaryCrossEntropy, OutputSquaredError

T, N, C = 5, 7, 4


def currents(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape or (T, N, C), dtype=dtype).requires_grad_()


def spikes(rate: float = 0.3, dtype: torch.dtype = torch.float64, classes: int = C) -> Tensor:
    return (torch.rand(T, N, classes) < rate).to(dtype).requires_grad_()


def labels() -> Tensor:
    return torch.randint(C, (N,))


def cross_entropy(logits: list[float], y: int) -> float:
    return math.log(sum(math.exp(z) for z in logits)) - logits[y]


def first(train: list[float]) -> int:
    """The step of the first spike, the last step where there is none."""
    return next((t for t, s in enumerate(train) if s), len(train) - 1)


def potential(values: list[float], beta: float) -> list[float]:
    v, seen = 0.0, []
    for value in values:
        v = beta * v + value
        seen.append(v)
    return seen


def formula(loss: Loss, outputs: Tensor, target: Tensor) -> float:
    """The loss in plain Python: a sum over samples, classes and steps, one by one."""
    o: Any = outputs.detach().permute(1, 2, 0).tolist()  # [N][C][T]
    total = 0.0
    for n, y in enumerate(target.tolist()):
        match loss:
            case RateCrossEntropy():
                total += cross_entropy([sum(x) / T for x in o[n]], y)
            case TET(weight, level):
                steps = [cross_entropy([x[t] for x in o[n]], y) for t in range(T)]
                square = sum((value - level) ** 2 for x in o[n] for value in x) / (T * C)
                total += (1 - weight) * sum(steps) / T + weight * square
            case CountCrossEntropy():
                total += cross_entropy([sum(x) for x in o[n]], y)
            case MeanSquareCount(right, wrong):
                total += sum((sum(x) - T * (right if c == y else wrong)) ** 2 for c, x in enumerate(o[n])) / C / T
            case MembraneCrossEntropy(beta):
                total += cross_entropy([max(potential(x, beta)) for x in o[n]], y)
            case MeanSquareMembrane(beta, right, wrong):
                wanted = [right if c == y else wrong for c in range(C)]
                total += sum((v - w) ** 2 for x, w in zip(o[n], wanted, strict=True) for v in potential(x, beta))
            case SpikeTime(right, wrong, tolerance):
                errors = [first(x) - (right if c == y else wrong) % T for c, x in enumerate(o[n])]
                total += sum((e / T) ** 2 for e in errors if abs(e) >= tolerance) / C
            case SpikeTimeCrossEntropy():
                total += cross_entropy([-first(x) for x in o[n]], y)
    return total / N / (T * C if isinstance(loss, MeanSquareMembrane) else 1)


EACH = (
    RateCrossEntropy(), TET(), TET(0.0), TET(0.3, level=0.5), CountCrossEntropy(), MeanSquareCount(),
    MeanSquareCount(0.7, 0.1), MembraneCrossEntropy(), MembraneCrossEntropy(0.8), MeanSquareMembrane(0.9, 2.0, -1.0),
    SpikeTime(), SpikeTime(1, -2, tolerance=2), SpikeTimeCrossEntropy(),
)  # fmt: skip


@pytest.mark.parametrize("loss", EACH, ids=repr)
def test_every_loss_is_its_formula(loss):
    outputs, target = (spikes() if loss.spiking else currents()), labels()
    assert loss(outputs, target).item() == pytest.approx(formula(loss, outputs, target), rel=1e-12)


@pytest.mark.parametrize("loss", [each for each in EACH if not isinstance(each, SpikeTime | SpikeTimeCrossEntropy)])
def test_gradients_are_those_of_finite_differences(loss):
    outputs, target = currents(), labels()
    assert torch.autograd.gradcheck(lambda o: loss(o, target), outputs)


def test_a_spike_time_has_derivative_minus_one_at_the_first_or_the_forced_last_spike():
    outputs, target = spikes(0.2), labels()
    silent = outputs.detach().sum(0) == 0
    assert 0 < silent.sum() < silent.numel()
    SpikeTime()(outputs, target).backward()
    grad = outputs.grad
    assert grad is not None
    for n in range(N):
        for c in range(C):
            t = first(outputs[:, n, c].tolist())
            wanted = 0 if c == target[n] else T - 1
            expected = torch.zeros(T, dtype=torch.float64)
            expected[t] = -2 * (t - wanted) / T**2 / (N * C)
            torch.testing.assert_close(grad[:, n, c], expected)
    late = grad[-1][torch.arange(N), target][silent[torch.arange(N), target]]
    assert (late < 0).all()  # a silent output of the right class is drawn towards a spike


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (TET(0.0), "ce_rate_loss", {}), (CountCrossEntropy(), "ce_count_loss", {}),
        (MeanSquareCount(0.8, 0.2), "mse_count_loss", {"correct_rate": 0.8, "incorrect_rate": 0.2}),
        (SpikeTime(), "mse_temporal_loss", {"off_target": T - 1}),
        (SpikeTime(1, -2, 2), "mse_temporal_loss", {"on_target": 1, "off_target": T - 2, "tolerance": 2}),
        (SpikeTimeCrossEntropy(), "ce_temporal_loss", {}),
    ],
    ids=str,
)  # fmt: skip
def test_losses_and_gradients_are_bit_equal_to_those_of_snntorch(ours, theirs, options):
    functional = pytest.importorskip("snntorch.functional")
    outputs, target = spikes(dtype=torch.float32), labels()
    assert_same(ours, getattr(functional, theirs)(**options), outputs, outputs, target)


def test_snntorch_wants_every_class_first_by_default():
    """Why a negative step is not handed to it: ``targets_convert`` makes 0 of it. A fix there shows here."""
    spike_time = pytest.importorskip("snntorch.functional.loss").SpikeTime
    _, wanted = spike_time()(spikes(dtype=torch.float32), labels())
    assert (wanted == 0).all()


def assert_same(ours: Any, theirs: Any, x: Tensor, seen: Tensor, target: Tensor) -> None:
    one, other = ours(x, target), theirs(seen, target)
    assert torch.equal(one, other.reshape(()))
    torch.testing.assert_close(
        *(torch.autograd.grad(loss.sum(), x, retain_graph=True)[0] for loss in (one, other)), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("beta", [1.0, 0.75])
def test_losses_of_potentials_are_those_of_snntorch_on_what_the_readout_reads(beta):
    functional = pytest.importorskip("snntorch.functional")
    x, target, readout = currents(dtype=torch.float32), labels(), MembranePotential(beta)
    memory, potentials = readout.begin(x[0]), []
    for t, step in enumerate(x, 1):
        memory = readout.step(memory, step, t)
        potentials.append(readout.decode(memory, t))
    seen = torch.stack(potentials)
    assert_same(MembraneCrossEntropy(beta), functional.ce_max_membrane_loss(), x, seen, target)
    theirs = functional.mse_membrane_loss(on_target=2, off_target=0.5)
    assert_same(MeanSquareMembrane(beta, 2.0, 0.5), theirs, x, seen, target)


def test_populations_are_those_of_snntorch_up_to_what_the_text_says():
    functional, k = pytest.importorskip("snntorch.functional"), 3
    outputs, target = spikes(0.4, torch.float32, C * k), labels()
    count = functional.ce_count_loss(population_code=True, num_classes=C)
    assert_same(Population(C, CountCrossEntropy()), count, outputs, outputs, target)
    options = {"correct_rate": 0.8, "incorrect_rate": 0.2, "population_code": True, "num_classes": C}
    square = functional.mse_count_loss(**options)(outputs, target)
    torch.testing.assert_close(Population(C, MeanSquareCount(0.8, 0.2))(outputs, target), square / k**2)


def test_a_population_is_read_as_it_is_trained():
    outputs, target = currents(T, N, C * 3), labels()
    readout = PopulationReadout(C)
    memory = readout.begin(outputs[0])
    for t, step in enumerate(outputs, 1):
        memory = readout.step(memory, step, t)
    expected = torch.nn.functional.cross_entropy(readout.decode(memory, T), target)
    torch.testing.assert_close(Population(C)(outputs, target), expected)
    assert Population(C, CountCrossEntropy()).spiking
    assert not Population(C).spiking


def test_distillation_is_its_formula_and_zero_for_a_student_that_agrees():
    outputs, teacher, tau = currents(), torch.randn(N, C, dtype=torch.float64), 3.0
    p, q = ((x / tau).softmax(1).tolist() for x in (teacher, outputs.mean(0)))
    expected = sum(a * math.log(a / b) for one, two in zip(p, q, strict=True) for a, b in zip(one, two, strict=True))
    found = Distillation(tau, weight=0.5)(outputs, teacher)
    assert found.item() == pytest.approx(0.5 * tau**2 * expected / N, rel=1e-12)
    assert torch.autograd.gradcheck(lambda o: Distillation(tau)(o, teacher), outputs)
    assert Distillation()(teacher.expand(T, N, C), teacher + 5).item() == pytest.approx(0, abs=1e-12)


def test_an_activity_band_pushes_from_both_sides_and_leaves_the_middle_alone():
    band = ActivityBand(0.1, 0.5, weight=2.0)
    means = torch.tensor([0.0, 0.06, 0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    spread = torch.tensor([[-0.05], [0.05]], dtype=torch.float64)
    rates = (means + spread).requires_grad_()  # what counts is the mean over the batch
    other = torch.full((2, 3), 0.2, dtype=torch.float64)
    found = band({"a": rates, "b": other})
    assert found.item() == pytest.approx(2 * (0.1**2 + 0.04**2 + 0.4**2) / 6 / 2)
    (grad,) = torch.autograd.grad(found, rates)
    assert grad.sign().tolist() == [[-1, -1, 0, 0, 0, 1]] * 2
    assert torch.autograd.gradcheck(lambda r: band({"a": r}), rates)


def test_half_precision_is_summed_in_float32():
    outputs, target = torch.full((600, 1, 2), 1.0, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.long)
    outputs[:, :, 1] = 0
    assert MeanSquareCount()(outputs, target).item() == 0  # a sum in bfloat16 would have stopped at 256
    assert Distillation()(outputs, torch.zeros(1, 2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("name", losses.names())
def test_registered_losses_work_without_arguments_and_are_frozen(name):
    loss = loss_of(name)
    assert loss == losses.get(name)() == loss_of(loss)
    values = isinstance(loss, BinaryCrossEntropy | OutputSquaredError)
    assert loss(spikes(), torch.nn.functional.one_hot(labels(), C) if values else labels()).isfinite()
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.anything = 1  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"takes \[T, N, (C|\.\.\.)\]"):
        loss(torch.zeros(T, N, C), torch.zeros(N + 1, dtype=torch.long))


@pytest.mark.parametrize(
    "bad",
    [lambda: TET(1.5), lambda: MeanSquareCount(2.0), lambda: MembraneCrossEntropy(-0.1), lambda: Population(0),
     lambda: Population(3, SpikeTime()), lambda: Distillation(0), lambda: Distillation(weight=-1),
     lambda: ActivityBand(0.5, 0.1), lambda: ActivityBand()({}), lambda: SpikeTime(9)(spikes(), labels()),
     lambda: Population(3)(spikes(), labels())],
)  # fmt: skip
def test_bad_values_are_refused(bad):
    with pytest.raises(ValueError, match=r"="):
        bad()

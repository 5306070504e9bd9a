"""DSR, SLTT and OTTT: the gradients of SpikingJelly's own nodes where they can be our neurons, and loops by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.network.differentiation import _SoftReset
from conversion_ext.network.state import reset
from conversion_ext.neurons import WeightedIF
from conversion_ext.simulation.inputs import Presentation
from conversion_ext.training import DSR, OTTT, TSSLBP, Fused, Online, Rate, Training
from conversion_ext.training.gradients.base import Gradient, gradient_of
from conversion_ext.training.student import Student
from conversion_ext.types import Steps
from tests import zoo
from tests.live import live_inputs, make_live

T, N = 4, 20
BACKENDS = available()


def perceptron(backend: str, recipe: Any = None, steps: int | None = None) -> tuple[Any, Tensor, Tensor]:
    """A conversion of three linear layers with ReLUs in float64, folded, inputs and classes."""
    torch.manual_seed(1)
    ann = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    x = torch.rand(N, 6).double()
    return (
        cx.convert(ann, x, recipe=recipe or cx.Recipe(cx.Percentile(99.0)), T=steps, backend=backend, progress=False),
        x,
        torch.arange(N) % 4,
    )


def gradients(snn: Any, x: Tensor, y: Tensor, rule: Gradient, T: int = T) -> list[Tensor]:
    """The gradients of all parameters of the mean output's cross-entropy by a rule of the package."""
    student = Student(snn, ("weights",), None, True, False)
    rule.prepare(student.snn)
    batch = Presentation(student.snn, (x,), T, 1, torch.Generator())
    for loss in rule.losses(student, student, batch, lambda outputs, rates: F.cross_entropy(outputs.mean(0), y)):
        loss.backward()
    return [p.grad for p in student.snn.parameters() if p.grad is not None]


def layers(snn: Any) -> list[nn.Linear]:
    """Copies of the folded layers."""
    found = []
    for w, b in zip(*[iter(snn.parameters())] * 2, strict=True):
        layer = nn.Linear(w.shape[1], w.shape[0]).double()
        layer.load_state_dict({"weight": w.detach(), "bias": b.detach()})
        found.append(layer)
    return found


def sj(name: str) -> Any:
    module = pytest.importorskip("spikingjelly.activation_based.neuron")
    if not hasattr(module, name):
        pytest.skip(f"this version has no {name}")
    return getattr(module, name)


def started(node: Any, size: int) -> Any:
    """A node of SpikingJelly, from v = 1/2."""
    node.train()
    node.v = torch.full((N, size), 0.5, dtype=torch.float64)
    return node


def surrogate() -> Any:
    return pytest.importorskip("spikingjelly.activation_based.surrogate").ATan()


def each_step(run: Any, x: Tensor, y: Tensor) -> None:
    """Back-propagate, at each step, the loss of the outputs so far."""
    outputs: list[Tensor] = []
    for _ in range(T):
        outputs = [*(o.detach() for o in outputs), run(x)]
        (F.cross_entropy(torch.stack(outputs).mean(0), y) / T).backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dsr_is_that_of_spikingjellys_dsr_nodes(backend):
    node = sj("DSRIFNode")
    snn, x, y = perceptron(backend)
    one, two, three = layers(snn)
    make = lambda: node(T=T, v_threshold=1.0, alpha=0.5, v_threshold_training=False)  # noqa: E731
    s_seq = make()(two(make()(one(x.expand(T, N, 6))).double()))
    F.cross_entropy(three(s_seq.double()).mean(0), y).backward()
    expected = [p.grad for layer in (one, two, three) for p in layer.parameters()]
    for found, theirs in zip(gradients(snn, x, y, DSR()), expected, strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-9)


def quantized(z: Tensor, most: float, step: float) -> Tensor:
    """The nearest multiple of a step in [0, most], with the gradient of the clipped value."""
    clipped = z.clamp(0, most)
    return clipped + ((z / step + 0.5).floor().mul(step).clamp(0, most) - clipped).detach()


@pytest.mark.parametrize("rule", [DSR(), Rate()], ids=["dsr", "rate"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_spikes_weighted_in_time_have_the_gradient_of_their_mean_by_weights(backend, rule):
    """Two steps, the second of which knows all: the network is the quantized one, and rounds straight through."""
    neuron = WeightedIF(weights=(2, 1))
    snn, x, y = perceptron(backend, cx.Recipe(cx.MeanSquaredError(), neuron, family="weighted"), 2)
    one, two, three = layers(snn)
    F.cross_entropy(three(quantized(two(quantized(one(x), 1.5, 0.5)), 1.5, 0.5)), y).backward()
    expected = [p.grad for layer in (one, two, three) for p in layer.parameters()]
    for found, theirs in zip(gradients(snn, x, y, rule, 2), expected, strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_have_the_gradient_of_their_sum(backend):
    snn, x, y = perceptron(backend, cx.Recipe(cx.MeanSquaredError(), cx.IF(v_init=0.5), copies=2), T)
    one, two, three = layers(snn)
    step = 1 / (2 * T)
    F.cross_entropy(three(2 * quantized(two(2 * quantized(one(x), 1, step)), 1, step)), y).backward()
    expected = [p.grad for layer in (one, two, three) for p in layer.parameters()]
    for found, theirs in zip(gradients(snn, x, y, Rate()), expected, strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-9)


def test_online_is_that_of_spikingjellys_sltt_nodes():
    node = sj("SLTTLIFNode")
    snn, x, y = perceptron("spikingjelly")
    parts = layers(snn)
    options = {"tau": math.inf, "decay_input": False, "v_reset": None, "surrogate_function": surrogate()}
    net = nn.Sequential(parts[0], started(node(**options), 9), parts[1], started(node(**options), 8), parts[2])
    each_step(net, x, y)
    expected = [p.grad for layer in parts for p in layer.parameters()]
    for found, theirs in zip(gradients(snn, x, y, Online(1)), expected, strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-9)


def test_ottt_is_that_of_spikingjellys_nodes_between_two_of_them():
    node = sj("OTTTLIFNode")
    sequential = pytest.importorskip("spikingjelly.activation_based.layer").OTTTSequential
    snn, x, y = perceptron("spikingjelly")
    parts = layers(snn)
    options = {"tau": math.inf, "surrogate_function": surrogate()}
    net = sequential(parts[0], started(node(**options), 9), parts[1], started(node(**options), 8), parts[2])
    each_step(net, x, y)
    found = gradients(snn, x, y, OTTT())
    torch.testing.assert_close(found[2:4], [parts[1].weight.grad, parts[1].bias.grad], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ottt_is_a_sum_over_all_earlier_inputs(backend):
    snn, x, y = perceptron(backend)
    one, two, three = layers(snn)
    weights = [torch.zeros_like(layer.weight) for layer in (one, two, three)]
    v1, v2 = (torch.full((N, size), 0.5, dtype=torch.float64) for size in (9, 8))
    past: list[Tensor] = []
    outputs: list[Tensor] = []
    for _ in range(T):
        u1 = v1 + one(x)
        s1 = (u1 >= 1).double()
        u2 = v2 + two(s1)
        s2 = (u2 >= 1).double()
        v1, v2 = u1 - s1, u2 - s2
        past.append(s1)
        outputs.append(three(s2))
        p = torch.stack(outputs).mean(0).softmax(1)
        d3 = (p - F.one_hot(y, 4)) / N / len(outputs) / T
        d2 = d3 @ three.weight / (1 + (torch.pi * (u2 - 1)) ** 2)
        d1 = d2 @ two.weight / (1 + (torch.pi * (u1 - 1)) ** 2)
        weights[2] += d3.T @ s2  # a readout has no potential
        weights[1] += d2.T @ sum(past)
        weights[0] += d1.T @ (len(past) * x)
    for found, expected in zip(gradients(snn, x, y, OTTT())[::2], weights, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-8)


def live(samples: int, **options: Any) -> tuple[Any, Tensor, Tensor]:
    """A conversion of a network with shortcuts and a max-pool, inputs, and classes that it does not choose."""
    torch.manual_seed(0)
    ann = make_live(zoo.Residual(), *zoo.IMAGE)
    x = live_inputs(ann, *zoo.IMAGE, samples=samples)
    snn = cx.convert(ann, x[:32], **{"T": T, "backend": "reference", "progress": False} | options)
    return snn, x, (ann(x).argmax(1) + 1) % 5


@pytest.mark.parametrize("rule", [DSR(), OTTT(), TSSLBP()], ids=lambda rule: type(rule).__name__)
def test_every_layer_of_a_residual_network_has_a_gradient(rule):
    snn, x, y = live(32)
    found = gradients(snn, x, y, rule)
    assert len(found) == 14
    assert all(gradient.abs().max() > 0 for gradient in found)


@pytest.mark.parametrize("gradient", ["dsr", "fused", "ottt", "tssl-bp"])
def test_fine_tuning_learns_by_every_rule(gradient):
    snn, x, y = live(96)
    result = cx.finetune(snn, (x, y), T=T, epochs=4, gradient=gradient, training=Training(rate=5e-3), progress=False)
    losses = [epoch.loss for epoch in result.history[1:]]
    assert losses[-1] < 0.8 * losses[0]


def test_what_has_no_such_gradient_is_refused():
    x = torch.rand(8, 6)
    ann = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    recipe = cx.Recipe(cx.Maximum(), cx.SignedIF(), family="signed")
    snn = cx.convert(ann, x, recipe=recipe, T=T, backend="reference", progress=False)
    for rule, said in ((OTTT(), r"OTTT is for IF and LIF"), (TSSLBP(), r"for IF and LIF neurons")):
        with pytest.raises(ValueError, match=said):
            gradients(snn, x, torch.zeros(8, dtype=torch.long), rule)
    snn, x, y = perceptron("reference")
    for gradient in ("dsr", "rate", "tssl-bp"):
        with pytest.raises(ValueError, match="no gradient for initial potentials"):
            cx.finetune(snn, (x, y), T=T, gradient=gradient, learn=("potentials",), progress=False)
        with pytest.raises(ValueError, match="leave out surrogate="):
            type(gradient_of(gradient))(surrogate="atan")
    snn, x, y = perceptron("reference", cx.Recipe(cx.MeanSquaredError(), cx.IF(v_init=0.5), copies=2), T)
    with pytest.raises(ValueError, match=r"one train of equal spikes, and .* copies or weights"):
        gradients(snn, x, y, TSSLBP())
    snn, x, y = perceptron("reference", "default-lookahead", T)
    for steps in (1, T - 1):
        with pytest.raises(ValueError, match=rf"by {steps} of T={T} steps, and .* looks ahead"):
            gradients(snn, x, y, Online(steps))
    through_all = gradients(snn, x, y, gradient_of("bptt"))
    assert all(torch.equal(a, b) for a, b in zip(through_all, gradients(snn, x, y, Online(T)), strict=True))
    with pytest.raises(ValueError, match="leave it at 1"):
        OTTT(2)
    with pytest.raises(ValueError, match="tau="):
        TSSLBP(0.5)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("slope", ["arctan", "triangle"])
def test_a_neurons_steps_as_one_function_have_the_gradient_of_a_loop(slope, reset):
    """Also of the last potential, which later calls start from."""
    torch.manual_seed(0)
    z = torch.randn(5, 7, 4, dtype=torch.float64, requires_grad=True)
    start = torch.full((7, 4), 0.3, dtype=torch.float64, requires_grad=True)
    weights, rest = torch.randn(5, 7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    smooth = {
        "arctan": lambda d: torch.atan(torch.pi * d) / torch.pi,
        "triangle": lambda d: torch.where(d < 0, (1 + d).clamp_min(0) ** 2 / 2, 1 - (1 - d).clamp_min(0) ** 2 / 2),
    }[slope]
    v, spikes = start, []
    for current in z:
        m = v + current
        s = smooth(m - 1) + ((m >= 1).double() - smooth(m - 1)).detach()
        v = m - (s if reset else s.detach())
        spikes.append(s)
    expected = torch.autograd.grad((torch.stack(spikes) * weights).sum() + (v * rest).sum(), (z, start))
    found, last = _SoftReset.apply(z, start, slope, reset)
    assert torch.equal(found, torch.stack(spikes).detach())
    assert torch.equal(last, v.detach())
    ours = torch.autograd.grad((found * weights).sum() + (last * rest).sum(), (z, start))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_a_current_in_all_later_spikes_add_up_to_that_of_the_count():
    """``1 - prod (1 - slope)``, from 0 to 1: a current brings one spike at most for each unit of it."""
    torch.manual_seed(0)
    z = torch.randn(6, 50, dtype=torch.float64, requires_grad=True)
    spikes, _ = _SoftReset.apply(z, torch.full((50,), 0.5, dtype=torch.float64), "triangle", True)
    (grad,) = torch.autograd.grad(spikes.sum(), z)
    v, slopes = torch.full((50,), 0.5, dtype=torch.float64), []
    for current in z.detach():
        m = v + current
        slopes.append((1 - (m - 1).abs()).clamp_min(0))
        v = m - (m >= 1).double()
    left = (1 - torch.stack(slopes)).flip(0).cumprod(0).flip(0)
    torch.testing.assert_close(grad, 1 - left)
    assert 0 <= float(grad.min()) <= float(grad.max()) <= 1


@pytest.mark.parametrize(
    "neuron", [cx.IF(), cx.IF(lookahead=1), cx.SignedIF(), cx.neurons.WeightedIF(weights=(2, 2, 1, 1))]
)
def test_fused_neurons_send_what_a_simulation_sends(neuron):
    snn, x, _ = live(8, recipe=cx.Recipe(cx.Percentile(99.0), neuron, family=neuron.family))
    student = Student(snn, ("weights", "potentials"), None, True, False)
    Fused().prepare(student.snn)
    outputs, _ = student((x,), Steps(T, constant=True))
    torch.testing.assert_close(outputs.mean(0), cx.simulate(snn, x, T).output, rtol=1e-5, atol=1e-5)
    outputs.sum().backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="leave out surrogate="):
        Fused(surrogate="atan")


def test_batch_norm_starts_as_nothing_for_what_a_rule_presents():
    """Statistics over single steps are not those over their mean, in which ``Rate`` runs the network."""
    snn, x, _ = live(8, recipe="default-lookahead")
    for rule in (Rate(), Fused()):
        student = Student(snn, ("weights",), None, True, False)
        shown = Presentation(student.snn, (x,), T, 1, torch.Generator())
        plain, _ = student(*rule.presented(shown))
        reset(student.snn)
        student.normalize(*rule.presented(shown))
        reset(student.snn)
        outputs, _ = student(*rule.presented(shown))
        torch.testing.assert_close(outputs, plain, rtol=1e-3, atol=1e-3)


def test_batch_norm_takes_a_batch_of_one_value_as_the_running_statistics_have_it():
    snn, x, _ = perceptron("reference")
    student = Student(snn, ("weights",), None, True, False)
    student.normalize((x,), Steps(1, constant=True))
    reset(student.snn)
    outputs, _ = student((x[:1],), Steps(1, constant=True))
    torch.testing.assert_close(outputs, cx.simulate(snn, x[:1], 1).outputs)


def test_a_last_batch_of_one_sample_trains():
    """Of 72 samples 65 are learned from, in batches of 64."""
    snn, *_ = perceptron("reference")
    x = torch.rand(72, 6, generator=torch.Generator().manual_seed(0)).double()
    found = cx.finetune(snn, (x, torch.arange(72) % 4), T=1, normalize=True, progress=False)
    assert math.isfinite(found.history[1].loss)

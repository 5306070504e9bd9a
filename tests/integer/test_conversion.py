"""Networks in integers: an integer oracle, every backend, what is refused and what is reported."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.encoders import Poisson
from conversion_ext.integer.conversion import integers
from conversion_ext.integer.description import IntegerLayer, overflows, parameters
from conversion_ext.integer.modules import IntegerStepping
from conversion_ext.neurons import LIF, BurstIF
from tests import zoo
from tests.live import live_inputs, make_live


class Block(nn.Module):
    """A max-pool, an identity shortcut, a depthwise convolution, an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Linear(4, 3)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(self.relu1(self.stem(x)))
        x = self.relu2(self.mid(x) + x)
        return self.head(self.relu3(self.depthwise(x)).mean((2, 3)))


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
    x.view(-1)[0] = 255
    return x / 255


def block(backend: str = "reference", neuron: cx.IF | None = None) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(3)
    x = pixels(4, 1, 8, 8)
    recipe = cx.Recipe(cx.Maximum(), neuron or cx.IF())
    return cx.convert(Block(), x, recipe=recipe, backend=backend, progress=False), x


def small(name: str, recipe: Any = "default", backend: str = "reference", **options: Any) -> tuple[Any, torch.Tensor]:
    build, shape = zoo.SMALL[name]
    torch.manual_seed(0)
    ann = make_live(build(), *shape).float()
    x = live_inputs(ann.double(), *shape, samples=6, seed=5).float()
    return cx.convert(ann.float(), x, recipe=recipe, backend=backend, progress=False, **options), x


class Oracle:
    """The network ``Block`` in Python's integers, from nothing but ``parameters`` and the pixels."""

    def __init__(self, snn: Any, x: torch.Tensor) -> None:
        self.p: dict[str, Any] = dict(parameters(snn))
        self.x = (x * 255).round().numpy().astype(int).astype(object)
        self.v: dict[str, Any] = {}
        self.count: Any = 0
        self.overflows = 0

    def current(self, key: str, s: Any, groups: int = 1) -> Any:
        """Return integers and, per channel, the power of two that they count."""
        layer = self.p[key]
        w, k = layer.weight.numpy().astype(object), layer.weight_exponent.numpy().astype(object)
        if w.ndim == 2:
            y: Any = s @ w.T
        elif key not in ("stem", "mid", "depthwise"):  # the scale of the shortcut
            y, k = s * w, np.broadcast_to(k.reshape(-1), s.shape[1])
        else:
            n, _, height, width = s.shape
            padded = np.zeros((n, s.shape[1], height + 2, width + 2), dtype=object)
            padded[:, :, 1:-1, 1:-1] = s
            y = np.zeros((n, len(w), height, width), dtype=object)
            share = s.shape[1] // groups
            for o in range(len(w)):
                first = o // (len(w) // groups) * share
                for i in range(share):
                    for a in range(3):
                        for b in range(3):
                            part = padded[:, first + i, a : a + height, b : b + width]
                            y[:, o] = y[:, o] + int(w[o, i, a, b]) * part
        if layer.bias is None:
            return y, k
        shape = (1, -1) + (1,) * (y.ndim - 2)
        kb = layer.bias_exponent.numpy().astype(object)
        return y * (2 ** (kb - k)).reshape(shape) + layer.bias.numpy().astype(object).reshape(shape), kb

    def fire(self, key: str, *currents: Any) -> Any:
        site = self.p[key]
        shape = (1, -1, 1, 1)
        finest = np.maximum.reduce([k for _, k in currents])
        total: Any = sum(z * (2 ** (finest - k)).reshape(shape) for z, k in currents)
        z = np.empty_like(total)
        exponent = site.threshold.bit_length() - 1
        for c in range(z.shape[1]):
            shift = int(finest[c]) - exponent
            z[:, c] = (total[:, c] + 2 ** (shift - 1)) // 2**shift if shift > 0 else total[:, c] * 2**-shift
        if key not in self.v:
            self.v[key] = np.zeros_like(z) + site.v_init.numpy().astype(object)
        charged, limit = self.v[key] + z, 2 ** (site.bits - 1)
        held = np.minimum(np.maximum(charged, -limit), limit - 1)
        self.overflows += int((held != charged).sum())
        s = (held > site.threshold if site.strict else held >= site.threshold).astype(int).astype(object)
        v = held - s * site.threshold if site.reset == "subtract" else held * (1 - s)
        self.v[key] = v if site.floor is None else np.maximum(v, site.floor)
        return s

    def step(self) -> Any:
        s = self.fire("relu1", self.current("stem", self.x))
        before = self.count
        self.count = self.count + s
        s = windows(self.count) - windows(before)
        (scale,) = set(self.p) - {"x", "stem", "mid", "depthwise", "head", "relu1", "relu2", "relu3"}
        s = self.fire("relu2", self.current("mid", s), self.current(scale, s))
        s = self.fire("relu3", self.current("depthwise", s, groups=4))
        y, k = self.current("head", s.sum((2, 3)))
        return np.array([[int(v) / 2 ** int(e) for v, e in zip(row, k, strict=True)] for row in y])


def windows(count: Any) -> Any:
    """Return the largest count of each 2x2 window, 0 before the first step."""
    if np.ndim(count) == 0:
        return 0
    n, c, height, width = count.shape
    return count.reshape(n, c, height // 2, 2, width // 2, 2).max((3, 5))


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize(
    ("weight_bits", "state_bits", "neuron"),
    [
        (8, 24, cx.IF()), (4, 16, cx.IF()), (8, 9, cx.IF()), (8, 16, cx.IF(floor=-1.0)),
        (4, 8, cx.IF(0.25, cx.Reset.ZERO, floor=-0.5, strict=True)),
    ],
)  # fmt: skip
def test_a_network_is_what_python_integers_compute(backend, weight_bits, state_bits, neuron):
    snn, x = block(backend, neuron)
    whole = integers(snn, x, weight_bits=weight_bits, state_bits=state_bits, overflow="saturate")
    oracle = Oracle(whole, x)
    layers = [layer for layer in oracle.p.values() if isinstance(layer, IntegerLayer)]
    assert max(int(layer.weight.abs().max()) for layer in layers) < 2 ** (weight_bits - 1)
    assert (oracle.p["x"].low, oracle.p["x"].high, float(oracle.p["x"].unit)) == (0, 255, pytest.approx(1 / 255))
    found = cx.simulate(whole, x, 24, record=("potential",))
    expected = np.stack([oracle.step() for _ in range(24)])
    mean = np.cumsum(expected, 0) / np.arange(1, 25)[:, None, None]
    np.testing.assert_allclose(found.outputs.numpy(), mean, rtol=1e-5, atol=1e-6)
    for key, v in oracle.v.items():
        exact = torch.tensor(v.astype(float)) / oracle.p[key].threshold
        assert torch.equal(found.recorded["potential"][key][-1].double(), exact)
    cx.reset(whole)
    with torch.no_grad():  # the framework's own loop, without simulate
        steps = torch.stack([whole(x) for _ in range(24)])
    assert np.array_equal(steps.double().numpy(), expected)
    assert (oracle.overflows > 0) == (state_bits == 9)
    assert sum(overflows(whole).values()) == 2 * oracle.overflows
    assert sum(overflows(whole).values()) == 0


class Means(nn.Module):
    """A mean and a sum over one dimension as functions, a signal added to itself, an average that nothing absorbs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1)
        self.line, self.head = nn.Linear(6, 6), nn.Linear(24, 3)
        nn.init.constant_(self.line.bias, 3.0)  # or the last neurons are silent

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.mid(x) - F.avg_pool2d(x, 3, 1, 1))
        return self.head(torch.relu(self.line(x.mean(3)) - torch.sum(x + x, 3)).flatten(1))


def means(backend: str) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(2)
    x = pixels(5, 1, 8, 8)
    return cx.convert(Means(), x, recipe=cx.Recipe(cx.Maximum()), backend=backend, progress=False), x


INTEGER = ("chain", "functional", "residual", "inception", "shuffle", "signal", "regression", "means")


@pytest.mark.parametrize("name", INTEGER)
def test_backends_batches_chunks_and_precisions_compute_the_same_integers(name):
    results = []
    for backend in available():
        snn, x = means(backend) if name == "means" else small(name, backend=backend)
        results.append(cx.simulate(integers(snn, x), x, 20, record=("spikes",)))
    assert all(float(rate.sum()) > 0 for rate in results[0].firing_rate.values())
    whole = integers(snn, x)
    results.append(cx.simulate(whole, x, 20, record=("spikes",), time_chunk=3))
    for other in results[1:]:
        assert torch.equal(other.outputs, results[0].outputs)
        for key, spikes in other.recorded["spikes"].items():
            assert torch.equal(spikes, results[0].recorded["spikes"][key])
    parts = [cx.simulate(whole, part, 20, record=("spikes",)) for part in (x[:1], x[1:])]
    assert torch.equal(torch.cat([part.outputs for part in parts], 1), results[0].outputs)
    # In float64 nothing would be rounded that float32 rounds.
    double = cx.simulate(integers(copy.deepcopy(snn).double(), x.double()), x.double(), 20, at=[1, 20]).outputs
    assert torch.equal(double[0], results[0].outputs[0].double())
    torch.testing.assert_close(double[1], results[0].outputs[-1].double(), rtol=1e-6, atol=1e-6)
    exact = cx.simulate(snn, x, 20).output
    assert float((results[0].output - exact).norm() / exact.norm()) < 0.35


@pytest.mark.parametrize(
    ("name", "recipe", "options"),
    [
        ("residual", "default-signed", {}),
        ("residual", "default-multilevel", {}),
        ("chain", cx.Recipe(cx.Maximum(), BurstIF(3, signed=True), family="multi-level"), {}),
        ("chain", cx.Recipe(cx.Maximum(), cx.IF(0.0, cx.Reset.ZERO)), {}),
        ("bottleneck", "default", {"relay": True}),
        ("chain", "li2021", {}),
        ("regression", cx.Recipe(cx.Maximum(), encoder=Poisson(gain=1.0, signed=True)), {}),
    ],
    ids=str,
)
def test_neurons_that_add_and_compare_are_integers(name, recipe, options):
    T = {"T": 8} if recipe in ("default-signed", "default-multilevel", "li2021") else {}
    results = []
    for backend in available():
        snn, x = small(name, recipe, backend, **options, **T)
        x = x.clamp(-1, 1)
        whole = integers(snn, x)
        results.append(cx.simulate(whole, x, 12, record=("potential",)))
        sites: dict[str, Any] = dict(parameters(whole))
        for key, v in results[-1].recorded["potential"].items():
            units = v * sites[key].threshold
            assert torch.equal(units, units.round())
    for other in results[1:]:
        assert torch.equal(other.outputs, results[0].outputs)
    exact = cx.simulate(snn, x, 12).output
    assert float((results[0].output - exact).norm() / exact.norm()) < 0.5


def test_a_floor_that_is_no_integer_is_refused():
    snn, x = block(neuron=cx.IF(floor=-0.3))
    with pytest.raises(cx.errors.UnsupportedError, match=r"a floor of -0.3, no integer in 16 bits"):
        integers(snn, x, state_bits=16)


def test_biases_of_sites_are_integers_too():
    """Every step of every site in fractions, from the current before the bias: ties are rounded up, exactly."""
    snn, x = small("chain", cx.Recipe(cx.Maximum(), tuners=(cx.BiasCorrection(),)), T=8)
    whole = integers(snn, x, state_bits=12, overflow="saturate")
    given: dict[str, list[torch.Tensor]] = {}
    handles = [
        site.register_forward_pre_hook(lambda m, args: given.setdefault(m.key, []).append(args[0].clone()))
        for site in whole.sites().values()
    ]
    kept = cx.simulate(whole, x[:2], 6, record=("potential", "spikes"), time_chunk=1).recorded
    assert not sum(overflows(whole).values())
    rounded = biased = 0
    for key, currents in given.items():
        site: Any = parameters(whole)[key]
        biased += bool(site.bias.any())
        for c in range(currents[0].shape[1]):
            v = [int(site.v_init.expand(site.bias.shape)[c])] * currents[0][:, c].numel()
            for t, x_t in enumerate(currents):
                for i, z in enumerate(x_t[:, c].flatten().tolist()):
                    exact = (Fraction(z) + Fraction(int(site.bias[c]), site.threshold)) * site.threshold
                    rounded += exact.denominator == 2 and bool(site.bias[c])
                    v[i] += math.floor(exact + Fraction(1, 2))
                    fires = v[i] >= site.threshold
                    v[i] -= site.threshold * fires
                assert kept["potential"][key][t][:, c].flatten().tolist() == [n / site.threshold for n in v]
    assert biased >= 3
    assert rounded > 100  # a half is common, and must not depend on the last bit of a bias
    for handle in handles:
        handle.remove()


class Echo:
    """Neurons at rest that return their currents."""

    potential = torch.zeros(())

    def run(self, z_seq: torch.Tensor) -> torch.Tensor:
        return z_seq


@pytest.mark.parametrize("finest", [2, 4, 5, 7])
def test_currents_are_rounded_halves_up_whatever_their_last_bit(finest):
    n = torch.arange(-300, 301)
    exact = torch.tensor([math.floor(Fraction(k * 16, 2**finest) + Fraction(1, 2)) for k in n.tolist()]) / 16
    for noise in (0.0, 1e-4, -1e-4):
        stepping = IntegerStepping("site", 4, finest, 16, saturate=False)
        z = (n + noise) * 2.0**-finest
        assert torch.equal(stepping.steps(cast(Any, Echo()), z[None]), exact[None])


def test_weights_are_the_nearest_integers_of_any_power_of_two():
    """Brute force over powers; biases are as fine as weights, or as a potential."""
    snn, x = small("regression")
    for bits in (3, 4, 8):
        found: dict[str, Any] = parameters(integers(snn, x, weight_bits=bits))
        layers = {key: layer for key, layer in snn.body.named_modules() if isinstance(layer, nn.Linear)}
        unit = float(x.abs().max()) / 127
        for key, layer in layers.items():
            weight = layer.weight.detach().double() * (unit if key == "0" else 1)
            for row, n, k in zip(weight, found[key].weight, found[key].weight_exponent, strict=True):
                error = float((n * 2.0**-k - row).square().sum())
                most = 2 ** (bits - 1) - 1
                others = [(row * 2.0**e).round().clamp(-most, most) * 2.0**-e - row for e in range(-2, 24)]
                assert error <= min(float(other.square().sum()) for other in others) * (1 + 1e-9)
            bias = found[key].bias * 2.0 ** -found[key].bias_exponent
            assert float((bias - layer.bias.detach()).abs().max()) <= 2.0**-13


def test_what_leaves_a_width_is_refused_or_reported():
    snn, x = block()
    with pytest.raises(cx.errors.StateError, match=r"relu\d: \d+ potentials leave the 7 bits.*state_bits"):
        cx.simulate(integers(snn, x, state_bits=7), x, 40)
    with pytest.raises(ValueError, match=r"input x holds \d+ values that are not 0 ... 255 times 0.0039"):
        cx.simulate(integers(snn, x), 2 * x, 4)
    lenient = integers(snn, x, overflow="saturate")
    clipped = cx.simulate(lenient, 2 * x, 4).outputs
    assert overflows(lenient)["x"] == int((2 * x > 1).sum())
    assert torch.equal(clipped, cx.simulate(lenient, (2 * x).clamp(max=1), 4).outputs)


def test_accumulators_that_do_not_fit_are_refused_before_any_run():
    ann = nn.Sequential(nn.Linear(5000, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        ann[0].weight.fill_(0.01)
    x = pixels(3, 5000)
    snn = cx.convert(ann, x, backend="reference", progress=False)
    with pytest.raises(cx.UnsupportedError, match=r"0: Linear can reach 2\d\.\d bits, and 23 .*snn.double"):
        integers(snn, x)
    integers(snn.double(), x.double(), state_bits=32)


def test_a_bias_gives_way_where_many_spikes_meet():
    """6,000 spikes could reach more than 23 bits in units of a potential, so the bias gets a coarser unit."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(4, 6000), nn.ReLU(), nn.Linear(6000, 2))
    with torch.no_grad():
        ann[2].weight.uniform_(-1, 1)
    x = pixels(8, 4)
    snn = cx.convert(
        ann, x, recipe=cx.Recipe(cx.Maximum(granularity=cx.PerLayer())), backend="reference", progress=False
    )
    head: Any = parameters(integers(snn, x))["2"]
    folded = snn.body.get_submodule("2")
    assert int(head.weight.abs().sum(1).max()) < 2**20
    assert (head.bias_exponent < 12).all()
    torch.testing.assert_close(head.bias * 2.0**-head.bias_exponent, folded.bias.detach(), rtol=0, atol=2.0**-8)


def _adds(x, net):
    return net.down(F.relu(net.up(F.relu(net.up(x) - 0.4) + net.row)).flatten(1)) + 1.5


def _multiplies(x, net):
    y = F.relu(net.up(x)) * 0.3
    return net.down(F.relu(net.matrix @ y + torch.einsum("ncl,dc->ndl", y, net.mix)).flatten(1))


def _normalizes(x, net):
    y = net.norm(F.relu(net.up((x - 0.5) / 0.25)))
    return net.down(F.relu(torch.add(y, F.relu(net.up(x)), alpha=-0.5)).flatten(1))


def _pools(x, net):
    return net.down(F.lp_pool1d(F.relu(net.up(x)), 1, 2).repeat(1, 1, 2).flatten(1))


class Constants(nn.Module):
    """A few layers, and constants that no weight layer absorbs, as ``function`` uses them."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.up, self.down = nn.Conv1d(4, 4, 3, padding=1), nn.Linear(32, 5)
        self.row, self.matrix = nn.Parameter(torch.rand(1, 4, 1)), nn.Parameter(torch.rand(4, 4) - 0.3)
        self.mix, self.norm = nn.Parameter(torch.randn(4, 4)), nn.BatchNorm1d(4)
        self.norm.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self)


@pytest.mark.parametrize("function", [_adds, _multiplies, _normalizes, _pools])
def test_linear_operations_with_constants_have_integers(function):
    """Outputs are those of the network but for 8 bits, and every constant that is listed is a whole number."""
    ann, x = Constants(function).double().eval(), pixels(12, 4, 8).double()
    recipe = cx.Recipe(cx.Maximum(granularity=cx.PerChannel()))
    snn = cx.convert(ann, x, recipe=recipe, backend="reference", progress=False)
    whole = integers(snn, x, overflow="saturate")
    run, target = cx.simulate(whole, x, 256), ann(x).detach()
    assert float((run.output - target).abs().max()) < 0.04 * float(target.abs().max())
    assert all(set(spikes.unique().tolist()) <= {0.0, 1.0} for spikes in cx.simulate(
        whole, x, 4, record=("spikes",)).recorded["spikes"].values())  # fmt: skip
    layers: list[Any] = [layer for layer in parameters(whole).values() if hasattr(layer, "weight")]
    assert all(int(layer.weight.abs().max()) < 128 for layer in layers)
    assert len(layers) > sum(isinstance(m, nn.Conv1d | nn.Linear) for m in whole.modules())


REFUSED = {
    "dense": r"norms.1 .*: BatchNorm2d can reach",
    "gated": r"silu .*: Differential has no integer form",
    "unet": "Upsample averages windows of unequal sizes, or weighs their values",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_integer_form_is_named(name):
    snn, x = small(name, cx.Recipe(cx.Maximum()))
    before = copy.deepcopy(snn.state_dict())
    with pytest.raises(cx.UnsupportedError, match=REFUSED[name]) as error:
        integers(snn, x)
    assert error.value.problems
    assert all(problem.path and problem.remedy for problem in error.value.problems)
    assert all(torch.equal(v, before[k]) for k, v in snn.state_dict().items() if isinstance(v, torch.Tensor))


def test_leaks_and_tuners_that_act_while_simulating_are_refused():
    snn, x = small("regression", cx.Recipe(cx.Maximum(), LIF()))
    with pytest.raises(cx.UnsupportedError, match="LIF.*does more than add"):
        integers(snn, x)
    tuner = cx.tuners.ResidualPotential(tau=2)
    snn, x = small("regression", cx.Recipe(cx.Maximum(), tuners=(tuner,)), T=4)
    with pytest.raises(cx.UnsupportedError, match="stepped by Masked"):
        integers(snn, x)


def test_bad_arguments_are_answered_in_a_sentence():
    snn, x = block()
    for options in ({"weight_bits": 1}, {"state_bits": 40}, {"input_bits": 8.0}, {"overflow": "wrap"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            integers(snn, x, **options)
    with pytest.raises(ValueError, match=r"state_bits=32.*snn.double"):
        integers(snn, x, state_bits=32)
    with pytest.raises(ValueError, match="fold=True"):
        integers(cx.convert(Block(), x, fold=False, backend="reference", progress=False), x)
    with pytest.raises(TypeError, match="convert returned"):
        integers(Block(), x)
    whole = integers(snn, x)
    with pytest.raises(ValueError, match="in integers already"):
        integers(whole, x)
    with pytest.raises(ValueError, match="not in integers"):
        parameters(snn)
    with pytest.raises(ValueError, match="snn is in integers; fine-tune"):
        cx.finetune(whole, [(x, torch.zeros(4, dtype=torch.long))], T=2, epochs=1, progress=False)
    for options in ({"weights": "int8"}, {"dtype": "bfloat16"}, {"block": 2}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            cx.simulate(whole, x, 4, **options)


@pytest.mark.parametrize("backend", available())
def test_it_is_a_converted_network_like_any_other(backend):
    snn, x = block(backend)
    before = copy.deepcopy(snn.state_dict())
    whole = integers(snn, x)
    outputs = cx.simulate(whole, x, 10).outputs
    assert all(torch.equal(v, before[k]) for k, v in snn.state_dict().items() if isinstance(v, torch.Tensor))
    assert snn.conversion.widths is None
    assert type(whole) is type(snn)
    for again in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert torch.equal(cx.simulate(again, x, 10).outputs, outputs)
    other = integers(block(backend)[0], x)
    other.load_state_dict(whole.state_dict())
    assert torch.equal(cx.simulate(other, x, 10).outputs, outputs)
    labels = torch.zeros(len(x), dtype=torch.long)
    assert 0 <= cx.evaluate(whole, (x, labels), 4, progress=False).accuracy[-1] <= 1
    assert cx.synops(whole, x, 4).synops > 0
    assert [row.key for row in whole.conversion.table() if row.kind == "IF"] == ["relu1", "relu2", "relu3"]

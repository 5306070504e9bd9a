"""The time loop: the same spikes and states as a plain loop over the framework's neurons."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext import graph
from conversion_ext.backends import available, get_backend
from conversion_ext.backends.base import Backend, advance_in_place
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.neurons import IF, LIF, BurstIF, Filtered, Neuron, SignedEncoder, SignedIF, advance, compiled
from conversion_ext.simulation import engine
from conversion_ext.simulation.engine import Engine
from conversion_ext.types import Reset
from tests import zoo
from tests.live import live

SPECS: list[Neuron] = [
    IF(), IF(reset=Reset.ZERO), SignedIF(), SignedEncoder(), BurstIF(2, signed=True), LIF(), Filtered(IF()),
    IF(floor=-0.5), IF(reset=Reset.ZERO, strict=True, floor=-0.5),
]  # fmt: skip


@pytest.fixture(params=available())
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(4, 3, 8, 8, dtype=dtype)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 5),
    )  # fmt: skip


def converted(backend: str = "reference", **options) -> SpikingNetwork:
    return cx.convert(network(), images(), backend=backend, progress=False, **options)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 3), (7, 5, 129, 31)], ids=["small", "more than a cache holds"])
def test_neurons_in_place_are_the_frameworks_own_bit_for_bit(backend, spec, dtype, shape):
    x_seq = torch.randint(-12, 17, (9, *shape)).to(dtype) / 10  # ties, and values that floats only approximate
    ours, theirs = backend.neuron(spec), backend.neuron(spec)
    with torch.no_grad():
        found = [advance_in_place(backend, ours, spec, x, 0.25) for x in x_seq.split([1, 3, 5])]
        expected = [backend.run(theirs, x, 0.25) for x in x_seq.split([1, 3, 5])]
    assert torch.equal(torch.cat(found), torch.cat(expected))
    assert all(torch.equal(a, b) for a, b in zip(backend.state(ours), backend.state(theirs), strict=True))


def test_advance_writes_to_the_state_only_where_it_may():
    x_seq, v = torch.rand(3, 4), torch.full((4,), 0.5)
    advance(IF(), x_seq, (v,), torch.relu)
    assert torch.equal(v, torch.full((4,), 0.5))
    _, (after,) = advance(IF(), x_seq, (v,), torch.relu, in_place=True)
    assert after is v


def test_a_simulation_leaves_what_a_loop_over_the_network_leaves(backend):
    """Spikes of the whole network and the states of its neurons and pools, against calls of the network itself."""
    snn, x = converted(backend.name), images()
    twin = copy.deepcopy(snn)
    found = cx.simulate(snn, x, 12, time_chunk=1).output
    with torch.no_grad():
        expected = sum(twin(x) for _ in range(12)) / 12
    assert torch.equal(found, expected)
    for key, site in twin.sites().items():
        assert torch.equal(snn.sites()[key].potential, site.potential)
    with torch.no_grad():
        assert torch.equal(snn(x), twin(x))


def test_states_can_be_used_and_kept_after_a_simulation(backend):
    """What was made in inference mode may not be written to later, and what a user holds may not change."""
    snn, x = converted(backend.name, recipe="default-signed"), images()
    cx.simulate(snn, x, 3)
    snn(x.requires_grad_()).sum().backward()  # in-place writes and gradients, both refused to inference tensors
    cx.reset(snn)
    cx.simulate(snn, images(), 3)
    held = {key: site.potential for key, site in snn.sites().items()}
    values = copy.deepcopy(held)
    result = cx.simulate(snn, images(), 3, reset=False)
    assert all(torch.equal(held[key], values[key]) for key in held)
    assert not any(v.is_inference() for v in (result.output, *result.firing_rate.values()))


@pytest.mark.parametrize("name", ["chain", "residual", "inception"])
def test_convolutions_and_what_follows_them_are_channels_last(name):
    build, shape = zoo.SMALL[name]
    x = torch.rand(2, *shape)
    snn = cx.convert(build().eval(), x, backend=available()[0], progress=False)
    weights = [m.weight for m in snn.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.stride(1) == 1 for w in weights)
    assert all(torch.equal(a, b) for a, b in zip(copy.deepcopy(weights), weights, strict=True))
    cx.simulate(snn, x, 2)
    for site in list(snn.sites().values())[:2]:
        assert site.potential is not None
        assert site.potential.is_contiguous(memory_format=torch.channels_last)


class Viewing(nn.Module):
    """Channel shuffle and flattening by views, which need the order that they know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        y = y.view(y.size(0), 2, 4, 6, 6).transpose(1, 2).contiguous().view(y.size(0), 8, 6, 6)
        return self.head(y.view(y.size(0), -1))


def test_views_of_channels_last_tensors_become_reshapes():
    ann, x = Viewing(), images()
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)
    torch.testing.assert_close(cx.simulate(snn, x, 512, at=[512]).output, ann(x), rtol=0.05, atol=0.02)


class Own(nn.Module):
    """A module that is not traced and views its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


def test_modules_of_the_users_get_the_order_they_know():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Own(), nn.Linear(144, 2))
    snn = cx.convert(ann, images(), skip=["2"], backend="reference", progress=False)
    assert snn(images()).shape == (4, 2)


def test_steps_per_call_are_chosen_by_what_a_cache_holds(monkeypatch: pytest.MonkeyPatch):
    build, shape = zoo.SMALL["residual"]
    x = torch.rand(2, *shape)
    snn = cx.convert(build().eval(), x, backend="reference", progress=False)
    calls: list[tuple[int, int]] = []
    first = next(iter(snn.sites().values()))
    first.stepping.register_forward_hook(lambda _, args, out: calls.append(tuple(out.shape[:2])))
    cx.simulate(snn, x, 64)
    assert calls == [(64, 2)]  # this network is tiny
    calls.clear()
    cx.simulate(snn, x.repeat(8192, *[1] * len(shape)), 4)
    steps, samples = zip(*calls, strict=True)
    assert set(steps) == {4}  # slices of a quarter of what a cache holds, for as many steps as that leaves room for
    assert len(calls) > 4  # one after the other
    assert sum(samples) == 16384
    assert max(samples) - min(samples) <= 1
    calls.clear()
    largest = max(graph.info(node).shape.numel() for node in snn.body.graph.nodes if graph.info(node).is_tensor)
    monkeypatch.setattr(engine, "LARGEST", 4 * 6 * largest)  # bytes of six samples of one step
    cx.simulate(snn, x.repeat(4, *[1] * len(shape)), 4)
    assert calls
    assert all(k * n <= 6 for k, n in calls)
    assert sum(k * n for k, n in calls) == 4 * 8


def test_a_network_is_split_once_and_again_after_a_change():
    snn, x = converted(), images()
    keys = list(snn.state_dict())
    first = Engine(snn)
    assert Engine(snn).main is first.main
    assert Engine(copy.deepcopy(snn)).main is not first.main
    twin = copy.deepcopy(snn)
    for body in (snn.body, twin.body):
        layer = next(name for name, m in body.named_children() if isinstance(m, nn.Linear))
        body.set_submodule(layer, nn.Linear(128, 3, bias=False))
        body.get_submodule(layer).weight.data.fill_(0.5)
    found = cx.simulate(snn, x, 4).output
    assert found.shape == (4, 3)
    assert torch.equal(found, cx.simulate(twin, x, 4).output)  # never simulated before
    assert list(snn.state_dict()) == [key for key in keys if not key.endswith(f"{layer}.bias")]


def test_a_network_that_was_simulated_moves_on_in_another_dtype():
    snn, x = converted(), images()
    cx.simulate(snn, x, 2)
    assert cx.simulate(snn.double(), x.double(), 2).output.dtype == torch.float64


def test_what_was_split_goes_with_its_network():
    snn = converted()
    main = weakref.ref(Engine(snn).main)
    body = weakref.ref(snn.body)
    del snn
    gc.collect()
    gc.collect()  # graphs refer to themselves, and one that is kept for another goes after it
    assert body() is None
    assert main() is None


def broken_compiler(function, **_):
    def run(*args):
        raise RuntimeError("no compiler found")

    return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch):
    """Exchange ``torch.compile`` and forget what it has made."""

    def exchange(compile_) -> None:
        monkeypatch.setattr(torch, "compile", compile_)
        monkeypatch.setattr(compiled, "_broken", [])
        compiled._kernel.cache_clear()

    yield exchange
    compiled._kernel.cache_clear()


LAYOUTS = {
    "channels first": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "gaps": lambda x: torch.stack([x, x], -1)[..., 0],
}


@pytest.mark.parametrize("make", [lambda f, dynamic: f,
                                  pytest.param(partial(torch.compile, fullgraph=True), marks=pytest.mark.slow)],
                         ids=["traced", "compiled"])  # fmt: skip
@pytest.mark.parametrize("spec", SPECS[:5], ids=repr)
def test_compiled_neurons_are_the_others_bit_for_bit(spec, make, compiler):
    compiler(make)
    backend = get_backend("reference")
    for dtype in (torch.float32, torch.bfloat16):
        for arrange in LAYOUTS.values():
            x_seq = arrange(torch.randint(-12, 17, (19 * 4, 3, 5, 6)).to(dtype) / 10).unflatten(0, (19, 4))
            counts: list[Tensor] = [torch.zeros(4, 3, 5, 6) for _ in range(2)]
            found: list[tuple[Tensor, ...]] = []
            for run, count in zip((advance, compiled.advance_compiled), counts, strict=True):
                neuron = backend.neuron(spec)
                with torch.inference_mode():
                    spikes = [
                        advance_in_place(backend, neuron, spec, x, 0.25, count, run) for x in x_seq.split([1, 18])
                    ]
                state = backend.state(neuron)
                assert state is not None
                found.append((torch.cat(spikes), *state))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
            assert torch.equal(counts[0], counts[1])
            assert torch.equal(counts[0], found[0][0].float().abs().sum(0))


def test_every_number_of_steps_has_code_of_its_own(compiler):
    """Torch runs code uncompiled after 8 versions of it, and a network at a few batch sizes has more."""
    made = []
    compiler(lambda function, dynamic: made.append(function) or function)
    for T in (1, 2, 40):
        compiled.advance_compiled(IF(), torch.rand(T, 3), (torch.zeros(3),), lambda z: (z >= 0).to(z.dtype))
    assert len({id(function.__code__) for function in made}) == len(made) >= 4  # 1, 2, 16 and 8 steps


def test_a_simulation_compiles_where_asked_and_goes_without_where_that_fails(compiler):
    snn, x = converted(), images()
    expected, made = cx.simulate(snn, x, 9), []
    compiler(lambda function, dynamic: made.append(function) or function)
    found = cx.simulate(snn, x, 9, compile=True)
    assert len(made) == 1
    assert torch.equal(found.outputs, expected.outputs)
    assert all(torch.equal(found.firing_rate[key], rate) for key, rate in expected.firing_rate.items())
    compiler(broken_compiler)
    with pytest.warns(UserWarning, match="torch.compile does not work here.*no compiler found") as said:
        found = cx.simulate(snn, x, 9, compile=True)
    assert len(said) == 1
    assert torch.equal(found.outputs, expected.outputs)


@pytest.mark.parametrize("block", [1, 2])
def test_spikes_take_the_place_of_currents_that_nobody_else_reads(block: int, monkeypatch: pytest.MonkeyPatch):
    ann, x = live("residual")
    snn = cx.convert(ann, x, progress=False)
    found = cx.simulate(snn, x, 8, block=block)
    fresh = Engine(snn).fresh
    assert fresh
    monkeypatch.setattr(engine, "fresh_currents", lambda main: {})
    expected = cx.simulate(snn, x, 8, block=block)
    assert torch.equal(found.outputs, expected.outputs)
    assert all(torch.equal(rate, expected.firing_rate[key]) for key, rate in found.firing_rate.items())


def test_a_hook_keeps_the_currents_that_it_was_given(monkeypatch: pytest.MonkeyPatch):
    snn, x = converted(), images()
    kept: list[Tensor] = []
    for layer in Engine(snn).fresh.values():
        layer.register_forward_hook(lambda _, args, y: kept.append(y))
    cx.simulate(snn, x, 1)
    copies, currents = [y.clone() for y in kept], list(kept)
    kept.clear()
    monkeypatch.setattr(engine, "fresh_currents", lambda main: {})
    cx.simulate(snn, x, 1)
    assert copies
    assert all(torch.equal(a, b) for a, b in zip(currents, kept, strict=True))

"""Every backend: the same spikes as a plain numpy loop, the same state, the same errors."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conversion_ext.backends import available, get_backend
from conversion_ext.backends.base import Backend
from conversion_ext.errors import BackendError, StateError
from conversion_ext.neurons import IF, PLIF, BurstIF, Heaviside, Neuron, SignedEncoder, SignedIF, State
from conversion_ext.types import Reset

SPECS = {
    "soft": IF(), "hard": IF(reset=Reset.ZERO), "signed": SignedIF(), "encoder": SignedEncoder(),
    "plif": PLIF(), "hard plif": PLIF(reset=Reset.ZERO), "burst": BurstIF(2), "signed burst": BurstIF(2, signed=True),
    "floor": IF(floor=-0.5), "strict": IF(strict=True), "all": IF(reset=Reset.ZERO, floor=-1.0, strict=True),
}  # fmt: skip
MODES = ("s", "m")


@pytest.fixture(params=available())
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)


@pytest.fixture(params=list(SPECS.values()), ids=list(SPECS))
def spec(request: pytest.FixtureRequest) -> Neuron:
    return request.param


def oracle(spec: Neuron, x_seq: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spikes and final potential in numpy, in the arithmetic of the input's dtype."""
    one, half = x_seq.dtype.type(1), x_seq.dtype.type(0.5)
    count, spikes = np.zeros_like(v), []
    for x in x_seq:
        m = v + x
        if isinstance(spec, SignedEncoder):
            s = (m >= half).astype(v.dtype) - (m <= -half).astype(v.dtype)
        elif isinstance(spec, SignedIF):
            s = (m >= one).astype(v.dtype) - ((m < 0) & (count > 0)).astype(v.dtype)
        elif isinstance(spec, BurstIF):
            least = np.minimum(count, spec.max_spikes) if spec.signed else np.zeros_like(v)
            s = np.clip(np.floor(m), -least, spec.max_spikes).astype(v.dtype)
        else:
            s = ((m > one) if getattr(spec, "strict", False) else (m >= one)).astype(v.dtype)
        v = np.where(s > 0, 0, m) if getattr(spec, "reset", None) is Reset.ZERO else m - s
        v = v if getattr(spec, "floor", None) is None else np.maximum(v, v.dtype.type(spec.floor))
        count = count + s
        spikes.append(s)
    return np.stack(spikes), v


def currents(kind: str, T: int, *shape: int) -> Tensor:
    """Inputs with ties: on a grid of 1/8, in tenths (which floats only approximate), or of any value."""
    if kind == "normal":
        return torch.randn(T, *shape, dtype=torch.float64)
    return torch.randint(-12, 17, (T, *shape)).double() / {"dyadic": 8, "decimal": 10}[kind]


def set_mode(neuron: Any, mode: str) -> nn.Module:
    if hasattr(neuron, "step_mode"):
        neuron.step_mode = mode
    return neuron


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["dyadic", "decimal", "normal"])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_spikes_equal_the_oracle_bit_for_bit(
    backend: Backend, spec: Neuron, kind: str, dtype: torch.dtype, mode: str, grad: bool
) -> None:
    x_seq = currents(kind, 60, 8, 5, 6).to(dtype)
    for v_init in (0.25, torch.rand(5, 1, dtype=torch.float64) / 2, torch.full((8, 5, 6), 0.1, dtype=dtype)):
        start = np.broadcast_to(torch.as_tensor(v_init, dtype=dtype).numpy(), (8, 5, 6))
        spikes, v = oracle(spec, x_seq.numpy(), start)
        neuron = set_mode(backend.neuron(spec), mode).train(grad)
        with torch.set_grad_enabled(grad):
            chunks = [backend.run(neuron, x.clone().requires_grad_(grad), v_init) for x in x_seq.split([1, 20, 9, 30])]
        potential = backend.membrane_potential(neuron)
        assert np.array_equal(torch.cat(chunks).detach().numpy(), spikes)
        assert potential is not None
        assert np.array_equal(potential.detach().numpy(), v)


def test_a_constant_input_gives_the_count_of_the_law(backend: Backend) -> None:
    z = torch.arange(-32, 225, dtype=torch.float64) / 64
    for kind in (IF(), SignedIF(), BurstIF(3), BurstIF(3, signed=True)):
        for v_init in (0.0, 0.5, 0.984375):
            spikes = backend.run(backend.neuron(kind), z.expand(50, 1, -1), v_init)
            assert torch.equal(spikes.sum(0)[0], (50 * z + v_init).floor().clamp(0, 50 * kind.levels))


def test_writes_to_no_tensor_of_the_caller(backend: Backend, spec: Neuron) -> None:
    x_seq, v_init = torch.randn(6, 4, 3), torch.full((4, 3), 0.5)
    before = x_seq.clone()
    neuron = backend.neuron(spec)
    with torch.no_grad():
        backend.run(neuron, x_seq, v_init)
        first = backend.membrane_potential(neuron)
        assert first is not None
        held = first.clone()
        backend.run(neuron, x_seq, v_init)
    assert torch.equal(x_seq, before)
    assert torch.equal(v_init, torch.full((4, 3), 0.5))
    assert torch.equal(first, held)  # a potential that was read keeps its value


def test_reset_repeats_the_run(backend: Backend, spec: Neuron) -> None:
    x_seq, neuron = torch.randn(20, 4, 3), backend.neuron(spec)
    first = backend.run(neuron, x_seq, 0.3)
    assert not torch.equal(backend.run(neuron, x_seq, 0.3), first)  # state was carried on
    backend.reset(neuron)
    assert backend.membrane_potential(neuron) is None
    assert torch.equal(backend.run(neuron, x_seq, 0.3), first)


def test_two_neurons_do_not_disturb_each_other(backend: Backend, spec: Neuron) -> None:
    x_seq = torch.randn(20, 4, 3)
    alone = backend.run(backend.neuron(spec), x_seq, 0.3)
    neuron, other = backend.neuron(spec), backend.neuron(spec)
    half = backend.run(neuron, x_seq[:10], 0.3)
    backend.run(other, torch.randn(5, 2), 0.0)
    backend.reset(other)
    assert torch.equal(torch.cat([half, backend.run(neuron, x_seq[10:], 0.3)]), alone)


@pytest.mark.parametrize(
    "changed",
    [torch.zeros(2, 3, 4), torch.zeros(2, 4, 3, dtype=torch.float64), torch.zeros(2, 4, 3, device="meta")],
    ids=["shape", "dtype", "device"],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_changed_input_raises_until_reset(backend: Backend, spec: Neuron, changed: Tensor, mode: str) -> None:
    neuron = set_mode(backend.neuron(spec), mode)
    backend.run(neuron, torch.randn(2, 4, 3), 0.5)
    held = backend.membrane_potential(neuron)
    with pytest.raises(StateError, match=r"^The state of .*; call cx\.reset\(snn\) before a new batch\.$"):
        backend.run(neuron, changed, 0.5)
    assert backend.membrane_potential(neuron) is held
    backend.reset(neuron)
    backend.run(neuron, torch.randn(2, 5, 3), 0.5)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_flow_to_inputs_and_initial_potential(backend: Backend, spec: Neuron, mode: str) -> None:
    neuron = set_mode(backend.neuron(spec), mode).train()
    x_seq = torch.rand(8, 4, 3, dtype=torch.float64).requires_grad_()
    v_init = torch.full((3,), 0.25, dtype=torch.float64, requires_grad=True)
    backend.run(neuron, x_seq, v_init).sum().backward()
    assert x_seq.grad is not None
    assert v_init.grad is not None
    for grad in (x_seq.grad, v_init.grad):
        assert grad.isfinite().all()
        assert (grad != 0).all()


def test_gradients_flow_back_through_earlier_calls(backend: Backend, spec: Neuron) -> None:
    x_seq = torch.rand(8, 4, 3, dtype=torch.float64)
    grads: list[Tensor] = []
    for chunks in (1, 4):
        neuron, x = backend.neuron(spec).train(), x_seq.clone().requires_grad_()
        torch.cat([backend.run(neuron, part, 0.25) for part in x.chunk(chunks)]).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_the_gradient_of_one_step_is_the_surrogate(backend: Backend, spec: Neuron) -> None:
    """All backends use d/dz arctan(pi z)/pi at each threshold."""
    x = torch.linspace(-1.5, 1.5, 13, dtype=torch.float64, requires_grad=True)
    backend.run(backend.neuron(spec).train(), x[None], 0.25).sum().backward()
    m = x.detach() + 0.25
    edges = (0.5, -0.5) if isinstance(spec, SignedEncoder) else (1.0,)
    if isinstance(spec, BurstIF):
        edges = (torch.where(m < 1.5, 1.0, 2.0),)  # the nearest one alone
    expected = sum(1 / (1 + (torch.pi * (m - edge)) ** 2) for edge in edges)
    torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=0)


def test_bfloat16_inputs_keep_a_float32_state(backend: Backend) -> None:
    up = torch.ones(300, 2, 1, dtype=torch.bfloat16)
    neuron = backend.neuron(SignedIF())
    spikes = backend.run(neuron, torch.cat([up, -up, -up]), 0.0)
    assert spikes.dtype == torch.bfloat16
    # 300 spikes are sent and 300 taken back: a count in bfloat16 would have stopped at 256.
    assert torch.equal(spikes, torch.cat([up, -up, 0 * up]))
    potential = backend.membrane_potential(neuron)
    assert potential is not None
    assert potential.dtype == torch.float32
    small = torch.full((512, 2, 1), 2.0**-9, dtype=torch.bfloat16)  # 1/2 + 2^-9 is no bfloat16
    assert backend.run(backend.neuron(IF()), small, 0.5).float().sum(0).eq(1).all()


def test_state_made_in_inference_mode_can_be_carried_on(backend: Backend, spec: Neuron) -> None:
    x_seq = torch.randn(30, 4, 3)
    expected = backend.run(backend.neuron(spec), x_seq, 0.5)
    neuron = backend.neuron(spec).train()
    with torch.inference_mode():
        parts = [backend.run(neuron, x_seq[:10], 0.5).clone()]
    with torch.no_grad():
        parts.append(backend.run(neuron, x_seq[10:20], 0.5))
    parts.append(backend.run(neuron, x_seq[20:].clone().requires_grad_(), 0.5).detach())
    assert torch.equal(torch.cat(parts), expected)


def test_any_memory_layout_gives_the_same_spikes(backend: Backend, spec: Neuron) -> None:
    x = torch.randn(3, 4, 5, 6)
    expected = backend.run(backend.neuron(spec), x.repeat(7, 1, 1, 1, 1), 0.5)
    for same in (x.expand(7, 3, 4, 5, 6), x.to(memory_format=torch.channels_last).repeat(7, 1, 1, 1, 1)):
        assert torch.equal(backend.run(backend.neuron(spec), same, 0.5), expected)


def test_a_neuron_called_directly_takes_one_step_from_its_own_initial_potential(backend: Backend) -> None:
    for kind in (
        IF(v_init=0.75), IF(v_init=0.75, reset=Reset.ZERO), SignedIF(v_init=0.75), SignedEncoder(v_init=0.25),
        BurstIF(2, v_init=0.75),
    ):  # fmt: skip
        x_seq = currents("dyadic", 20, 4, 3).float()
        neuron, expected = backend.neuron(kind), backend.run(backend.neuron(kind), x_seq, kind.v_init)
        for _ in range(2):
            assert torch.equal(torch.stack([neuron(x) for x in x_seq]), expected)
            backend.reset(neuron)


def test_copies_and_pickles_run_alike(backend: Backend, spec: Neuron) -> None:
    x_seq, neuron = torch.randn(12, 4, 3), backend.neuron(spec)
    expected = backend.run(neuron, x_seq, 0.5)
    backend.reset(neuron)
    stream = io.BytesIO()
    torch.save(neuron, stream)
    stream.seek(0)
    copies = [copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron)), torch.load(stream, weights_only=False)]
    for twin in copies:
        assert type(twin) is type(neuron)
        assert torch.equal(backend.run(twin, x_seq, 0.5), expected)
    assert backend.membrane_potential(neuron) is None


def test_reset_makes_a_neuron_copyable_after_gradients(backend: Backend, spec: Neuron) -> None:
    neuron = backend.neuron(spec).train()
    backend.run(neuron, torch.randn(3, 4, requires_grad=True), 0.5)
    backend.reset(neuron)
    assert backend.membrane_potential(copy.deepcopy(neuron)) is None


@dataclass(frozen=True)
class Stepless(Neuron):
    """A neuron value that says nothing about its dynamics."""


@dataclass(frozen=True)
class LeakyHalf(Neuron):
    """A neuron of a plug-in, which keeps half its potential at each step and counts its spikes."""

    @property
    def state(self) -> tuple[str, ...]:
        return ("v", "sent")

    def step(self, x: Tensor, state: State, heaviside: Heaviside) -> tuple[Tensor, State]:
        m = state[0] / 2 + x
        s = heaviside(m - 1)
        return s, (m - s, state[1] + s)


def test_a_neuron_without_dynamics_is_refused(backend: Backend) -> None:
    with pytest.raises(BackendError, match=rf"{backend.name}.*Stepless\(v_init=0\.5\)"):
        backend.neuron(Stepless())


def test_a_neuron_with_its_own_dynamics_runs_everywhere(backend: Backend) -> None:
    neuron: Any = backend.neuron(LeakyHalf(v_init=0.0))
    spikes = backend.run(neuron, torch.full((6, 1, 1), 0.75), 0.0)
    # 3/4; 3/8 + 3/4 = 9/8 fires, 1/8 left; 13/16; 37/32 fires, 5/32; 53/64; 149/128 fires.
    assert spikes.flatten().tolist() == [0, 1, 0, 1, 0, 1]
    sent = neuron.sent if hasattr(neuron, "sent") else neuron.state[1]
    assert sent.item() == 3


def test_the_root_is_a_root(backend: Backend) -> None:
    from conversion_ext.network.spiking_network import SpikingNetwork

    assert issubclass(backend.root(SpikingNetwork), SpikingNetwork)
    assert backend.root(SpikingNetwork) is backend.root(SpikingNetwork)


def test_an_initial_potential_that_does_not_fit_is_refused(backend: Backend, spec: Neuron) -> None:
    with pytest.raises(ValueError, match=r"\[5\].*does not broadcast.*\[4, 3\]"):
        backend.run(backend.neuron(spec), torch.zeros(2, 4, 3), torch.zeros(5))

"""Every neuron, encoder, readout and operator of the package, found and not listed: what all of their kind promise."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available, get_backend
from conversion_ext.encoders import Encoder
from conversion_ext.neurons import Neuron
from conversion_ext.operators import operators
from conversion_ext.readouts import Readout
from conversion_ext.types import Family
from tests.discovery import currents, values_of

NEURONS, ENCODERS, READOUTS = values_of(Neuron), values_of(Encoder), values_of(Readout)
FRAMEWORKS = [name for name in available() if name != "reference"]
VALUES = {
    Family.BINARY: lambda s, spec: (s == 0) | (s == 1),
    Family.SIGNED: lambda s, spec: s.abs() <= 1,
    Family.MULTI_LEVEL: lambda s, spec: (s == s.round()) & (s.abs() <= spec.levels),
}


def test_discovery_finds_what_is_known():
    assert {"SignedIF", "BurstIF", "SignedEncoder", "PLIF", "RefractoryLIF", "Filtered"} <= set(NEURONS)
    assert {"ConstantCurrent", "Poisson", "Latency", "Delta"} <= set(ENCODERS)
    assert {"MeanOutput", "SpikeCount", "FirstSpike", "MembranePotential"} <= set(READOUTS)


ALL = NEURONS | ENCODERS | READOUTS


@pytest.mark.parametrize("name", ALL)
def test_methods_are_frozen_values(name):
    value = ALL[name]
    again = copy.deepcopy(value)
    assert value == again
    assert hash(value) == hash(again)
    for field in fields(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)


@pytest.mark.parametrize("backend", FRAMEWORKS)
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_spike_alike_in_every_framework(name, backend):
    spec, x_seq = NEURONS[name].timed(len(currents())), currents()
    found = []
    for each in ("reference", backend):
        home = get_backend(each)
        neuron = home.neuron(spec)
        with torch.no_grad():
            found.append(home.run(neuron, x_seq.clone(), spec.v_init))
    assert torch.equal(*found)
    assert found[0].abs().sum() > 0


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_send_what_their_family_says_and_start_anew_after_a_reset(name):
    spec, home = NEURONS[name].timed(len(currents())), get_backend("reference")
    neuron = home.neuron(spec)
    with torch.no_grad():
        spikes = home.run(neuron, currents(), spec.v_init)
        home.reset(neuron)
        again = home.run(neuron, currents(), spec.v_init)
    assert torch.equal(spikes, again)
    if spec.family in VALUES:
        assert bool(VALUES[spec.family](spikes, spec).all())


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_keep_shape_and_dtype_and_repeat_themselves_by_seed(name):
    encoder = ENCODERS[name]
    x = torch.rand(3, 2, 4, dtype=torch.float64).expand(9, 3, 2, 4)
    one, two = (encoder(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.shape == x.shape
    assert one.dtype == x.dtype
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", READOUTS)
def test_a_decision_never_depends_on_later_steps(name):
    readout = READOUTS[name]
    first = getattr(readout, "first_step", 0)
    x_seq = (torch.rand(first + 8, 3, 10, dtype=torch.float64) < 0.3).double()
    changed = torch.cat([x_seq[: first + 5], 1 - x_seq[first + 5 :]])

    def decisions(sequence: Tensor) -> list[Tensor]:
        memory, found = readout.begin(sequence[0]), []
        for t, x in enumerate(sequence, 1):
            memory = readout.step(memory, x, t)
            if t > first:
                found.append(torch.as_tensor(readout.decode(memory, t)).clone())
        return found

    one, two = decisions(x_seq), decisions(changed)
    assert all(torch.equal(a, b) for a, b in zip(one[:5], two[:5], strict=True))
    assert one[-1].shape[0] == 3


def modules() -> dict[str, nn.Module]:
    """Every registered module class of torch.nn that can be made without arguments or with a size or a width."""
    found: dict[str, nn.Module] = {}
    for name in operators.names():
        kind: Any = getattr(nn, name.removeprefix("nn."), None) if name.startswith("nn.") else None
        if kind is nn.Transformer:  # many layers, and torch warns of their making
            continue
        for arguments in ((), (6,), (2, 6), (1, 2)) if isinstance(kind, type) else ():
            try:
                found[name] = kind(*arguments)
                break
            except (TypeError, ValueError, AssertionError):
                continue
    return found


MODULES = modules()


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns of some defaults
@pytest.mark.parametrize("name", MODULES)
def test_operators_convert_to_what_the_ann_computes_or_are_refused(name):
    """A registered module between two linear layers: refused with a reason, or an error that falls with T."""
    torch.manual_seed(0)
    module = MODULES[name]
    ann = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), module, nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.rand(16, 6, dtype=torch.float64)
    try:
        with torch.no_grad():
            expected = ann.eval()(x)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, NotImplementedError):
        pytest.skip("it takes images or sequences: the zoo has networks with it")
    if cx.check(ann, x):
        with pytest.raises(cx.UnsupportedError):
            cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)
        return
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)
    few, many = cx.simulate(snn, x, 512, at=(8, 512)).outputs
    errors = [float((output - expected).norm() / expected.norm()) for output in (few, many)]
    assert errors[1] < max(0.02, 0.3 * errors[0]), errors


def test_many_operators_are_tried():
    assert len(MODULES) > 30

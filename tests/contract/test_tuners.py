"""What every tuner promises: it changes what it declares, and its objective does not get worse."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, dataclass, field, fields
from typing import Any

import pytest
import torch

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.graph import info
from conversion_ext.tuners import Tuner, tuners
from tests.live import live

DECLARED = {
    "bias_correction": {"bias"}, "compensation": {"gain"}, "initial_potential": {"v_init"},
    "block_reconstruction": {"weight", "bias", "v_init"}, "decision_table": {"decisions"},
    "weight_calibration": {"weight"}, "weight_compensation": {"weight", "bias"},
    "offset_spike": set(), "output_weights": set(), "residual_potential": set(), "voltage_clamp": set(),
}  # fmt: skip


def pair(tuner, backend="reference", name="residual", T=4, v_init=0.5, **options):
    ann, x = live(name, samples=24)
    weighted = isinstance(tuner, cx.tuners.DecisionTable)
    neuron = cx.neurons.WeightedIF(v_init=v_init) if weighted else cx.IF(v_init=v_init)
    recipes = (cx.Recipe(cx.Percentile(99.0), neuron, tuners=t, family=neuron.family) for t in ((), (tuner,)))
    plain, tuned = (
        cx.convert(ann, list(x.split(10)), recipe=r, T=T, backend=backend, progress=False, **options) for r in recipes
    )
    return ann, x, plain, tuned


@pytest.mark.parametrize("name", tuners.names())
def test_a_tuner_is_a_frozen_value_and_changes_what_it_declares(name):
    tuner = tuners.get(name)()
    assert eval(repr(tuner), {type(tuner).__name__: type(tuner), "PerChannel": cx.PerChannel}) == tuner
    assert len({f.name for f in fields(tuner)} & {"T"}) == 0  # T comes from convert
    with pytest.raises((FrozenInstanceError, AttributeError)):
        setattr(tuner, "anything", 1)  # noqa: B010  a checker would refuse the assignment, and it must fail at run time
    ann, x, plain, tuned = pair(tuner, fold=False, v_init=0.0)
    changed = {
        key.rpartition(".")[2]
        for (key, a), b in zip(plain.state_dict().items(), tuned.state_dict().values(), strict=True)
        if isinstance(a, torch.Tensor) and (a.shape != b.shape or not torch.equal(a, b))
    }
    assert changed == DECLARED[name]
    # Those that act while simulating change how sites are stepped, and nothing else; one changes how outputs are read.
    stepped = {type(site.stepping).__name__ for site in tuned.sites().values()} - {"Stepping"}
    weighed = tuned.conversion.recipe.readout != plain.conversion.recipe.readout
    assert sum((bool(stepped), bool(changed), weighed)) == 1
    assert weighed == (name == "output_weights")
    assert tuner.needs_calibration == (bool(changed) or weighed)
    _, _, _, again = pair(tuner, fold=False, v_init=0.0)
    assert torch.equal(cx.simulate(tuned, x, 4).outputs, cx.simulate(again, x, 4).outputs)


@pytest.mark.parametrize("name", tuners.names())
def test_every_framework_and_folding_give_the_same(name):
    (_, x, _, expected), *others = (
        pair(tuners.get(name)(), backend=backend, fold=fold)
        for backend, fold in (("reference", False), *((backend, True) for backend in available()))
    )
    outputs = cx.simulate(expected, x, 4).outputs
    for _, _, _, other in others:
        torch.testing.assert_close(cx.simulate(other, x, 4).outputs, outputs, rtol=1e-9, atol=1e-9)


@dataclass(frozen=True, kw_only=True)
class Watched(Tuner):
    """Tunes as another tuner does and notes its objective before and after, at every stop."""

    tuner: Tuner
    seen: list = field(default_factory=list)

    def tune(self, stop):
        before = self.tuner.objective(stop)
        self.tuner.tune(stop)
        if before is not None:
            after = self.tuner.objective(stop)
            assert after is not None
            self.seen.append((before.double(), after.double()))


# Decisions are chosen one after the other, each the best for those before it: no sum of them is promised. Blocks are
# reconstructed when the walk is over, and their own test says what they promise.
STEP_BY_STEP = {"decision_table", "block_reconstruction"}


@pytest.mark.parametrize(
    "name", [name for name in tuners.names() if tuners.get(name)().needs_calibration and name not in STEP_BY_STEP]
)
def test_no_objective_becomes_larger_and_some_become_smaller(name):
    watched = Watched(tuner=tuners.get(name)())
    pair(watched, v_init=0.0)
    assert len(watched.seen) > (3 if name != "output_weights" else 0)  # a network has one output
    for before, after in watched.seen:
        assert (after <= before * (1 + 1e-9) + 1e-12).all()
    assert sum(float(after.sum() < 0.99 * before.sum()) for before, after in watched.seen) > len(watched.seen) / 2


def test_registry_is_not_empty_and_tuners_need_steps():
    assert set(tuners.names()) == set(DECLARED)
    with pytest.raises(ValueError, match="pass T="):
        cx.convert(
            torch.nn.ReLU(), torch.rand(2, 3), recipe=cx.Recipe(tuners=(cx.BiasCorrection(),)), backend="reference"
        )
    with pytest.raises(TypeError, match="tuple of tuners"):
        cx.Recipe(tuners=cx.BiasCorrection())


@pytest.mark.parametrize("name", ["residual", "inception", "bottleneck", "gated"])
def test_bias_correction_brings_mean_outputs_closer(name):
    """Measured with simulate, not with the tuner's own eyes: the mean rate outputs of channels against the ANN's."""
    ann, x, plain, tuned = pair(cx.BiasCorrection(), name=name)
    wanted = activations(plain, ann, x)

    def gaps(snn):
        rates = cx.simulate(snn, x, 4).firing_rate
        return {k: (rates[k] * snn.conversion.thresholds[k].reshape(1, -1, *[1] * (rates[k].dim() - 2)) - wanted[k])
                .transpose(0, 1).flatten(1).mean(1).square().mean() for k in wanted}  # fmt: skip

    before, after = gaps(plain), gaps(tuned)
    first = next(iter(wanted))
    assert after[first] <= before[first] * (1 + 1e-9)
    assert sum(after.values()) < 0.7 * sum(before.values())


def keep(found, key):
    def hook(module, args, output):
        found[key] = output.detach()

    return hook


def activations(snn, ann, x):
    """Return the ANN's activation at every ReLU site, read from its own graph."""
    from conversion_ext.capture.preparation import prepare

    graph, found = prepare(ann, (x,), (), ()), dict[str, Any]()
    for node in graph.graph.nodes:
        key = info(node).key
        site = snn.sites().get(key)
        if node.op == "call_module" and site is not None and not isinstance(site.spec, cx.neurons.SignedEncoder):
            graph.get_submodule(node.target).register_forward_hook(keep(found, key))
    with torch.no_grad():
        graph(x)
    return found


def test_folding_keeps_the_bias():
    ann, x, _, tuned = pair(cx.BiasCorrection())
    unfolded = cx.convert(
        ann, list(x.split(10)), recipe=cx.Recipe(cx.Percentile(99.0), tuners=(cx.BiasCorrection(),)), T=4,
        backend="reference", progress=False, fold=False,
    )  # fmt: skip
    assert any(site.bias.dim() for site in tuned.sites().values())
    torch.testing.assert_close(cx.simulate(tuned, x, 4).outputs, cx.simulate(unfolded, x, 4).outputs)
    twin = copy.deepcopy(tuned)
    assert torch.equal(cx.simulate(twin, x, 4).outputs, cx.simulate(tuned, x, 4).outputs)

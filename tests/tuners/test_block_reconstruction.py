"""Block reconstruction: gradients against a loop by hand, blocks that make up the network, a guard that holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext import graph
from conversion_ext.conversion.observation import prepared_for
from conversion_ext.network.differentiation import SurrogateStepping
from conversion_ext.network.site import SpikingSite
from conversion_ext.tuners import BlockReconstruction
from conversion_ext.tuners.blocks import blocks_of
from conversion_ext.types import Steps
from tests.live import live

pytestmark = pytest.mark.filterwarnings("ignore:Not active on the calibration data")
T = 3


def converted(ann: Any, x: Any, *tuners: Any, neuron: Any = cx.IF(), **options: Any) -> Any:  # noqa: B008
    recipe = cx.Recipe(cx.Percentile(99.0), neuron, tuners=tuners, family=neuron.family)
    return cx.convert(ann, x, recipe=recipe, T=T, progress=False, **{"backend": "reference", **options})


def case(name: str = "residual", samples: int = 64) -> tuple[Any, torch.Tensor]:
    return live(name, samples=samples)


def test_neurons_in_one_function_have_the_spikes_and_the_gradient_of_a_loop() -> None:
    """With the reset constant; two calls are one run."""
    torch.manual_seed(0)
    z = torch.randn(5, 7, 4, dtype=torch.float64, requires_grad=True)
    start = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 7, 4, dtype=torch.float64)

    v, spikes = start.expand(7, 4), []
    for current in z:
        m = v + current
        smooth = torch.atan(torch.pi * (m - 1)) / torch.pi
        s = smooth + ((m >= 1).double() - smooth).detach()
        v = m - s.detach()
        spikes.append(s)
    (torch.stack(spikes) * weights).sum().backward()
    expected = z.grad, start.grad
    z.grad = start.grad = None
    ours = SpikingSite("site", cx.IF(), cx.backends.get_backend("reference"), torch.ones(()), cx.PerLayer())
    ours.v_init = start.detach()
    del ours.v_init
    ours.v_init = start  # type: ignore[assignment]
    stepping = SurrogateStepping()
    found = torch.cat([stepping(ours, z[:2]), stepping(ours, z[2:])])
    assert torch.equal(found, torch.stack(spikes).detach())
    (found * weights).sum().backward()
    torch.testing.assert_close((z.grad, start.grad), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("neuron",
    [
        cx.IF(), cx.SignedIF(), cx.neurons.BurstIF(max_spikes=3), cx.IF(lookahead=1),
        cx.neurons.WeightedIF(weights=(4, 2, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_neurons_of_every_kind_send_what_they_send_in_a_simulation(neuron: Any) -> None:
    ann, x = case()
    recipe = cx.Recipe(cx.Percentile(99.0), neuron, family=neuron.family, copies=2 if neuron == cx.IF() else 1)
    snn = cx.convert(ann, x, recipe=recipe, T=T, backend="reference", progress=False)
    expected = cx.simulate(snn, x, T).outputs
    for site in snn.sites().values():
        site.stepping = SurrogateStepping()
    outputs = snn.run((x,), Steps(T, constant=True)).unflatten(0, (T, -1))
    means = outputs.cumsum(0) / torch.arange(1, T + 1).view(-1, 1, 1)
    torch.testing.assert_close(means.detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["residual", "inception", "bottleneck", "gated"])
def test_blocks_one_after_the_other_are_the_network(name: str) -> None:
    ann, x = case(name, samples=4)
    snn = converted(ann, x, fold=False)
    prepared = prepared_for(snn.conversion.recipe, ann, (x,), snn.record.options)
    pairs = blocks_of(prepared.model, snn.body)
    assert pairs
    steps = Steps(T, constant=True)
    *inputs, count = (node for node in snn.body.graph.nodes if node.op == "placeholder")
    values: Any = {inputs[0]: x}
    for body, _ in pairs:
        end = body.run(values | {count: steps})
        values = {body.end: end}
    (output,) = (node for node in snn.body.graph.nodes if node.op == "output")
    if pairs[-1][0].end in output.all_input_nodes:
        cx.reset(snn)
        torch.testing.assert_close(end, snn.run((x,), steps))
    cx.reset(snn)
    value: Any = {next(node for node in prepared.model.graph.nodes if node.op == "placeholder"): x}
    for _, block in pairs:
        value = {block.end: block.run(value)}
    torch.testing.assert_close(next(iter(value.values())), ann(x), rtol=1e-9, atol=1e-9)


def test_a_residual_block_is_one_block() -> None:
    ann, x = case()
    snn = converted(ann, x, fold=False)
    prepared = prepared_for(snn.conversion.recipe, ann, (x,), snn.record.options)
    pairs = blocks_of(prepared.model, snn.body)
    sums = [sum("add" in str(node.target) for node in body.nodes) for body, _ in pairs]
    assert len(pairs) > 2
    assert max(sums) == 1
    assert all(graph.key_of(body.end) == graph.key_of(ann_block.end) for body, ann_block in pairs)


def test_outputs_come_closer_on_data_that_was_not_learned_from() -> None:
    ann, x = case(samples=1280)
    fit, held = x[:1024], x[1024:]
    wanted = ann(held).detach()
    errors = [
        float((cx.simulate(converted(ann, fit, *tuners), held, T).output - wanted).square().mean())
        for tuners in ((cx.WeightCompensation(),), (cx.WeightCompensation(), BlockReconstruction(steps=150, rate=0.03)))
    ]
    assert errors[1] < 0.95 * errors[0]


def test_a_rate_that_wrecks_leaves_the_network_as_it_was() -> None:
    ann, x = case()
    plain, wild = converted(ann, x), converted(ann, x, BlockReconstruction(steps=5, rate=1e6))
    for key, value in plain.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(wild.state_dict()[key], value)
    assert not any(p.requires_grad != q.requires_grad for p, q in zip(plain.parameters(), wild.parameters()))  # noqa: B905


def test_a_layer_that_is_called_twice_stays_as_it_is() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.relu, self.last = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.relu(self.layer(self.relu(self.layer(x)))))

    torch.manual_seed(0)
    ann, x = Twice(), torch.randn(128, 8)
    snn = converted(ann, x, BlockReconstruction(steps=20), fold=False)
    assert torch.equal(snn.body.get_submodule("layer").weight, ann.layer.weight)
    assert not torch.equal(snn.body.get_submodule("last").weight, ann.last.weight)


@pytest.mark.parametrize("options", [{"steps": 0}, {"batch": 2.0}, {"rate": 0}, {"rate": float("inf")}], ids=str)
def test_bad_values_are_named(options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        BlockReconstruction(**options)

"""For every chip a network that breaks no rule, and each rule broken by one that differs in that alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.exchange import spiking_output, sum_pools
from conversion_ext.exchange.chip_cores import _placed
from conversion_ext.exchange.chips import CHIPS
from conversion_ext.integer import integers
from conversion_ext.neurons import LIF, BurstIF, Filtered, SignedIF
from conversion_ext.readouts import MeanOutput, SpikeCount

EVENTS = cx.Recipe(neuron=cx.IF(floor=-1.0), readout=SpikeCount(), encoder=cx.encoders.Poisson())
HARD = cx.IF(0.0, cx.Reset.ZERO, strict=True)
SHIFT = Filtered(LIF(tau=4.0, decay_input=False, reset=cx.Reset.SUBTRACT), tau=2.0)
SOFT, ZERO, SHIFTED = (replace(EVENTS, neuron=neuron) for neuron in (cx.IF(0.0), HARD, SHIFT))
FLOORED = replace(SOFT, neuron=cx.IF(0.0, floor=-1.0))
BURSTS = cx.Recipe(neuron=BurstIF(15), family="multi-level")
SIGNED = cx.Recipe(neuron=SignedIF(), family="signed")
LEAKY, SLOW = LIF(tau=4.0, decay_input=False), LIF(tau=3.0, decay_input=False)
STARTED = cx.IF(0.5, cx.Reset.ZERO, strict=True)
LOW = replace(EVENTS, normalizer=cx.Percentile(50.0, granularity=cx.PerLayer()))
CONSTANT = cx.encoders.ConstantCurrent()


def events(**choices: Any) -> cx.Recipe:
    return replace(EVENTS, **choices)


def signal() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(56, 4))


def cnn(*, bias: bool = True, middle: tuple[nn.Module, ...] = (), width: int = 8, **conv: Any) -> nn.Sequential:
    """Convolutions of stride 2 in the place of pools; ``middle`` stands between the two."""
    options = {"stride": 2, "padding": 1, **conv}
    first, second = (
        nn.Conv2d(1, width, 3, 2, 1, bias=bias),
        nn.Conv2d(width, 8, options.pop("kernel", 3), bias=bias, **options),
    )
    body = nn.Sequential(first, nn.ReLU(), *middle, second, nn.ReLU(), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(body(images(2)).shape[1], 4, bias=bias))


def mlp(bias: bool = False, hidden: int = 12, inputs: int = 16, outputs: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, outputs, bias=bias))


class Three(nn.Module):
    """Three layers read what one layer sends."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu, self.head = nn.Conv2d(1, 4, 3, 8), nn.ReLU(), nn.Linear(48, 4)
        self.parts = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        return self.head(torch.cat([self.relu(part(x)) for part in self.parts], 1).flatten(1))


def whole(target: str, ann: nn.Module, recipe: cx.Recipe, T: int | None = None, **options: Any) -> list:
    """Return what is found of a network in integers."""
    snn = cx.convert(ann.eval(), images(), recipe=recipe, T=T, backend="reference", progress=False)
    return cx.check(integers(snn, images(), overflow="saturate", **options), images(), target=target)


def images(n: int = 16, channels: int = 1, size: int = 16) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def vectors(n: int = 16, inputs: int = 16) -> Tensor:
    return torch.rand(n, inputs, generator=torch.Generator().manual_seed(0))


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.relu = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()
        self.head = nn.Linear(512, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        return self.head(self.relu(x + self.a(x)).flatten(1))


def found(
    target: str, ann: nn.Module, x: Tensor | None = None, recipe: cx.Recipe = EVENTS, T: int | None = None
) -> list:
    x = images() if x is None else x
    snn = cx.convert(ann.eval(), x, recipe=recipe, T=T, backend="reference", progress=False)
    return cx.check(snn, x, target=target)


PASSES = {
    "speck": lambda: found("speck", cnn()),
    "loihi2": lambda: found("loihi2", cnn(bias=False), recipe=replace(EVENTS, neuron=HARD)),
    "xylo": lambda: found("xylo", mlp(), vectors(), replace(EVENTS, neuron=SHIFT)),
    "spinnaker2": lambda: found("spinnaker2", cnn(middle=(nn.AvgPool2d(2),)), recipe=SOFT),
    "akida": lambda: found("akida", cnn(middle=(nn.MaxPool2d(2),)), recipe=cx.Recipe(), T=15),
}


@pytest.mark.parametrize("target", CHIPS)
def test_a_network_that_passes(target: str) -> None:
    torch.manual_seed(0)
    assert PASSES[target]() == []


INTEGERS = {
    "speck": {"state_bits": 16},
    "loihi2": {"even_weights": True},
    "spinnaker2": {},
    "akida": {"weight_bits": 4},
}


@pytest.mark.parametrize("target", INTEGERS)
def test_the_same_networks_pass_in_integers(target: str) -> None:
    torch.manual_seed(0)
    ann, recipe, T = {
        "speck": (cnn(), EVENTS, None), "loihi2": (cnn(bias=False), ZERO, None), "spinnaker2": (cnn(), SOFT, None),
        "akida": (cnn(), PLAIN, 15),
    }[target]  # fmt: skip
    assert whole(target, ann, recipe, T, **INTEGERS[target]) == []


def test_layers_are_placed_on_cores_whichever_way_it_takes() -> None:
    """Largest first would give the only core with room for its neurons to the first layer."""
    assert _placed([[0, 1], [0]]) == [1, 0]
    assert sorted(core for core in _placed([[0], [0, 1], [1, 2], [2]]) if core is not None) == [0, 1, 2]
    assert _placed([[], [0]]) == [None, 0]


def test_outputs_of_spikes_alone() -> None:
    torch.manual_seed(0)
    snn = cx.convert(cnn().eval(), images(), recipe=EVENTS, backend="reference", progress=False)
    bare = spiking_output(snn)
    assert set(cx.simulate(bare, images(), T=1, readout=MeanOutput()).output.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(cx.simulate(bare, images(), T=20).outputs, cx.simulate(snn, images(), T=20).outputs)
    assert float(cx.simulate(bare, images(), T=20).output.sum()) > 0
    assert cx.check(bare, images(), target="speck") == []
    with pytest.raises(ValueError, match=r"no output neurons; convert with a readout of spikes"):
        spiking_output(cx.convert(cnn().eval(), images(), progress=False))


def adaptive(pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(32, 4))


POOL, MAX = (nn.AvgPool2d(2),), (nn.MaxPool2d(2),)
PLAIN = cx.Recipe()
BREACHES: dict[str, dict[str, Any]] = {
    "speck": {
        "the chip has no Conv1d": lambda: found("speck", signal(), torch.rand(8, 1, 16)),
        "no neurons stand behind": lambda: found("speck", cnn(), recipe=events(readout=MeanOutput())),
        "divides by nothing": lambda: found("speck", cnn(middle=POOL)),
        "no max-pool": lambda: found("speck", cnn(middle=MAX)),
        "no adaptive pool": lambda: found("speck", adaptive(nn.AdaptiveAvgPool2d(2))),
        "no pool of size 3": lambda: found("speck", cnn(middle=(nn.AvgPool2d(3),))),
        "do not overlap": lambda: found("speck", cnn(middle=(nn.AvgPool2d(2, 1),))),
        "its stride is": lambda: found("speck", cnn(stride=3)),
        "its kernel is": lambda: found("speck", cnn(kernel=(3, 1))),
        "it has 4 groups": lambda: found("speck", cnn(groups=4)),
        "its padding is": lambda: found("speck", cnn(padding=8)),
        "the input is analog": lambda: found("speck", cnn(), recipe=events(encoder=CONSTANT)),
        "no neurons like": lambda: found("speck", cnn(), recipe=events(neuron=LIF())),
        "no core is left": lambda: found("speck", cnn(width=1024)),
        "the input is (130": lambda: found("speck", cnn_for(130), images(4, size=130)),
        "its maps are": lambda: found("speck", cnn_for(130), images(4, size=130)),
        "adds no branches": lambda: found("speck", Shortcut()),
        "outside of weight layers": lambda: found("speck", cnn(middle=POOL), recipe=events(relay=True)),
        "have no floor": lambda: found("speck", cnn(), recipe=SOFT),
        "fires at its threshold": lambda: found("speck", cnn(), recipe=events(neuron=cx.IF(floor=-1.0, strict=True))),
        "3 layers read it": lambda: found("speck", Three()),
        "maps of 20 by 20": lambda: found("speck", cnn_for(20, last=False), images(4, size=20)),
        "weights have 12 bits": lambda: whole("speck", cnn(), EVENTS, weight_bits=12),
        "potentials have 24 bits": lambda: whole("speck", cnn(), EVENTS),
        "16 bits hold": lambda: found("speck", driven(), recipe=LOW),
    },
    "loihi2": {
        "resets its neurons by 'subtract'": lambda: found("loihi2", cnn(bias=False), recipe=SOFT),
        "start from a potential": lambda: found("loihi2", cnn(bias=False), recipe=events(neuron=STARTED)),
        "fires above its threshold": lambda: found("loihi2", cnn(bias=False), recipe=SOFT),
        "its potentials have a floor": lambda: found("loihi2", cnn(bias=False), recipe=FLOORED),
        "odd or finer": lambda: whole("loihi2", cnn(bias=False), ZERO),
        "its bias charges neurons": lambda: found("loihi2", cnn(), recipe=ZERO),
        "no average pool": lambda: found("loihi2", cnn(bias=False, middle=POOL), recipe=ZERO),
        "no max-pool": lambda: found("loihi2", cnn(bias=False, middle=MAX), recipe=ZERO),
        "no adaptive pool": lambda: found("loihi2", adaptive(nn.AdaptiveAvgPool2d(2)), recipe=ZERO),
        "adds no branches": lambda: found("loihi2", Shortcut(), recipe=ZERO),
        "no neurons stand behind": lambda: found("loihi2", cnn(bias=False), recipe=cx.Recipe(neuron=HARD)),
        "no neurons like": lambda: found("loihi2", cnn(bias=False), recipe=events(neuron=LIF())),
        "sends 15 spikes": lambda: found("loihi2", cnn(bias=False), recipe=BURSTS),
        "the chip has no Conv1d": lambda: found("loihi2", signal(), torch.rand(8, 1, 16)),
    },
    "xylo": {
        "the chip has no Conv2d": lambda: found("xylo", cnn(bias=False), recipe=SHIFTED),
        "its weights have a bias": lambda: found("xylo", mlp(bias=True), vectors(), SHIFTED),
        "no neurons like IF": lambda: found("xylo", mlp(), vectors()),
        "no neurons like LIF(v_init=0.0, tau=3.0": lambda: found("xylo", mlp(), vectors(), events(neuron=SLOW)),
        "resets its neurons by 'zero'": lambda: found("xylo", mlp(), vectors(), events(neuron=LEAKY)),
        "start from a potential": lambda: found("xylo", mlp(), vectors(), events(neuron=replace(LEAKY, v_init=0.5))),
        "it has 40 channels": lambda: found("xylo", mlp(inputs=40), vectors(inputs=40), SHIFTED),
        "1200 hidden neurons": lambda: found("xylo", mlp(hidden=1200), vectors(), SHIFTED),
        "there are 10 outputs": lambda: found("xylo", mlp(outputs=10), vectors(), SHIFTED),
        "no neurons stand behind": lambda: found("xylo", mlp(), vectors(), events(neuron=SHIFT, readout=MeanOutput())),
        "the input is analog": lambda: found("xylo", mlp(), vectors(), cx.Recipe(neuron=SHIFT, readout=SpikeCount())),
    },
    "spinnaker2": {
        "start from a potential": lambda: found("spinnaker2", cnn()),
        "its potentials have a floor": lambda: found("spinnaker2", cnn(), recipe=FLOORED),
        "no max-pool": lambda: found("spinnaker2", cnn(middle=MAX), recipe=SOFT),
        "no adaptive pool": lambda: found("spinnaker2", adaptive(nn.AdaptiveAvgPool2d(2)), recipe=SOFT),
        "do not overlap": lambda: found("spinnaker2", cnn(middle=(nn.AvgPool2d(3, 2),)), recipe=SOFT),
        "adds no branches": lambda: found("spinnaker2", Shortcut(), recipe=SOFT),
        "no neurons stand behind": lambda: found("spinnaker2", cnn(), recipe=cx.Recipe(neuron=cx.IF(0.0))),
        "no neurons like LIF": lambda: found("spinnaker2", cnn(), recipe=events(neuron=LIF())),
        "no neurons like SignedIF": lambda: found("spinnaker2", cnn(), recipe=SIGNED),
        "sends 15 spikes": lambda: found("spinnaker2", cnn(), recipe=BURSTS),
        "the input is analog": lambda: found("spinnaker2", cnn(), recipe=events(encoder=CONSTANT, neuron=cx.IF(0.0))),
        "the chip has no Conv1d": lambda: found("spinnaker2", signal(), torch.rand(8, 1, 16)),
        "no Differential": lambda: found("spinnaker2", cnn(middle=(nn.Sigmoid(),)), recipe=PLAIN),
    },
    "akida": {
        "no average pool": lambda: found("akida", cnn(middle=POOL), recipe=PLAIN, T=15),
        "weights have 8 bits": lambda: whole("akida", cnn(), PLAIN, T=15),
        "T=16 steps": lambda: found("akida", cnn(), recipe=PLAIN, T=16),
        "no particular T": lambda: found("akida", cnn(), recipe=PLAIN),
        "one or three channels": lambda: found("akida", wide_input(), images(8, 2), PLAIN, 15),
        "8-bit images": lambda: found("akida", cnn(), images() - 0.5, PLAIN, 15),
        "its kernel is": lambda: found("akida", cnn(kernel=9, padding=4), recipe=PLAIN, T=15),
        "its stride is": lambda: found("akida", cnn(stride=4), recipe=PLAIN, T=15),
        "no neurons like SignedIF": lambda: found("akida", cnn(), recipe=SIGNED, T=15),
        "no neurons like LIF": lambda: found("akida", cnn(), recipe=cx.Recipe(neuron=LIF()), T=15),
        "adds no branches": lambda: found("akida", Shortcut(), recipe=PLAIN, T=15),
        "no Differential": lambda: found("akida", cnn(middle=(nn.Sigmoid(),)), recipe=PLAIN, T=15),
        "the chip has no Conv1d": lambda: found("akida", signal(), torch.rand(8, 1, 16), PLAIN, 15),
    },
}  # fmt: skip


def cnn_for(size: int, last: bool = True) -> nn.Sequential:
    deep = (nn.Conv2d(2, 2, 3, 8), nn.ReLU()) if last else ()
    ann = nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), nn.ReLU(), *deep, nn.Flatten())
    return nn.Sequential(*ann, nn.Linear(ann(images(1, size=size)).shape[1], 4))


def wide_input() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 4))


def driven() -> nn.Sequential:
    """A channel whose bias is many of the thresholds of LOW a step."""
    ann = cnn()
    with torch.no_grad():
        first = ann.get_submodule("0")
        first.get_parameter("bias").fill_(0.1)[0] = 200.0
        first.get_parameter("weight")[0] = 0.0
    return ann


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("target", "sentence"), [(target, sentence) for target, cases in BREACHES.items() for sentence in cases]
)
def test_every_breach_is_named(target: str, sentence: str) -> None:
    torch.manual_seed(0)
    problems = BREACHES[target][sentence]()
    named = [problem for problem in problems if sentence in problem.reason]
    assert named, [str(problem) for problem in problems]
    assert all(problem.path and problem.remedy for problem in problems)


def test_there_are_ten_breaches_of_every_chip() -> None:
    assert BREACHES.keys() == PASSES.keys() == CHIPS.keys()
    assert min(map(len, BREACHES.values())) >= 10


def test_sum_pools_compute_the_same_and_pass_where_averages_do_not() -> None:
    torch.manual_seed(0)
    ann = cnn(middle=POOL).double().eval()
    snn = cx.convert(ann, images().double(), recipe=EVENTS, backend="reference", progress=False)
    summed = sum_pools(snn)
    assert any("divides by nothing" in problem.reason for problem in cx.check(snn, images().double(), target="speck"))
    assert cx.check(summed, images().double(), target="speck") == []
    ours, theirs = (cx.simulate(each, images().double(), T=32) for each in (snn, summed))
    assert torch.equal(ours.outputs, theirs.outputs)  # a division by 4 rounds nothing
    average = next(m for m in snn.modules() if isinstance(m, nn.AvgPool2d))
    assert average.divisor_override is None  # the original stays
    by_recipe = cx.convert(ann, images().double(), recipe=events(pool="sum"), backend="reference", progress=False)
    assert torch.equal(cx.simulate(by_recipe, images().double(), T=32).outputs, theirs.outputs)
    assert cx.check(by_recipe, images().double(), target="speck") == []


def test_sums_pass_spikes_on_and_are_counted_so() -> None:
    """Every spike in front of the pool reaches the layer behind it, as sinabs counts them; an average is a MAC."""
    torch.manual_seed(0)
    recipe = cx.Recipe(readout=SpikeCount())
    average, summed = (
        cx.convert(
            cnn(middle=POOL).eval(), images(), recipe=replace(recipe, pool=pool), backend="reference", progress=False
        )
        for pool in ("average", "sum")
    )
    counts = [cx.synops(snn, images(), 16) for snn in (average, summed)]
    layers = [next(layer for layer in count.layers if layer.key == "3") for count in counts]
    assert [layer.sees.value for layer in layers] == ["analog", "multi-level"]
    run = cx.simulate(summed, images(), T=16, record=("spikes",))
    sums = nn.functional.avg_pool2d(run.recorded["spikes"]["1"].flatten(0, 1), 2, divisor_override=1)
    reach = nn.functional.conv_transpose2d(torch.ones(1, 8, 2, 2), torch.ones(8, 8, 3, 3), None, 2, 1, 1)
    assert layers[1].synops == pytest.approx(float((sums * reach).sum()) / len(images()))
    with pytest.raises(ValueError, match=r"puts divisors into weights; convert with fold=True"):
        cx.convert(cnn(middle=POOL).eval(), images(), recipe=replace(recipe, pool="sum"), fold=False)
    with pytest.raises(ValueError, match=r"Recipe\(pool='max'\): choose one of average, sum"):
        cx.Recipe(pool="max")


def test_an_ann_is_converted_first() -> None:
    problems = cx.check(cnn(middle=POOL), images(), target="speck")
    assert {"2", "6"} <= {problem.path for problem in problems}
    assert cx.check(nn.Sequential(nn.Linear(2, 2)), torch.rand(3, 2), target="speck")[0].reason.startswith(
        "it has no activation"
    )


def test_wrong_requests() -> None:
    with pytest.raises(LookupError, match=r"target='brain': there are speck"):
        cx.check(cnn(), images(), target="brain")
    with pytest.raises(TypeError, match=r"give one tensor of inputs"):
        cx.check(cnn(), target="speck")


@pytest.mark.parametrize("recipe", ["default-lookahead", "default-weighted", "default-copies"])
@pytest.mark.parametrize("target", ["speck", "loihi2"])
def test_few_step_recipes_are_told_what_the_chip_lacks(recipe: str, target: str) -> None:
    x = torch.rand(20, 16, generator=torch.Generator().manual_seed(0))
    snn = cx.convert(mlp(), x, recipe=recipe, T=4, backend="reference", progress=False)
    reasons = " ".join(problem.reason for problem in cx.check(snn, x, target=target))
    lacks = {"default-copies": "layers of their own" if target == "speck" else "start from a potential"}
    assert lacks.get(recipe, "looks ahead") in reasons
    assert "LookAhead" not in reasons  # beside what is said of the sites, in words of ours

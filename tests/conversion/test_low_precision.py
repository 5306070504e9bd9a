"""Networks with few levels or many zeros in their weights keep them; nothing in such networks is passed over."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import conversion_ext as cx
from tests import laws
from tests.live import live_inputs, make_live

X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
pytestmark = pytest.mark.filterwarnings(
    "ignore:Not active on the calibration data",
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:.*quantize_per_tensor.*",
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 4),
    ).double()  # fmt: skip


def weights(snn: nn.Module) -> list[Tensor]:
    return [m.weight.detach() for m in snn.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def converted(ann: nn.Module, granularity=cx.PerLayer(), **options):  # noqa: B008 (a frozen value)
    recipe = cx.Recipe(cx.Maximum(granularity=granularity))
    return cx.convert(ann, X, recipe=recipe, backend="reference", progress=False, **options)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("granularity", [cx.PerLayer(), cx.PerChannel()], ids=["layer", "channel"])
def test_pruned_weights_stay_zero(granularity, fold):
    ann = make_live(network(), 1, 8, 8)
    for layer, amount in ((ann[0], 0.3), (ann[3], 0.8), (ann[7], 0.9)):
        prune.l1_unstructured(layer, "weight", amount=amount)
    prune.ln_structured(ann[9], "weight", amount=0.5, n=2, dim=1)
    snn = converted(ann, granularity, fold=fold)
    wanted = [
        layer.get_parameter("weight_orig") * layer.get_buffer("weight_mask") == 0
        for layer in (ann[0], ann[3], ann[7], ann[9])
    ]
    assert sum(int(mask.sum()) for mask in wanted) > 500
    assert all(torch.equal(w == 0, mask) for w, mask in zip(weights(snn), wanted, strict=True))
    assert prune.is_pruned(ann)  # the user's network as it was
    laws.assert_is_ann_of_rates(ann, snn, (X[:3],), T=8)


class Sign(nn.Module):
    """BinaryConnect's weights: their signs, times the mean size of the layer's."""

    def forward(self, w: Tensor) -> Tensor:
        return torch.where(w >= 0, 1.0, -1.0).to(w.dtype) * w.abs().mean()


def test_binary_weights_stay_binary():
    """Courbariaux et al., 2015, converted as Rueckauer et al. do: one factor per layer leaves two levels."""
    ann = make_live(network(), 1, 8, 8)
    for n in (0, 3, 7, 9):
        parametrize.register_parametrization(ann[n], "weight", Sign())
    snn = converted(ann)
    for n, weight in zip((0, 3, 7, 9), weights(snn), strict=True):
        rows = weight.flatten(1)
        assert all(len(row.unique()) <= 2 for row in rows)  # a BatchNorm scales every output channel
        if n != 0:
            assert len(weight.unique()) == 2
            assert float(weight.unique().sum()) == pytest.approx(0.0, abs=1e-12)
    laws.assert_is_ann_of_rates(ann, snn, (X[:3],), T=8)
    assert parametrize.is_parametrized(ann[3])
    per_channel = converted(ann, cx.PerChannel(), fold=False)  # and with explicit scales under any thresholds
    assert all(len(weight.unique()) == 2 for weight in weights(per_channel)[1:])


class BinaryNet(nn.Module):
    """Signs as weights and as activations (Courbariaux et al., 2016), BatchNorm between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(1, 6, 3, bias=False), nn.Linear(54, 8, bias=False)])
        self.norms, self.head = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm1d(8)]), nn.Linear(8, 4)
        for layer in self.layers:
            parametrize.register_parametrization(layer, "weight", Sign())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sign(self.norms[0](self.layers[0](x)))
        x = nn.functional.avg_pool2d(x, 2).flatten(1)
        return self.head(self.norms[1](self.layers[1](x)).sign())


def test_binary_activations_are_the_same_at_every_step():
    """A sign is no rate of spikes but a graded value: of constant current it is -1 or 1 at each step, as in the ANN."""
    ann = make_live(BinaryNet(), 1, 8, 8).double()
    snn = converted(ann)
    seen: set[float] = set()
    snn.get_submodule("body.head").register_forward_pre_hook(lambda m, args: seen.update(args[0].unique().tolist()))
    for output in cx.simulate(snn, X, 5).outputs:
        torch.testing.assert_close(output, ann(X), rtol=0, atol=1e-12)
    assert seen == {-1.0, 1.0}
    assert all(len(row.unique()) <= 2 for row in weights(snn)[0].flatten(1))
    assert {p.reason for p in cx.check(ann, X, graded=False)} == {
        "this function is not positively homogeneous, so its output is graded, not spikes."
    }


def quantized(ann: nn.Sequential, activations: bool) -> nn.Module:
    q = pytest.importorskip("torch.ao.quantization")
    fake = q.FakeQuantize.with_args(observer=q.MinMaxObserver, quant_min=-128, quant_max=127, dtype=torch.qint8,
                                    qscheme=torch.per_tensor_symmetric)  # fmt: skip
    post = q.FakeQuantize.with_args(observer=q.MinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8)
    ann = ann.float().train()
    ann.qconfig = q.QConfig(activation=post if activations else nn.Identity, weight=fake)
    ready = q.prepare_qat(ann)
    ready(X.float())
    ready.apply(q.disable_observer)
    return ready.eval()


def test_int8_weights_keep_their_levels():
    ready = quantized(make_live(network(), 1, 8, 8), activations=False)
    before = copy.deepcopy(ready.state_dict())
    snn = cx.convert(ready, X.float(), recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)
    for name, weight in zip(("3", "7", "9"), weights(snn)[1:], strict=True):
        layer = ready.get_submodule(name)
        levels = layer.weight_fake_quant(layer.weight)
        factor = weight.abs().max() / levels.abs().max()
        torch.testing.assert_close(weight, levels.detach() * factor)
        assert len(weight.unique()) == len(levels.unique()) < 256
    error = [(cx.simulate(snn, X.float(), T, at=(T,)).output - ready(X.float())).abs().max() for T in (64, 4096)]
    assert error[1] < 0.1 * error[0]  # the raw weights behind the quantizer would leave an error that stays
    assert all(torch.equal(a, b) for a, b in zip(before.values(), ready.state_dict().values(), strict=True))


def test_quantizers_of_activations_are_left_out_with_a_word():
    ready = quantized(make_live(network(), 1, 8, 8), activations=True)
    with pytest.warns(UserWarning, match=r"quantizers of activations behind 0, 1, 3, 7, 9 are left out"):
        cx.convert(ready, X.float(), recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)


def test_fused_quantization_is_refused():
    qat = pytest.importorskip("torch.ao.nn.intrinsic.qat")
    q = pytest.importorskip("torch.ao.quantization")
    layer = qat.LinearReLU(4, 4, qconfig=q.QConfig(activation=nn.Identity, weight=q.default_weight_fake_quant))
    (problem,) = cx.check(nn.Sequential(layer, nn.Linear(4, 2)), torch.rand(2, 4))
    assert problem.path == "0"
    assert "LinearReLU" in problem.reason
    assert "fuse_modules" in problem.remedy


class SEW(nn.Module):
    """A spike-element-wise block (Fang et al., NeurIPS 2021) in the ANN: the sum comes behind the activations."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.conv = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.last, self.head = nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.conv(x).relu()
        if self.how == "add":
            x = x + y
        else:
            x = x * y if self.how == "and" else (1 - x) * y
        return self.head(self.last(x).relu().mean((2, 3)))


@pytest.mark.parametrize("relay", [False, True])
def test_sew_sums_convert_exactly_and_the_table_says_what_they_are(relay):
    ann = make_live(SEW("add"), 1, 8, 8).double()
    x = live_inputs(ann, 1, 8, 8)
    snn = converted(ann, relay=relay)
    sees = {row.key: str(row.sees) for row in snn.conversion.table() if row.kind == "synapse"}
    assert sees["last"] == ("binary" if relay else "analog")  # sums of spikes, unless neurons stand behind the sum
    if not relay:
        laws.assert_is_ann_of_rates(ann, snn, (x[:3],), T=16)


@pytest.mark.parametrize("how", ["and", "iand"])
def test_sew_products_are_graded_and_refused_where_that_is_not_wanted(how):
    ann = make_live(SEW(how), 1, 8, 8).double()
    assert not cx.check(ann, X)
    (problem,) = cx.check(ann, X, graded=False)
    assert "mul" in problem.path
    assert "graded, not spikes" in problem.reason


def test_spiking_neurons_are_no_activations():
    neuron, leaky = pytest.importorskip("spikingjelly.activation_based.neuron"), pytest.importorskip("snntorch").Leaky
    for module in (neuron.IFNode(), leaky(0.9, init_hidden=True)):
        (problem,) = cx.check(nn.Sequential(nn.Linear(3, 3), module), torch.rand(1, 3))
        assert (problem.path, problem.reason) == ("1", "is a spiking neuron already.")

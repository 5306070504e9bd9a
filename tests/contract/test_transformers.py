"""Laws 9a and 9b on vision transformers of torchvision and timm, narrow and shallow, that react to their input.

With them ConvNeXt of timm, whose LayerNorms and MLPs are theirs; that of torchvision is in ``test_zoo``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.types import SPIKES
from tests import laws
from tests.benchmarks.attention_forms import FORMS, said
from tests.benchmarks.train import trained
from tests.live import live_inputs, make_live

pytest.importorskip("timm")
pytest.importorskip("torchvision")
SIZE, STEPS = 16, 16


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(SIZE, 8, 1, 2, 8, 16, num_classes=4)


def swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([2, 2], 8, [2, 1], [2, 2], [4, 4], num_classes=4, stochastic_depth_prob=0.0)


def timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(SIZE, 8, embed_dim=8, depth=1, num_heads=2, num_classes=4, init_values=0.5)


def deit() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(img_size=SIZE, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=4)


def timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(SIZE, 2, embed_dim=8, depths=(2, 1), num_heads=(2, 2), window_size=4, num_classes=4)


def mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(img_size=SIZE, patch_size=8, num_blocks=1, embed_dim=8, num_classes=4)


def convnext() -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=4, patch_size=2)


FAMILIES = {f.__name__: f for f in (vit, swin, timm_vit, deit, timm_swin, mixer, convnext)}
SIZES = {"convnext": 2 * SIZE}  # it halves its input four times, and the last convolution is of 2x2


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    shape = (3, *2 * (SIZES.get(name, SIZE),))
    ann: Any = make_live(FAMILIES[name](), *shape).double()
    return ann, live_inputs(ann, *shape, samples=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("backend", available())
def test_every_site_and_the_whole_are_exact(name: str, backend: str) -> None:
    """Law 9a: with differential units alone, and with spikes into all linear layers."""
    ann, x = network(name)
    assert cx.check(ann, x) == []
    options: dict[str, Any] = {"recipe": cx.Recipe(cx.Maximum()), "backend": backend, "progress": False}
    snn = cx.convert(ann, x, **options)
    laws.assert_is_ann_of_rates(ann, snn, (x[:2],), T=STEPS)
    with torch.no_grad():
        torch.testing.assert_close(cx.simulate(snn, x, STEPS).output, ann(x), rtol=1e-8, atol=1e-8)
    spiking = cx.convert(ann, x, relay=True, **options)
    laws.assert_sites_exact(spiking, (x[:2],), T=STEPS)
    layers = [row for row in spiking.conversion.table() if row.kind == "synapse"]
    assert [row.key for row in layers[1:] if row.sees not in SPIKES] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("backend", available())
def test_errors_fall_as_one_over_T(name: str, backend: str) -> None:
    """Law 9b."""
    ann, x = network(name)
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), relay=True, backend=backend, progress=False)
    with torch.no_grad():
        errors = [float((cx.simulate(snn, x, T).output - ann(x)).norm()) for T in (256, 1024)]
    assert errors[1] <= 0.45 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["default-attention", "default-attention-weighted"])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_shares_and_energies_are_those_of_an_independent_count(name: str, recipe: str) -> None:
    """torch counts the operations of the ANN, hooks the spikes that linear layers see; on the trained networks."""
    T, ann = 4, trained(name)
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0)) + 0.1
    snn: Any = cx.convert(ann, x, T=T, recipe=recipe, backend="reference", progress=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        ann.train()(x[:1])  # in evaluation torch takes a path for all of attention at once, which is not counted
    ann.eval()
    operations = {str(target): flops // 2 for target, flops in counter.get_flop_counts()["Global"].items()}
    first = sum(n for target, n in operations.items() if "convolution" in target)
    products = sum(n for target, n in operations.items() if "bmm" in target)
    total = sum(operations.values())
    assert {"aten.convolution", "aten.addmm", "aten.bmm"} <= operations.keys()
    assert min(first, products) > 0
    table = snn.conversion.table()
    assert sum(row.macs for row in table) == total
    assert table.spike_driven == pytest.approx(1 - (first + products) / total, rel=1e-12)

    additions, scaled = 0, 0

    def see(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal additions, scaled
        if isinstance(layer, nn.Linear):
            additions += int(given[0].count_nonzero()) * layer.out_features
        else:
            scaled += int(given[0].count_nonzero())

    handles = [
        layer.register_forward_pre_hook(see)
        for layer in snn.body.modules()
        if isinstance(layer, nn.Linear | ChannelScale)
    ]
    count = cx.synops(snn, x, T)
    for handle in handles:
        handle.remove()
    assert count.synops == pytest.approx(additions / len(x), rel=1e-9)
    assert count.analog_macs == pytest.approx(first + T * products + scaled / len(x), rel=1e-9)
    scales = count.macs - total  # one product for each value that is scaled
    assert count.spike_driven == pytest.approx((total - first - products) / count.macs, rel=1e-9)
    energy = 0.9 * additions / len(x) + 4.6 * (first + T * products + scaled / len(x))
    assert count.energy().ratio == pytest.approx(4.6 * (total + scales) / energy, rel=1e-9)
    assert cx.synops(snn, x, T, ann=ann).macs == total


REFUSED = ("values", "complex", "cache", "best", "among", "dimension 0")
CONVERT = {name for name in FORMS if not any(word in name for word in REFUSED)}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", FORMS)
def test_every_form_converts_or_is_refused_in_a_sentence(name: str) -> None:
    problems = said(name)
    assert (problems == []) == (name in CONVERT)
    for problem in problems:
        assert problem.remedy
        assert problem.reason[0].islower()
        assert problem.reason.endswith((".", ":"))
        assert len(f"{problem.reason} {problem.remedy}") < 320

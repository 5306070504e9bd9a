"""Laws 9a and 9b on vision transformers of torchvision and timm, narrow and shallow, that react to their input.

With them ConvNeXt of timm, whose LayerNorms and MLPs are theirs; that of torchvision is in ``test_zoo``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.types import SPIKES
from tests import laws
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
def test_errors_fall_as_one_over_T(name: str) -> None:
    """Law 9b."""
    ann, x = network(name)
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), relay=True, backend="reference", progress=False)
    with torch.no_grad():
        errors = [float((cx.simulate(snn, x, T).output - ann(x)).norm()) for T in (256, 1024)]
    assert errors[1] <= 0.45 * errors[0]

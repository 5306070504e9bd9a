"""Small networks that each hold one difficulty of conversion, and the torchvision families."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Chain(nn.Sequential):
    """Conv, BatchNorm, ReLU, ReLU6, average pooling, dropout, linear."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.AvgPool2d(2),
            nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3),
            nn.Linear(32, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5),
        )  # fmt: skip


class Functional(nn.Module):
    """Every activation and pool as a function or method, one ReLU shared, a view by batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.act = nn.ReLU()
        self.fc = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.c1(x))
        x = F.avg_pool2d(self.act(self.c2(x)), 2)
        x = self.c3(x).clamp(min=0, max=2.0)
        x = F.dropout(x, training=self.training)
        return self.fc(torch.relu(x).view(x.size(0), -1))


class Residual(nn.Module):
    """Identity and projection shortcuts, max-pooling with padding, BatchNorm everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.a1, self.a2 = self._conv(8, 8), self._conv(8, 8)
        self.b1, self.b2 = self._conv(8, 12, 2), self._conv(12, 12)
        self.down = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, 5)

    @staticmethod
    def _conv(i: int, o: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(x + self.a2(self.relu(self.a1(x))))
        x = self.relu(self.down(x) + self.b2(self.relu(self.b1(x))))
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Branches with a pool, concatenated, and a max-pool over the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.three, self.pooled = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(6, 3, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        parts = [self.one(x), self.three(x), self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))]
        x = F.max_pool2d(torch.cat([F.relu(part) for part in parts], 1), 2)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Dense(nn.Module):
    """Concatenation of everything before, BatchNorm before ReLU before convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(10), nn.BatchNorm2d(14)])
        self.convs = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 4, 3, padding=1)])
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for norm, conv in zip(self.norms, self.convs):  # noqa: B905  traced
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.relu(self.norms[2](x)).mean([2, 3]))


class Shuffle(nn.Module):
    """Chunk, channel shuffle by view and transpose, one half passed on untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(2):
            a, b = x.chunk(2, dim=1)
            x = torch.cat((a, F.relu(self.conv(b))), 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(x.flatten(2).mean(-1))


class Bottleneck(nn.Module):
    """MobileNetV2's block: ReLU6, depthwise convolution, linear bottleneck, sum without activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(6, 12, 1), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6),
        )  # fmt: skip
        self.last = nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        return self.last(x + self.block(x))


class Tied(nn.Module):
    """One convolution used twice between different scales, and an image that meets a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        y = F.relu(self.conv(y) + x)
        return self.head((F.relu(self.conv(y)) - 0.5 * y).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze-excitation, SiLU, LayerNorm, LeakyReLU, PReLU, GELU, softmax: everything that is not homogeneous."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.leaky = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, padding=1), nn.LeakyReLU(0.2)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.norm, self.prelu = nn.GroupNorm(2, 6), nn.PReLU(6)
        self.layer_norm, self.head = nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = self.leaky(self.mid(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = self.prelu(self.norm(x * gate))
        x = F.gelu(self.layer_norm(x.mean((2, 3))))
        return torch.softmax(self.head(F.relu(x)), dim=1)


class UNet(nn.Module):
    """Transposed convolution, nearest and bilinear upsampling, padding, skip by concatenation; two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.up, self.bn = nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6)
        self.merge, self.head, self.aux = nn.Conv2d(12, 6, 3), nn.Conv2d(6, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        skip = F.relu(self.down(x))
        deep = F.relu(self.deep(F.max_pool2d(skip, 2)))
        up = F.relu(self.bn(self.up(deep)))
        merged = F.relu(self.merge(F.pad(torch.cat([skip, up], 1), (1, 1, 1, 1))))
        aux = F.interpolate(self.aux(F.interpolate(deep, scale_factor=2)), size=x.shape[-2:], mode="bilinear")
        return {"out": self.head(merged), "aux": aux}


class Signal(nn.Sequential):
    """A one-dimensional network with transposed convolution."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(2, 6, 5, padding=2), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
            nn.ConvTranspose1d(6, 4, 4, 2, 1, groups=2), nn.BatchNorm1d(4), nn.ReLU(), nn.AdaptiveAvgPool1d(3),
            nn.Flatten(), nn.Linear(12, 5),
        )  # fmt: skip


class Regression(nn.Sequential):
    """A regression network; outputs are values, negative ones too."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


IMAGE = (3, 12, 12)
SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (Chain, IMAGE), "functional": (Functional, (3, 8, 8)), "residual": (Residual, IMAGE),
    "inception": (Inception, IMAGE), "dense": (Dense, IMAGE), "shuffle": (Shuffle, IMAGE),
    "bottleneck": (Bottleneck, IMAGE), "tied": (Tied, IMAGE), "gated": (Gated, IMAGE), "unet": (UNet, IMAGE),
    "signal": (Signal, (2, 24)), "regression": (Regression, (7,)),
}  # fmt: skip


def alexnet() -> nn.Module:
    return _narrow_classifier(lambda: _torchvision("alexnet").AlexNet(num_classes=10), 256 * 36)


def vgg(batch_norm: bool = False) -> nn.Module:
    module, widths = _torchvision("vgg"), [8, "M", 16, "M", 24, 24, "M", 32, 32, "M", 32, 32, "M"]
    features = module.make_layers(widths, batch_norm=batch_norm)
    return _narrow_classifier(lambda: module.VGG(features, num_classes=10, init_weights=False), 32 * 49)


def resnet(block: str = "Bottleneck", **options: Any) -> nn.Module:
    module = _torchvision("resnet")
    return module.ResNet(getattr(module, block), [1, 1, 1, 1], num_classes=10, **options)


def squeezenet() -> nn.Module:
    return _torchvision("squeezenet").SqueezeNet("1_1", num_classes=10)


def densenet() -> nn.Module:
    return _torchvision("densenet").DenseNet(8, (2, 2, 2, 2), 16, num_classes=10)


def googlenet() -> nn.Module:
    module = _torchvision("googlenet")
    conv = partial(_narrow_conv, module.BasicConv2d)
    blocks = [conv, partial(module.Inception, conv_block=conv), None]
    model = module.GoogLeNet(num_classes=10, aux_logits=False, init_weights=False, blocks=blocks)
    model.fc = nn.Linear(1024 // 4, 10)
    return model


def inception_v3() -> nn.Module:
    module = _torchvision("inception")
    conv = partial(_narrow_conv, module.BasicConv2d)
    kinds = [getattr(module, f"Inception{letter}") for letter in "ABCDE"]
    blocks = [conv, *(partial(kind, conv_block=conv) for kind in kinds), None]
    model = module.Inception3(num_classes=10, aux_logits=False, init_weights=False, inception_blocks=blocks)
    model.fc = nn.Linear(2048 // 4, 10)
    return model


def mobilenet_v2() -> nn.Module:
    settings = [[1, 8, 1, 1], [6, 16, 2, 2], [6, 24, 2, 2], [6, 32, 1, 2]]  # expansion, channels, blocks, stride
    return _torchvision("mobilenetv2").MobileNetV2(10, width_mult=0.35, inverted_residual_setting=settings)


def mobilenet_v3() -> nn.Module:
    module = _torchvision("mobilenetv3")
    settings = [(8, 3, 8, 8, True, "RE", 2), (8, 3, 24, 16, False, "RE", 2), (16, 5, 48, 16, True, "HS", 1)]
    configs = [module.InvertedResidualConfig(*setting, 1, 1.0) for setting in settings]
    return module.MobileNetV3(configs, last_channel=32, num_classes=10)


def efficientnet() -> nn.Module:
    module = _torchvision("efficientnet")
    configs = [module.MBConvConfig(1, 3, 1, 8, 8, 1), module.MBConvConfig(4, 5, 2, 8, 16, 2)]
    return module.EfficientNet(configs, dropout=0.2, num_classes=10, last_channel=32)


def efficientnet_v2() -> nn.Module:
    module = _torchvision("efficientnet")
    configs = [module.FusedMBConvConfig(1, 3, 1, 8, 8, 1), module.FusedMBConvConfig(4, 3, 2, 8, 16, 1),
               module.MBConvConfig(4, 3, 2, 16, 16, 2)]  # fmt: skip
    return module.EfficientNet(configs, dropout=0.2, num_classes=10, last_channel=32)


def mnasnet() -> nn.Module:
    return _torchvision("mnasnet").MNASNet(0.35, num_classes=10)


def shufflenet_v2() -> nn.Module:
    return _torchvision("shufflenetv2").ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 128], num_classes=10)


def regnet(se_ratio: float | None = None) -> nn.Module:
    module = _torchvision("regnet")
    params = module.BlockParams([1, 1, 2], [16, 24, 32], [8, 8, 8], [1.0, 1.0, 1.0], [2, 2, 2], se_ratio)
    return module.RegNet(params, num_classes=10, stem_width=8)


def convnext() -> nn.Module:
    module = _torchvision("convnext")
    configs = [module.CNBlockConfig(8, 16, 1), module.CNBlockConfig(16, 24, 2), module.CNBlockConfig(24, None, 1)]
    return module.ConvNeXt(configs, num_classes=10)


def fcn() -> nn.Module:
    """Return the segmentation network with both its heads: a dict of two outputs, upsampled to the image's size."""
    module, utils = _torchvision("segmentation.fcn"), _torchvision("_utils")
    backbone = resnet(replace_stride_with_dilation=[False, True, True])
    features = utils.IntermediateLayerGetter(backbone, {"layer4": "out", "layer3": "aux"})
    return module.FCN(features, module.FCNHead(2048, 5), module.FCNHead(1024, 5))


def repvgg() -> nn.Module:
    """Return three branches to a sum: two convolutions and a BatchNorm that no convolution can take in."""
    module, sizes = _timm("byobnet"), ((1, 16), (2, 24), (1, 32))
    blocks = tuple(module.ByoBlockCfg(type="rep", d=d, c=c, s=2, gs=0, br=1.0) for d, c in sizes)
    return module.ByobNet(module.ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=8), num_classes=10)


def ghostnet() -> nn.Module:
    """Return a network that makes half of its features from the other half and cuts off what is too much."""
    settings = [[[3, 16, 16, 0, 1]], [[3, 48, 24, 0, 2]], [[3, 72, 24, 0.25, 1]]]  # kernel, inner, out, gate, stride
    return _timm("ghostnet").GhostNet(settings, num_classes=10, width=0.5)


def res2net() -> nn.Module:
    """Return residual blocks whose channels are split and passed from one convolution to the next."""
    return _timm("res2net").res2net50_26w_4s(num_classes=10, layers=[1, 1, 1, 1])


def dla() -> nn.Module:
    """Return trees of convolutions, joined by concatenation, with pooled shortcuts."""
    return _timm("dla").dla46x_c(num_classes=10)


def sknet() -> nn.Module:
    """Return branches weighted by a softmax of their own mean."""
    return _timm("sknet").skresnet18(num_classes=10, layers=[1, 1, 1, 1])


def _torchvision(name: str) -> Any:
    return importlib.import_module(f"torchvision.models.{name}")  # when it is needed: it takes seconds


def _timm(name: str) -> Any:
    return importlib.import_module(f"timm.models.{name}")


def _narrow_classifier(build: Callable[[], Any], features: int, width: int = 48) -> nn.Module:
    """Build a network with ``width`` units in place of 4,096, whose hundred million weights take seconds."""
    with torch.device("meta"):
        model = build()
        names = [name for name, layer in model.classifier.named_children() if isinstance(layer, nn.Linear)]
        for name, i, o in zip(names, (features, width, width), (width, width, 10), strict=True):
            setattr(model.classifier, name, nn.Linear(i, o))
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def _narrow_conv(conv: Callable[..., nn.Module], i: int, o: int, **options: Any) -> nn.Module:
    """Build a convolution of a quarter of the channels; an image keeps its three."""
    return conv(i if i == 3 else i // 4, o // 4, **options)


SMALL_IMAGE = (3, 32, 32)
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "alexnet": (alexnet, (3, 64, 64)), "vgg": (vgg, SMALL_IMAGE), "vgg_bn": (partial(vgg, True), SMALL_IMAGE),
    "resnet": (partial(resnet, "BasicBlock"), SMALL_IMAGE), "resnet_bottleneck": (resnet, SMALL_IMAGE),
    "resnext": (partial(resnet, groups=8, width_per_group=8), SMALL_IMAGE),
    "wide_resnet": (partial(resnet, width_per_group=128), SMALL_IMAGE), "squeezenet": (squeezenet, SMALL_IMAGE),
    "densenet": (densenet, SMALL_IMAGE), "googlenet": (googlenet, SMALL_IMAGE), "inception_v3": (inception_v3, (3, 75, 75)),
    "mobilenet_v2": (mobilenet_v2, SMALL_IMAGE), "mobilenet_v3": (mobilenet_v3, SMALL_IMAGE),
    "efficientnet": (efficientnet, SMALL_IMAGE), "efficientnet_v2": (efficientnet_v2, SMALL_IMAGE),
    "mnasnet": (mnasnet, SMALL_IMAGE), "shufflenet_v2": (shufflenet_v2, SMALL_IMAGE),
    "regnet_x": (regnet, SMALL_IMAGE), "regnet_y": (partial(regnet, 0.25), SMALL_IMAGE), "convnext": (convnext, SMALL_IMAGE),
    "fcn": (fcn, SMALL_IMAGE), "repvgg": (repvgg, SMALL_IMAGE), "ghostnet": (ghostnet, SMALL_IMAGE),
    "res2net": (res2net, SMALL_IMAGE), "dla": (dla, SMALL_IMAGE), "sknet": (sknet, SMALL_IMAGE),
}  # fmt: skip

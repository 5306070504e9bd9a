"""Every family of convolutional networks in torchvision, and five of timm, shallow and narrow: their own classes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

__all__ = ["FAMILIES"]


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


IMAGE = (3, 32, 32)
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "alexnet": (alexnet, (3, 64, 64)), "vgg": (vgg, IMAGE), "vgg_bn": (partial(vgg, True), IMAGE),
    "resnet": (partial(resnet, "BasicBlock"), IMAGE), "resnet_bottleneck": (resnet, IMAGE),
    "resnext": (partial(resnet, groups=8, width_per_group=8), IMAGE),
    "wide_resnet": (partial(resnet, width_per_group=128), IMAGE), "squeezenet": (squeezenet, IMAGE),
    "densenet": (densenet, IMAGE), "googlenet": (googlenet, IMAGE), "inception_v3": (inception_v3, (3, 75, 75)),
    "mobilenet_v2": (mobilenet_v2, IMAGE), "mobilenet_v3": (mobilenet_v3, IMAGE), "efficientnet": (efficientnet, IMAGE),
    "efficientnet_v2": (efficientnet_v2, IMAGE), "mnasnet": (mnasnet, IMAGE), "shufflenet_v2": (shufflenet_v2, IMAGE),
    "regnet_x": (regnet, IMAGE), "regnet_y": (partial(regnet, 0.25), IMAGE), "convnext": (convnext, IMAGE),
    "fcn": (fcn, IMAGE),
    "repvgg": (repvgg, IMAGE), "ghostnet": (ghostnet, IMAGE), "res2net": (res2net, IMAGE), "dla": (dla, IMAGE),
    "sknet": (sknet, IMAGE),
}  # fmt: skip

"""Random valid networks from the registered operators: the generator of the fuzzer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.rarer import RARER, RARER_JOINS

__all__ = ["RandomNetwork", "random_network"]

Function = Callable[..., Tensor]
MOST = 3000  # elements of a sample


@dataclass
class Step:
    """One line of a network: what it calls, on which earlier values, and as a person would read it."""

    function: Function
    sources: tuple[int, ...]
    text: str


RUNNING: list[nn.Module] = []


def own() -> Any:
    """Return the network that runs, a copy of the one for which the functions were made, to read its parameters."""
    return RUNNING[0]


class RandomNetwork(nn.Module):
    """Runs its steps one after the other; the outputs are some of the values, as a tensor, tuple or dict."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.steps: list[Step] = []
        self.outputs: list[int] = []
        self.structure = "tensor"

    def forward(self, x: Tensor, z: Tensor | None = None) -> Any:
        RUNNING[:] = [self]
        values: list[Any] = [x] if z is None else [x, z]
        for step in self.steps:
            values.append(step.function(*(values[i] for i in step.sources)))
        chosen = [values[i] for i in self.outputs]
        if self.structure == "dict":
            return {f"out{i}": value for i, value in enumerate(chosen)}
        return chosen[0] if self.structure == "tensor" else tuple(chosen)

    def __str__(self) -> str:
        """List the steps."""
        lines = [f"v{self.inputs + i} = {s.text} <- {s.sources}" for i, s in enumerate(self.steps)]
        return "\n".join([*lines, f"return {self.structure} {self.outputs}"])


class Builder:
    """Draws steps at random; one that torch refuses, or whose batch is not dimension 0, is drawn anew."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = 0
        self.calls: list[tuple[Function, str]] = []  # of layers, to call one again

    def choice(self, *options: Any) -> Any:
        return self.r.choice(options)

    def layer(self, net: nn.Module, module: Any) -> Any:
        """Add a layer to the network and return what calls it."""
        self.layers += 1
        name = f"layer{self.layers}"
        net.add_module(name, module.double().eval())
        for m in module.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
                m.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
                m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        call = lambda *values: getattr(own(), name)(*values)  # noqa: E731, PLW0108 (of the network that runs then)
        self.calls.append((call, f"{name} again"))
        return call

    def again(self, net: nn.Module, v: Tensor) -> tuple[Function, str]:
        """Call a layer that is there already; where it does not fit, torch refuses."""
        return self.choice(*self.calls)

    def parameter(self, net: nn.Module, *shape: int) -> str:
        self.layers += 1
        name = f"constant{self.layers}"
        value = torch.randn(*shape, dtype=torch.float64)
        if self.choice(True, False):
            net.register_parameter(name, nn.Parameter(value))
        else:
            net.register_buffer(name, value)
        return name

    def constant(self, net: nn.Module, *shape: int) -> Callable[[], Tensor]:
        """Add a parameter or buffer and return what reads it."""
        name = self.parameter(net, *shape)
        return lambda: getattr(own(), name)

    def activation(self, net: nn.Module, v: Tensor) -> tuple[Function, str]:
        dim = self.r.randrange(1, v.dim())
        return self.choice(
            (F.relu, "F.relu"), (lambda x: x.relu(), ".relu()"), (torch.relu, "torch.relu"),
            (self.layer(net, nn.ReLU()), "nn.ReLU"), (self.layer(net, nn.ReLU(inplace=True)), "nn.ReLU(inplace)"),
            (lambda x: F.relu(x, inplace=True), "F.relu(inplace)"), (lambda x: x.relu_(), ".relu_()"),
            (F.relu6, "F.relu6"), (lambda x: x.clamp(min=0), "clamp(min=0)"),
            (lambda x: torch.clamp(x, 0, 1.5), "clamp(0, 1.5)"), (lambda x: F.hardtanh(x, 0, 2.0), "F.hardtanh(0, 2)"),
            (lambda x: F.leaky_relu(x, 0.1), "F.leaky_relu"), (lambda x: x.sigmoid(), ".sigmoid()"),
            (torch.tanh, "torch.tanh"), (F.silu, "F.silu"), (lambda x: x.abs(), ".abs()"),
            (lambda x: F.softmax(x, dim), f"F.softmax({dim})"),
        )  # fmt: skip

    def weights(self, net: nn.Module, v: Tensor) -> tuple[Function, str]:
        C, last, r = v.shape[1], v.shape[-1], self.r
        out, bias = r.choice((1, 2, 4, 6)), r.choice((True, False))
        if r.random() < 0.4:
            if r.random() < 0.5:
                return self.layer(net, nn.Linear(last, out, bias)), f"nn.Linear({last}, {out}, {bias})"
            name = self.parameter(net, last, out)
            return self.choice(
                (lambda x: x @ getattr(own(), name), f"@ [{last}, {out}]"),
                (lambda x: torch.matmul(x, getattr(own(), name)), "torch.matmul"),
                (lambda x: F.linear(x, getattr(own(), name).t()), "F.linear"),
            )
        dims = v.dim() - 2
        if dims not in (1, 2, 3):
            return self.layer(net, nn.BatchNorm1d(C)), "nn.BatchNorm1d"
        kind = r.choice(("conv", "conv", "up", "norm", "functional"))
        if kind == "norm":
            return self.layer(net, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](C)), "BatchNorm"
        k, groups = r.choice((1, 2, 3)), C if r.random() < 0.2 else 1
        out = out * C if groups > 1 else out
        if kind == "up":
            stride = r.choice((1, 2))
            module = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1](
                C, out, k, stride, bias=bias, groups=groups
            )
            return self.layer(net, module), f"ConvTranspose({C}, {out}, {k}, {stride}, groups={groups})"
        padding, dilation = r.choice((0, 1)), r.choice((1, 1, 2))
        if kind == "functional":
            name = self.parameter(net, out, C // groups, *[k] * dims)
            function: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
            return (
                lambda x: function(x, getattr(own(), name), padding=padding, dilation=dilation, groups=groups),
                f"F.conv(padding={padding}, dilation={dilation}, groups={groups})",
            )
        mode = r.choice(("zeros", "zeros", "reflect", "circular", "replicate")) if dims < 3 else "zeros"
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        module = conv(C, out, k, r.choice((1, 1, 2)), padding, dilation, groups, bias, mode)
        return self.layer(net, module), f"{module}"

    def pool(self, net: nn.Module, v: Tensor) -> tuple[Function, str]:
        r, dims = self.r, r_dims(v)
        d = r.choice(dims) if dims else 1
        k, s, p, ceil = r.choice((2, 3)), r.choice((None, 1, 2)), r.choice((0, 1)), r.choice((True, False))
        average: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[d - 1]
        m = min(max(1, v.dim() - 2), 3)
        largest: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[m - 1]
        adaptive: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[d - 1]
        pad = r.choice((True, False))
        dims_out = tuple(sorted(r.sample(range(1, v.dim()), r.randint(1, max(1, v.dim() - 2)))))
        keep = r.choice((True, False))
        return self.choice(
            (lambda x: average(x, k, s, p, ceil, pad), f"avg_pool{d}d({k}, {s}, {p}, {ceil}, {pad})"),
            (lambda x: largest(x, k, s, p, 1, ceil), f"max_pool{m}d({k}, {s}, {p}, ceil={ceil})"),
            (self.layer(net, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[m - 1](k, s, p)), f"nn.MaxPool{m}d({k})"),
            (lambda x: adaptive(x, 2), f"adaptive_avg_pool{d}d(2)"),
            (self.layer(net, (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)[d - 1](1, k, s, ceil)), f"LPPool{d}d(1, {k})"),
            (lambda x: x.mean(dims_out, keepdim=keep), f"mean({dims_out}, {keep})"),
            (lambda x: torch.sum(x, dims_out, keepdim=keep), f"sum({dims_out}, {keep})"),
        )

    def movement(self, net: nn.Module, v: Tensor) -> tuple[Function, str]:
        r = self.r
        a, b = (r.randrange(1, v.dim()) for _ in range(2))
        n = v.shape[a]
        order = [0, *r.sample(range(1, v.dim()), v.dim() - 1)]
        parts, cut, shift = r.randint(1, 3), r.randint(0, max(0, n - 1)), r.randint(-2, 2)
        low, high, value = r.randint(0, 2), r.randint(0, 2), r.choice((0.0, 0.0, 0.5))
        mode = r.choice(("reflect", "replicate", "circular"))
        pad = [v_ for _ in range(r.randint(1, v.dim() - 1)) for v_ in (r.randint(0, 1), r.randint(0, 2))]
        at = (slice(None),) * a
        i = r.randint(-parts, parts - 1)
        return self.choice(
            (lambda x: x.flatten(1), "flatten(1)"), (lambda x: x.transpose(a, b), f"transpose({a}, {b})"),
            (lambda x: x.permute(order), f"permute({order})"), (lambda x: x.swapaxes(a, b), f"swapaxes({a}, {b})"),
            (lambda x: torch.movedim(x, a, b), f"movedim({a}, {b})"), (lambda x: x.mT, "mT"),
            (lambda x: x.view(x.size(0), -1), "view(N, -1)"), (lambda x: x.reshape(len(x), -1), "reshape(N, -1)"),
            (lambda x: x.chunk(parts, a)[i], f"chunk({parts}, {a})[{i}]"),
            (lambda x: torch.split(x, max(1, n // 2), a)[-1], f"split({n // 2}, {a})[-1]"),
            (lambda x: x.unbind(a)[cut], f"unbind({a})[{cut}]"), (lambda x: x.unsqueeze(a), f"unsqueeze({a})"),
            (lambda x: x.squeeze(a), f"squeeze({a})"), (lambda x: x.flip(a), f"flip({a})"),
            (lambda x: x.roll(shift, a), f"roll({shift}, {a})"),
            (lambda x: x[(*at, slice(cut, None, r_step(shift)))], f"[{cut}::{r_step(shift)}] at {a}"),
            (lambda x: x.narrow(a, cut, n - cut), f"narrow({a}, {cut})"),
            (lambda x: x.repeat(1, 2, *[1] * (x.dim() - 2)), "repeat(1, 2)"),
            (lambda x: F.pad(x, pad, value=value), f"F.pad({pad}, value={value})"),
            (lambda x: F.pad(x, (low, high), mode=mode), f"F.pad(({low}, {high}), {mode})"),
            (lambda x: F.interpolate(x, scale_factor=2), "interpolate(2)"),
            (lambda x: torch.cat(x.chunk(parts, a)[::-1], a), f"cat(chunk({parts}, {a})[::-1])"),
            (lambda x: x.contiguous().clone().detach(), "copies"),
            (lambda x: F.pixel_shuffle(x, 2), "pixel_shuffle(2)"),
        )  # fmt: skip

    def arithmetic(self, net: nn.Module, v: Tensor) -> tuple[Function, str]:
        r = self.r
        c = round(r.uniform(-2, 2), 2) or 1.0
        shape = [1, *(size if r.random() < 0.5 else 1 for size in v.shape[1:])]
        name = self.parameter(net, *shape)
        token = self.parameter(net, 1, *v.shape[1:])
        dim = r.randrange(1, v.dim())
        expand = [-1] * (v.dim() - 1)
        return self.choice(
            (lambda x: x * c, f"* {c}"), (lambda x: x / c, f"/ {c}"), (lambda x: c - x, f"{c} - x"),
            (lambda x: x + c, f"+ {c}"), (lambda x: -x, "-x"), (lambda x: x.div(c), f"div({c})"),
            (lambda x: x + getattr(own(), name), f"+ {shape}"), (lambda x: x * getattr(own(), name), f"* {shape}"),
            (lambda x: x.mul_(c), f"mul_({c})"), (lambda x: x.add_(c), f"add_({c})"),
            (lambda x: torch.add(x, x.mean(dim, keepdim=True), alpha=-1), f"x - mean({dim})"),
            (lambda x: torch.cat([getattr(own(), token).expand(x.size(0), *expand), x], dim), f"cat(token, x, {dim})"),
            (lambda x: torch.cat([x, torch.zeros_like(x)], dim), f"cat(x, zeros, {dim})"),
            (lambda x: x * x.mean(dim, keepdim=True), f"x * mean({dim})"),
        )  # fmt: skip

    def join(self, a: Tensor, b: Tensor) -> tuple[Function, str]:
        dim = self.r.randrange(1, a.dim())
        alpha = self.choice(1, 0.5, -1)
        return self.choice(
            (lambda x, y: x + y, "x + y"), (lambda x, y: x - y, "x - y"), (lambda x, y: x * y, "x * y"),
            (lambda x, y: torch.add(x, y, alpha=alpha), f"add(alpha={alpha})"),
            (lambda x, y: torch.cat([x, y], dim), f"cat({dim})"), (lambda x, y: torch.stack([x, y], dim), "stack"),
            (lambda x, y: x.add_(y), "x.add_(y)"), (lambda x, y: x @ y.transpose(1, -1), "x @ y^T"),
        )  # fmt: skip


def r_step(shift: int) -> int:
    return abs(shift) or 1


def r_dims(v: Tensor) -> list[int]:
    """Return over how many dimensions a pool can work: of [N, F] one, as torch pools features then."""
    return [d for d in (1, 2, 3) if d <= v.dim() - 1]


def random_network(seed: int) -> tuple[RandomNetwork, tuple[Tensor, ...]]:
    """Return a network and inputs of four samples, in float64."""
    build = Builder(seed)
    r = build.r
    shapes = {1: (6,), 2: (3, 8), 3: (3, 6, 4)}
    inputs = tuple(
        torch.randn(4, *shapes[r.choice((1, 2, 3, 3))], dtype=torch.float64) for _ in range(r.choice((1, 1, 1, 2)))
    )
    net = RandomNetwork(len(inputs)).double().eval()
    values: list[Tensor] = [*inputs]
    groups: list[Any] = (
        [build.activation] * 3 + [build.weights] * 4 + [build.pool, build.movement, build.movement, build.arithmetic]
    )
    if seed % 2:
        groups += [partial(rarer, build) for rarer in RARER] + [build.again]
    wanted, spiking = r.randint(3, 10), False
    for _ in range(20 * wanted):
        if len(net.steps) >= wanted and spiking:
            break
        pair = r.random() < 0.25 and len(values) > 1
        sources = tuple(r.sample(range(max(0, len(values) - 4), len(values)), 2)) if pair else (len(values) - 1,)
        try:
            draw = r.choice(groups)
            joined = partial(RARER_JOINS, build) if seed % 2 and r.random() < 0.5 else build.join
            function, text = joined(*(values[i] for i in sources)) if pair else draw(net, values[sources[0]])
            net.steps.append(Step(function, sources, text))
            found = _values(net, inputs)
            two = _values(net, tuple(value[:2] for value in inputs))
        except Exception:  # noqa: BLE001 (what torch does not take)
            net.steps = net.steps[: len(values) - len(inputs)]
            continue
        good = all(_good(a, b) for a, b in zip(found, two, strict=True))
        if not good:
            net.steps.pop()
            continue
        values = found
        spiking = spiking or (not pair and draw == build.activation)
    last = len(values) - 1
    more = r.choice((0, 0, 1, 2))
    net.outputs = [last, *r.sample(range(len(inputs), last), min(more, max(0, last - len(inputs))))]
    net.structure = "tensor" if len(net.outputs) == 1 else r.choice(("tuple", "dict"))
    return net, inputs


def _values(net: RandomNetwork, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    values = [value.clone() for value in inputs]
    RUNNING[:] = [net]
    with torch.no_grad():
        for step in net.steps:
            values.append(step.function(*(values[i] for i in step.sources)))
    return values


def _good(a: Any, b: Any) -> bool:
    """Return whether a value is a moderate tensor whose rows are the samples."""
    tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
    if not tensors or a.dim() < 2 or a.shape[0] != 4 or b.shape != (2, *a.shape[1:]) or not 0 < a[0].numel() <= MOST:
        return False
    same = torch.allclose(a[:2], b, rtol=1e-6, atol=1e-9)
    return same and a.dim() <= 5 and bool(a.isfinite().all()) and 1e-3 < float(a.abs().max()) < 100

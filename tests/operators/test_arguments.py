"""Every registered function and method, with every optional argument: converted right, or refused in words of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.operators import operators

Y, P, V = "another tensor of data", "a parameter", "a vector of parameters"
NUMBERS = {"size", "dim", "ndimension", "numel", "len", "getattr", "getitem", "with_item"}  # tried in other tests
DIMS: list[tuple[Any, ...]] = [(1,), (-1,), ((2, 3),), ((1, 3),)]
REDUCTIONS = [(d, k) for d in DIMS for k in ({}, {"keepdim": True})] + [((), {"dim": 2, "dtype": torch.float64})]
TWO = [((Y,), {}), ((P,), {}), ((0.5,), {}), ((), {"other": Y})]
ROUNDS = [((0.3,), {}), ((), {}), ((Y,), {})]
# name without its home: (arguments, keywords) of calls f(y, *arguments, **keywords)
CALLS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    **dict.fromkeys(("softmax", "log_softmax"), [((1,), {}), ((), {"dim": -1}), ((1,), {"dtype": torch.float64})]),
    **dict.fromkeys(
        ("sigmoid", "tanh", "neg", "negative", "exp", "sign", "abs", "square", "contiguous", "sqrt", "log"),
        [((), {})],
    ),
    "layer_norm": [(((4,),), {}), (((4,),), {"weight": V, "bias": V, "eps": 0.1})],
    "rms_norm": [(((4,),), {}), (((4,),), {"weight": V, "eps": 0.1})],
    "group_norm": [((2,), {}), ((2,), {"weight": V, "bias": V, "eps": 0.1})],
    "normalize": [((), {}), ((), {"p": 1.0, "dim": 2, "eps": 0.1})],
    "clamp": [((0.1, 0.9), {}), ((), {"min": 0.1}), ((), {"max": 0.5}), ((), {"min": P})],
    "local_response_norm": [((2,), {}), ((2,), {"alpha": 0.1, "beta": 0.5, "k": 2.0})],
    **dict.fromkeys(("add", "sub", "subtract"), [*TWO, ((Y,), {"alpha": -0.5}), ((0.5,), {"alpha": 2})]),
    **dict.fromkeys(("mul", "multiply", "div", "divide", "true_divide", "truediv"),
                    [*TWO[:-1], ((0.5,), {"rounding_mode": "floor"}), ((0.5,), {"rounding_mode": None})]),
    **dict.fromkeys(("iadd", "isub", "imul", "itruediv", "add_", "sub_", "mul_", "div_"), [((Y,), {}), ((0.5,), {})]),
    **dict.fromkeys(("floordiv", "ifloordiv", "mod", "floor_divide", "remainder", "fmod"), [((0.3,), {}), ((Y,), {})]),
    **dict.fromkeys(("floor", "ceil", "round", "trunc", "frac"), [((), {})]),
    "pow": [((2,), {}), ((), {"exponent": 3})],
    **dict.fromkeys(("maximum", "minimum"), [((Y,), {}), ((P,), {})]),
    "matmul": [((P,), {}), ((Y,), {})],
    "mm": [((P,), {})], "bmm": [((Y,), {})], "einsum": [((P,), {}), ((Y,), {})],
    "tensordot": [((P,), {"dims": ([1], [0])}), ((P,), {"dims": 1})],
    "flatten": [((1,), {}), ((1, 2), {}), ((), {"start_dim": -2}), ((0, 1), {})],
    "unflatten": [((1, (2, 2)), {})],
    "view": [((4, -1), {}), ((-1, 4, 16), {})], "reshape": [(((4, 4, 16),), {}), (((4, -1),), {})],
    **dict.fromkeys(("transpose", "swapaxes"), [((1, 2), {}), ((-1, -2), {}), ((0, 1), {})]),
    "permute": [(((0, 2, 3, 1),), {}), (((1, 0, 2, 3),), {})],
    "movedim": [((1, 3), {}), (((1, 2), (2, 1)), {})],
    "squeeze": [((), {}), ((1,), {}), (((1, 2),), {})], "unsqueeze": [((1,), {}), ((-1,), {})],
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), [((1,), {}), ((), {"dim": -1}), ((), {})]),
    "chunk": [((2, 1), {}), ((2,), {"dim": 2}), ((2,), {})], "split": [((2, 1), {}), (([1, 3],), {"dim": 1})],
    "unbind": [((1,), {}), ((-1,), {})], "narrow": [((1, 1, 2), {})], "t": [((), {})],
    "roll": [((1, 1), {}), (((1, 2), (2, 3)), {}), ((1,), {})], "flip": [((1,), {}), (((1, 2),), {})],
    "expand": [((4, 4, 4, 4), {}), ((-1, -1, -1, -1), {})], "repeat": [((1, 2, 1, 1), {}), ((2, 1, 1, 1), {})],
    **{f"avg_pool{d}d": [((2,), {}), ((2,), {"stride": 1, "padding": 1, "ceil_mode": True, "count_include_pad": False})]
       for d in (1, 2, 3)},
    **dict.fromkeys(("mean", "sum"), REDUCTIONS), **dict.fromkeys(("amax", "amin"), [*REDUCTIONS[:-1], ((), {})]),
    **dict.fromkeys(("max", "min"), [((), {}), ((1,), {}), ((Y,), {})]),
    **{f"adaptive_avg_pool{d}d": [((2,), {})] for d in (1, 2, 3)},
    **{f"max_pool{d}d": [((2,), {}), ((2, 1, 1), {"ceil_mode": True}), ((2,), {"dilation": 2}),
                         ((2,), {"return_indices": True})] for d in (1, 2, 3)},
    **dict.fromkeys(("interpolate", "upsample"), [
        ((), {"scale_factor": 2}), ((6,), {}), ((6,), {"mode": "bilinear", "align_corners": True}),
        ((6,), {"mode": "bicubic"}), ((6,), {"mode": "bilinear", "antialias": True}),
        ((6,), {"mode": "nearest-exact"})]),
    "pad": [(((1, 2),), {}), (((1, 1, 1, 1, 1, 2),), {}), (((1, 1),), {"value": 0.5}), (((1, 1),), {"value": -0.5}),
            (((1, 1, 1, 1),), {"mode": "reflect"}), (((1, 1, 1, 1),), {"mode": "circular"})],
    "glu": [((1,), {}), ((), {"dim": 2}), ((), {})],
    **dict.fromkeys(("std", "var"), [((1,), {}), (((2, 3),), {"keepdim": True}), ((), {"dim": 1, "correction": 0})]),
    "norm": [((2, 1), {}), ((), {"p": 1, "dim": (2, 3), "keepdim": True}), ((1, -1), {}), ((), {"dim": 1})],
    **dict.fromkeys(("linalg_norm", "linalg_vector_norm"),
                    [((2, 1), {}), ((), {"dim": (2, 3), "keepdim": True}), ((), {"ord": 1, "dim": 1})]),
    "cosine_similarity": [((Y,), {}), ((Y,), {"dim": 2, "eps": 0.1}), ((P,), {"dim": -1})],
    "pairwise_distance": [((Y,), {}), ((Y,), {"p": 1.0, "eps": 0.1, "keepdim": True})],
    "cdist": [((Y,), {}), ((P,), {"p": 1.0})],
    **dict.fromkeys(("erf", "reciprocal", "rsqrt", "log1p", "expm1", "sin", "cos", "atan"), [((), {})]),
    "hypot": [((Y,), {}), ((P,), {})], "logsumexp": [((1,), {}), (((2, 3), True), {})],
    "prod": [((1,), {}), ((), {"dim": 2, "keepdim": True})],
    "cumsum": [((1,), {}), ((), {"dim": -1}), ((0,), {})],
    "where_compared": [], "where": [],  # tried by name below
    **dict.fromkeys(
        ("gt", "ge", "lt", "le", "eq", "ne", "greater", "less", "greater_equal", "less_equal", "and_", "or_",
         "logical_and", "logical_or"), [((0.3,), {}), ((Y,), {})]),
    **dict.fromkeys(("logical_not", "bitwise_not", "invert", "__invert__", "argmax", "argmin", "sort", "argsort"),
                    [((), {})]),
    "topk": [((2,), {}), ((2, 1), {"largest": False})],
    "heaviside": [((Y,), {})],
    "to": [((torch.float32,), {}), ((torch.float64,), {})], "type": [((torch.float32,), {})],
    **dict.fromkeys(("float", "double", "half", "bfloat16", "int", "long", "short", "bool", "cfloat", "cdouble"),
                    [((), {})]),
    **dict.fromkeys(("swapdims",), [((1, 2), {}), ((0, 1), {})]), "moveaxis": [((1, 3), {})], "ravel": [((), {})],
    **dict.fromkeys(("tril", "triu"), [((), {}), ((1,), {}), ((), {"diagonal": -1})]),
    "rot90": [((1, (2, 3)), {}), ((), {})], "broadcast_to": [((4, 4, 4, 4), {}), (((2, 4, 4, 4, 4),), {})],
    "unfold": [((2, 2, 1), {}), ((2,), {}), ((2,), {"stride": 2, "padding": 1, "dilation": 2})],
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"), [((2,), {})]),
    "diagonal": [((0, 1, 2), {}), ((), {"dim1": -1, "dim2": -2, "offset": 1}), ((), {})],
}  # fmt: skip


def base(name: str) -> str:
    return name.rpartition(".")[2]


def targets() -> dict[str, Any]:
    return {name: target for name, target in operators.keys().items() if not isinstance(target, type)}


def cases() -> Iterator[tuple[str, Any, tuple[Any, ...], dict[str, Any]]]:
    for name, target in targets().items():
        for args, kwargs in CALLS.get(base(name), []):
            yield name, target, args, kwargs


class Calling(nn.Module):
    """ReLU of a convolution, a call, and what follows from its first tensor."""

    def __init__(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.target, self.args, self.kwargs = target, args, kwargs
        self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.matrix, self.vector = nn.Parameter(torch.rand(4, 4) + 0.1), nn.Parameter(torch.rand(4) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x)) + 0.0
        if base(getattr(self.target, "__name__", str(self.target))) in ("sqrt", "log", "reciprocal", "rsqrt"):
            y = y + 1.0
        there = {Y: F.relu(self.other(x)) + 0.2, P: self.matrix, V: self.vector}
        fill = lambda value: there.get(value, value) if isinstance(value, str) else value  # noqa: E731
        args, kwargs = [fill(a) for a in self.args], {k: fill(v) for k, v in self.kwargs.items()}
        if self.target in ("mm", torch.mm):
            y = y.mean((2, 3))
        if self.target in ("bmm", torch.bmm):
            y, args = y.flatten(2), [args[0].flatten(2).transpose(1, 2)]
        if self.target in (torch.cat, torch.concat, torch.concatenate, torch.stack):
            return F.relu(self.target([y, there[Y]], *args, **kwargs) - 0.1)
        if self.target is torch.einsum:
            equation = "nchw,cd->ndhw" if args[0] is self.matrix else "nchw,nchd->nwd"
            return F.relu(torch.einsum(equation, y, *args) - 0.1)
        called = getattr(y, self.target) if isinstance(self.target, str) else None
        z: Any = called(*args, **kwargs) if called is not None else self.target(y, *args, **kwargs)
        z = z[0] if isinstance(z, (tuple, list)) else z
        return F.relu(z - 0.1) * 0.5


def test_no_registered_call_is_left_out() -> None:
    assert {base(name) for name in targets()} - NUMBERS <= CALLS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target", "args", "kwargs"), list(cases()))
@pytest.mark.filterwarnings("ignore")
def test_an_argument_is_converted_right_or_refused(
    name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    ann = Calling(target, args, kwargs).double().eval()
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    try:
        with torch.no_grad():
            expected = ann(x.clone())
    except (TypeError, RuntimeError, NotImplementedError, ValueError, IndexError):
        pytest.skip("torch does not take this call")
    recipe = cx.Recipe(cx.Maximum(granularity=cx.PerChannel()))
    try:
        snn = cx.convert(ann, x.clone(), recipe=recipe, backend="reference", progress=False)
    except cx.UnsupportedError:
        return
    except cx.CalibrationError as error:  # every number a sample of its own, so there are no channels
        if "they have no dimension but the batch; name another, or use PerLayer()" not in str(error):
            raise
        return
    short, long = cx.simulate(snn, x, 512, at=(32, 512)).outputs
    first, last = (
        float((out - expected).abs().max()) / max(float(expected.abs().max()), 1e-3) for out in (short, long)
    )
    assert last < 0.02 or last < 0.3 * first

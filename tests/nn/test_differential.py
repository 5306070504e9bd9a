"""The differential operator: sum(out) = t f(mean(in)) at every t; and the channel scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conversion_ext.nn import ChannelScale, Differential
from conversion_ext.types import Family, Steps


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def group_norm(x: np.ndarray) -> np.ndarray:
    groups = x.reshape(x.shape[0], 2, -1)
    spread = np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    return ((groups - groups.mean(-1, keepdims=True)) / spread).reshape(x.shape)


FUNCTIONS: dict[str, tuple[nn.Module | Callable[..., Any], Callable[[np.ndarray], np.ndarray]]] = {
    "sigmoid": (nn.Sigmoid(), sigmoid),
    "silu": (F.silu, lambda x: x * sigmoid(x)),
    "gelu": (F.gelu, gelu),
    "tanh": (torch.tanh, np.tanh),
    "hardswish": (nn.Hardswish(), lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "leaky": (partial(F.leaky_relu, negative_slope=0.1), lambda x: np.where(x > 0, x, 0.1 * x)),
    "softmax": (nn.Softmax(1), softmax),
    "group norm": (nn.GroupNorm(2, 4), group_norm),
    "pool": (lambda x: x.mean((2, 3)) ** 2, lambda x: x.mean((2, 3)) ** 2),  # another shape comes out
}


@pytest.mark.parametrize(("function", "by_hand"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_sum_of_outputs_is_t_f_of_the_mean(
    function: nn.Module | Callable[..., Any], by_hand: Callable[[np.ndarray], np.ndarray]
) -> None:
    T = 16
    x_seq = 2 * torch.randn(T, 3, 4, 5, 2, dtype=torch.float64)
    module = Differential(function)
    module.to(torch.float64)
    total = np.zeros(())
    for t in range(1, T + 1):
        total = total + module(x_seq[t - 1]).detach().numpy()
        expected = t * by_hand(x_seq[:t].numpy().mean(0))
        assert np.abs(total - expected).max() < 1e-12
    module.reset()
    module.step_mode = "m"
    assert np.abs(module(x_seq).detach().numpy().sum(0) - expected).max() < 1e-12


def test_several_inputs_broadcast_as_in_squeeze_excitation() -> None:
    T, N = 12, 2
    x_seq = torch.randn(T, N, 4, 5, 5, dtype=torch.float64)
    gate_seq = torch.rand(T, N, 4, 1, 1, dtype=torch.float64)
    module = Differential(torch.mul, inputs=2)
    y = module(x_seq.flatten(0, 1), gate_seq.flatten(0, 1), Steps(T)).unflatten(0, (T, N))
    for t in range(1, T + 1):
        expected = t * x_seq[:t].numpy().mean(0) * gate_seq[:t].numpy().mean(0)
        assert np.abs(y[:t].numpy().sum(0) - expected).max() < 1e-12

    # the gate does not depend on time and arrives once
    static = Differential(torch.mul, inputs=2)
    static.static_inputs = (False, True)
    y = static(x_seq.flatten(0, 1), gate_seq[0], Steps(T, constant=True)).unflatten(0, (T, N))
    assert np.abs(y.numpy().sum(0) - (x_seq.sum(0) * gate_seq[0]).numpy()).max() < 1e-12


def test_function_is_called_once_for_all_steps() -> None:
    calls: list[tuple[int, ...]] = []

    def square(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return x * x

    Differential(square)(torch.rand(8 * 3, 5), Steps(8))
    assert calls == [(24, 5)]


def test_constant_bound_arguments_and_a_constant_input() -> None:
    # a constant input gives f(x) at every step: nothing to correct
    x = torch.randn(4, 6, dtype=torch.float64)
    module = Differential(partial(torch.clamp, min=-0.5, max=0.5), step_mode="m")
    y_seq = module(x.expand(10, 4, 6))
    assert torch.allclose(y_seq, x.clamp(-0.5, 0.5).expand(10, 4, 6), rtol=0, atol=1e-13)


def test_gradients_are_those_of_finite_differences() -> None:
    module = Differential(torch.mul, inputs=2, step_mode="m")

    def run(a: Tensor, b: Tensor) -> Tensor:
        module.reset()
        return module(a, b)

    a, b = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(run, (a.requires_grad_(), b.requires_grad_()))


def test_narrow_dtypes_accumulate_wide_and_keep_weights_wide() -> None:
    # in bfloat16 a sum of 1000 steps of 0.1 stops growing at 32, and t f(mean) has steps of 4
    T = 1000
    x_seq = torch.full((T, 1, 4), 0.1, dtype=torch.bfloat16)
    x_seq[:, :, 2:] = 0.3
    norm = nn.LayerNorm(4)
    nn.init.uniform_(norm.weight)
    expected = norm(x_seq[0].float())
    module = Differential(norm, step_mode="m").to(torch.bfloat16)
    y_seq = module(x_seq)
    assert y_seq.dtype == torch.bfloat16
    assert norm.weight.dtype == torch.float32
    assert (y_seq.double().mean(0) - expected).abs().max() < 0.01
    assert Differential(nn.LayerNorm(4, dtype=torch.float16)).function.weight.dtype == torch.float32
    assert Differential(nn.LayerNorm(4, dtype=torch.float64)).function.weight.dtype == torch.float64


def test_it_says_that_it_is_graded() -> None:
    module = Differential(torch.mul, inputs=2)
    assert not module.binary
    assert module.family_out(Family.BINARY, Family.BINARY) is Family.GRADED
    assert "mul, inputs=2" in repr(module)


def test_weights_of_the_function_are_in_the_state_dict() -> None:
    assert set(Differential(nn.PReLU(3)).state_dict()) == {"function.weight"}


def test_bad_arguments_say_what_to_do() -> None:
    with pytest.raises(TypeError, match="function or a module"):
        Differential(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs=0"):
        Differential(torch.mul, inputs=0)
    with pytest.raises(ValueError, match="one tensor"):
        Differential(torch.sum)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="tuple"):
        Differential(lambda x: (x, x))(torch.zeros(2, 3))


def test_channel_scale() -> None:
    scale = torch.tensor([0.5, 2.0, 3.0]).view(1, 3, 1, 1)
    module = ChannelScale(scale)
    x_seq = torch.rand(4, 2, 3, 5, 5)
    for c, factor in enumerate((0.5, 2.0, 3.0)):
        assert torch.equal(module(x_seq[0])[:, c], factor * x_seq[0, :, c])
        assert torch.equal(module(x_seq)[:, :, c], factor * x_seq[:, :, c])  # with a time axis in front
    assert set(module.state_dict()) == {"scale"}
    assert not list(module.parameters())
    assert "0.5 ... 3" in repr(module)
    assert module.family_out(Family.BINARY) is Family.ANALOG


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_channel_scale_refuses(bad: float) -> None:
    with pytest.raises(ValueError, match="finite number other than 0"):
        ChannelScale(torch.tensor([1.0, bad]))

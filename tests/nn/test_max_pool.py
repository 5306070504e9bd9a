"""Law 5 and the gates of the spiking max-pool, against windows enumerated by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conversion_ext.errors import UnsupportedError
from conversion_ext.nn import SpikingMaxPool, SpikingMaxPool1d, SpikingMaxPool2d, SpikingMaxPool3d
from conversion_ext.nn.max_pool import METHODS
from conversion_ext.types import Family

POOLS = (SpikingMaxPool1d, SpikingMaxPool2d, SpikingMaxPool3d)
STOCK = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
GATES = ("fir", "average", "exponential", "first-spike")


# --- the oracle: plain loops over windows ---------------------------------------------------------------------------


def intervals(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> list[list[int]]:
    """The input positions of each window along one dimension."""
    span = dilation * (kernel - 1) + 1
    count = (math.ceil if ceil else math.floor)((size + 2 * padding - span) / stride) + 1
    if ceil and (count - 1) * stride >= size + padding:  # a window must start inside the input or its left padding
        count -= 1
    starts = [i * stride - padding for i in range(count)]
    return [[p for p in range(s, s + span, dilation) if 0 <= p < size] for s in starts]


def adaptive_intervals(size: int, out: int) -> list[list[int]]:
    return [list(range(i * size // out, -(-(i + 1) * size // out))) for i in range(out)]


def pool_by_hand(x: np.ndarray, per_dim: list[list[list[int]]], method: str) -> np.ndarray:
    """Pool x [T, N, C, spatial] step by step, window by window."""
    T, N, C = x.shape[:3]
    out = np.zeros((T, N, C, *(len(d) for d in per_dim)))
    for n, c in itertools.product(range(N), range(C)):
        for place in itertools.product(*(range(len(d)) for d in per_dim)):
            window = list(itertools.product(*(d[i] for d, i in zip(per_dim, place, strict=True))))  # row by row
            train = np.array([[x[(t, n, c, *position)] for position in window] for t in range(T)])
            out[(slice(None), n, c, *place)] = pool_window(train, method)
    return out


def pool_window(train: np.ndarray, method: str) -> list[float]:
    """Pool the inputs [T, K] of one window."""
    out, q, chosen = [], [0.0] * train.shape[1], None
    for t, x in enumerate(train.tolist(), start=1):
        if method == "instant":
            out.append(max(x))
        elif method == "count":
            out.append(max(train[:t].sum(0)) - (max(train[: t - 1].sum(0)) if t > 1 else 0))
        elif method == "first-spike":
            if chosen is None and max(x) > 0:
                chosen = next(k for k, spike in enumerate(x) if spike > 0)
            out.append(0.0 if chosen is None else x[chosen])
        else:
            if method == "fir":
                q = [a + b / t for a, b in zip(q, x, strict=True)]
            elif method == "average":
                q = list(train[:t].sum(0) / t)
            else:  # as snn_toolbox codes it
                q = [1.005 * a + 0.995 * b for a, b in zip(q, x, strict=True)]
            out.append(x[q.index(max(q))])
    return out


def geometry(dims: int) -> tuple[list[int], dict[str, Any], list[list[list[int]]]]:
    """Draw an input size and a pool that fits it, with at least one input in every window."""
    while True:
        kernel = [random.randint(1, 4) for _ in range(dims)]
        dilation = [random.randint(1, 2) for _ in range(dims)]
        stride = [random.randint(1, 3) for _ in range(dims)]
        padding = [random.randint(0, k // 2) for k in kernel]
        ceil = random.random() < 0.5
        size = [random.randint(1, 8 if dims < 3 else 6) for _ in range(dims)]
        if any(s + 2 * p < d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
            continue
        per_dim = [
            intervals(s, k, st, p, d, ceil)
            for s, k, st, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
        ]
        if all(window for windows in per_dim for window in windows):
            fields: dict[str, Any] = {"kernel_size": tuple(kernel), "stride": tuple(stride)}
            fields |= {"padding": tuple(padding), "dilation": tuple(dilation), "ceil_mode": ceil}
            return size, fields, per_dim


def spikes(T: int, *shape: int) -> Tensor:
    return (torch.rand(T, *shape) < torch.rand(shape)).double()


# --- count ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_count_law_for_any_geometry(dims: int) -> None:
    for _ in range(40):
        size, fields, per_dim = geometry(dims)
        x_seq = spikes(12, 2, 2, *size)
        y_seq = POOLS[dims - 1](**fields, step_mode="m")(x_seq)
        where = f"{size} {fields}"
        assert set(y_seq.unique().tolist()) <= {0.0, 1.0}, where
        # law 5: at every t the output count is the maximum of the window's input counts
        counts = np.cumsum(x_seq.numpy(), axis=0)
        largest = np.stack([pool_by_hand(c[None], per_dim, "instant")[0] for c in counts])
        assert np.array_equal(np.cumsum(y_seq.numpy(), axis=0), largest), where


@pytest.mark.parametrize(
    ("family", "draw"),
    [
        (Family.SIGNED, lambda: torch.randint(-1, 2, (20, 2, 3, 6, 5)).double()),
        (Family.MULTI_LEVEL, lambda: torch.randint(0, 5, (20, 2, 3, 6, 5)).double()),
        (Family.ANALOG, lambda: spikes(20, 2, 3, 6, 5) * torch.tensor([0.25, 1.5, 3.0])[:, None, None]),
        (Family.GRADED, lambda: torch.randn(20, 2, 3, 6, 5, dtype=torch.float64)),
    ],
    ids=["signed", "multi-level", "scaled", "graded"],
)
def test_count_is_exact_for_any_values_and_says_what_it_emits(family: Family, draw: Callable[[], Tensor]) -> None:
    x_seq = draw()
    pool = SpikingMaxPool2d(3, 2, 1, step_mode="m")
    y_seq = pool(x_seq)
    for t in range(20):
        expected = F.max_pool2d(x_seq[: t + 1].sum(0), 3, 2, 1)
        assert torch.allclose(y_seq[: t + 1].sum(0), expected, rtol=0, atol=1e-12)
    assert pool.binary
    assert pool.family_out(Family.BINARY) is Family.BINARY
    assert pool.family_out(family) is family
    if family is Family.SIGNED:
        assert set(y_seq.unique().tolist()) == {-1, 0, 1}
    if family is Family.MULTI_LEVEL:
        assert set(y_seq.unique().tolist()) == {0, 1, 2, 3, 4}


def test_count_stays_exact_in_narrow_dtypes() -> None:
    # bfloat16 cannot count beyond 256
    pool = SpikingMaxPool1d(2, step_mode="m")
    assert pool(torch.ones(600, 1, 1, 4, dtype=torch.bfloat16)).float().sum(0).eq(600).all()


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_memory_changes_nothing(method: str) -> None:
    x_seq = spikes(10, 2, 16, 6, 7)
    last = x_seq.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (10, 2))
    per_dim = [intervals(size, 3, 2, 1, 1, False) for size in (6, 7)]
    expected = pool_by_hand(x_seq.numpy(), per_dim, method)
    for given in (x_seq, last):
        y_seq = SpikingMaxPool2d(3, 2, 1, method=method, step_mode="m")(given)
        assert np.array_equal(y_seq.numpy(), expected)
        assert y_seq[0].is_contiguous(memory_format=torch.channels_last) == (given is last)
        assert y_seq[0].is_contiguous() == (given is x_seq)  # so that .view behind the pool works as in the ANN


def test_count_converges_and_instant_does_not() -> None:
    rates = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    phase = torch.rand_like(rates)
    t = torch.arange(513, dtype=torch.float64)[:, None, None, None, None]
    fired = (rates * t + phase).floor()
    x_seq = fired[1:] - fired[:-1]  # an integrate-and-fire neuron under constant current
    errors = {}
    for method, T in itertools.product(("count", "instant"), (32, 512)):
        y_seq = SpikingMaxPool2d(3, 2, method=method, step_mode="m")(x_seq[:T])
        errors[method, T] = float((y_seq.mean(0) - F.max_pool2d(rates, 3, 2)).abs().max())
        if method == "count":
            assert errors[method, T] <= 1 / T
    assert errors["instant", 512] > 0.1


# --- gates and the stock pool -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*GATES, "instant"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gates_choose_as_windows_by_hand_do(dims: int, method: str) -> None:
    for _ in range(12):
        size, fields, per_dim = geometry(dims)
        x_seq = spikes(14, 1, 2, *size)
        y_seq = POOLS[dims - 1](**fields, method=method, step_mode="m")(x_seq)
        assert np.array_equal(y_seq.numpy(), pool_by_hand(x_seq.numpy(), per_dim, method)), f"{size} {fields}"


def test_gates_differ_from_each_other_and_from_count() -> None:
    # otherwise the sweep above could not tell one rule from another
    x_seq = spikes(64, 2, 3, 8, 8)
    sums = [SpikingMaxPool2d(4, method=m, step_mode="m")(x_seq).sum(0) for m in METHODS]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(sums, 2))


@pytest.mark.parametrize("method", METHODS)
def test_silent_windows_stay_silent(method: str) -> None:
    assert SpikingMaxPool2d(2, method=method, step_mode="m")(torch.zeros(5, 1, 1, 4, 4)).eq(0).all()


def test_ties_go_to_the_first_input() -> None:
    # both spike at step 1; then only the second does, and the gate of the first stays shut for its spike
    x_seq = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    first_spike = SpikingMaxPool1d(2, method="first-spike", step_mode="m")(x_seq).flatten().tolist()
    average = SpikingMaxPool1d(2, method="average", step_mode="m")(x_seq).flatten().tolist()
    assert first_spike == [1, 0]
    assert average == [1, 1]  # inclusive of the present step: at step 2 the second leads


def test_first_spike_lets_nothing_through_before() -> None:
    x_seq = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]]).view(4, 1, 1, 2)
    assert SpikingMaxPool1d(2, method="first-spike", step_mode="m")(x_seq).flatten().tolist() == [0, 1, 0, -1]


def test_exponential_gate_does_not_overflow() -> None:
    pool = SpikingMaxPool1d(2, method="exponential")
    pool.t = 10**6  # 1.005^t is far beyond float64 here
    assert pool(torch.ones(1, 1, 2)).item() == 1
    assert pool.estimate is not None
    assert pool.estimate.isfinite().all()


# --- gradients --------------------------------------------------------------------------------------------------------


def test_gradient_of_the_sum_is_that_of_pooling_the_sum() -> None:
    x_seq = torch.randn(6, 2, 3, 7, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    pool = SpikingMaxPool2d(3, 2, 1, step_mode="m")
    (pool(x_seq).sum(0) * weight).sum().backward()
    total = x_seq.detach().sum(0).requires_grad_()
    (F.max_pool2d(total, 3, 2, 1) * weight).sum().backward()
    assert total.grad is not None
    assert x_seq.grad is not None
    assert torch.allclose(x_seq.grad, total.grad.expand_as(x_seq), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(method: str) -> None:
    # gates and maxima are piecewise linear; random inputs lie off their edges
    pool = SpikingMaxPool2d(2, 1, method=method, step_mode="m")

    def run(x_seq: Tensor) -> Tensor:
        pool.reset()
        return pool(x_seq)

    x_seq = torch.rand(4, 1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x_seq,), eps=1e-7)


# --- building from stock pools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_from_module_keeps_the_geometry(dims: int) -> None:
    for _ in range(10):
        size, fields, per_dim = geometry(dims)
        pool = SpikingMaxPool.from_module(STOCK[dims - 1](**fields))
        assert type(pool) is POOLS[dims - 1]
        pool.step_mode = "m"
        x_seq = spikes(5, 1, 2, *size)
        assert np.array_equal(pool(x_seq).numpy(), pool_by_hand(x_seq.numpy(), per_dim, "count"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_adaptive_pools(dims: int, method: str) -> None:
    size, out = [7, 5, 4][:dims], [3, 2, 4][:dims]
    stock = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[dims - 1]
    pool = SpikingMaxPool.from_module(stock(tuple(out) if dims > 1 else out[0]), method)
    pool.step_mode = "m"
    x_seq = spikes(10, 2, 2, *size)
    per_dim = [adaptive_intervals(s, o) for s, o in zip(size, out, strict=True)]
    assert np.array_equal(pool(x_seq).numpy(), pool_by_hand(x_seq.numpy(), per_dim, method))


class SamePadding(nn.MaxPool2d):
    """A subclass that does something else, as timm's MaxPool2dSame."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1)), self.kernel_size)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.MaxPool2d(2, return_indices=True), "return_indices=True"),
        (nn.AdaptiveMaxPool1d(2, return_indices=True), "return_indices=True"),
        (nn.AvgPool2d(2), "AvgPool2d is no max-pool"),
        (SamePadding(2), "SamePadding"),
    ],
    ids=["indices", "adaptive indices", "average", "own forward"],
)
def test_what_has_no_spiking_form_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        SpikingMaxPool.from_module(module)


def test_bad_arguments_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="method='max'.*count, fir"):
        SpikingMaxPool2d(2, method="max")
    with pytest.raises(ValueError, match="step mode 's'"):
        SpikingMaxPool2d(2)(torch.zeros(4, 1, 1, 6, 6))  # a sequence in step mode "s"
    with pytest.raises(ValueError, match="batch dimension"):
        SpikingMaxPool2d(2)(torch.zeros(1, 6, 6))
    with pytest.raises(ValueError, match="nothing but padding"):
        SpikingMaxPool1d(2, padding=1, dilation=3)(torch.zeros(1, 1, 2))


# --- in hand-written networks -----------------------------------------------------------------------------------------


def test_in_a_spikingjelly_network() -> None:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def neurons() -> nn.Module:
        return neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan())

    pool = SpikingMaxPool2d(2)
    conv = layer.Conv2d(1, 8, 3, padding=1)
    net = nn.Sequential(conv, neurons(), pool, layer.Flatten(), layer.Linear(8 * 16, 5)).double()
    seen: list[tuple[Tensor, Tensor]] = []
    pool.register_forward_hook(lambda _, x, y: seen.append((x[0].detach(), y.detach())))
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64) * 2
    T = 32

    functional.set_step_mode(net, "m")
    assert pool.step_mode == "m"
    many = net(x.expand(T, *x.shape))
    (spikes_in, spikes_out), *_ = seen
    assert 0 < spikes_in.mean() < 1
    assert set(spikes_out.unique().tolist()) == {0, 1}
    assert torch.equal(spikes_out.sum(0), F.max_pool2d(spikes_in.sum(0), 2))
    assert (F.max_pool2d(spikes_in.flatten(0, 1), 2).unflatten(0, (T, -1)).sum(0) > spikes_out.sum(0)).any()

    many.mean(0).square().sum().backward()
    gradient = conv.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0

    functional.reset_net(net)
    assert pool.t == 0
    functional.set_step_mode(net, "s")
    single = torch.stack([net(x) for _ in range(T)])
    assert torch.allclose(single, many, rtol=0, atol=1e-12)


def test_in_a_snntorch_loop() -> None:
    snntorch = pytest.importorskip("snntorch")

    conv, pool = nn.Conv2d(1, 8, 3, padding=1), SpikingMaxPool2d(3, 2, 1)
    leaky = snntorch.Leaky(beta=1.0, reset_mechanism="subtract")
    x = torch.rand(2, 1, 8, 8) * 2
    runs = []
    for _ in range(2):
        pool.reset()
        mem = leaky.reset_mem()
        counts_in, counts_out = torch.zeros(2, 8, 8, 8), torch.zeros(2, 8, 4, 4)
        for _ in range(32):
            spk, mem = leaky(conv(x), mem)
            out = pool(spk)
            assert set(out.unique().tolist()) <= {0, 1}
            counts_in, counts_out = counts_in + spk, counts_out + out
            assert torch.equal(counts_out, F.max_pool2d(counts_in, 3, 2, 1))
        runs.append(counts_out)
    assert counts_in.sum() > 0
    assert torch.equal(*runs)
    runs[-1].sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.isfinite().all()
    assert conv.weight.grad.abs().sum() > 0

"""Max-pooling of spike trains: the maximum of a window's rates, not of the spikes that meet in a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conversion_ext.errors import UnsupportedError, require
from conversion_ext.exact import accumulate, state_dtype
from conversion_ext.nn.stateful import Stateful
from conversion_ext.types import Family

__all__ = ["METHODS", "SpikingMaxPool", "SpikingMaxPool1d", "SpikingMaxPool2d", "SpikingMaxPool3d"]

Size = int | tuple[int, ...]

# The rate estimates q by which gates rank the inputs of a window; t counts from 1 and includes the present step.
_ESTIMATES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "fir": lambda q, x, t: q + x / t,
    # The mean ranks as the sum does, and the sum of spikes has no rounding that would break a tie.
    "average": lambda q, x, t: q + x,
    # snn_toolbox's q <- 1.005 q + 0.995 x divided by 0.995 * 1.005^t: the same ranking, without overflow.
    "exponential": lambda q, x, t: q + x * 1.005**-t,
    # The earlier the first spike, the higher the rank, for ever.
    "first-spike": lambda q, x, t: torch.where((q == 0) & (x > 0), 1 / t, q),
}
METHODS = ("count", *_ESTIMATES, "instant")
_PADDED, _ADAPTIVE = ("kernel_size", "stride", "padding", "dilation", "ceil_mode"), ("output_size",)
_STOCK: dict[type[nn.Module], tuple[int, tuple[str, ...]]] = {
    nn.MaxPool1d: (1, _PADDED),
    nn.MaxPool2d: (2, _PADDED),
    nn.MaxPool3d: (3, _PADDED),
    nn.AdaptiveMaxPool1d: (1, _ADAPTIVE),
    nn.AdaptiveMaxPool2d: (2, _ADAPTIVE),
    nn.AdaptiveMaxPool3d: (3, _ADAPTIVE),
}


class SpikingMaxPool(Stateful):
    """Max-pooling over ``dims`` dimensions whose running output follows the maximum of the running inputs.

    Built by ``SpikingMaxPool1d/2d/3d`` or by ``SpikingMaxPool.from_module``; with x[t] the input of step t:

    - ``"count"``: ``out[t] = maxpool(C[t]) - maxpool(C[t-1])``, ``C[t] = x[1] + ... + x[t]``. The sum of the
      outputs is the max-pooled sum of the inputs at every t, whatever the inputs, and {0, 1} stays {0, 1}.
    - ``"fir"``, ``"average"``, ``"exponential"``: a gate passes the spike of the input with the highest estimated
      rate, the first one of equals. FIR weighs a spike at t by 1/t, average equally, exponential by 1.005^-t.
    - ``"first-spike"``: the input that spiked first gates for ever; nothing comes out before.
    - ``"instant"``: the maximum of each step's spikes, which counts too many; for comparison.

    Gradients: ``"count"`` gives the sum over time the gradient of max-pooling the sum; gates pass it to the input
    that they passed on. Call, shapes, state and errors: see ``Stateful``; a step is [N, C, spatial].

    Reference: Rueckauer et al., 2017 (fir, average and exponential gates, as snn_toolbox codes their estimates).
    """

    idles = True
    state_names = ("estimate", "pooled")
    estimate: Tensor | None
    pooled: Tensor | None

    def __init__(self, function: str, arguments: dict[str, Any], method: str = "count", step_mode: str = "s") -> None:
        require(method in METHODS, f"{type(self).__name__}(method={method!r}): use one of {', '.join(METHODS)}.")
        super().__init__(step_mode)
        self.function = function  # by name: functions of torch.nn.functional that return indices cannot be pickled
        self.arguments = arguments
        self.method = method
        self.dims = int(function[-2])

    @staticmethod
    def from_module(module: nn.Module, method: str = "count") -> SpikingMaxPool:
        """Return the spiking form of an ``nn.MaxPool1d/2d/3d`` or ``nn.AdaptiveMaxPool1d/2d/3d``.

        Raises:
            UnsupportedError: another module, a subclass with its own forward, or ``return_indices=True``.
        """
        name = type(module).__name__
        stock = next((kind for kind in _STOCK if isinstance(module, kind)), None)
        require(
            stock is not None and type(module).forward is stock.forward,
            f"{type(module).__module__}.{name} is no max-pool of torch.nn, or changes its forward; use a stock one.",
            UnsupportedError,
        )
        require(
            not getattr(module, "return_indices", False),
            f"{name}(return_indices=True) has no spiking form, indices are no spikes; use return_indices=False.",
            UnsupportedError,
        )
        assert stock is not None
        dims, fields = _STOCK[stock]
        arguments = {field: getattr(module, field) for field in fields}
        if fields is _PADDED:
            return (SpikingMaxPool1d, SpikingMaxPool2d, SpikingMaxPool3d)[dims - 1](**arguments, method=method)
        return SpikingMaxPool(f"adaptive_max_pool{dims}d", arguments, method)

    def family_out(self, *families: Family) -> Family:
        """Return the family of the input: a maximum moves by no more than its inputs, and gates pass them on.

        Binary, signed and multi-level spikes stay so; scaled, graded and analog inputs give no spikes.
        """
        return families[0]

    def multi_step(self, *x_seqs: Tensor) -> Tensor:
        """Pool inputs [T, N, C, spatial]."""
        (x_seq,) = x_seqs
        require(
            x_seq.dim() == self.dims + 3,
            f"{type(self).__name__} pools steps [N, C, {self.dims} spatial dimensions] and was given "
            f"{list(x_seq.shape[1:])} in step mode {self.step_mode!r}; check step_mode and the batch dimension.",
        )
        if self.method == "instant":
            return self._pool(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])
        if self.estimate is None:
            self.estimate = self._start(x_seq[0])
        if self.method == "count" and not torch.is_grad_enabled():
            return self._counts(x_seq)
        step = self._count if self.method == "count" else self._gate
        y = torch.cat([step(x, t) for t, x in enumerate(x_seq, start=self.t + 1)])
        return y.contiguous(memory_format=_memory_format(x_seq[0])).unflatten(0, x_seq.shape[:2])

    def _start(self, x: Tensor) -> Tensor:
        """Return estimates of zero for inputs [N, C, spatial]."""
        windows = self._pool(torch.zeros(1, 1, *x.shape[2:]))
        require(
            bool(windows.isfinite().all()),
            f"{type(self).__name__}({self.extra_repr()}) has windows of nothing but padding on an input "
            f"{list(x.shape)}, where max-pooling gives -inf; reduce padding or dilation.",
        )
        # torch pools many channels on the CPU two to four times faster in channels-last memory.
        last = x.dim() == 4 and x.shape[1] >= 8 and x.device.type == "cpu"
        form = torch.channels_last if last else torch.preserve_format
        return torch.zeros_like(x, dtype=state_dtype(x.dtype), memory_format=form)

    def _count(self, x: Tensor, t: int) -> Tensor:
        """Return the increase of the pooled running sum."""
        assert self.estimate is not None
        self.estimate = accumulate(self.estimate, x)
        pooled = self._pool(self.estimate)
        increase = pooled - (torch.zeros_like(pooled) if self.pooled is None else self.pooled)
        self.pooled = pooled
        return increase.to(x.dtype)

    def _counts(self, x_seq: Tensor) -> Tensor:
        """Return the increases of the pooled running sums, all steps pooled at once; for no gradients."""
        assert self.estimate is not None
        last = self.estimate.dim() == 4 and self.estimate.is_contiguous(memory_format=torch.channels_last)
        form = torch.channels_last if last else torch.contiguous_format
        sums = torch.empty(
            x_seq.flatten(0, 1).shape, dtype=self.estimate.dtype, device=x_seq.device, memory_format=form
        )
        sums, total = sums.unflatten(0, x_seq.shape[:2]), self.estimate
        for x, following in zip(x_seq, sums, strict=True):
            total = torch.add(total, x, out=following)
        pooled = self._pool(sums.flatten(0, 1)).unflatten(0, x_seq.shape[:2])
        increases = torch.empty_like(pooled)
        torch.sub(pooled[1:], pooled[:-1], out=increases[1:])
        torch.sub(pooled[0], 0 if self.pooled is None else self.pooled, out=increases[0])
        self.estimate, self.pooled = total.clone(), pooled[-1].clone()  # not to keep the whole sequence alive
        return increases.to(x_seq.dtype)

    def _gate(self, x: Tensor, t: int) -> Tensor:
        """Return, for each window, the present value of the input with the highest estimate."""
        assert self.estimate is not None
        with torch.no_grad():
            self.estimate = _ESTIMATES[self.method](self.estimate, x.to(self.estimate.dtype), t)
            highest, winner = self._pool(self.estimate, return_indices=True)
        y = x.flatten(2).gather(2, winner.flatten(2)).view(winner.shape)
        return y * (highest > 0) if self.method == "first-spike" else y

    def _pool(self, x: Tensor, **more: bool) -> Any:
        return getattr(F, self.function)(x, **self.arguments, **more)

    def extra_repr(self) -> str:
        """Return window, method and step mode, for ``print``."""
        fields = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{fields}, method={self.method!r}, {super().extra_repr()}"


class _Padded(SpikingMaxPool):
    """A pool with a kernel; ``size`` dimensions are set by the three public classes."""

    size: int

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        method: str = "count",
        step_mode: str = "s",
    ) -> None:
        stride = kernel_size if stride is None else stride
        arguments = dict(zip(_PADDED, (kernel_size, stride, padding, dilation, ceil_mode), strict=True))
        super().__init__(f"max_pool{self.size}d", arguments, method, step_mode)


class SpikingMaxPool1d(_Padded):
    """Spiking ``nn.MaxPool1d``: steps [N, C, L]. Methods and laws: see ``SpikingMaxPool``."""

    size = 1


class SpikingMaxPool2d(_Padded):
    """Spiking ``nn.MaxPool2d``: steps [N, C, H, W]. Methods and laws: see ``SpikingMaxPool``."""

    size = 2


class SpikingMaxPool3d(_Padded):
    """Spiking ``nn.MaxPool3d``: steps [N, C, D, H, W]. Methods and laws: see ``SpikingMaxPool``."""

    size = 3


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format to hand on, so that a ``view`` after the pool works where it worked in the ANN."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format

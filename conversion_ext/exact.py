"""Sums and scales whose bits depend on no order, no grouping and no narrow type."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulate", "bytes_of", "running_sums", "state_dtype"]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the state for inputs of ``dtype``: float32 or wider (a bfloat16 count stops at 256)."""
    return torch.promote_types(dtype, torch.float32)


def accumulate(total: Tensor, x: Tensor) -> Tensor:
    """Return ``total + x``, in place where autograd cannot need the old value."""
    if torch.is_grad_enabled() or total.requires_grad:
        return total + x
    if total.is_inference() and not torch.is_inference_mode_enabled():
        return total + x  # made in inference mode: torch refuses to write to it now
    return total.add_(x)


def running_sums(total: Tensor | None, x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sums [T, N, ...] of ``total`` and the steps of ``x_seq`` so far, added one by one.

    ``cumsum`` may add in another order, and then a chunked simulation differs from an unchunked one.
    """
    sums: list[Tensor] = []
    for x in x_seq.to(dtype):
        total = x if total is None else total + x
        sums.append(total)
    return torch.stack(sums)


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent in float64, exactly, for integers (``exp2`` may round)."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def bytes_of(tensor: Tensor) -> bytes:
    """Return the values of a tensor of any type and layout as bytes, in the order of its elements."""
    if tensor.numel() == 0:
        return b""
    # A clone, since a tensor with a dimension of size 1 may be called contiguous whatever that dimension's stride.
    plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return plain.view(-1).view(torch.uint8).numpy().tobytes()

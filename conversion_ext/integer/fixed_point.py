"""Numbers as integers times powers of two."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["exponents", "fewest_bits", "rounded", "whole_multiples"]


def exponents(rows: Tensor, bits: int, finest: Tensor) -> Tensor:
    """Return the k of each row, at most ``finest``, for which integers of ``bits`` bits times 2^-k come closest."""
    k = torch.floor(torch.log2((2 ** (bits - 1) - 1) / rows.abs().amax(1)))
    # Where the largest weights are few, it is better to clip them.
    choices = torch.stack([torch.minimum(k + clipped, finest) for clipped in range(3)])
    errors = torch.stack([(whole_multiples(rows, c[:, None], bits) - rows).square().sum(1) for c in choices])
    return choices.gather(0, errors.argmin(0, keepdim=True))[0]


def whole_multiples(value: Tensor, k: Tensor, bits: int) -> Tensor:
    """Return ``value`` as integers of ``bits`` bits times 2^-k."""
    most = 2 ** (bits - 1) - 1
    return (value * torch.exp2(k)).round().clamp(-most, most) * torch.exp2(-k)


def fewest_bits(value: Tensor, k: Tensor) -> Tensor:
    """Return the least exponents, from 0 to ``k``, for which ``value * 2^exponent`` is whole wherever it is for k."""
    for _ in range(int(k.amax())):
        k = torch.where((k > 0) & (value * torch.exp2(k - 1) % 1 == 0), k - 1, k)
    return k


def rounded(value: Tensor, exponent: Tensor | int) -> Tensor:
    """Return ``value`` rounded to multiples of 2^-exponent, halves up."""
    return torch.floor(value * 2.0**exponent + 0.5) * 2.0**-exponent

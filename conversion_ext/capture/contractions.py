"""Sums of products with a constant tensor, in index notation: linear layers between two orders of dimensions."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from conversion_ext.capture.recorded_values import Recording

__all__ = ["CONTRACTIONS"]


@dataclass(frozen=True)
class _Contraction:
    """``einsum("ab..,cb..->..a..c", x, weight)``: the names of the dimensions of x, of the weight and of the result."""

    x: str
    weight: str
    out: str

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the sum of products as a linear layer along the last dimension, dimensions moved before and behind."""
        summed = [name for name in self.x if name not in self.out]
        kept, new = ([name for name in term if name in self.out] for term in (self.x, self.weight))
        sizes = [weight.shape[self.weight.index(name)] for name in new]
        matrix = _ordered(weight, self.weight, [*new, *summed]).reshape(math.prod(sizes), -1)
        y = _ordered(x, self.x, [*kept, *summed])
        y = F.linear(y.flatten(len(kept)) if len(summed) > 1 else y, matrix)
        y = y if len(new) == 1 else y.unflatten(-1, sizes) if new else y.squeeze(-1)
        return _ordered(y, "".join([*kept, *new]), list(self.out))


def _contraction_of(equation: str, ranks: Sequence[int], data: int) -> _Contraction | None:
    """Return what ``einsum(equation, ...)`` of two tensors of these ranks is, the one with number ``data`` no constant.

    None where it is no linear layer: dimensions that only one tensor has are summed, or both have one that stays.
    """
    terms, arrow, out = equation.replace(" ", "").partition("->")
    named = terms.split(",")
    if not arrow or len(named) != 2:  # noqa: PLR2004 (of more tensors it is no layer)
        return None
    x, weight = named[data], named[1 - data]
    free = [name for name in string.ascii_letters if name not in equation]
    more = "".join(free[: ranks[data] - len(x.replace("...", ""))])
    x, out = x.replace("...", more), out.replace("...", more)
    whole = len(x) == ranks[data] and len(weight) == ranks[1 - data] and "." not in weight + out
    apart = all(len(set(term)) == len(term) for term in (x, weight, out))
    if not (whole and apart and set(x) ^ set(weight) == set(out) and x[0] == out[:1]):
        return None
    return _Contraction(x, weight, out) if set(x) & set(weight) else None


def _tensordot_equation(ranks: Sequence[int], dims: int | Sequence[Sequence[int]]) -> str:
    """Return the equation of ``torch.tensordot`` of two tensors."""
    first, second = ranks
    pairs = (range(first - dims, first), range(dims)) if isinstance(dims, int) else dims
    a, b = string.ascii_letters[:first], list(string.ascii_letters[first : first + second])
    for left, right in zip(*pairs, strict=True):
        b[right % second] = a[left % first]
    return f"{a},{''.join(b)}->{''.join(name for name in [*a, *b] if (name in a) != (name in b))}"


def _ordered(value: Tensor, names: str, order: list[str]) -> Tensor:
    places = [names.index(name) for name in order]
    return value if places == sorted(places) else value.permute(places)


def _einsum(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """Return a sum of products; with a constant it is a linear layer."""
    equation, *operands = args
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    found = _contracted(recording, equation, operands)
    return recording.function(func, args, kwargs) if found is None else found


def _tensordot(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    a, b, dims, *_ = [*args, *(kwargs[name] for name in ("a", "b", "dims") if name in kwargs), 2]
    if not isinstance(dims, int | list | tuple):
        return recording.function(func, args, kwargs)
    equation = _tensordot_equation((a.dim(), b.dim()), dims)
    found = _contracted(recording, equation, (a, b))
    return recording.function(func, args, kwargs) if found is None else found


def _matmul(recording: Recording, func: Any, args: Any, kwargs: Any) -> Any:
    """Return a product of matrices; with a constant on the left it is a linear layer too."""
    left, right = args if len(args) > 1 else (*args, *kwargs.values())
    if func.__name__ == "__rmatmul__":
        left, right = right, left
    found = _contracted(recording, "ij,...jk->...ik", (left, right)) if right.dim() > 2 else None  # noqa: PLR2004
    return recording.function(func, args, kwargs) if found is None else found


def _contracted(recording: Recording, equation: Any, operands: Any) -> Tensor | None:
    """Return the sum of products of data and a constant, None where it is another one."""
    data = [i for i, operand in enumerate(operands) if recording.depends(operand)]
    if not isinstance(equation, str) or len(operands) != 2 or len(data) != 1:  # noqa: PLR2004 (of two tensors)
        return None
    contraction = _contraction_of(equation, [operand.dim() for operand in operands], data[0])
    if contraction is None:
        return None
    return recording.defined(contraction, (operands[data[0]], operands[1 - data[0]]), {})


CONTRACTIONS: Mapping[str, Callable[..., Any]] = {
    "einsum": _einsum, "tensordot": _tensordot, **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__"), _matmul),
}  # fmt: skip
"""{call: how it is recorded}, ``f(recording, func, args, kwargs)``."""

"""What every kind of operator becomes in integers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from conversion_ext import graph
from conversion_ext.errors import Problem, UnsupportedError
from conversion_ext.graph import layers
from conversion_ext.graph.layers import ADAPTIVE_AVERAGE_POOLS, AVERAGE_POOLS, BATCH_NORMS, TRANSPOSED
from conversion_ext.integer.fixed_point import exponents, fewest_bits, rounded, whole_multiples
from conversion_ext.integer.modules import IntegerAffine, IntegerStepping
from conversion_ext.network.module_operators import Spiking
from conversion_ext.network.record import Widths
from conversion_ext.neurons import IF, BurstIF, SignedEncoder, SignedIF
from conversion_ext.nn.channel_scale import ChannelScale
from conversion_ext.operators.arithmetic import SUMS_WITH_CONSTANTS, Multiple, Offset, Sum, product
from conversion_ext.operators.base import Constant, Elementwise, NodeContext, Operator, ones, operators
from conversion_ext.operators.linear_map import LinearMap
from conversion_ext.operators.movement import Element, Movement
from conversion_ext.operators.synapse import Synapse

__all__ = ["MEANS", "Constants", "Grid", "Quantized", "integer_form", "refused", "scaled"]

MEANS, SUMS = (torch.mean, "mean"), (torch.sum, "sum")
NEURONS = (IF, SignedIF, BurstIF, SignedEncoder)  # they add, compare and subtract
FINER = 4  # bits by which what one input adds to a current may be finer than a potential
BIAS = 22  # bits of the largest bias, and of what an accumulator reaches for its sake


@dataclass(frozen=True)
class Grid:
    """What a tensor can hold: multiples of ``2^-exponent`` from -bound to bound, each worth ``unit`` times as much.

    ``exponent`` and ``bound`` broadcast to a step [1, C, ...]. ``unit`` is a factor that weights still have to absorb.
    """

    exponent: Tensor
    bound: Tensor
    unit: float = 1.0

    @property
    def bits(self) -> float:
        """The bits of the largest integer, its sign left out."""
        return float((self.bound * torch.exp2(self.exponent) + 1).log2().amax())


@dataclass(frozen=True)
class Constants:
    """Constants of a node in integers, to put in the place of its own: {its node: (value, exponent)}."""

    values: dict[Node, tuple[Tensor, Tensor]]


Quantized = tuple[Any, nn.Module | Constants | None]
"""The Grid of an output (or several) and what to put in the node's place, a module or constants; None: as it is."""


def refused(context: NodeContext, reason: str, remedy: str) -> UnsupportedError:
    """Return the error for a node that has no integer form."""
    target = context.node.target
    kind = type(context.module).__name__ if context.module is not None else getattr(target, "__name__", target)
    problem = Problem(graph.key_of(context.node), f"{kind} {reason}", remedy, graph.describe(context.node))
    return UnsupportedError(str(problem), (problem,))


@singledispatch
def integer_form(operator: Operator | Problem, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    """Return what the output of a node can hold and what to put in its place, given what its inputs can hold.

    Written for every kind of operator in the registry; a new kind adds its own by ``integer_form.register``.
    """
    raise refused(
        context,
        "has no integer form.",
        "There is one for weight layers, sums, pools, data movement and neurons without a leak; stay with floats.",
    )


@integer_form.register
def _synapse(operator: Synapse, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    if isinstance(context.module, BATCH_NORMS):
        shape = [1, -1, *[1] * (len(context.out_shape) - 2)]
        gain, shift = (value.detach().double().cpu().view(shape) for value in layers.affine_of(context.module))
        return _affine(gain, shift, grids[0], widths)
    (grid,), layer = grids, copy.deepcopy(context.module)
    transposed = isinstance(layer, TRANSPOSED)
    rows = layer.weight.double().cpu().movedim(int(transposed), 0) * grid.unit
    finest = widths.exponent + FINER + grid.bound.amax().log2().ceil().clamp_min(0)
    if layer.bias is not None:
        largest = layer.bias.double().cpu().abs().view(-1, len(rows)).amax(0)  # groups of transposed ones share rows
        finest = torch.minimum(finest, torch.floor(BIAS - largest.log2()))
    if widths.even:  # doubled, they are shifted by 6 bits and more into the potential: that is how coarse they are
        k = exponents(rows.reshape(1, -1), widths.weight, finest.amin().clamp_max(widths.exponent - 7)).repeat(
            len(rows)
        )
    else:
        k = exponents(rows.flatten(1), widths.weight, finest)
    whole = whole_multiples(rows, k.view(-1, *[1] * (rows.dim() - 1)), widths.weight)
    k = k + widths.even
    layer.weight = _like(whole.movedim(0, int(transposed)), layer.weight)
    probe = copy.deepcopy(layer).double().cpu()
    probe.weight, probe.bias = nn.Parameter(probe.weight.abs()), None
    bound = _along(probe.forward(grid.bound.expand(context.shapes[0])), operator.dim)
    k = k.repeat(layer.groups) if transposed else k
    exponent = k.reshape(bound.shape) + grid.exponent.amax()
    layer.register_buffer("weight_exponent", k.to(layer.weight))
    if layer.bias is not None:
        bias = layer.bias.double().cpu().reshape(bound.shape)
        fits = torch.floor(BIAS - (bound + bias.abs()).log2())
        exponent = torch.maximum(exponent, fits.clamp_max(widths.exponent))  # a bias is as fine as a potential
        bias = rounded(bias, exponent)
        bound = bound + bias.abs()
        layer.bias = _like(bias.reshape(-1), layer.bias)
        layer.register_buffer("bias_exponent", exponent.reshape(-1).to(layer.weight))
    return Grid(exponent, bound), layer


@integer_form.register
def _multiple(operator: Multiple, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    if isinstance(context.module, ChannelScale):
        return scaled(context.module.scale, grids[0], widths)
    factor, zero = _at(context, 1.0), torch.zeros((), dtype=torch.float64)
    return _affine(factor, zero, grids[0], widths)


@integer_form.register
def _offset(operator: Offset, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    node = context.node
    if node.op != "call_module" and node.target in SUMS_WITH_CONSTANTS:
        shift = _at(context, 0.0)
        return _affine(_at(context, 1.0) - shift, shift, grids[0], widths)
    if node.op != "call_module" and operators.find(node.target) is product and len(node.all_input_nodes) > 1:
        return _product(context, grids[0], widths)
    raise refused(context, "adds a constant to a part of its input.", "Write it as a sum with a constant.")


def _held(context: NodeContext, source: Node) -> Any:
    return graph.constant(context.model, source)


def _at(context: NodeContext, value: float) -> Tensor:
    """Return what a node with one data input makes of ``value`` everywhere, in float64."""
    (shape,) = context.shapes
    like = next(p for p in (*context.model.parameters(), *context.model.buffers()) if p.is_floating_point())
    return context.rerun([torch.full(shape, value, dtype=like.dtype, device=like.device)]).detach().double().cpu()


def _affine(factor: Tensor, shift: Tensor, grid: Grid, widths: Widths) -> Quantized:
    """Return ``factor * x + shift`` in integers; the unit of x stays what the weights behind have to absorb."""
    finest = torch.tensor(widths.exponent + FINER)
    k = exponents(factor.reshape(-1, 1), widths.weight, finest).view_as(factor)
    factor = whole_multiples(factor, k, widths.weight)
    k = fewest_bits(factor, k)
    exponent, bound = grid.exponent + k, grid.bound * factor.abs()
    shift = shift / grid.unit
    if bool(shift.any()):
        fits = exponents(shift.reshape(1, -1), widths.weight + FINER, finest)
        exponent = torch.maximum(exponent, fits.view([1] * exponent.dim()))
        shift = rounded(shift, exponent)
        exponent = torch.maximum(grid.exponent + k, fewest_bits(shift, exponent).amax())
    return Grid(exponent, bound + shift.abs(), grid.unit), IntegerAffine(factor, shift, k, exponent)


def _product(context: NodeContext, grid: Grid, widths: Widths) -> Quantized:
    """Return a product of matrices with constants in integers; they share one exponent."""
    node, model = context.node, context.model
    (data,) = context.inputs
    constants = [source for source in node.all_input_nodes if source is not data]
    if len(constants) > 1:
        raise refused(context, "multiplies by several constants.", "Multiply them beforehand.")
    (source,) = constants
    weight = graph.constant(model, source).detach().double().cpu() * grid.unit
    finest = widths.exponent + FINER + grid.bound.amax().log2().ceil().clamp_min(0)
    k = exponents(weight.reshape(1, -1), widths.weight, finest)[0]
    weight = whole_multiples(weight, k, widths.weight)
    given = {data: grid.bound.expand(context.shapes[0]).double(), source: weight.abs()}
    bound = graph.call(model, node, given.__getitem__)
    exponent = (k + grid.exponent.amax()) * ones(context.out_shape)
    return Grid(exponent, bound), Constants({source: (weight, k)})


@integer_form.register
def _sum(operator: Sum, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    factor: Any = context.node.kwargs.get("alpha", 1)
    alpha = torch.tensor(factor, dtype=torch.float64)
    k = fewest_bits(alpha, torch.tensor(float(widths.weight)))
    if alpha * torch.exp2(k) % 1:
        raise refused(context, f"multiplies by alpha={alpha:.4g}, no short integer.", "Put it into the weights.")
    first, last = grids[0], grids[-1]  # the same where a tensor is added to itself
    return Grid(torch.maximum(first.exponent, last.exponent + k), first.bound + last.bound * alpha.abs()), None


@integer_form.register
def _moved(operator: Movement, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    fields = ([getattr(grid, name) for grid in grids] for name in ("exponent", "bound"))
    exponents, bounds = (operator.moved(context, values, fill=0.0) for values in fields)
    if isinstance(exponents, tuple):
        return tuple(Grid(e, b, grids[0].unit) for e, b in zip(exponents, bounds, strict=True)), None
    return Grid(exponents, bounds, grids[0].unit), None


@integer_form.register
def _elementwise(operator: Elementwise, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    if operator.stateful:
        _require_spikes(context, grids[0])
    return grids[0], None


@integer_form.register
def _constant(operator: Constant, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    held = [source for source in context.node.all_input_nodes if isinstance(_held(context, source), Tensor)]
    if not bool(context.rerun([]).any()):
        zero = 0 * ones(context.out_shape)
        return Grid(zero, zero), None
    if len(held) != 1:
        raise refused(context, "is made of several constants.", "Compute it beforehand.")
    value = _held(context, held[0]).detach().double().cpu()
    k = exponents(value.reshape(1, -1), widths.weight, torch.tensor(widths.exponent + FINER))[0]
    whole = whole_multiples(value, k, widths.weight)
    bound = graph.call(context.model, context.node, lambda n: whole.abs() if n is held[0] else _held(context, n))
    return Grid(k * ones(context.out_shape), bound), Constants({held[0]: (whole, k)})


@integer_form.register
def _element(operator: Element, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    return grids[0][operator.index], None


@integer_form.register
def _linear_map(operator: LinearMap, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    (grid,), count, module = grids, 1, None
    if operator.stateful:
        _require_spikes(context, grid)
    elif not operator.keeps_values:
        count, module = _window_sum(context)
    exponent, bound = (
        operator.output_unit(context, [v.amax(operator.mixed, keepdim=True)], None) for v in (grid.exponent, grid.bound)
    )
    assert exponent is not None
    assert bound is not None
    divisor = 1 if context.node.op != "call_module" and context.node.target in SUMS else count
    return Grid(exponent, bound * count, grid.unit / divisor), module


@integer_form.register
def _site(operator: Spiking, context: NodeContext, grids: Sequence[Any], widths: Widths) -> Quantized:
    site = copy.deepcopy(context.module)
    if type(site.spec) not in NEURONS:
        raise refused(context, f"holds {site.spec!r}, which does more than add.", "Use IF, SignedIF or BurstIF.")
    floor = getattr(site.spec, "floor", None)
    if floor is not None and not (floor * 2**widths.exponent).is_integer():
        raise refused(context, f"has a floor of {floor}, no integer in {widths.state} bits.", "Use IF(floor=-1.0).")
    if site.neurons > 1:
        raise refused(context, "has several neurons for an activation.", "Use a recipe without copies and pairs.")
    if site.clock is not None:
        raise refused(context, "looks ahead, which takes fractions.", "Use a recipe without look-ahead.")
    if not site.stepping.plain:
        remedy = "Use a recipe without tuners that act while simulating."
        raise refused(context, f"is stepped by {type(site.stepping).__name__}.", remedy)
    site.v_init = rounded(site.v_init, widths.exponent)
    if site.bias.dim():
        site.bias = rounded(site.bias / site.threshold, widths.exponent) * site.threshold
    finest = int(grids[0].exponent.amax())
    site.stepping = IntegerStepping(site.key, widths.exponent, finest, widths.state, widths.saturate)
    one = ones(context.out_shape)
    return Grid(0 * one, site.spec.levels * one), site


def _require_spikes(context: NodeContext, grid: Grid) -> None:
    if bool(grid.exponent.any()):
        raise refused(context, "adds up currents over time, which has no bound.", "Put it behind neurons.")


def _window_sum(context: NodeContext) -> tuple[int, nn.Module | None]:
    """Return how many values an averaging node takes together, and a module that adds them up."""
    module, shape, out = context.module, context.shapes[0], context.out_shape
    if context.node.op != "call_module" and context.node.target in (*MEANS, *SUMS):
        return shape.numel() // out.numel(), None
    dims, sizes = len(shape) - 2, list(zip(shape[2:], out[2:], strict=False))
    if isinstance(module, ADAPTIVE_AVERAGE_POOLS) and all(a % b == 0 for a, b in sizes):
        kernel = tuple(a // b for a, b in sizes)
        return math.prod(kernel), _sum_pool(context, kernel, kernel, (0,) * dims)
    if isinstance(module, AVERAGE_POOLS) and not module.ceil_mode:
        windows: tuple[Any, ...] = (module.kernel_size, module.stride, module.padding)
        kernel, stride, padding = ((v,) * dims if isinstance(v, int) else tuple(v) for v in windows)
        if module.count_include_pad or not any(padding):
            count = getattr(module, "divisor_override", None) or math.prod(kernel)
            return count, _sum_pool(context, kernel, stride, padding)
    raise refused(context, "averages windows of unequal sizes, or weighs their values.", "Use windows of one size.")


def _sum_pool(context: NodeContext, kernel: Any, stride: Any, padding: Any) -> nn.Module:
    """Return a pool that adds up its windows; torch has none in one dimension, where weights of 1 do it."""
    if len(kernel) > 1:
        pool: Any = AVERAGE_POOLS[len(kernel) - 1]
        return pool(kernel, stride, padding, divisor_override=1)
    channels = context.shapes[0][1]
    pool = nn.Conv1d(channels, channels, kernel, stride, padding, groups=channels, bias=False)
    pool.weight = nn.Parameter(torch.ones_like(pool.weight), requires_grad=False)
    pool.register_buffer("weight_exponent", pool.weight.new_zeros(channels))
    return pool


def scaled(scale: Tensor, grid: Grid, widths: Widths) -> tuple[Grid, ChannelScale]:
    """Return a scale in integers, and what it makes of what ``grid`` holds."""
    factors = scale.double().cpu() * grid.unit
    finest = torch.tensor(widths.exponent + FINER)
    k = exponents(factors.reshape(-1, 1), widths.weight, finest).view_as(factors)
    factors = whole_multiples(factors, k, widths.weight)
    module = ChannelScale(factors.to(scale))
    module.register_buffer("weight_exponent", k.to(scale))
    return Grid(grid.exponent + k, grid.bound * factors.abs()), module


def _along(value: Tensor, dim: int) -> Tensor:
    """Return the largest entries along ``dim``."""
    return value.amax([d for d in range(value.dim()) if d != dim % value.dim()], keepdim=True)


def _like(value: Tensor, old: Tensor) -> nn.Parameter:
    """Return ``value`` where and as ``old`` is."""
    return nn.Parameter(torch.empty_like(old).copy_(value), requires_grad=False)

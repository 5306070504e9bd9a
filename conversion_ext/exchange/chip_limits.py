"""What neurons, inputs and sizes must be to run on a chip: small rules, each of which names every breach."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.exchange.chip_subject import Rule, Subject, pair, problem
from conversion_ext.exchange.chips import Chip
from conversion_ext.neurons import IF, LIF, PLIF, BurstIF, Filtered, Neuron
from conversion_ext.types import Family, Reset

__all__ = ["LIMITS"]

SPIKES = (Family.BINARY, Family.SIGNED)


def neuron_kinds(subject: Subject) -> Iterator[Problem]:
    """Neurons have dynamics, reset, start and spikes of the chip's."""
    chip = subject.chip
    for node, site in subject.sites():
        spec = site.spec.holding(site.neuron)
        if not site.stepping.plain:
            what = type(site.stepping).__name__
            yield problem(node, f"it is stepped by {what}, which no chip does.", "Use a recipe without such a tuner.")
        if site.clock is not None:
            reason = "it looks ahead, which takes a membrane of its own for each time of arrival."
            yield problem(node, reason, "Use a recipe without look-ahead, such as default or default-copies.")
        if site.copies > 1 and chip.kernel_memory:
            reason = f"its {site.copies} neurons for each activation are layers of their own here, each with a core."
            yield problem(node, reason, "Use a recipe without copies.")
        if not _fits(spec, chip):
            yield problem(node, f"the chip has no neurons like {site.spec!r}.", _ALLOWED[chip.neuron])
            continue
        reset = _core(spec)
        if chip.neuron != "ReLU" and isinstance(reset, (IF, LIF, PLIF)) and reset.reset.value not in chip.resets:
            remedy = f"Use IF(0.0, Reset.{Reset(chip.resets[0]).name})."
            yield problem(node, f"a spike resets its neurons by {reset.reset.value!r}.", remedy)
        if chip.neuron != "ReLU" and not chip.starts and (site.copies > 1 or bool(site.v_init.any())):
            remedy = "Use neurons with v_init=0.0, or to_nir(snn, reader=..., T=T), which puts v_init / T into biases."
            yield problem(node, "its neurons start from a potential, and on the chip from 0.", remedy)
        if chip.spikes is not None and spec.levels > chip.spikes:
            yield problem(node, f"it sends {spec.levels} spikes a step, the chip {chip.spikes}.", "Use fewer.")


_ALLOWED = {
    "IF": "Use IF() or BurstIF(), not signed.",
    "LIF": "Use Filtered(LIF(tau=2**n, decay_input=False, reset=Reset.SUBTRACT), tau=...): a leak by a shift.",
    "ReLU": "Use IF() for ReLU: the chip computes the quantised ANN.",
}


def _core(spec: Neuron) -> Neuron:
    return spec.of if isinstance(spec, Filtered) else spec


def _fits(spec: Neuron, chip: Chip) -> bool:
    """Return whether the chip has the dynamics of ``spec``."""
    if getattr(spec, "ahead", 0):
        return False
    if chip.neuron == "LIF":
        core = _core(spec)
        leaks = isinstance(core, LIF) and not core.decay_input and core.tau >= 2
        return isinstance(core, LIF) and leaks and math.log2(core.tau).is_integer()
    plain = isinstance(spec, IF) or (isinstance(spec, PLIF) and bool(torch.as_tensor(spec.beta) == 1))
    return plain or (isinstance(spec, BurstIF) and not spec.signed)


def potentials_fit(subject: Subject) -> Iterator[Problem]:
    """Observed potentials stay within the bits of the chip's, half of which are finer than the threshold."""
    bits = subject.chip.state_bits
    if bits is None:
        return
    most = 2 ** (bits - 1 - bits // 2)
    for node, site in subject.sites():
        low, high = subject.potentials.get(site.key, (0.0, 0.0))
        if high >= most or (-low >= most and not subject.chip.floor):
            yield problem(
                node,
                f"potentials reach {low:.0f} to {high:.0f} thresholds, and {bits} bits hold {most} either way.",
                'Let them stop there, integers(snn, x, state_bits=..., overflow="saturate"), and evaluate that.',
            )


def levels(subject: Subject) -> Iterator[Problem]:
    """A chip without time tells apart no more activations than its bits do."""
    most = subject.chip.steps
    T = subject.snn.conversion.T
    if most is None:
        return
    for node, site in subject.sites():
        if T is None or T * site.spec.levels > most:
            given = "no particular T" if T is None else f"T={T} steps of {site.spec.levels}"
            yield problem(
                node, f"it was tuned for {given}, the chip has {most} levels.", f"Convert with T={most} or less."
            )


def inputs(subject: Subject) -> Iterator[Problem]:
    """Inputs are of the kind and size that the chip reads."""
    chip, snn = subject.chip, subject.snn
    node = graph.inputs_of(snn.body)[0]
    shape = tuple(subject.x.shape[1:])
    if len(graph.inputs_of(snn.body)) > 2:
        yield problem(node, "the network has several inputs.", "Use one.")
    if chip.events and snn.conversion.recipe.encoder.family not in SPIKES:
        remedy = "Convert with encoder=Poisson(), or train on events and simulate with x_seq."
        yield problem(node, "the input is analog, and the chip reads events.", remedy)
    if chip.image and (bool((subject.x < 0).any()) or len(shape) != 3 or shape[0] not in (1, 3)):
        remedy = "Give images [N, 1 or 3, H, W] of values that are not negative, and scale within the network."
        yield problem(node, "the chip reads 8-bit images of one or three channels.", remedy)
    if chip.input_size is not None and len(shape) == 3 and max(shape[1:]) > chip.input_size:
        yield problem(node, f"the input is {shape[1:]}.", f"Use at most {chip.input_size} pixels either way.")
    if chip.inputs is not None and math.prod(shape) > chip.inputs:
        yield problem(node, f"it has {math.prod(shape)} channels.", f"Use at most {chip.inputs}.")


def sizes(subject: Subject) -> Iterator[Problem]:
    """Channels, maps, and numbers of neurons are within the chip's."""
    chip, hidden = subject.chip, 0
    sites = list(subject.sites())
    for node, _ in subject.layers():
        shape = tuple(graph.info(node).shape[1:])
        if chip.channels is not None and shape[0] > chip.channels:
            yield problem(node, f"it has {shape[0]} channels.", f"Use at most {chip.channels}.")
        if chip.maps is not None and len(shape) == 3 and max(shape[1:]) > chip.maps:
            yield problem(node, f"its maps are {shape[1:]}.", f"Use at most {chip.maps} either way, by a stride.")
    for node, site in sites[:-1]:
        hidden += math.prod(graph.info(node).shape[1:]) * site.neurons
    if chip.hidden is not None and hidden > chip.hidden:
        yield problem(sites[-1][0], f"{hidden} hidden neurons are in front.", f"Use at most {chip.hidden} in all.")
    output = graph.output_of(subject.snn.body).all_input_nodes[0]
    count = math.prod(graph.info(output).shape[1:])
    if chip.outputs is not None and count > chip.outputs:
        yield problem(output, f"there are {count} outputs.", f"Use at most {chip.outputs}.")


def cores(subject: Subject) -> Iterator[Problem]:
    """Every weight layer with its neurons finds a core, the largest first."""
    chip = subject.chip
    if not chip.kernel_memory:
        return
    free = sorted(zip(chip.kernel_memory, chip.neuron_memory, strict=True))
    wanted = []
    for node, layer in subject.layers():
        source, out = node.all_input_nodes[0], tuple(graph.info(node).shape[1:])
        wanted.append((*_memory(layer, tuple(graph.info(source).shape[1:]), out), node))
    for kernel, neurons, node in sorted(wanted, key=lambda w: (-w[0], -w[1])):
        core = next((c for c in free if c[0] >= kernel and c[1] >= neurons), None)
        if core is None:
            reason = f"no core is left for {kernel} words of kernels and {neurons} neurons (powers of two)."
            yield problem(node, reason, "Use fewer channels, smaller maps, or fewer layers.")
        else:
            free.remove(core)


def _memory(layer: Any, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, int]:
    """Return (words of kernels, neurons), padded to powers of two as DYNAP-CNN addresses them."""
    bits = lambda n: math.ceil(math.log2(max(n, 1)))  # noqa: E731
    if isinstance(layer, nn.Linear):  # a convolution over the maps in front, of which it sees one pixel here
        return before[0] * 2 ** bits(after[0]), after[0]
    kernel = pair(layer.kernel_size)
    return before[0] * 2 ** (bits(math.prod(kernel)) + bits(after[0])), after[0] * 2 ** sum(map(bits, after[1:]))


LIMITS: tuple[Rule, ...] = (neuron_kinds, potentials_fit, levels, inputs, sizes, cores)

"""What neurons, inputs and sizes must be to run on a chip: small rules, each of which names every breach."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from conversion_ext import graph
from conversion_ext.errors import Problem
from conversion_ext.exchange.chip_subject import Rule, Subject, problem
from conversion_ext.exchange.chips import Chip
from conversion_ext.integer.modules import IntegerStepping
from conversion_ext.neurons import IF, LIF, PLIF, BurstIF, Filtered, Neuron
from conversion_ext.types import Family, Reset

__all__ = ["LIMITS"]

SPIKES = (Family.BINARY, Family.SIGNED)


def neuron_kinds(subject: Subject) -> Iterator[Problem]:
    """Neurons have dynamics, reset, start and spikes of the chip's."""
    chip = subject.chip
    for node, site in subject.sites():
        spec = site.spec.holding(site.neuron)
        if not (site.stepping.plain or isinstance(site.stepping, IntegerStepping)):
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
        if high >= most or (-low >= most and not subject.chip.saturates):
            yield problem(
                node,
                f"potentials reach {low:.0f} to {high:.0f} thresholds, and {bits} bits hold {most} either way.",
                'Use IF(floor=-1.0), or evaluate integers(snn, x, state_bits=..., overflow="saturate"), which stop.',
            )


def comparisons(subject: Subject) -> Iterator[Problem]:
    """Neurons compare with their threshold as the chip does, and their potentials have a floor where it needs one."""
    chip = subject.chip
    for node, site in subject.sites():
        spec = _core(site.spec)
        if not isinstance(spec, IF):
            continue
        if chip.strict is not None and spec.strict is not chip.strict:
            needs = "above" if chip.strict else "at"
            reason = f"a neuron of the chip fires {needs} its threshold, and integers meet it often."
            yield problem(node, reason, f"Use IF(strict={chip.strict}).")
        if chip.floors == "needed" and spec.floor is None:
            reason = "its potentials have no floor, and the tool chain then scales all weights to 0 or 1."
            yield problem(node, reason, "Use IF(floor=-1.0), which changes hardly any spike.")
        if chip.floors == "none" and spec.floor is not None and chip.neuron != "ReLU":
            yield problem(node, "its potentials have a floor, and the chip's have not.", "Use IF() without floor=.")


def widths(subject: Subject) -> Iterator[Problem]:
    """A network in integers keeps to the bits of weights and potentials, and to even weights where that is asked."""
    chip, own = subject.chip, subject.snn.conversion.widths
    node = next(iter(subject.layers()), (None, None))[0]
    if own is None or node is None:
        return
    if own.weight > chip.weight_bits:
        remedy = f"Use integers(snn, x, weight_bits={chip.weight_bits})."
        yield problem(node, f"weights have {own.weight} bits, the chip's {chip.weight_bits}.", remedy)
    if chip.state_bits is not None and own.state > chip.state_bits:
        remedy = f"Use integers(snn, x, state_bits={chip.state_bits})."
        yield problem(node, f"potentials have {own.state} bits, the chip's {chip.state_bits}.", remedy)
    if chip.even and not own.even:
        remedy = "Use integers(snn, x, even_weights=True), and simulate with delay_per_layer=1."
        yield problem(node, "its weights are odd or finer than the chip's, where signs mix.", remedy)


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


LIMITS: tuple[Rule, ...] = (neuron_kinds, comparisons, potentials_fit, widths, levels, inputs, sizes)

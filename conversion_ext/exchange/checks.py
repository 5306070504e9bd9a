"""Check a network before its conversion, or a converted one before it goes to a chip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.conversion import checks
from conversion_ext.conversion.pipeline import convert
from conversion_ext.errors import Problem, require
from conversion_ext.exchange.chip_cores import CORES
from conversion_ext.exchange.chip_limits import LIMITS
from conversion_ext.exchange.chip_rules import RULES
from conversion_ext.exchange.chip_subject import Subject
from conversion_ext.exchange.chips import chip_of
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.simulation.simulation import simulate

__all__ = ["check"]

STEPS, SAMPLES = 32, 32  # of the run in which potentials are observed


def check(
    ann: nn.Module,
    example_input: Any = None,
    *,
    target: str | None = None,
    recipe: str | Recipe = "default",
    graded: bool = True,
    skip: Sequence[str] = (),
    leaf: Sequence[Any] = (),
) -> list[Problem]:
    """Return every obstacle to converting ``ann``, or to running it on a chip: path, source line, reason, remedy.

    Without ``target`` nothing is calibrated and the model is not changed. With an ``example_input`` [N, ...] (or a
    tuple for several inputs) shapes are known, and operations that mix samples of a batch are found as well.

    With ``target`` the converted network is compared with what the chip takes, rule by rule: layers, neurons behind
    them, scales that stay, pools, kernels, biases, reset, start, threshold and floor of neurons, bits of potentials on
    these inputs, those of a network in integers, inputs, sizes, and memory and fan-out where they are published. An ANN
    is converted first, calibrated on ``example_input``. An empty list means that no rule was broken, not that the tools
    of the chip were run.

    Args:
        ann: A network, or with ``target`` also one that ``convert`` returned.
        example_input: A batch of inputs.
        target: "speck", "loihi2", "xylo", "spinnaker2" or "akida".
        recipe: The recipe of the conversion.
        graded: False refuses functions whose output is not spikes.
        skip: Paths of modules that stay analog.
        leaf: Types or paths of modules that are not traced into.

    Returns:
        A :class:`Problem` for every obstacle; an empty list where there is none.

    Raises:
        UnknownNameError: There is no such target.
    """
    if target is None:
        return checks.check(ann, example_input, recipe=recipe, graded=graded, skip=skip, leaf=leaf)
    chip = chip_of(target)
    one = isinstance(example_input, Tensor) and example_input.is_floating_point()
    require(one, "To compare with a chip give one tensor of inputs [N, ...] in floating point.", TypeError)
    snn: Any = ann
    if not isinstance(ann, SpikingNetwork):
        problems = checks.check(ann, example_input, recipe=recipe, graded=graded, skip=skip, leaf=leaf)
        if problems:
            return problems
        snn = convert(
            ann, example_input, recipe=recipe, graded=graded, skip=skip, leaf=leaf, backend="reference", progress=False
        )
    require(snn.conversion.folded, "A chip has no scales; convert with fold=True.")
    subject = Subject(snn, chip, example_input, _potentials(snn, example_input))
    return [problem for rule in (*RULES, *LIMITS, *CORES) for problem in rule(subject)]


def _potentials(snn: SpikingNetwork, x: Tensor) -> dict[str, tuple[float, float]]:
    """Return {site: (least, greatest) potential in thresholds} over some steps of some inputs."""
    if snn.conversion.widths is not None or any(site.clock is not None for site in snn.sites().values()):
        return {}  # those of integers keep to their bits; sites with a clock are refused and make no single steps
    T = max(STEPS, snn.conversion.T or 0)
    with torch.no_grad():
        potentials = simulate(snn, x[:SAMPLES], T=T, at=(T,), record=("potential",), block=1).recorded["potential"]
    return {key: (float(v.amin()), float(v.amax())) for key, v in potentials.items()}

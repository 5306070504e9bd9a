"""The recipes that ``convert`` uses when none of the literature is named, one for each family of spikes.

With T: thresholds per channel of least squared error for T steps, then weights and initial potentials corrected layer
by layer, and steps weighed in the mean output, where the last ones know most; all corrections fade where more steps
make them unnecessary, so accuracy does not fall beyond T.
Without: the 99.9th percentile per channel, which suits any number of steps and none in particular.

``default-copies`` has two neurons for each activation: binary spikes after T steps, with twice the neurons.
``default`` decides after T steps. ``default-lookahead`` (binary spikes at even pace) and ``default-weighted`` (binary
spikes whose weight falls with time; needs T) let every site lag one step behind its input, so that they decide after
``T + depth`` steps: a few steps later, but with less error at small T. ``default-tuned`` goes on block by block, with
weights trained on the output of whole spike trains.
"""

from __future__ import annotations

from conversion_ext.neurons import IF, BurstIF, Neuron, SignedIF, WeightedIF
from conversion_ext.normalizers import MeanSquaredError, Percentile
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.tuners import (
    BlockReconstruction,
    DecisionTable,
    InitialPotential,
    OutputWeights,
    Tuner,
    WeightCompensation,
)
from conversion_ext.types import Family


def corrections(*more: Tuner) -> tuple[Tuner, ...]:
    """Return what spikes of one weight are corrected by, for a given T; steps of the output are weighed at the end."""
    return (WeightCompensation(), InitialPotential(), *more, OutputWeights())


def _register(name: str, neuron: Neuron, copies: int = 1, *, more: tuple[Tuner, ...] = (), use: str) -> None:
    timed = Recipe(MeanSquaredError(), neuron, tuners=corrections(*more), family=neuron.family, copies=copies)
    plain = Recipe(Percentile(99.9), neuron, family=neuron.family, copies=copies)
    register_recipe(name, timed, without_T=plain, use=use)


_register("default", IF(v_init=0.5), use="Use it first: binary spikes at the T that convert is given.")
_register(
    "default-lookahead",
    IF(v_init=0.5, lookahead=1),
    use="Use it when latency may grow by a step per layer: spikes come evenly.",
)
_register("default-copies", IF(v_init=0.5), copies=2, use="Use it when the number of neurons may double.")
_register(
    "default-tuned",
    IF(v_init=0.5),
    more=(BlockReconstruction(steps=400, rate=0.02),),
    use="Use it where T must be the latency, 2 to 8 steps, and minutes may be spent; without labels.",
)
_register("default-signed", SignedIF(v_init=0.5), use="Use it when the target takes spikes of -1.")
_register("default-multilevel", BurstIF(v_init=0.5), use="Use it when the target takes several spikes per step.")
register_recipe(
    "default-weighted",
    Recipe(
        MeanSquaredError(),
        WeightedIF(lookahead=1),
        tuners=(WeightCompensation(), DecisionTable(), InitialPotential()),
        family=Family.WEIGHTED,
    ),
    use="Use it when the target weighs spikes by their time: few steps express many levels.",
)

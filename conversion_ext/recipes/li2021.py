"""Li, Deng, Dong, Gong, Gu: A free lunch from ANN: towards efficient, accurate SNN calibration (ICML 2021).

Thresholds per channel of least squared error for T steps, rounding where the authors floor: their neurons get half a
threshold over T steps, ours at once, and then rounding is what they do. ``li2021`` is their light
calibration, which corrects biases; ``li2021_advanced`` refits weights by gradient, then initial potentials, per channel
(theirs are per neuron, ``InitialPotential(granularity=PerNeuron())``, which fixes the size of the input).
"""

from __future__ import annotations

from dataclasses import replace

from conversion_ext.neurons import IF
from conversion_ext.normalizers import MeanSquaredError
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.tuners import BiasCorrection, InitialPotential, WeightCalibration

LIGHT = Recipe(MeanSquaredError(), IF(v_init=0.5), tuners=(BiasCorrection(),))
register_recipe("li2021", LIGHT, use="Use it to compare with calibrated biases, T of 4 to 32 (Li et al., ICML 2021).")
register_recipe(
    "li2021_advanced",
    replace(LIGHT, tuners=(WeightCalibration(), InitialPotential())),
    use="Use it to compare with calibrated weights, T of 2 to 32 (Li et al., ICML 2021).",
)

"""Rueckauer, Lungu, Hu, Pfeiffer, Liu: Conversion of continuous-valued deep networks (Front. Neurosci. 2017).

Biases and the image as constant currents, soft reset, the 99.9th percentile of positive activations per layer, the gate
of the authors' toolbox for max-pools, the mean current of the last layer (their third softmax: no spikes).
``dataclasses.replace`` takes the other choices of the paper: ``Maximum()``, ``IF(0.0, Reset.ZERO)``, another gate or
``softmax``, and ``VoltageClamp()`` with ``MeanOutput(start=...)``.
"""

from __future__ import annotations

from conversion_ext.neurons import IF
from conversion_ext.normalizers import Percentile
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.types import PerLayer

register_recipe(
    "rueckauer2017",
    Recipe(Percentile(99.9, granularity=PerLayer(), positive_only=True), IF(v_init=0.0), max_pool="fir"),
    use="Use it to compare with the classic of constant currents, T from 64 (Rueckauer et al., 2017).",
)

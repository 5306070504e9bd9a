"""Rueckauer, Lungu, Hu, Pfeiffer, Liu: Conversion of continuous-valued deep networks (Front. Neurosci. 2017).

Biases and the image as constant currents, soft reset, the 99.9th percentile of positive activations per layer, the gate
of the authors' toolbox for max-pools, the mean current of the last layer (their third softmax: no spikes).
``dataclasses.replace`` takes the other choices of the paper: ``Maximum()``, another gate or ``softmax``, and
``VoltageClamp()`` with ``MeanOutput(start=...)``. Its hard reset has a recipe of its own, ``rueckauer2017_zero``: less
exact, but what NIR's IF neuron does, so that SpikingJelly and norse run it spike for spike (see ``to_nir``).
"""

from __future__ import annotations

from dataclasses import replace

from conversion_ext.neurons import IF
from conversion_ext.normalizers import Percentile
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.types import PerLayer, Reset

SOFT = Recipe(Percentile(99.9, granularity=PerLayer(), positive_only=True), IF(v_init=0.0), max_pool="fir")

register_recipe(
    "rueckauer2017",
    SOFT,
    use="Use it to compare with the classic of constant currents, T from 64 (Rueckauer et al., 2017).",
)
register_recipe(
    "rueckauer2017_zero",
    replace(SOFT, neuron=IF(0.0, Reset.ZERO)),
    use="Use it for tools and chips that reset to zero: the same spikes in NIR, SpikingJelly and norse, T from 64.",
)

"""Hu, Tang, Pan: Spiking deep residual networks (arXiv 2018, TNNLS 2021).

Scales of residual branches and shortcuts agree (folding does that for every network), neurons behind average pools
and behind the last layer, exact max-pooling of rates, soft reset from half a threshold as in the authors' code,
99.9 % of all activations (they take 99.99 on ImageNet), T = 350. They break ties of counts by the membrane: that is
the order of the readout ``MeanOutput()``. With ``IF(v_init=0.0)`` add ``tuners.Compensation()``, which then
pays; from half a threshold there is hardly anything to compensate.
"""

from __future__ import annotations

from conversion_ext.neurons import IF
from conversion_ext.normalizers import Percentile
from conversion_ext.readouts import SpikeCount
from conversion_ext.recipe import Recipe
from conversion_ext.recipes import register_recipe
from conversion_ext.types import PerLayer

register_recipe(
    "hu2018", Recipe(Percentile(99.9, granularity=PerLayer()), IF(v_init=0.5), readout=SpikeCount(), relay=True)
)

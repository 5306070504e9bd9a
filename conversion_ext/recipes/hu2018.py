"""Hu, Tang, Pan: Spiking deep residual networks (arXiv 2018, TNNLS 2021).

Scales of residual branches and shortcuts agree (folding does that for every network), neurons behind average pools
and behind the last layer, exact max-pooling of rates, soft reset from half a threshold as in the authors' code,
99.9 % of all activations (they take 99.99 on ImageNet), T = 350. They break ties of counts by the membrane: that is
the order of the readout ``MeanOutput()``. From half a threshold there is hardly anything to compensate:
``hu2018_compensated`` starts from 0 and compensates, by a reconstruction of a formula that could not be found.
"""

from __future__ import annotations

from dataclasses import replace

from conversion_ext.neurons import IF
from conversion_ext.normalizers import Percentile
from conversion_ext.readouts.spike_count import SpikeCount
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.tuners import Compensation
from conversion_ext.types import PerLayer

PLAIN = Recipe(Percentile(99.9, granularity=PerLayer()), IF(v_init=0.5), readout=SpikeCount(), relay=True)
register_recipe("hu2018", PLAIN, use="Use it to compare on residual networks, T from 32 (Hu et al., TNNLS 2021).")
register_recipe(
    "hu2018_compensated",
    replace(PLAIN, neuron=IF(v_init=0.0), tuners=(Compensation(),)),
    use="Use it to compare with Hu's compensation, T from 64 (Hu et al., TNNLS 2021).",
)

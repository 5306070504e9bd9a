"""Cao, Chen, Khosla: Spiking deep convolutional neural networks for energy-efficient object recognition (IJCV 2015).

Networks without biases, with ReLU and average pooling only; others are refused, place by place. Inputs are not
negative: ``cao2015_adapted`` is for networks that take the magnitude of theirs, whose pixels send it as spikes. What
can be rewritten ``recipes.adapt_cao2015`` rewrites, to be trained anew. Random input, neurons with hard reset behind
averaging too, spikes of output neurons counted. The paper sets thresholds by hand; here they are the largest
activations. Its lower clip of the membrane is left out.
"""

from __future__ import annotations

from dataclasses import replace

from conversion_ext.capture.demands import MagnitudeOfInput, NoBias, NoMaxPool, OnlyReLU
from conversion_ext.encoders import Poisson
from conversion_ext.neurons import IF
from conversion_ext.normalizers import Maximum
from conversion_ext.readouts.spike_count import SpikeCount
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.types import Reset

TAILORED = Recipe(
    Maximum(),
    IF(v_init=0.0, reset=Reset.ZERO),
    encoder=Poisson(),
    readout=SpikeCount(),
    relay=True,
    demands=(NoBias(), OnlyReLU(), NoMaxPool()),
)
register_recipe(
    "cao2015", TAILORED, use="Use it for networks without biases and max-pools, T from 64 (Cao et al., IJCV 2015)."
)
register_recipe(
    "cao2015_adapted",
    replace(TAILORED, encoder=Poisson(signed=True), demands=(*TAILORED.demands, MagnitudeOfInput())),
    use="Use it for networks that adapt_cao2015 rewrote, T from 64 (Cao et al., IJCV 2015).",
)

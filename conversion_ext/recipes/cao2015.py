"""Cao, Chen, Khosla: Spiking deep convolutional neural networks for energy-efficient object recognition (IJCV 2015).

Networks without biases, with ReLU and average pooling only; others are refused, place by place (max-pooling becomes
average pooling with ``recipes.average_pooling``, to be trained anew; inputs below 0 are refused, train on ``x.abs()``).
Random input, neurons with hard reset behind averaging too, spikes of output neurons counted. The paper sets
thresholds by hand; here they are the largest activations. Its lower clip of the membrane is left out.
"""

from __future__ import annotations

from conversion_ext.demands import NoBias, NoMaxPool, OnlyReLU
from conversion_ext.encoders import Poisson
from conversion_ext.neurons import IF
from conversion_ext.normalizers import Maximum
from conversion_ext.readouts import SpikeCount
from conversion_ext.recipe import Recipe
from conversion_ext.recipes import register_recipe
from conversion_ext.types import Reset

register_recipe(
    "cao2015",
    Recipe(
        Maximum(),
        IF(v_init=0.0, reset=Reset.ZERO),
        encoder=Poisson(),
        readout=SpikeCount(),
        relay=True,
        demands=(NoBias(), OnlyReLU(), NoMaxPool()),
    ),
)

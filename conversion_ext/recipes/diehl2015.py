"""Diehl et al.: Fast-classifying spiking networks through weight and threshold balancing (IJCNN 2015).

Networks without biases, random input, hard reset, spikes counted; average pools are layers of neurons, as in the
authors' code. ``diehl2015_model`` scales by what the weights allow for inputs in [0, 1] and needs no data,
``diehl2015_data`` by the largest activation or weight.
"""

from __future__ import annotations

from dataclasses import replace

from conversion_ext.capture.demands import NoBias
from conversion_ext.encoders import Poisson
from conversion_ext.neurons import IF
from conversion_ext.normalizers import DataBased, ModelBased
from conversion_ext.readouts.spike_count import SpikeCount
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.types import Reset

MODEL = Recipe(
    ModelBased(),
    IF(v_init=0.0, reset=Reset.ZERO),
    encoder=Poisson(),
    readout=SpikeCount(),
    relay=True,
    demands=(NoBias(),),
)
register_recipe(
    "diehl2015_model",
    MODEL,
    use="Use it for networks without biases and without data, T from 128 (Diehl et al., IJCNN 2015).",
)
register_recipe(
    "diehl2015_data",
    replace(MODEL, normalizer=DataBased()),
    use="Use it for networks without biases, T from 64 (Diehl et al., IJCNN 2015).",
)

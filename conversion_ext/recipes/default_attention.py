"""Transformers: spikes into every linear layer.

Queries, keys, values, projections and both layers of the MLP do over 95 % of the multiply-adds of a vision transformer.
Here all of them receive spikes {-1, 0, 1}: relays encode the outputs of LayerNorm, GELU and of attention, with one
threshold for each feature, of least squared error for T steps. LayerNorm, softmax, GELU and the two matrix products of
attention are differential operators, whose outputs are graded. Then each linear layer is corrected against the ANN.

Use it for ViT, DeiT, MLP-Mixer and torch's encoders from T = 4 on. A feature is the last dimension of a tensor, so
networks of convolutions are better served by ``default``.
"""

from __future__ import annotations

from conversion_ext.neurons import SignedEncoder
from conversion_ext.normalizers import MeanSquaredError, Percentile
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.tuners import WeightCompensation
from conversion_ext.types import PerChannel

FEATURES = PerChannel(-1)

register_recipe(
    "default-attention",
    Recipe(
        MeanSquaredError(granularity=FEATURES),
        relay=True,
        signed_encoder=SignedEncoder(headroom=None),
        tuners=(WeightCompensation(),),
    ),
    without_T=Recipe(Percentile(99.9, granularity=FEATURES), relay=True, signed_encoder=SignedEncoder(headroom=None)),
    use="Use it for transformers: attention and LayerNorm in steps.",
)

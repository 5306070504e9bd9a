"""Transformers: spikes into every linear layer.

Queries, keys, values, projections and both layers of the MLP do over 95 % of the multiply-adds of a vision transformer.
Here all of them receive binary spikes: relays encode the outputs of LayerNorm, GELU and of attention in an on and an
off neuron for each value, with one threshold for each feature, of least squared error for T steps. LayerNorm, softmax,
GELU and the two matrix products of attention are differential operators, whose outputs are graded. Then each linear
layer is corrected against the ANN.

Use them for ViT, DeiT, Swin, MLP-Mixer and torch's encoders. ``default-attention`` sends a rate and decides after T
steps; ``default-attention-weighted`` sends spikes whose weight falls with time, each site a step behind its input: a
few steps later, and with a fraction of the error from T = 4 on. Where features stay far from 0 for all inputs,
``recipes.center_features`` takes their mean out of the spikes first. A feature is the last dimension of a tensor, so
networks of convolutions are better served by ``default``.

What is not converted, with the reason that ``check`` gives: attention that works on values of data in Python or returns
the positions of maxima; operations that mix the samples of a batch; samples folded in behind positions
(``[N, L, ...] -> [L N, ...]``, put the batch first); recurrent layers; nested tensors; attention masks computed from
values by ``==`` or ``argmax`` (those of tokens, positions and inputs of booleans are exact). Kept analog, and said so
in ``table()``: the layer that sees the image, the products of attention, LayerNorm, softmax and GELU. Look-ahead runs
whole sequences; it cannot be ticked live, since functions of sums cannot wait for their input.
"""

from __future__ import annotations

from conversion_ext.neurons import SignedEncoder, WeightedEncoder, WeightedIF
from conversion_ext.normalizers import MeanSquaredError, Percentile
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.tuners import WeightCompensation
from conversion_ext.types import Family, PerChannel

FEATURES = PerChannel(-1)
PAIRS = SignedEncoder(headroom=None, pairs=True)

register_recipe(
    "default-attention",
    Recipe(MeanSquaredError(granularity=FEATURES), relay=True, signed_encoder=PAIRS, tuners=(WeightCompensation(),)),
    without_T=Recipe(Percentile(99.9, granularity=FEATURES), relay=True, signed_encoder=PAIRS),
    use="Use it for transformers: attention and LayerNorm in steps.",
)
register_recipe(
    "default-attention-weighted",
    Recipe(
        MeanSquaredError(granularity=FEATURES),
        WeightedIF(),
        family=Family.WEIGHTED,
        relay=True,
        signed_encoder=WeightedEncoder(pairs=True),
        tuners=(WeightCompensation(),),
    ),
    use="Use it for transformers when the target weighs spikes by their time: most levels in few steps.",
)

"""Bu, Ding, Yu, Huang: Optimized potential initialization for low-latency spiking neural networks (AAAI 2022).

Potentials start from half a threshold, at which the expected error of a rate is 0 and its variance least. Thresholds:
the 99.9th percentile per layer, for networks trained with plain ReLU; for clipped ones take ``Trained()``.
"""

from __future__ import annotations

from conversion_ext.neurons import IF
from conversion_ext.normalizers import Percentile
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.types import PerLayer

register_recipe(
    "bu2022_opi",
    Recipe(Percentile(99.9, granularity=PerLayer()), IF(v_init=0.5)),
    use="Use it to compare with thresholds alone, T from 16 (Bu et al., AAAI 2022).",
)

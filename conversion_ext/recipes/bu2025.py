"""Bu, Li, Yu: Inference-scale complexity in ANN-SNN conversion (CVPR 2025).

Thresholds per channel grow with every batch: give many small ones (the authors 1,000 to 5,000 of 100 images), or
``ThresholdBalancing(passes=...)``.
"""

from __future__ import annotations

from conversion_ext.neurons import IF
from conversion_ext.normalizers import ThresholdBalancing
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe

register_recipe(
    "bu2025",
    Recipe(ThresholdBalancing(), IF(v_init=0.5)),
    use="Use it to compare with local threshold balancing, T from 16 (Bu et al., CVPR 2025).",
)

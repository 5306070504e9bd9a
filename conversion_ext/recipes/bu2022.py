"""Bu, Fang, Ding, Dai, Yu, Huang: Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency SNNs (ICLR 2022).

For networks trained with ``cx.nn.QCFS`` (``recipes.replace_relu`` puts it in; average instead of max-pooling with
``recipes.max_to_average``): thresholds are those learned, potentials start from one half.
"""

from __future__ import annotations

from conversion_ext.neurons import IF
from conversion_ext.normalizers import Trained
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe

register_recipe(
    "bu2022",
    Recipe(Trained(), IF(v_init=0.5)),
    use="Use it for networks trained with QCFS, T of 4 to 32 (Bu et al., ICLR 2022).",
)

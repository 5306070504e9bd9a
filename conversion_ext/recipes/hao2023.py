"""Hao, Bu, Ding, Huang, Yu: Reducing ANN-SNN conversion error through residual membrane potential (AAAI 2023).

For networks trained with ``cx.nn.QCFS``. Four steps are simulated first, and neurons whose potential tells that they
fired wrongly are silent in the T steps that count: ``total_steps`` is 4 + T.
"""

from __future__ import annotations

from conversion_ext.neurons import IF
from conversion_ext.normalizers import Trained
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.tuners import ResidualPotential

register_recipe(
    "hao2023",
    Recipe(Trained(), IF(v_init=0.5), tuners=(ResidualPotential(tau=4),)),
    use="Use it for networks trained with QCFS, T of 2 to 16 and 4 steps before (Hao et al., AAAI 2023).",
)

"""Hao, Ding, Bu, Huang, Yu: Bridging the gap between ANNs and SNNs by calibrating offset spikes (ICLR 2023).

For networks trained with ``cx.nn.QCFS``. Each site runs its first four steps, shifts its initial potentials by one
spike where the count is wrong, and runs anew. T >= 4, and what waits for its predecessor multiplies with depth
(``Simulation.latency_steps``).
"""

from __future__ import annotations

from conversion_ext.neurons import IF
from conversion_ext.normalizers import Trained
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe
from conversion_ext.tuners import OffsetSpike

register_recipe(
    "hao2023_cos",
    Recipe(Trained(), IF(v_init=0.5), tuners=(OffsetSpike(rho=4),)),
    use="Use it for networks trained with QCFS, T of 4 to 16, latency growing with depth (Hao et al., ICLR 2023).",
)

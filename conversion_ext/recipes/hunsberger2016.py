"""Hunsberger, Eliasmith: Training spiking deep networks for neuromorphic hardware (arXiv 2016).

For networks trained with ``cx.nn.SoftLIF`` (``recipes.replace_relu`` puts it in, its ``noise`` closes most of the gap);
they become LIF neurons with a refractory period behind exponential synapses of 3 ms, one step being 1 ms. The class is
the mean output of steps 61 to T, T = 150: the authors' setting for CIFAR-10. ``synops(...).energy(Hunsberger())``
gives their efficiency.
"""

from __future__ import annotations

from conversion_ext.neurons import Filtered, RefractoryLIF
from conversion_ext.normalizers import Trained
from conversion_ext.readouts.mean_output import MeanOutput
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe

register_recipe(
    "hunsberger2016",
    Recipe(Trained(), Filtered(RefractoryLIF(), tau=3.0, order=1), readout=MeanOutput(start=60)),
    use="Use it for networks trained with SoftLIF, T from 80 (Hunsberger and Eliasmith, 2016).",
)

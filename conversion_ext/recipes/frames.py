"""For networks trained on frames: event frames or video, of which the spiking network receives one at each step.

``convert(ann, data, recipe="frames", sequence=True)`` takes thresholds from all frames, and neurons add up what the
frames bring. Corrections for T steps of a constant current, as the default recipe makes them, have nothing to correct
here. On 600 digits as 16 frames of random events (a small CNN with an average pool, two trainings) it loses 1.2 and
2.0 points against the ANN's mean over frames, the default recipe with T 1.3 and 2.6.
"""

from __future__ import annotations

from conversion_ext.neurons import IF
from conversion_ext.normalizers import Percentile
from conversion_ext.recipes import register_recipe
from conversion_ext.recipes.recipe import Recipe

register_recipe(
    "frames",
    Recipe(Percentile(99.9), IF(v_init=0.5)),
    use="Use it for event frames or video, one frame per step.",
)

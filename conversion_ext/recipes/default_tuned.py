"""``default`` and then, block by block, weights that descend on what whole spike trains say.

Binary spikes, decided after T steps, no labels: for where T must be the latency and minutes may be spent.
"""

from __future__ import annotations

from dataclasses import replace

from conversion_ext.recipes import for_steps, get, register_recipe
from conversion_ext.tuners import BlockReconstruction

__all__: list[str] = []

_default = get("default")
register_recipe(
    "default-tuned",
    replace(_default, tuners=(*_default.tuners, BlockReconstruction(steps=400, rate=0.02))),
    without_T=for_steps("default", None),
    use="Use it where T must be the latency, 2 to 8 steps, and minutes may be spent; without labels.",
)

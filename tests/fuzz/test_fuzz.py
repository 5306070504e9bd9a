"""Three hundred random networks: each is converted right or refused in words of ours."""

from __future__ import annotations

import pytest

from tests.fuzz.graphs import random_network
from tests.fuzz.laws import verdict

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 300, 25))
def test_no_random_network_is_converted_wrong(first: int) -> None:
    found = {seed: verdict(seed) for seed in range(first, first + 25)}
    broken = {seed: (kind, reasons) for seed, (kind, reasons) in found.items() if kind in ("wrong", "foreign")}
    assert not broken, "\n".join(f"{seed}: {what}\n{random_network(seed)[0]}" for seed, what in broken.items())
    assert sum(kind == "right" for kind, _ in found.values()) >= 12


def test_the_laws_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sums that give each operand the unit of its first channel, as they once did, a seed is found wrong."""
    from conversion_ext.operators import arithmetic

    monkeypatch.setattr(arithmetic, "_aligned", lambda unit, shape: unit * 2)
    assert any(verdict(seed)[0] == "wrong" for seed in range(40))

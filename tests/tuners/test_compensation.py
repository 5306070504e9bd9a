"""Compensation: a gain per site, exact under folding, and the least-squares factor where none is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.tuners import Compensation
from tests import laws
from tests.live import live


def converted(ann: Any, x: Any, *tuners: Any, v_init: float = 0.0, T: int = 16, **options: Any) -> Any:
    recipe = cx.Recipe(cx.Percentile(99.9), cx.IF(v_init=v_init), tuners=tuners)
    return cx.convert(ann, x, recipe=recipe, T=T, progress=False, backend="reference", **options)


def deep(depth: int = 10) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(2)
    layers: list[Any] = [layer for _ in range(depth) for layer in (nn.Linear(96, 96, bias=False), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers, nn.Linear(96, 10)).double(), torch.rand(64, 96, dtype=torch.float64)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ["chain", "residual", "inception", "gated"])
def test_the_laws_hold_with_a_gain(name, fold):
    """Every site conserves its charge, and with rates times the gain in its place each activation gives the output."""
    ann, x = live(name, samples=6)
    snn = converted(ann, x, Compensation(kappa=1.25), fold=fold)
    gains = {key: float(site.gain) for key, site in snn.sites().items()}
    signed = [k for k, s in snn.sites().items() if isinstance(s.spec, cx.neurons.SignedEncoder)]
    assert gains == {key: 1.0 if key in signed else 1.25 for key in gains}
    laws.assert_sites_exact(snn, (x[:3],), T=12)
    laws.assert_is_ann_of_rates(ann, snn, (x[:3],), T=12)


def test_the_factor_is_that_of_least_squares_and_lessens_the_error():
    """At the first site, from what simulate shows, against a search over factors."""
    ann, x = deep(2)
    plain, tuned = converted(ann, x), converted(ann, x, Compensation())
    emitted = cx.simulate(plain, x, 16).firing_rate["1"] * plain.conversion.thresholds["1"]
    a = ann[:2](x).detach()
    factors = torch.linspace(1, 2, 2001, dtype=torch.float64)
    best = factors[torch.stack([(f * emitted - a).square().sum() for f in factors]).argmin()]
    assert best > 1.01
    assert float(tuned.sites()["1"].gain) == pytest.approx(float(best), abs=1e-3)


def test_a_deep_network_that_fades_is_brought_back():
    ann, x = deep()
    plain, tuned = converted(ann, x), converted(ann, x, Compensation())
    wanted = ann(x).detach()
    slopes = [float((o * wanted).sum() / wanted.square().sum()) for o in (
        cx.simulate(snn, x, 64).output for snn in (plain, tuned)
    )]  # fmt: skip
    assert slopes[0] < 0.9 * slopes[1]
    errors = [(cx.simulate(snn, x, 16).output - wanted).norm() for snn in (plain, tuned)]
    assert errors[1] < 0.75 * errors[0]


def test_half_a_threshold_at_the_start_leaves_nothing_to_compensate():
    ann, x = deep()
    gains = [float(s.gain) for s in converted(ann, x, Compensation(), v_init=0.5, T=64).sites().values()]
    assert all(1 <= gain < 1.02 for gain in gains)


def test_it_refuses_what_is_no_factor():
    for kappa in (0.9, float("nan"), float("inf"), "1"):
        with pytest.raises(ValueError, match=r"Compensation\(kappa=.*number >= 1"):
            Compensation(kappa=kappa)  # pyright: ignore[reportArgumentType]

"""Pictures of converted networks with matplotlib: each function takes measured values and returns a figure.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines also differ in dashes and markers,
so that a print in black and white is legible. Figures are 5 inches wide and readable at 600 pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conversion_ext.errors import optional_import, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from conversion_ext.network.table import Conversion
    from conversion_ext.simulation.simulation import Simulation

__all__ = [
    "STYLE", "accuracy", "activation_against_rate", "energy", "errors", "firing_rates", "frontier", "membrane",
    "raster", "thresholds",
]  # fmt: skip

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS, DASHES = "osD^vP", ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "xxx")
Z = 1.96  # of a 95 % interval
STYLE = {
    "axes.prop_cycle": f"cycler('color', {list(COLORS)}) + cycler('linestyle', ['-', '--', '-.', ':', '-', '--'])",
    "axes.spines.right": False, "axes.spines.top": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.6,
    "axes.axisbelow": True, "axes.titlesize": "medium", "font.size": 9, "figure.dpi": 80,
}  # fmt: skip
"""The look of these pictures for your own: ``plt.rcParams.update(plots.STYLE)``; figures up to 7.5 inches wide."""


def accuracy(evaluations: Any) -> Figure:
    """Return accuracy over time steps with its 95 % interval (Wilson), and a line for the ANN.

    Args:
        evaluations: what ``cx.evaluate`` returned, or several under their names.
    """
    curves: Mapping[str, Any] = evaluations if isinstance(evaluations, Mapping) else {"SNN": evaluations}
    require(len(curves) > 0, "accuracy({}): give at least one evaluation.")
    figure, axes = _figure()
    for i, (name, result) in enumerate(curves.items()):
        low, high = (100 * bound.numpy() for bound in interval(result.accuracy, result.samples))
        axes.fill_between(result.at, low, high, color=COLORS[i % 6], alpha=0.2, linewidth=0)
        axes.plot(result.at, 100 * result.accuracy.numpy(), label=name, **_style(i, len(result.at) <= 16))
    best = next((e.ann_accuracy for e in curves.values() if e.ann_accuracy is not None), None)
    if best is not None:
        axes.axhline(100 * best, color="black", linestyle=":", linewidth=1.5, label=f"ANN, {100 * best:.2f} %")
    _steps(axes, sorted({t for result in curves.values() for t in result.at}))
    axes.set_ylabel("accuracy (%)")
    axes.legend()
    return figure


def frontier(curves: Mapping[str, Sequence[tuple[float, float]]], cost: str, *, ann: float | None = None) -> Figure:
    """Return accuracy against a cost, one line per curve.

    Args:
        curves: {name: [(cost, accuracy in [0, 1]), ...]}.
        cost: title of the axis, with its unit: ``"latency (steps)"``, ``"spikes per sample"``, ``"neurons"``.
        ann: accuracy of the ANN in [0, 1], drawn as a line.
    """
    figure, axes = _figure()
    for i, (name, points) in enumerate(curves.items()):
        ordered = sorted(points)
        axes.plot([x for x, _ in ordered], [100 * y for _, y in ordered], label=name, **_style(i, True))
    if ann is not None:
        axes.axhline(100 * ann, color="black", linestyle=":", linewidth=1.5, label="ANN")
    _plain_log(axes)
    axes.set_xlabel(cost)
    axes.set_ylabel("accuracy (%)")
    axes.legend()
    return figure


def activation_against_rate(activation: Tensor, output: Tensor, *, site: str = "", points: int = 3000) -> Figure:
    """Return a scatter of what a site sends on average against the ANN's activation; on the diagonal nothing is lost.

    Args:
        activation: of the ANN, any shape.
        output: threshold times firing rate of the same neurons, in the same shape.
        site: name for the title.
        points: most points drawn, at equal distances in the tensor.
    """
    require(
        activation.shape == output.shape,
        f"activation is {list(activation.shape)}, output {list(output.shape)}; give the same neurons.",
    )
    a, r = (v.detach().float().flatten().cpu() for v in (activation, output))
    a, r = (v[:: max(1, len(v) // points)].numpy() for v in (a, r))
    figure, axes = _figure()
    top = float(max(abs(a).max(), abs(r).max()))
    axes.plot(
        [min(0.0, float(a.min())), top], [min(0.0, float(a.min())), top], color="black", linewidth=1, label="equal"
    )
    axes.scatter(a, r, s=6, alpha=0.4, color=COLORS[0], label=site or "neurons")
    axes.set_xlabel("activation of the ANN")
    axes.set_ylabel("threshold x firing rate")
    axes.legend()
    return figure


def firing_rates(simulation: Simulation) -> Figure:
    """Return how the neurons of each site are distributed over firing rates, one row per site.

    Args:
        simulation: what ``cx.simulate`` returned.
    """
    rates = simulation.firing_rate
    require(len(rates) > 0, "The simulation holds no spiking site.")
    top = max(1.0, *(float(rate.max()) for rate in rates.values()))
    bins = min(20, simulation.at[-1])  # as many as there are rates, or bins between them would be empty
    rows = torch.stack([torch.histc(rate.float().cpu(), bins, 0, top) / rate.numel() for rate in rates.values()])
    figure, axes = _figure(height=1.2 + 0.28 * len(rates))
    picture = axes.imshow(
        (100 * rows).clamp_min(0.01).numpy(), cmap="Greys", aspect="auto", extent=(0, top, len(rates) - 0.5, -0.5),
        norm=optional_import("matplotlib.colors", "matplotlib").LogNorm(0.01, 100),
    )  # fmt: skip
    figure.colorbar(picture, ax=axes, label="neurons (%)")
    _sites(axes, list(rates))
    axes.set_xlabel("firing rate (spikes per step)")
    return figure


def raster(simulation: Simulation, site: str, *, sample: int = 0, neurons: int = 60) -> Figure:
    """Return the spikes of one site over time, a row per neuron.

    Args:
        simulation: of ``cx.simulate(..., record=("spikes",))``.
        site: key of the site.
        sample: index in the batch.
        neurons: most rows drawn, the most active ones.
    """
    spikes = _recorded(simulation, "spikes", site)[:, sample].flatten(1)
    order = spikes.abs().sum(0).argsort(descending=True, stable=True)[:neurons]
    figure, axes = _figure()
    for sign, color in ((1, COLORS[0]), (-1, COLORS[1])):
        step, row = ((spikes[:, order] * sign) > 0).numpy().nonzero()
        axes.scatter(
            step + 1,
            row,
            s=0.5 * (180 / len(order)) ** 2,
            marker="|",
            color=color,
            label="spikes" if sign > 0 else "negative spikes",
        )
    axes.set_xlim(0.5, len(spikes) + 0.5)
    axes.set_xlabel("time step")
    axes.set_ylabel(f"neuron of {site}, by activity")
    if bool((spikes < 0).any()):
        axes.legend()
    return figure


def membrane(simulation: Simulation, site: str, *, sample: int = 0, neurons: Sequence[int] = (0, 1, 2)) -> Figure:
    """Return membrane potentials over time, after the reset of each step.

    Args:
        simulation: of ``cx.simulate(..., record=("potential",))``.
        site: key of the site.
        sample: index in the batch.
        neurons: indices within the flattened site.
    """
    potential = _recorded(simulation, "potential", site)[:, sample].flatten(1)
    figure, axes = _figure()
    for i, neuron in enumerate(neurons):
        axes.plot(
            range(1, len(potential) + 1), potential[:, neuron].numpy(), label=f"neuron {neuron}", **_style(i, False)
        )
    axes.axhline(1, color="black", linestyle=":", linewidth=1.5, label="threshold")
    axes.set_xlabel("time step")
    axes.set_ylabel(f"potential of {site} (thresholds)")
    axes.legend()
    return figure


def thresholds(conversion: Conversion) -> Figure:
    """Return the thresholds of every site: the range over its channels, and their median.

    Args:
        conversion: ``snn.conversion``.
    """
    values = {key: value.detach().float().flatten().cpu().numpy() for key, value in conversion.thresholds.items()}
    require(len(values) > 0, "The network holds no spiking site.")
    figure, axes = _figure(height=1.2 + 0.28 * len(values))
    for row, value in enumerate(values.values()):
        axes.plot([value.min(), value.max()], [row, row], color=COLORS[0], linewidth=2)
        axes.plot(sorted(value)[len(value) // 2], row, color=COLORS[0], marker="o", linestyle="none")
    _sites(axes, list(values))
    _plain_log(axes)
    axes.set_xlabel("threshold (units of the ANN), range over channels and median")
    return figure


def errors(decomposition: Any) -> Figure:
    """Return the errors of every site as stacked bars: clipping, quantization, inherited and unevenness.

    Args:
        decomposition: what ``cx.analysis.decompose`` returned.
    """
    sites = decomposition.sites
    figure, axes = _figure(height=1.4 + 0.3 * len(sites))
    left = [0.0] * len(sites)
    for i, name in enumerate(("clipping", "quantization", "inherited", "unevenness")):
        parts = [_finite(getattr(site, f"{name}_error")) for site in sites]
        axes.barh(range(len(sites)), parts, left=left, color=COLORS[i], hatch=HATCHES[i], edgecolor="white", label=name)
        left = [a + b for a, b in zip(left, parts, strict=True)]
    _sites(axes, [site.key for site in sites])
    axes.set_xlabel("root mean square error, relative to the activation")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def energy(count: Any, models: Sequence[Any]) -> Figure:
    """Return the energy of the SNN relative to its ANN under published models; an estimate, not a measurement.

    Args:
        count: what ``cx.synops`` returned.
        models: energy models; those without a figure for an ANN are left out.
    """
    estimates = [estimate for model in models if (estimate := count.energy(model)).ann is not None]
    require(len(estimates) > 0, "None of these models states the energy of an ANN; give another.")
    figure, axes = _figure(width=6.0, height=1.2 + 0.4 * len(estimates))
    ratios = [estimate.snn / estimate.ann for estimate in estimates]
    axes.barh(range(len(ratios)), ratios, color=COLORS[2])
    axes.axvline(1, color="black", linestyle=":", linewidth=1.5)
    _sites(axes, [f"{estimate.model}\n{estimate.source}" for estimate in estimates])
    axes.set_xlabel("energy of SNN / ANN, estimated")
    return figure


def interval(share: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Return the 95 % interval of Wilson for observed fractions of ``samples``."""
    centre = (share + Z * Z / (2 * samples)) / (1 + Z * Z / samples)
    half = Z / (1 + Z * Z / samples) * (share * (1 - share) / samples + Z * Z / (4 * samples**2)).sqrt()
    return centre - half, centre + half


def _figure(width: float = 5.0, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = optional_import("matplotlib.figure", "matplotlib").Figure(figsize=(width, height), layout="constrained")
    setattr(figure, "_repr_png_", partial(_png, figure))  # noqa: B010 (shown where a cell ends with it)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    """Return the figure as a picture for a notebook; those that pyplot does not know would be shown as text."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _style(i: int, marked: bool) -> dict[str, Any]:
    style: dict[str, Any] = {"color": COLORS[i % 6], "linestyle": DASHES[i % 6], "linewidth": 1.8}
    return style | ({"marker": MARKERS[i % 6], "markersize": 5} if marked else {})


def _steps(axes: Axes, at: Sequence[int]) -> None:
    """Draw time steps on a logarithmic axis with ticks at powers of two."""
    axes.set_xscale("log", base=2)
    ticks = [2**k for k in range(int(math.log2(max(at))) + 1) if 2**k >= min(at)] or [max(at)]
    axes.set_xticks(ticks, labels=[str(t) for t in ticks])
    axes.set_xlabel("time steps T")


def _plain_log(axes: Axes) -> None:
    """Draw the x axis on a logarithmic scale with plain numbers."""
    axes.set_xscale("log")
    ticker = optional_import("matplotlib.ticker", "matplotlib")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _sites(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), labels=list(names), fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first layer on top
    axes.grid(visible=False, axis="y")


def _recorded(simulation: Simulation, quantity: str, site: str) -> Tensor:
    kept = simulation.recorded.get(quantity)
    require(kept is not None, f"The simulation holds no {quantity}; run cx.simulate(..., record=({quantity!r},)).")
    assert kept is not None
    require(site in kept, f"There is no site {site!r}; there are {', '.join(kept)}.")
    return kept[site].detach().float().cpu()


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0

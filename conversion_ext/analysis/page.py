"""A diagnosis as one HTML file without outside resources, readable on a phone and in print."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conversion_ext.analysis.case import Remedy
    from conversion_ext.analysis.diagnosis import Diagnosis

__all__ = ["page"]

STRIPES = "repeating-linear-gradient({}, {} 0 5px, #fff 5px 6.5px)"  # which tell parts apart in black and white
PARTS = (
    ("clipping", "#0072B2", "activation above the threshold"),
    ("quantization", STRIPES.format("45deg", "#D55E00"), "rounding to T + 1 levels"),
    ("inherited", "#c8c8c8", "errors of the layers before"),
    ("unevenness", STRIPES.format("90deg", "#009E73"), "spikes earlier or later than evenly spaced"),
)
ALIKE = 0.995  # from here on nothing is to be gained
STARTS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.96)  # of an axis to 1, whose quarters are round numbers
MARKED = 16  # steps, for which each has its spot
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 66rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem;
  padding: 0; list-style: none; }
.facts li { background: #f3f5f7; border-radius: .4rem; padding: .5rem .75rem; display: flex; flex-direction: column;
  justify-content: space-between; line-height: 1.3; }
.facts b { font-size: 1.25rem; margin-top: .2rem; }
.cause { border-left: .35rem solid #0072B2; padding: .1rem .9rem; margin: .8rem 0; background: #f8f9fb; }
.cause h3 { margin: .4rem 0 0; font-size: 1rem; } .cause p { margin: .3rem 0; }
.cause td:last-child { font-weight: 600; white-space: nowrap; text-align: right; }
.cause table { width: 100%; margin: .4rem 0; } .cause td { text-align: left; white-space: normal; }
.cause tr:last-child td { border-bottom: 0; } .cause small { color: #555; white-space: nowrap; }
.tried { border-color: #999; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: #fff; }
.bars { display: grid; grid-template-columns: minmax(3rem, max-content) 1fr; gap: .3rem .6rem;
  align-items: center; font-size: .9rem; }
.bars span { overflow-wrap: anywhere; } .scale { display: flex; justify-content: space-between; color: #555; }
.bars .bar { border-left: 1px solid #888; }
 .bar { display: flex; height: 1.1rem; } .bar i { display: block; height: 100%; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; font-size: .85rem; padding: 0; list-style: none; }

.key li { display: flex; align-items: baseline; }
.key i { flex: none; display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; }
.key i.dash { height: .25rem; width: 1.4rem; align-self: center; }
svg { width: 100%; max-width: 40rem; height: auto; } svg text { font: 13px system-ui, sans-serif; fill: #333; }
footer { margin-top: 2rem; font-size: .85rem; color: #666; }
"""


def page(diagnosis: Diagnosis, *, whole: bool = True) -> str:
    """Return the report as an HTML document, or its body alone (for a notebook)."""
    body = [
        *_summary(diagnosis),
        *_causes(diagnosis),
        *_course(diagnosis),
        *_bars(diagnosis),
        *_table(diagnosis),
        *_notes(diagnosis.notes),
    ]
    if not whole:
        return "\n".join([f"<style>{STYLE}</style>", *body])
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Diagnosis at T={diagnosis.T}</title><style>{STYLE}</style></head><body>",
            *body,
            "<footer>Effects are measured on samples that did not calibrate the repairs. conversion_ext</footer>",
            "</body></html>",
        ]
    )


def _summary(diagnosis: Diagnosis) -> Iterator[str]:
    facts = [
        ("agreement with the ANN", _percent(diagnosis.agreement[-1])),
        ("accuracy of the SNN", _percent(diagnosis.accuracy)),
        ("accuracy of the ANN", _percent(diagnosis.ann_accuracy)),
        ("static limit (twin)", _percent(diagnosis.twin_agreement)),
        ("latency", f"{diagnosis.latency_steps} steps"),
        ("spikes per sample", f"{diagnosis.spikes_per_sample:,.0f}"),
        ("neurons", f"{diagnosis.neurons:,}"),
        ("samples", f"{diagnosis.samples:,}"),
        ("settled from step", str(diagnosis.settled)),
        ("samples out of range", _percent(diagnosis.outside)),
        ("graded (no spikes)", _count(diagnosis.graded)),
        ("scales left", _count(diagnosis.scales)),
    ]
    yield f"<h1>Spiking network at T = {diagnosis.T}</h1><ul class=facts>"
    yield from (f"<li>{name}<b>{value}</b></li>" for name, value in facts if value)
    yield "</ul>"


def _causes(diagnosis: Diagnosis) -> Iterator[str]:
    yield "<h2>Likely causes</h2>"
    for number, cause in enumerate(diagnosis.causes, 1):
        yield f"<div class=cause><h3>{number}. {_text(cause.name)}</h3><p>{_text(cause.sentence)}</p>"
        yield from _effects(cause.remedies)
        yield "</div>"
    if not diagnosis.causes:
        alike = diagnosis.agreement[-1] > ALIKE
        yield f"<p>{'The SNN decides as its ANN does.' if alike else 'No single change closes the gap.'}</p>"
    shown = {remedy.sentence for cause in diagnosis.causes for remedy in cause.remedies}
    others = [remedy for remedy in diagnosis.remedies if remedy.sentence not in shown]
    if others:
        yield "<div class='cause tried'><h3>Also tried</h3>"
        yield from _effects(others)
        yield "</div>"


def _effects(remedies: Sequence[Remedy]) -> Iterator[str]:
    """Yield a table of changes: what each costs, and what it gains."""
    yield "<table>"
    for remedy in remedies:
        cost = f" <small>{_text(remedy.cost)}</small>" if remedy.cost else ""
        yield f"<tr><td>{_text(remedy.sentence)}{cost}</td><td>{remedy.effect}</td></tr>"
    yield "</table>"


def _course(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield a line chart of agreement over time."""
    values = diagnosis.agreement
    if len(values) < 2:
        return
    left, top, width, height = 58, 10, 420, 180
    low = max(start for start in STARTS if start <= min(values))

    def at(t: int, value: float) -> tuple[float, float]:
        return left + width * (t - 1) / (len(values) - 1), top + height * (1 - (value - low) / (1 - low))

    yield "<h2>Agreement over time</h2>"
    yield f'<svg viewBox="0 0 {left + width + 14} {top + height + 44}" role="img">'
    for k in range(5):
        value = low + (1 - low) * k / 4
        y = at(1, value)[1]
        yield f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * value:.4g}</text>'
    y = at(1, max(low, diagnosis.twin_agreement))[1]
    limit = 'stroke="#D55E00" stroke-dasharray="6 4" stroke-width="2"'
    yield f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" {limit}/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(t, v) for t, v in enumerate(values, 1)))
    yield f'<polyline points="{points}" fill="none" stroke="#0072B2" stroke-width="2.5"/>'
    if len(values) <= MARKED:
        spots = (at(t, value) for t, value in enumerate(values, 1))
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#0072B2"/>' for x, y in spots)
    middle = top + height / 2
    yield f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">agreement (%)</text>'
    for t in sorted({1, *(round(len(values) * k / 4) for k in range(1, 5))} - {0}):
        yield f'<text x="{at(t, low)[0]:.1f}" y="{top + height + 18}" text-anchor="middle">{t}</text>'
    yield f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">time step</text></svg>'
    yield (
        "<ul class=key><li><i style='background:#0072B2'></i>SNN, after each step</li>"
        f"<li><i class=dash style='background:{STRIPES.format('90deg', '#D55E00')}'></i>static limit of T steps</li>"
        "</ul>"
    )


def _bars(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the errors of every site as stacked bars."""
    if diagnosis.errors is None:
        return
    rows = [(s.key, [_finite(getattr(s, f"{name}_error")) for name, _, _ in PARTS]) for s in diagnosis.errors.sites]
    longest = 4 * _round_step(max((sum(parts) for _, parts in rows), default=0.0) / 4)
    yield "<h2>Errors by layer</h2><p>Root mean squares relative to the activation of the ANN.</p><ul class=key>"
    yield from (f"<li><i style='background:{color}'></i>{name}: {what}</li>" for name, color, what in PARTS)
    yield "</ul><div class=bars>"
    for key, parts in rows:
        pieces = zip(parts, PARTS, strict=True)
        bar = "".join(
            f"<i style='width:{100 * value / longest:.2f}%;background:{color}' title='{name} {value:.3f}'></i>"
            for value, (name, color, _) in pieces
        )
        yield f"<span>{_text(key)}</span><div class=bar>{bar}</div>"
    marks = "".join(f"<span>{longest * k / 4:.3g}</span>" for k in range(5))
    yield f"<span></span><div class=scale>{marks}</div></div>"


def _round_step(least: float) -> float:
    """Return the smallest round number that is no smaller than ``least``; 0.25 for 0."""
    if least <= 0:
        return 0.25
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 10) if step * power >= least)


def _table(diagnosis: Diagnosis) -> Iterator[str]:
    yield "<h2>Sites</h2><div class=scroll><table>"
    yield "<tr><th>site</th><th>firing rate</th><th>saturated</th><th>silent channels</th><th>dead in the ANN</th>"
    yield "".join(f"<th>{name}</th>" for name, _, _ in PARTS) + "</tr>"
    errors = {} if diagnosis.errors is None else {site.key: site for site in diagnosis.errors.sites}
    for fact in diagnosis.sites:
        site = errors.get(fact.key)
        parts = ["-"] * 4 if site is None else [f"{getattr(site, f'{name}_error'):.3f}" for name, _, _ in PARTS]
        shares = [f"{100 * share:.1f} %" for share in (fact.saturated, fact.silent, fact.dead)]
        cells = [_text(fact.key), f"{fact.firing_rate:.4f}", *shares, *parts]
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _notes(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        yield "<h2>Notes</h2><ul>"
        yield from (f"<li>{_text(note)}</li>" for note in notes)
        yield "</ul>"


def _text(value: str) -> str:
    return html.escape(value)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _count(keys: Sequence[str]) -> str:
    return str(len(keys)) if keys else ""


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0

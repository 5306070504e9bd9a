"""One way to show results: aligned text, the same table as HTML, and plain data."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from torch import Tensor, nn

__all__ = ["Report", "Sheet", "aligned", "plain", "quantity", "spread"]


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return rows of cells as lines of equal columns; the first ``left`` columns are aligned left, others right.

    >>> print(aligned([("site", "rate"), ("relu", "0.5")]))
    site  rate
    relu   0.5
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@dataclass(frozen=True)
class Sheet:
    """A small table of text: a ``title``, a ``header``, ``rows`` of as many cells, and ``notes`` below."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()
    left: int = 1

    def __str__(self) -> str:
        table = aligned([self.header, *self.rows], self.left)
        return "\n".join(part for part in (self.title, table, *self.notes) if part)

    def html(self) -> str:
        """Return the table as HTML; every text is escaped."""

        def line(cells: Sequence[str], tag: str) -> str:
            sides = ("left" if i < self.left else "right" for i in range(len(cells)))
            parts = (
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )
            return f"<tr>{''.join(parts)}</tr>"

        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        body = "".join(line(row, "td") for row in self.rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table>{caption}<thead>{line(self.header, 'th')}</thead><tbody>{body}</tbody></table>{notes}"


class Report:
    """Base of results: ``print`` shows a short table, a notebook the same as HTML, ``to_dict`` gives plain data.

    A subclass defines ``sheet``; one that is no dataclass defines ``to_dict`` too.
    """

    def sheet(self) -> Sheet:
        """Return what is shown."""
        raise TypeError(f"{type(self).__name__} must define sheet().")

    def to_dict(self) -> dict[str, Any]:
        """Return all values as numbers, strings, lists and dicts, as ``json.dumps`` takes them."""
        return plain(self)

    def __str__(self) -> str:
        return str(self.sheet())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.sheet().html()


def plain(value: Any) -> Any:
    """Return ``value`` as numbers, strings, lists and dicts; networks are left out, other objects become their repr."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(v) for f in fields(value) if not isinstance(v := getattr(value, f.name), nn.Module)}
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}


def quantity(value: float, unit: str) -> str:
    """Return a quantity with three digits and the prefix that suits it; ``unit`` is "pJ", or one without a prefix.

    >>> quantity(672_861, "pJ"), quantity(1.5e6, "FLOPs"), quantity(0, "pJ")
    ('673 nJ', '1.50 MFLOPs', '0.00 pJ')
    """
    power, unit = (-12, "J") if unit == "pJ" else (0, unit)
    size = 0 if value == 0 else math.floor(math.log10(abs(float(f"{value:.3g}"))) / 3 + 1e-12)
    exponent = min(max(power + 3 * size, -12), 12)
    scaled = value / 10.0 ** (exponent - power)
    digits = 2 - max(0, min(2, math.floor(math.log10(abs(scaled) or 1.0))))
    return f"{scaled:.{digits}f} {PREFIXES[exponent]}{unit}"


def spread(count: int, most: int = 8) -> list[int]:
    """Return at most ``most`` of the indices 0 ... count-1, the first and last among them, in growing distances.

    >>> spread(32)
    [0, 1, 3, 7, 15, 31]
    """
    if count <= most:
        return list(range(count))
    powers = {min(2**k, count) - 1 for k in range(count.bit_length() + 1)}
    return sorted(powers)[-most:]

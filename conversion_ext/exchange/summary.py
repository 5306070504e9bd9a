"""What a file holds, in a few lines of text, without building its network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from conversion_ext.exchange import container

__all__ = ["summary"]


def summary(path: str | Path) -> str:
    """Return what ``save`` wrote to ``path``: recipe, versions, sites with neurons and thresholds, weights.

    Nothing is built, so it works where a plug-in that the network needs is missing.

    Raises:
        FileError: The file is not one of ``save``, is damaged, was changed, or is of a newer format.
    """
    path = Path(path)
    facts, data = container.read(path)
    record = facts["record"]["value"][1]
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    weights = [name for name in data if facts["tensors"][name].get("parameter")]
    T = "no particular T" if record["T"] is None else f"T={record['T']}"
    lines = [
        f"{path}: a converted network, {facts['graph']['name']}, in format {facts['format']}; its checksum fits.",
        f"written with  {versions}",
        f"recipe        {record['recipe']}, {T}, {'folded' if record['folded'] else 'not folded'}, {record['backend']}",
        f"calibration   {record['samples']} samples",
        f"weights       {sum(data[name].numel() for name in weights):,} in {len(weights)} tensors",
    ]
    if record["widths"] is not None:
        widths = record["widths"]["value"][1]
        weight, state, read = (widths[name] for name in ("weight", "state", "input"))
        kind = "even weights" if widths.get("even") else "weights"
        lines.append(f"integers      {kind} {weight}, potentials {state}, inputs {read} bits")
    lines += [f"note          {note}" for note in record["notes"]["tuple"]]
    return "\n".join([*lines, *_sites(facts, data)])


def _sites(facts: dict[str, Any], data: dict[str, Tensor]) -> list[str]:
    rows = [("site", "neuron", "threshold")]
    for number in facts["graph"]["modules"].values():
        module = facts["modules"][number]
        if module["class"] == "cx.SpikingSite":
            threshold = data[module["buffers"]["threshold"]]
            low, high = float(threshold.min()), float(threshold.max())
            scale = f"{low:.4g}" if low == high else f"{low:.4g} .. {high:.4g}"
            attributes = module["attributes"]
            rows.append((attributes["key"], attributes["spec"]["value"][0].removeprefix("neuron."), scale))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

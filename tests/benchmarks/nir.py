"""What the packages that read NIR make of converted networks: spikes that differ, and classes that agree.

``python -m tests.benchmarks.nir``: digits of scikit-learn, three networks, T = 32, 200 test images; "as NIR" is
``to_nir(snn)``, "mapped" ``to_nir(snn, reader=...)``, also with ``T=``; ``--write FILE`` puts the table into a file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.exchange import from_nir, to_nir
from tests.exchange.readers import INSTALLED, networks, spikes_of

__all__ = ["compare", "digits", "train"]

T, IMAGES = 32, 200
RECIPES = ("default", "rueckauer2017_zero")
BEGIN, END = "<!-- nir:begin -->", "<!-- nir:end -->"


def digits() -> tuple[Tensor, Tensor]:
    """Return all images [N, 1, 8, 8] in [0, 1] and classes, shuffled."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(x).float().view(-1, 1, 8, 8)[order] / 16, torch.from_numpy(y)[order]


def train(ann: nn.Module, x: Tensor, y: Tensor, epochs: int = 60) -> nn.Module:
    """Train in place; return it in evaluation mode."""
    optimizer = torch.optim.Adam(ann.train().parameters(), 2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ann(x[index]), y[index]).backward()
            optimizer.step()
    return ann.eval()


def compare(snn: Any, reader: str, graph: Any, x: Tensor, steps: int = T) -> tuple[list[float], float, Tensor]:
    """Return the share of spikes that differ per site, that of classes that agree, and the reader's outputs."""
    ours = cx.simulate(snn, x, T=steps, record=("spikes",))
    theirs, output = spikes_of(reader, graph, x, steps)
    keys = {name: str(graph.nodes[name].metadata["key"]) for name in theirs}
    wrong = [float((spikes != ours.recorded["spikes"][keys[name]]).float().mean()) for name, spikes in theirs.items()]
    return wrong, float((output.argmax(1) == ours.output.argmax(1)).float().mean()), output


def rows(name: str, ann: nn.Module, x: Tensor, y: Tensor) -> Iterator[str]:
    """Yield the table's rows for one trained network: every recipe, reader and mapping."""
    images, classes = x[:IMAGES], y[:IMAGES]
    for recipe in RECIPES:
        snn = cx.convert(ann, x[IMAGES:], recipe=recipe, progress=False)
        output = cx.simulate(snn, images, T=T).output
        equal = torch.equal(cx.simulate(from_nir(to_nir(snn)), images, T=T).output, output)
        right = 100 * float((output.argmax(1) == classes).float().mean())
        exact = " / ".join("0" for _ in snn.sites()) if equal else "differs"
        yield f"| {name} | {recipe} | `from_nir` | as NIR | {exact} | {100 * equal:.1f} | {right:.1f} |"
        for reader in INSTALLED:
            mappings: dict[str, dict[str, Any]] = {"as NIR": {}, "mapped": {"reader": reader}}
            if recipe == "default":
                mappings["mapped, `T=`"] = {"reader": reader, "T": T}
            for mapping, options in mappings.items():
                try:
                    wrong, same, found = compare(snn, reader, to_nir(snn, **options), images)
                except Exception as error:  # what a reader raises is a result
                    cells = f"{type(error).__name__} | - | -"
                else:
                    right = 100 * float((found.argmax(1) == classes).float().mean())
                    cells = f"{' / '.join(f'{100 * share:.3g}' for share in wrong)} | {100 * same:.1f} | {right:.1f}"
                yield f"| {name} | {recipe} | {reader} | {mapping} | {cells} |"


def table() -> list[str]:
    """Return the table, with the releases of the packages that read."""
    torch.manual_seed(0)
    x, y = digits()
    releases = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("nir", *INSTALLED))
    lines = [
        releases,
        "",
        "| network | recipe | reader | mapping | spikes that differ per site, % | same class, % | accuracy, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, ann in networks().items():
        train(ann, x[IMAGES:], y[IMAGES:])
        for row in rows(name, ann, x, y):
            print(row, flush=True)
            lines.append(row)
    return lines


def main() -> None:
    """Print the table, and put it between the markers of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a file with the markers nir:begin and nir:end")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = table()
    if arguments.write:
        before, rest = arguments.write.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        arguments.write.write_text("\n".join([before + BEGIN, *lines, END + after]), encoding="utf-8")


if __name__ == "__main__":
    main()

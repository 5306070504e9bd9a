"""What the packages that read NIR make of converted networks: spikes that differ, and classes that agree.

``python -m tests.benchmarks.nir``: digits of scikit-learn, three networks, T = 32, 200 test images; "as NIR" is
``to_nir(snn)``, "mapped" ``to_nir(snn, reader=...)``, "counts" the same with ``T=``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.exchange import from_nir, to_nir
from tests.exchange.readers import INSTALLED, networks, spikes_of

__all__ = ["compare", "digits", "train"]

T, IMAGES = 32, 200
HARD = cx.Recipe(neuron=cx.IF(0.0, cx.Reset.ZERO))


def digits() -> tuple[Tensor, Tensor]:
    """Return all images [N, 1, 8, 8] in [0, 1] and classes, shuffled."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(x).float().view(-1, 1, 8, 8)[order] / 16, torch.from_numpy(y)[order]


def train(ann: nn.Module, x: Tensor, y: Tensor, epochs: int = 12) -> nn.Module:
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


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = digits()
    print(
        f"{'network':17} {'recipe':8} {'reader':13} {'mapping':8} {'spikes that differ per site, %':34} class  accuracy"
    )
    for name, ann in networks().items():
        train(ann, x[IMAGES:], y[IMAGES:])
        images, classes = x[:IMAGES], y[:IMAGES]
        for label, recipe in (("default", "default"), ("hard, 0", HARD)):
            snn = cx.convert(ann, x[IMAGES:], recipe=recipe, progress=False)
            output = cx.simulate(snn, images, T=T).output
            print(f"{name:17} {label:8} {'(ours)':50} {'':7} {(output.argmax(1) == classes).float().mean():.3f}")
            again = cx.simulate(from_nir(to_nir(snn)), images, T=T).output
            print(f"{name:17} {label:8} {'from_nir':13} {'as NIR':8} outputs equal: {torch.equal(again, output)}")
            for reader in INSTALLED:
                mappings: dict[str, dict[str, Any]] = {"as NIR": {}, "mapped": {"reader": reader}}
                if label == "default":
                    mappings["counts"] = {"reader": reader, "T": T}
                for mapping, options in mappings.items():
                    row = f"{name:17} {label:8} {reader:13} {mapping:8} "
                    try:
                        wrong, same, found = compare(snn, reader, to_nir(snn, **options), images)
                    except Exception as error:  # what a reader raises is a result
                        print(f"{row}{type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}")
                        continue
                    shares = " / ".join(f"{100 * share:.2f}" for share in wrong)
                    print(f"{row}{shares:34} {100 * same:5.1f}  {(found.argmax(1) == classes).float().mean():.3f}")


if __name__ == "__main__":
    main()

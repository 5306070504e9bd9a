"""What becomes of every family of convolutional networks, as a markdown table: ``python -m tests.benchmarks.zoo``.

The networks are those of the tests: torchvision's and timm's own classes, shallow and narrow, with random weights that
react to their input. Thresholds are maxima per channel over calibration inputs among which the evaluated ones are, so
nothing is clipped and the error is that of the rate code alone; SpikingJelly's rate recipe gets the same inputs.
"""

from __future__ import annotations

import argparse
import copy
import re
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.network.table import Row
from conversion_ext.types import Family
from tests import zoo
from tests.live import live, tensors_of

RECIPE = cx.Recipe(cx.Maximum(granularity=cx.PerChannel()))
BEGIN, END = "<!-- zoo:begin -->", "<!-- zoo:end -->"
SAMPLES, EVALUATED = 16, 4
NOT_SPIKES = (Family.GRADED, Family.ANALOG)


def header(times: Sequence[int]) -> list[str]:
    """Return the first two lines of the table."""
    columns = ["family", "sites: binary / signed / graded", "weight layers that see analog or graded values",
               "the same with `relay=True`", "scales left: on shortcuts / elsewhere"]  # fmt: skip
    for who in ("error", "error with `relay=True`", 'SpikingJelly 2.0 `RateCodingRecipe(mode="max")`'):
        columns.append(f"{who}, T = {' / '.join(map(str, times))}")
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def line(name: str, times: Sequence[int]) -> str:
    """Return the table's line for one family."""
    ann, calibration = live(name, samples=SAMPLES, seed=5, dtype=torch.float32)
    x = calibration[:EVALUATED]
    plain, relayed = (convert(ann, calibration, relay=relay) for relay in (False, True))
    rows = plain.conversion.table()
    operations = [row for row in rows if row.key in plain.sites()]
    graded = [row for row in rows if row.emits is Family.GRADED and row.kind not in ("synapse", "shortcut", "scale")]
    binary, signed = (sum(row.emits is family for row in operations) for family in (Family.BINARY, Family.SIGNED))
    scales = [sum(row.kind == kind for row in rows) for kind in ("shortcut", "scale")]
    cells = [
        name, f"{binary} / {signed} / {len(graded)}", analog(rows), analog(relayed.conversion.table()),
        f"{scales[0]} / {scales[1]}", ours(ann, plain, x, times), ours(ann, relayed, x, times),
        spikingjelly(ann, calibration, x, times),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def convert(ann: nn.Module, calibration: Tensor, **options: Any) -> Any:
    """Return our conversion."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Not active on the calibration data")
        return cx.convert(ann, calibration, recipe=RECIPE, backend="reference", progress=False, **options)


def analog(rows: Sequence[Row]) -> str:
    """Return how many of the weight layers see no spikes."""
    synapses = [row for row in rows if row.kind == "synapse"]
    return f"{sum(row.sees in NOT_SPIKES for row in synapses)} of {len(synapses)}"


def ours(ann: nn.Module, snn: Any, x: Tensor, times: Sequence[int]) -> str:
    """Return the relative output errors of our conversion."""
    if not snn.sites():
        return "no spikes"
    outputs = tensors_of(cx.simulate(snn, x, max(times), at=times).outputs)
    return errors(ann, x, torch.cat([output.flatten(1) for output in outputs], 1))


def spikingjelly(ann: nn.Module, calibration: Tensor, x: Tensor, times: Sequence[int]) -> str:
    """Return the relative output errors of SpikingJelly's conversion, or why there is none."""
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe

    kept: list[Tensor] = []
    try:
        snn = Converter(RateCodingRecipe([calibration], mode="max")).convert(copy.deepcopy(ann)).eval()
        functional.reset_net(snn)
        with torch.no_grad():
            total: Any = 0.0
            for t in range(1, max(times) + 1):
                total = total + flat(snn(x))
                if t in times:
                    kept.append(total / t)
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001  whatever it raises is its answer
        return f"refused: {short(error)}"
    return errors(ann, x, torch.stack(kept))


def errors(ann: nn.Module, x: Tensor, found: Tensor) -> str:
    """Return |found - ann(x)| / |ann(x)| of each of the outputs [times, ...]."""
    with torch.no_grad():
        expected = flat(ann(x))
    relative = (found - expected).norm(dim=1) / expected.norm()
    return " / ".join(f"{error:.3f}" for error in relative.tolist())


def flat(output: Any) -> Tensor:
    """Return all values of a nested output as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors_of(output)])


def short(error: Exception) -> str:
    """Return the first sentence of an error, on one line of a table."""
    words = re.sub(r" at 0x\w+", "", " ".join(str(error).split())).split(". ")[0].replace("|", "/")
    return f"`{type(error).__name__}: {words if len(words) <= 110 else words[:107] + '...'}`"


@contextmanager
def budget(seconds: int) -> Iterator[None]:
    """Raise TimeoutError when the block takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def write(path: Path, lines: Sequence[str]) -> None:
    """Replace what stands between the markers of a file."""
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text("\n".join([before + BEGIN, *lines, END + after]))


def main() -> None:
    """Convert every family and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(zoo.FAMILIES), help="which (default: all)")
    parser.add_argument("--T", type=int, nargs="+", default=[64, 1024], help="numbers of time steps")
    parser.add_argument("--budget", type=int, default=900, help="seconds after which a family is given up")
    parser.add_argument("--write", type=Path, help="a file with the markers zoo:begin and zoo:end")
    arguments = parser.parse_args()
    lines = header(arguments.T)
    print("\n".join(lines))
    for name in arguments.families:
        try:
            with budget(arguments.budget):
                lines.append(line(name, sorted(arguments.T)))
        except TimeoutError:
            lines.append(f"| {name} | not finished within {arguments.budget} s |")
        print(lines[-1], flush=True)
    if arguments.write:
        write(arguments.write, lines)


if __name__ == "__main__":
    main()

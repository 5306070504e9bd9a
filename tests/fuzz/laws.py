"""The laws that a converted random network keeps."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.graph.values import tensors_in
from conversion_ext.types import Family
from tests.fuzz.graphs import random_network

__all__ = ["broken_laws", "convert", "verdict"]

SHORT, LONG, LONGEST = 64, 1024, 16384


def convert(net: nn.Module, inputs: tuple[Tensor, ...], seed: int, **options: Any) -> Any:
    """Convert with nothing clipped: thresholds are the largest activations on the very inputs that are simulated."""
    granularity = cx.PerChannel() if seed % 3 else cx.PerLayer()
    options = {"recipe": cx.Recipe(cx.Maximum(granularity=granularity)), "backend": "reference", **options}
    batch = tuple(value.clone() for value in inputs)
    return cx.convert(net, [batch], forward=lambda m, b: m(*b), progress=False, **options)


def outputs(value: Any) -> Tensor:
    return torch.cat([tensor.flatten(1) for tensor in tensors_in(value)], 1)


def _given(inputs: tuple[Tensor, ...]) -> Any:
    """Return inputs as ``simulate`` takes them."""
    return inputs[0] if len(inputs) == 1 else inputs


def at(snn: Any, inputs: tuple[Tensor, ...], steps: tuple[int, ...]) -> list[Tensor]:
    found = cx.simulate(snn, _given(inputs), steps[-1], at=steps).outputs
    parts = tensors_in(found)
    return [torch.cat([part[i].flatten(1) for part in parts], 1) for i in range(len(steps))]


def broken_laws(net: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> Iterator[str]:
    """Yield a sentence for every law that the conversion of ``net`` breaks."""
    with torch.no_grad():
        expected = outputs(net(*(value.clone() for value in inputs)))
    size = float(expected.abs().max())
    snn = convert(net, inputs, seed)
    short, long = at(snn, inputs, (SHORT, LONG))
    first, last = (float((out - expected).abs().max()) / size for out in (short, long))
    if not _falls(first, last):
        # A difference of large rates may need more steps than this before it is seen at all.
        final = float((at(snn, inputs, (LONGEST,))[0] - expected).abs().max()) / size
        if not _falls(first, final):
            yield f"the error does not fall: {first:.3g} at {SHORT} steps, {final:.3g} at {LONGEST}"
    frameworks = available()
    unfolded = at(convert(net, inputs, seed, fold=False, backend=frameworks[seed % len(frameworks)]), inputs, (LONG,))[
        0
    ]
    difference = float((unfolded - long).abs().max()) / size
    if difference > max(0.02, 4 * last):
        yield f"folded and unfolded differ by {difference:.3g}"
    yield from _persistence(net, inputs, seed, snn)
    yield from _binary(snn, inputs)
    yield from _frameworks(net, inputs, seed, snn)


def _falls(first: float, last: float) -> bool:
    return last <= 0.02 or last <= 0.3 * first


def _persistence(net: nn.Module, inputs: tuple[Tensor, ...], seed: int, snn: Any) -> Iterator[str]:
    """Reset, deepcopy and state_dict."""
    before = at(snn, inputs, (6,))[0]
    if not torch.equal(before, at(snn, inputs, (6,))[0]):
        yield "a second run differs"
    if not torch.equal(before, at(copy.deepcopy(snn), inputs, (6,))[0]):
        yield "a copy differs"
    if seed % 3:
        return
    other = convert(net, tuple(value.flip(0) * 1.3 for value in inputs), seed)
    other.load_state_dict(snn.state_dict())
    if not torch.equal(before, at(other, inputs, (6,))[0]):
        yield "a loaded state dict gives other outputs"


def _binary(snn: Any, inputs: tuple[Tensor, ...]) -> Iterator[str]:
    """Where the table promises binary spikes, they are 0 and 1."""
    run = cx.simulate(snn, _given(inputs), 5, record=("spikes",))
    emits = {row.key: row.emits for row in snn.conversion.table()}
    for key, spikes in run.recorded["spikes"].items():
        if emits.get(key) is Family.BINARY and not set(spikes.unique().tolist()) <= {0.0, 1.0}:
            yield f"{key} emits other values than 0 and 1"


def _frameworks(net: nn.Module, inputs: tuple[Tensor, ...], seed: int, snn: Any) -> Iterator[str]:
    """One of the frameworks, step by step and with whole sequences."""
    reference = at(snn, inputs, (6,))[0]
    frameworks = [backend for backend in available() if backend != "reference"]
    for backend in frameworks[seed // 3 % 2 :][:1]:
        other = convert(net, inputs, seed, backend=backend)
        with torch.no_grad():
            steps = torch.stack([outputs(other(*inputs)) for _ in range(6)]).mean(0)
            cx.reset(other)
            other.step_mode = "m"
            sequences = [value.expand(6, *value.shape) for value in inputs]
            parts = [part.mean(0).flatten(1) for part in tensors_in(other(*sequences))]
        for name, found in (("s", steps), ("m", torch.cat(parts, 1))):
            if not torch.allclose(found, reference, rtol=1e-6, atol=1e-6 * float(reference.abs().max())):
                yield f"{backend} differs in step mode {name!r}"


def verdict(seed: int) -> tuple[str, list[str]]:
    """Return "right", "refused", "wrong" or "foreign" for one graph, and the reasons."""
    net, inputs = random_network(seed)
    try:
        broken = list(broken_laws(net, inputs, seed))
    except cx.UnsupportedError as error:
        return "refused", [str(problem) for problem in error.problems] or [str(error)]
    except Exception as error:  # noqa: BLE001 (that none of these leaves is what is tested)
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "foreign", [f"{type(error).__name__}: {error} [{Path(last.filename).name}:{last.lineno}]"]
    return ("wrong", broken) if broken else ("right", [])

"""Speed, memory and calibration beside SpikingJelly and snnTorch: ``python -m tests.benchmarks.speed``.

One trained network per table; medians of runs that take turns in one process, as ratios to T forward passes of the ANN
(BatchNorm folded, eager, NCHW), so that format (channels-last, bfloat16) and engine can be told apart. SpikingJelly is
``RateCodingRecipe`` in both step modes (its stock neurons in the ANN where that refuses ReLU6); snnTorch a loop over
the ANN with its ReLUs made stock ``Leaky``. On one thread of a CPU seconds are the processor's, which others on the
machine do not change. Peak memory is that of a process of its own for every run (``--memory``, Linux). ``compile=True``
is timed after its first call, whose seconds stand in the name of the row, and left out where torch cannot compile; the
early exit is for a loss of 0.1 points. ``--brief`` leaves most of that out. ``--device cuda`` puts everything on a GPU,
where each framework takes what fused kernels it has (SpikingJelly: in step mode "m"). A short run: ``--networks vgg
--batches 64 --T 8``.
"""

from __future__ import annotations

import argparse
import copy
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import snntorch.utils
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe
from spikingjelly.activation_based.base import StepModule
from spikingjelly.activation_based.neuron import IFNode
from torch import Tensor, nn
from torchvision.models import resnet18

import conversion_ext as cx
from conversion_ext.capture.preparation import prepare
from conversion_ext.data import load
from conversion_ext.demo.bench import Run, forwards, loop, medians, ours
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.readouts.confidence import Confidence
from tests.benchmarks import published_networks
from tests.benchmarks.train import HELD_OUT, trained

IMAGENET = ("resnet18", "efficientnet_lite0")
NETWORKS = ("vgg", "resnet20", *IMAGENET)
FLOOR = "weight layers alone"
BRIEF = ("ANN x T", "ANN x T, BatchNorm not folded", FLOOR, "simulate float32", "SpikingJelly s", "SpikingJelly m")
COMPILED = "simulate float32 compiled"
RULED = 1024  # images that an early exit is calibrated on


def network(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network and images: trained ones on held-out Fashion-MNIST, those of ImageNet's size on noise."""
    if name in IMAGENET:
        torch.manual_seed(0)
        ann = resnet18().eval() if name == "resnet18" else published_networks.NETWORKS[name].make(Path())
        return ann, torch.rand(64, 3, 224, 224)
    return trained(name), load("fashion-mnist").train.tensors[0][-HELD_OUT:]


def contenders(
    ann: nn.Module, snn: SpikingNetwork, x: Tensor, calibration: Tensor, T: int
) -> Iterator[tuple[str, Run]]:
    """Yield (name, run) of everything that is compared."""
    yield from forwards(ann, x, T)
    yield "ANN x T, BatchNorm not folded", loop(ann, x, T, lambda network: None)
    yield FLOOR, weight_layers(ann, x, T)
    yield from ours(snn, x, T)
    yield "loop over our SpikingJelly modules", loop(snn, x, T)
    for form, dtype in (
        (torch.contiguous_format, None),
        (torch.channels_last, None),
        (torch.channels_last, torch.bfloat16),
    ):
        theirs = spikingjelly(ann, calibration).eval().to(memory_format=form)
        theirs = theirs if dtype is None else theirs.to(dtype)
        given = x.to(dtype or x.dtype, memory_format=form)
        suffix = f"{' channels-last' if form is torch.channels_last else ''}{' bfloat16' if dtype else ''}"
        yield f"SpikingJelly s{suffix}", loop(theirs, given, T, functional.reset_net)
        multi = copy.deepcopy(theirs)
        functional.set_step_mode(multi, "m")
        yield f"SpikingJelly m{suffix}", _sequence(multi, given, T)
    yield "snnTorch loop", loop(stock(ann, x, leaky), x, T, snntorch.utils.reset)


def prepared(snn: SpikingNetwork, x: Tensor, T: int, rule: Confidence | None) -> Iterator[tuple[str, Run]]:
    """Yield (name, run) of simulations that take a first run to name: compiled, unless torch cannot, and an exit."""

    def run() -> None:
        cx.simulate(snn, x, T, at=[T], compile=True)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
    if not any("torch.compile does not work here" in str(warning.message) for warning in said):
        yield f"{COMPILED}, first call {seconds:.0f} s", run
    if rule is not None:
        steps = cx.simulate(snn, x, T, exit=rule).steps
        assert steps is not None
        mean = steps.double().mean()
        yield f"simulate float32, early exit after {mean:.1f} steps", lambda: cx.simulate(snn, x, T, exit=rule)


def convert(ann: nn.Module, images: Tensor | Sequence[Tensor]) -> SpikingNetwork:
    """Return the network converted for SpikingJelly."""
    return cx.convert(ann, images, backend="spikingjelly", progress=False)


def exit_rule(snn: SpikingNetwork, x: Tensor, y: Tensor, T: int) -> Confidence:
    """Return the early exit that loses 0.1 points on images like ``x``."""
    return Confidence.calibrate(torch.cat([cx.simulate(snn, part, T).outputs for part in x.split(250)], 1), y)


def _sequence(snn: nn.Module, x: Tensor, T: int) -> Run:
    def run() -> None:
        functional.reset_net(snn)
        with torch.inference_mode():
            snn(x.expand(T, *x.shape))

    return run


def weight_layers(ann: nn.Module, x: Tensor, T: int) -> Run:
    """Return what no simulation can do without: its weight layers, channels-last, the first one once.

    The steps of one image are a batch, those of more images one call each.
    """
    model = prepare(ann, (x,)).to(memory_format=torch.channels_last)
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, _: calls.append((layer, given[0])))
        for layer in model.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    (first, image), *others = calls
    together = T if len(x) == 1 else 1
    wide = [(layer, torch.cat([given] * together)) for layer, given in others]  # which keeps channels last

    def run() -> None:
        with torch.inference_mode():
            first(image)
            for layer, given in wide:
                for _ in range(T // together):
                    layer(given)

    return run


def spikingjelly(ann: nn.Module, calibration: Tensor) -> nn.Module:
    """Return what SpikingJelly converts, or the network with its stock neurons where it refuses the activations."""
    if any(isinstance(module, nn.ReLU6) for module in ann.modules()):
        return Folded(stock(ann, calibration[:1], lambda: IFNode(v_reset=None)))
    batches = [(part, torch.zeros(len(part))) for part in calibration.split(64)]
    return Converter(RateCodingRecipe(batches, mode="99.9%")).convert(ann)


class Folded(StepModule, nn.Module):
    """A network with SpikingJelly's neurons in both step modes; its layers see the steps as one batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.step_mode = network, "s"
        self.neurons = {name: Unfolded(each) for name, each in network.named_modules() if isinstance(each, IFNode)}
        for name, each in self.neurons.items():
            network.set_submodule(name, each)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [N, ...] of a step, or in step mode "m" those of all [T, N, ...]."""
        if self.step_mode == "s":
            return self.network(x)
        for each in self.neurons.values():
            each.steps = len(x)
        return self.network(x.flatten(0, 1)).unflatten(0, (len(x), -1))


class Unfolded(nn.Module):
    """A neuron that sees the steps of a batch [T * N, ...]."""

    def __init__(self, neuron: IFNode) -> None:
        super().__init__()
        self.neuron, self.steps = neuron, 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes of x."""
        if self.neuron.step_mode == "s":
            return self.neuron(x)
        return self.neuron(x.unflatten(0, (self.steps, -1))).flatten(0, 1)


def leaky() -> nn.Module:
    """Return snnTorch's neuron."""
    return snntorch.Leaky(beta=1.0, init_hidden=True)


def stock(ann: nn.Module, x: Tensor, neuron: Callable[[], nn.Module]) -> nn.Module:
    """Return the network with ``neuron()`` in the place of each activation; thresholds do not matter for time."""
    model = prepare(ann, (x,))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU | nn.Hardtanh):
            model.set_submodule(name, neuron())
    return model


def calibration_seconds(ann: nn.Module, images: Tensor, device: str) -> dict[str, float]:
    """Return the time of a whole conversion with 99.9 % percentiles, per layer as SpikingJelly's and per channel."""
    batches = [(part, torch.zeros(len(part))) for part in images.split(64)]
    layer = cx.Recipe(cx.Percentile(99.9, granularity=cx.PerLayer()))
    runs: dict[str, Run] = {
        "SpikingJelly 99.9%": lambda: Converter(RateCodingRecipe(batches, mode="99.9%")).convert(ann),
        "ours per layer": lambda: cx.convert(
            ann, images.split(64), recipe=layer, backend="spikingjelly", progress=False
        ),
        "ours per channel": lambda: convert(ann, images.split(64)),
    }
    return medians(runs, 3, device)


def accuracy(snn: SpikingNetwork, x: Tensor, y: Tensor, T: int) -> Iterator[str]:
    """Yield a row per precision and for early exit: accuracy on the second half of x [N, ...], and their mean steps.

    The exit is calibrated on the first half, for a loss of 0.1 points.
    """
    half = len(x) // 2
    rule = exit_rule(snn, x[:half], y[:half], T)
    options: dict[str, dict[str, Any]] = {
        "float32": {"at": [T]}, "bfloat16": {"at": [T], "dtype": "bfloat16"}, "int8": {"at": [T], "weights": "int8"},
        "early exit": {"exit": rule},
    }  # fmt: skip
    yield f"\n| T = {T}, {len(x) - half} images | accuracy | steps per image | ms per image |\n|---|---|---|---|"
    for name, option in options.items():
        start = time.perf_counter()
        runs = [cx.simulate(snn, part, T, **option) for part in x[half:].split(250)]
        right = (torch.cat([run.output for run in runs]).argmax(1) == y[half:]).double().mean().item()
        spent = 1e3 * (time.perf_counter() - start) / (len(x) - half)
        steps = torch.cat([run.steps for run in runs if run.steps is not None] or [torch.tensor([T])]).double().mean()
        yield f"| {name} | {100 * right:.2f} | {steps:.1f} | {spent:.2f} |"


def peak(name: str, contender: str, batch: int, T: int, device: str) -> int:
    """Return by how many MiB one contender raised the peak memory of a process of its own."""
    module = ["-m", "tests.benchmarks.speed", "--networks", name, "--batches", str(batch), "--T", str(T)]
    module += ["--device", device, "--only", contender]
    found = subprocess.run([sys.executable, *module], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[-1])


def only(name: str, contender: str, batch: int, T: int, device: str) -> int:
    """Run one contender; return by how many MiB that raised the peak memory of this process, or of its GPU."""
    # No data set is loaded, and calibration sees one image, or these would set the peak.
    ann, images = network(name) if name in IMAGENET else (trained(name), torch.rand(batch, 1, 28, 28))
    ann, images = ann.to(device), images.to(device)
    runs = contenders(ann, convert(ann, images[:1]), images[:batch], images[:1], T)
    run = next(run for name, run in runs if name == contender)

    def used() -> int:
        if device == "cuda":
            return torch.cuda.max_memory_allocated() >> 20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: imports are above many a run
    before = used()
    run()
    return used() - before


def main() -> None:
    """Measure and print."""
    warnings.filterwarnings("ignore", "Not active on the calibration data")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["vgg", "resnet20"], choices=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--T", nargs="+", type=int, default=[4, 32, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--brief", action="store_true", help="only ours in float32 beside the ANN and SpikingJelly")
    parser.add_argument("--memory", action="store_true", help="peak memory too, each in a process of its own")
    parser.add_argument("--accuracy", type=int, default=0, metavar="IMAGES", help="accuracy of every precision too")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; leave it out to measure on the CPU")
    if options.only:
        print(only(options.networks[0], options.only, options.batches[0], options.T[0], device))
        return
    print(f"{torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}")
    if device == "cuda":
        kernels = functional.neuron_implementation("if", torch.device(device))
        print(f"{torch.cuda.get_device_name()}, IF neurons of SpikingJelly: {kernels}")
    for name in options.networks:
        ann, images = network(name)
        ann, images = ann.to(device), images.to(device)
        labels = None if name in IMAGENET else load("fashion-mnist").train.tensors[1][-HELD_OUT:].to(device)
        few = images[: 4 if name in IMAGENET else 64]  # that calibrate, for time alone
        snn = convert(ann, few)
        for T in options.T:
            rule = None if labels is None else exit_rule(snn, images[-RULED:], labels[-RULED:], T)
            for batch in options.batches:
                print(f"\n{name}, batch {batch}, T = {T}\n")
                print("| run | ms per image | x ANN | SpikingJelly's best / it | MiB |\n|---|---|---|---|---|")
                apart = dict(contenders(ann, snn, images[:batch], few, T))
                runs = apart | dict(prepared(snn, images[:batch], T, None if options.brief else rule))
                if options.brief:
                    runs = {run: call for run, call in runs.items() if run in BRIEF or run.startswith(COMPILED)}
                seconds = medians(runs, options.repeats, device)
                unit = next(iter(seconds.values()))
                best = min(s for run, s in seconds.items() if run in ("SpikingJelly s", "SpikingJelly m"))
                for run, s in seconds.items():
                    memory = peak(name, run, batch, T, device) if options.memory and run in apart else ""
                    print(f"| {run} | {1e3 * s / batch:.3f} | {s / unit:.2f} | {best / s:.2f} | {memory} |", flush=True)
        if options.brief:
            continue
        calibration = images[:1000]
        found = ", ".join(f"{run} {s:.2f} s" for run, s in calibration_seconds(ann, calibration, device).items())
        print(f"\n{name}: conversion with {len(calibration)} images: {found}")
        if options.accuracy and labels is not None:
            x, y = images[-2 * options.accuracy :], labels[-2 * options.accuracy :]
            print("\n".join(accuracy(convert(ann, calibration), x, y, options.T[-1])))


if __name__ == "__main__":
    main()

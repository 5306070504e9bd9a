"""Everything on one GPU: ``python -m tests.benchmarks.gpu [--network resnet18] [--T 4 32] [--batches 1 64]``.

One table each for conversion, simulation and fine-tuning; medians of runs that take turns in one process, the device
synchronized before and after each. Simulation: T forward passes of the ANN (eager, bfloat16, ``torch.compile``, a CUDA
graph), ours in every precision and compiled, SpikingJelly in both step modes (it chooses its kernels itself, and the
row names them), snnTorch's loop. ``--device cpu`` runs the same table without a GPU, to try the script; the CUDA graph
is then left out. What fails on a machine is a row with its reason, not a gap.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import snntorch.utils
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.network.spiking_network import SpikingNetwork
from tests.benchmarks.speed import leaky, stock
from tests.benchmarks.speed import network as speed_network

Run = Callable[[], object]
NETWORKS = ("vgg", "resnet20", "resnet18")


def seconds(run: Run, device: torch.device, repeats: int) -> float:
    """Return the median time of a run, warmed up once."""
    found = list[float]()
    for number in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        if number:
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def synchronize(device: torch.device) -> None:
    """Wait for all that the device has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def repeated(net: nn.Module, x: Tensor, T: int) -> Run:
    """Return T forward passes."""

    def run() -> None:
        with torch.inference_mode():
            for _ in range(T):
                net(x)

    return run


def captured(net: nn.Module, x: Tensor, T: int) -> Run:
    """Return T replays of a CUDA graph of a forward pass, recorded on a stream of its own after a warm-up there."""
    stream = torch.cuda.Stream(x.device)
    stream.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            net(x)
    torch.cuda.current_stream(x.device).wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(recorded):
        net(x)

    def run() -> None:
        for _ in range(T):
            recorded.replay()

    return run


def forwards(ann: nn.Module, x: Tensor, T: int) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Yield (name, maker of a run) of the ANN's forward passes; the first is the unit."""
    narrow = copy.deepcopy(ann).to(torch.bfloat16)
    yield "ANN x T", lambda: repeated(ann, x, T)
    yield "ANN x T bfloat16", lambda: repeated(narrow, x.to(torch.bfloat16), T)
    yield "ANN x T torch.compile", lambda: repeated(torch.compile(ann), x, T)  # type: ignore[arg-type]
    if x.is_cuda:
        yield "ANN x T CUDA graph", lambda: captured(ann, x, T)


def ours(snn: SpikingNetwork, x: Tensor, T: int) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Yield simulations of ``snn``."""
    yield "simulate float32", lambda: lambda: cx.simulate(snn, x, T, at=[T])
    yield "simulate bfloat16", lambda: lambda: cx.simulate(snn, x, T, at=[T], dtype="bfloat16")
    yield "simulate int8 weights", lambda: lambda: cx.simulate(snn, x, T, at=[T], weights="int8")
    yield "simulate compiled", lambda: lambda: cx.simulate(snn, x, T, at=[T], compile=True)


def theirs(
    ann: nn.Module, x: Tensor, T: int, batches: list[tuple[Tensor, Tensor]]
) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Yield the runs of SpikingJelly, with the kernels that it chooses on this device, and of snnTorch."""

    def converted() -> nn.Module:
        return Converter(RateCodingRecipe(batches, mode="99.9%")).convert(ann).eval().to(x.device)

    def single() -> Run:
        net = converted()
        return _reset_and(net, lambda: [net(x) for _ in range(T)])

    def multi() -> Run:
        net = converted()
        functional.set_step_mode(net, "m")
        return _reset_and(net, lambda: net(x.expand(T, *x.shape)))

    def looped() -> Run:
        net = stock(ann, x, leaky)
        return _reset_and(net, lambda: [net(x) for _ in range(T)], snntorch.utils.reset)

    yield "SpikingJelly s, torch", single
    chosen = functional.neuron_implementation("if", x.device)["implementation"]
    yield f"SpikingJelly m, {chosen}", multi
    yield "snnTorch loop", looped


def _reset_and(net: nn.Module, step: Run, reset: Callable[[nn.Module], object] = functional.reset_net) -> Run:
    def run() -> None:
        reset(net)
        with torch.inference_mode():
            step()

    return run


def table(
    ann: nn.Module, snn: SpikingNetwork, x: Tensor, T: int, batches: list[tuple[Tensor, Tensor]], repeats: int
) -> Iterator[str]:
    """Yield the rows of a simulation table: milliseconds per sample and the ratio to the unit, or why there is none."""
    unit: float | None = None
    for name, make in (*forwards(ann, x, T), *ours(snn, x, T), *theirs(ann, x, T, batches)):
        try:
            spent = seconds(make(), x.device, repeats)
        except Exception as error:  # noqa: BLE001  whatever a machine lacks, the other rows stand
            yield f"| {name} | {type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]} | |"
            continue
        unit = unit or spent
        yield f"| {name} | {1e3 * spent / len(x):.4f} | {spent / unit:.2f} |"


def conversions(ann: nn.Module, images: Tensor, device: torch.device) -> Iterator[str]:
    """Yield rows of converting with images that are on the device, and with images streamed to it from the CPU."""
    there = list(images.split(64))
    pinned = [batch.cpu().pin_memory() if device.type == "cuda" else batch.cpu() for batch in there]
    for name, data in (("on the device", there), ("streamed from pinned memory", pinned)):
        for T in (None, 4):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            spent = seconds(lambda data=data, T=T: cx.convert(ann, data, T=T, progress=False), device, 1)
            memory = torch.cuda.max_memory_allocated(device) >> 20 if device.type == "cuda" else 0
            yield f"| convert T={T}, {len(images)} images {name} | {spent:.2f} s | {memory or ''} |"


def tuning(snn: SpikingNetwork, images: Tensor, labels: Tensor, device: torch.device) -> Iterator[str]:
    """Yield a row: an epoch of fine-tuning for 4 steps."""
    data = list(zip(images.split(64), labels.split(64), strict=True))
    spent = seconds(lambda: cx.finetune(snn, data, T=4, epochs=1, progress=False), device, 1)
    yield f"| finetune, T = 4, {len(images)} images | {spent:.2f} s | |"


def choose(name: str) -> torch.device:
    """Return the device to measure on; raise SystemExit where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device here; use --device cpu to try the script.")
    return torch.device(name)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    warnings.filterwarnings("ignore", "Not active on the calibration data")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18", choices=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--T", nargs="+", type=int, default=[4, 32])
    parser.add_argument("--images", type=int, default=256, help="for conversion and fine-tuning")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args(arguments)
    device = choose(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, without what needs CUDA"
    print(f"{where}, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, python {sys.version.split()[0]}")
    ann, images = speed_network(options.network)
    most = max(options.images, *options.batches)
    images = images.repeat(-(-most // len(images)), 1, 1, 1)[:most].to(device)
    ann = ann.to(device)
    labels = ann(images[: options.images]).argmax(1).detach()
    print("\n| conversion | time | MiB |\n|---|---|---|")
    for line in conversions(ann, images[: options.images], device):
        print(line, flush=True)
    snn = cx.convert(ann, images[:64], backend="spikingjelly", progress=False)
    batches = [(part, torch.zeros(len(part), device=device)) for part in images[:64].split(64)]
    for T in options.T:
        for batch in options.batches:
            print(f"\n| {options.network}, batch {batch}, T = {T} | ms per image | x ANN |\n|---|---|---|")
            for line in table(ann, snn, images[:batch], T, batches, options.repeats):
                print(line, flush=True)
    print("\n| training | time | |\n|---|---|---|")
    for line in tuning(snn, images[: options.images], labels, device):
        print(line, flush=True)


if __name__ == "__main__":
    main()

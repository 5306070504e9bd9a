"""The console script ``conversion-ext``: it reads the command line before torch is imported, so that help is instant.

It is installed as a package of its own, because importing any module of ``conversion_ext`` imports torch. The commands
themselves are in ``conversion_ext.__main__``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

__all__ = ["main", "parser"]

DATA = "digits, fashion-mnist, or cifar10 (read from the folder that CONVERSION_EXT_DATA names)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 ``check`` found problems, 2 wrong request."""
    options = parser().parse_args(arguments)
    commands = importlib.import_module("conversion_ext.__main__")
    errors = importlib.import_module("conversion_ext.errors")
    try:
        return getattr(commands, options.run)(options)
    except (errors.ConversionError, ValueError, TypeError, OSError) as error:
        message = f"error: {error}"
    except Exception as error:  # a fault of this package, or of the model: a sentence all the same
        if options.traceback:
            raise
        first = (str(error).splitlines() or [""])[0]
        message = f"error: unexpected {type(error).__name__}: {first} (conversion-ext --traceback ... shows where)"
    print(message, file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="conversion-ext", description="Convert trained PyTorch networks to spiking ones."
    )
    top.add_argument("--version", action="version", version=f"conversion-ext {version('conversion-ext')}")
    top.add_argument("--traceback", action="store_true", help="show where an unexpected error was raised")
    commands = top.add_subparsers(required=True, metavar="command")
    for add in (_demo, _methods, _check, _convert, _info, _diagnose, _bench, _docs):
        name, doc = add.__name__[1:], " ".join((add.__doc__ or "").split())
        command = commands.add_parser(name, help=doc, description=doc)
        command.set_defaults(run=name)
        add(command)
    return top


def _demo(command: argparse.ArgumentParser) -> None:
    """Train a small network on real data, convert it beside SpikingJelly's own converter, and report."""
    _backend(command, "every installed framework")
    command.add_argument("--T", type=int, default=4, help="time steps (default: 4)")
    command.add_argument("--data", default="digits", help=f"{DATA} (default: digits)")
    command.add_argument("--weights", type=Path, help="of a CIFAR ResNet (He et al.), which is not trained then")
    command.add_argument("--recipe", action="append", help="recipe to show, may be repeated (default: three of them)")
    command.add_argument("--images", type=_positive, default=1000, help="test images at most (default: 1000)")
    command.add_argument("--out", type=Path, help="folder for report.html and accuracy.png (default: a temporary one)")
    command.add_argument("--seed", type=int, default=0, help="of training (default: 0)")


def _methods(command: argparse.ArgumentParser) -> None:
    """List everything that is registered: recipes, normalizers, tuners, losses, gradients, backends, operators."""
    command.add_argument("--markdown", action="store_true", help="as a table in Markdown")


def _check(command: argparse.ArgumentParser) -> None:
    """List everything that stands between a model and its conversion; exit code 1 if there is anything."""
    _model(command)
    command.add_argument("--input", required=True, type=_shape, help="shape of one batch, for example 1,1,28,28")
    command.add_argument("--recipe", default="default", help="name of a recipe (default: default)")


def _convert(command: argparse.ArgumentParser) -> None:
    """Convert a model and save the spiking network to a file."""
    _model(command)
    _data(command)
    command.add_argument("--recipe", default="default", help="name of a recipe (default: default)")
    command.add_argument("--T", type=_positive, help="time steps to optimise for (default: none in particular)")
    command.add_argument("--out", type=Path, required=True, help="file to write, for example net.safetensors")
    _backend(command, "the first installed")


def _info(command: argparse.ArgumentParser) -> None:
    """Say what a saved network is: recipe, versions, sites and thresholds."""
    command.add_argument("network", type=Path, help="file that `convert` or cx.save wrote")


def _diagnose(command: argparse.ArgumentParser) -> None:
    """Say why a saved spiking network decides unlike its ANN."""
    command.add_argument("network", type=Path, help="file that `convert` wrote")
    _model(command)
    _data(command)
    command.add_argument("--T", type=_positive, default=32, help="time steps (default: 32)")
    command.add_argument("--html", type=Path, help="where to write the report")


def _bench(command: argparse.ArgumentParser) -> None:
    """Measure simulation on this machine beside T forward passes of the ANN and the framework's own loop."""
    _backend(command, "the first installed")
    command.add_argument("--T", type=_positive, default=32, help="time steps (default: 32)")
    command.add_argument("--batch", type=_positive, nargs="+", default=[1, 64], help="batch sizes (default: 1 64)")
    command.add_argument("--repeats", type=_positive, default=5, help="runs of which the median counts (default: 5)")


def _docs(command: argparse.ArgumentParser) -> None:
    """Show the reference of all modules in a browser, or write it to a folder; needs pdoc."""
    command.add_argument("--out", type=Path, help="folder to write instead")


def _backend(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--backend", help=f"spikingjelly, snntorch or reference; default: {default}")


def _model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="module:factory, for example torchvision.models:resnet18")
    command.add_argument(
        "--arg", action="append", default=[], metavar="VALUE", help="argument of the factory: VALUE or name=VALUE"
    )
    command.add_argument("--weights", type=Path, help="state dict of the model: .pt, .pth or .safetensors")


def _data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", required=True, help=f"{DATA}, or a .npz or .pt file with images and, if any, labels")
    command.add_argument("--samples", type=_positive, default=512, help="how many are read (default: 512)")


def _shape(text: str) -> tuple[int, ...]:
    """Parse "1,1,28,28"."""
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape; write sizes with commas, for example 1,1,28,28")
    return shape


def _positive(text: str) -> int:
    """Parse a number of steps, samples or runs."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number >= 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

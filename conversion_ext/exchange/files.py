"""Keep a converted network in one file and build it again, bit-equal, in any backend and without the ANN's code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from conversion_ext.backends import available, get_backend
from conversion_ext.errors import ConversionError, FileError, require
from conversion_ext.exchange import container, graphs
from conversion_ext.exchange.modules import Modules
from conversion_ext.exchange.tensors import Tensors
from conversion_ext.network.record import Options, installed_versions
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.network.state import reset
from conversion_ext.simulation.samples import require_network

__all__ = ["load", "save"]

PACKAGES = ("conversion-ext", "torch", "spikingjelly", "snntorch")


def save(snn: SpikingNetwork, path: str | Path) -> Path:
    """Write ``snn`` to the file ``path`` and return where it is.

    One safetensors file: weights, thresholds and all else that is numbers as tensors; the graph, the recipe, versions
    and what was calibrated as JSON in its header. ``load`` gives a network whose simulation is bit-equal. Neither
    the state of a running simulation nor surrogate gradients are kept, nor what ``convert`` was given as ``forward``
    and as classes in ``leaf``.

    Args:
        snn: What ``convert``, ``finetune``, ``integers`` or ``load`` returned.
        path: The file; one that exists is replaced, once the new one is complete.

    Raises:
        FileError: The network holds what a file cannot name (a module of a class of one's own that was not given to
            ``register_operator``), or the file cannot be written.
    """
    require_network(snn)
    require(isinstance(path, str | Path), f"path={path!r}: name a file in a folder that exists.", TypeError)
    path = Path(path)
    tensors = Tensors()
    modules = Modules(tensors)
    written = graphs.write(snn.body, modules)
    facts = {
        "versions": installed_versions(*PACKAGES),
        "record": modules.values.write(replace(snn.record, options=_kept(snn.record.options))),
        "graph": written,
        "modules": modules.written,
        "tensors": tensors.facts,
    }
    container.write(path, facts, tensors.data)
    return path


def _kept(options: Options) -> Options:
    """Return ``options`` without the functions and classes of the user's among them."""
    return replace(options, forward=None, leaf=tuple(entry for entry in options.leaf if isinstance(entry, str)))


def load(path: str | Path, *, backend: str | None = None, device: Any = None) -> SpikingNetwork:
    """Return the network that ``save`` wrote to ``path``; nothing but classes and functions of closed lists is used.

    The ANN and its class are not needed. Simulated on the device and with the release of torch with which it was
    saved, it gives the same outputs, bit for bit.

    Args:
        path: The file.
        backend: The framework of its neurons; by default the one it was saved with, where that is installed.
        device: Where its tensors go; by default the CPU.

    Raises:
        FileError: The file is not one of ``save``, is damaged, was changed, or is of a newer format; or it names a
            class or function that is not known here.
        ValueError: There is no such device here.
    """
    require(isinstance(path, str | Path), f"path={path!r}: name a file that conversion_ext.save wrote.", TypeError)
    _check_device(device)
    path = Path(path)
    facts, data = container.read(path)
    try:
        tensors = Tensors(data, facts["tensors"])
        modules = Modules(tensors, facts["modules"])
        record = modules.values.read(facts["record"])
        modules.backend = get_backend(backend or (record.backend if record.backend in available() else None))
        body = graphs.read(facts["graph"], modules)
        record = replace(record, backend=modules.backend.name)
        snn: Any = modules.backend.root(SpikingNetwork)(body, record).eval()
        reset(snn)
    except ConversionError as error:
        raise type(error)(f"{path} cannot be loaded: {error}") from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise FileError(f"{path} cannot be loaded, it describes no network ({what}); save it again.") from error
    return snn if device is None else snn.to(device)


def _check_device(device: Any) -> None:
    """Raise ValueError unless tensors can be put on ``device``."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"device={device!r}: {reason}; name one that is here, such as 'cpu'.") from error

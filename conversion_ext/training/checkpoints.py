"""Where a training runs, and how it survives: one process or what ``accelerate`` makes of several; checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conversion_ext.data.distributed import processes
from conversion_ext.errors import require

__all__ = ["Plain", "load_checkpoint", "mechanics_of", "save_checkpoint"]


class Plain:
    """What training needs of an ``accelerate.Accelerator``, in one process and where the network is."""

    is_main_process = True
    sync_gradients = True
    scaler: Any = None

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, *objects: Any) -> tuple[Any, ...]:
        """Return the objects."""
        return objects

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the loss."""
        loss.backward()

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> None:
        """Shorten the gradient."""
        nn.utils.clip_grad_norm_(parameters, max_norm)


def mechanics_of(accelerator: Any, device: torch.device) -> Any:
    """Return the accelerator given, or ``Plain``; a duck, since accelerate is optional."""
    if accelerator is None:
        require(
            processes() == 1,
            f"{processes()} processes train together only through accelerate: pass accelerator=accelerate.Accelerator()"
            ' (pip install "conversion-ext[accelerate]").',
        )
        return Plain(device)
    require(
        all(hasattr(accelerator, name) for name in ("prepare", "backward", "clip_grad_norm_", "is_main_process")),
        f"accelerator={accelerator!r}: give an accelerate.Accelerator(), or None.",
        TypeError,
    )
    return accelerator


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that ``path`` always holds a whole checkpoint, whenever the process is killed."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_checkpoint(path: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state at ``path``, None if there is none; raise ValueError where it is not that of this ``run``."""
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    other = [name for name, value in run.items() if state["run"].get(name) != value]
    require(
        not other,
        f"checkpoint={str(path)!r} belongs to a run with another {', '.join(other)}; delete it, or name another file.",
    )
    return state

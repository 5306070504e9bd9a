"""The private copy of a user's network: unwrapped, in evaluation mode, with or without the user's hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from conversion_ext.capture.baking import bake
from conversion_ext.errors import UnsupportedError, require
from conversion_ext.graph.values import tensors_in, version_of

__all__ = ["effective_hooks", "has_hooks", "private_copy", "remove_hooks", "unwrapped"]

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))
_WITHOUT_EFFECT = tuple(name for name in _HOOKS if "backward" in name or "state_dict" in name)
_WEIGHT_HOOKS = {"WeightNorm", "SpectralNorm"}  # by name, since torch is about to drop both
_CALLED = ("_forward_pre_hooks", "_forward_hooks")


def unwrapped(ann: Any) -> Any:
    """Return the network inside of DataParallel, torch.compile or torch.export; anything else as it is."""
    while True:
        inner = _inside(ann)
        if inner is None:
            return ann
        ann = inner


def _inside(ann: Any) -> Any:
    """Return what ``ann`` wraps, or None."""
    if isinstance(ann, torch.export.ExportedProgram):
        return ann.module()
    if isinstance(ann, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return ann.module
    plain = isinstance(ann, nn.Module) and not isinstance(ann, torch.jit.ScriptModule)
    return ann._modules.get("_orig_mod") if plain else None  # noqa: SLF001 (how torch.compile keeps it)


def private_copy(ann: nn.Module, hooks: bool = True) -> nn.Module:
    """Return a deep copy of ``ann`` in evaluation mode, weights that hooks and parametrizations compute baked in.

    Wrappers are taken off at every depth. With ``hooks`` the user's forward hooks are still there.
    """
    compiled = next((path for path, module in ann.named_modules() if isinstance(module, torch.jit.ScriptModule)), None)
    require(
        compiled is None,
        f"{compiled or type(ann).__name__} is compiled by torch.jit, and what it computes cannot be followed. Give the "
        "network from which it was made.",
        UnsupportedError,
    )
    memo: dict[int, Any] = {}
    try:
        for module in ann.modules():
            for name in _WITHOUT_EFFECT:
                memo[id(vars(module)[name])] = type(vars(module)[name])()
            for value in vars(module).values():
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()  # deepcopy refuses results of a computation
        for module in reversed(list(ann.modules())):
            if unwrapped(module) is not module:
                memo[id(module)] = copy.deepcopy(unwrapped(module), memo)
        model = copy.deepcopy(ann, memo)
    except Exception as error:
        first = str(error).strip().partition("\n")[0].rstrip(". ")
        raise UnsupportedError(
            f"The network cannot be copied: {type(error).__name__}: {first}. Make it work with copy.deepcopy, "
            "for example by taking open files, locks and loaders out of its attributes."
        ) from error
    for path, original in ann.named_modules():
        hooks_before: dict[int, Any] = original._forward_pre_hooks  # noqa: SLF001 (torch offers no other view)
        for hook in hooks_before.values():
            if _computes_weight(hook):
                hook.remove(model.get_submodule(path))
    for owner, key, hook in _hooks(model):
        if not hooks or _computes_weight(hook) or getattr(hook, "__module__", "").startswith("torch.ao."):
            del owner[key]
    for module in model.modules():
        if parametrize.is_parametrized(module):
            remove_hooks(module.parametrizations)  # type: ignore[arg-type]
    for module in model.modules():
        if type(module._modules.get("_guards_fn")).__name__ == "GuardsFn":  # noqa: SLF001 (torch.export's check of shapes)
            module.add_module("_guards_fn", _Nothing())
    model.eval()
    return bake(model)


def _computes_weight(hook: Any) -> bool:
    return type(hook).__name__ in _WEIGHT_HOOKS or isinstance(hook, BasePruningMethod)


def _hooks(model: nn.Module) -> Iterator[tuple[dict[int, Any], int, Any]]:
    """Iterate over (the hooks of a module, key, hook) of what runs around a forward."""
    for module in model.modules():
        for name in _CALLED:
            hooks = vars(module)[name]
            for key, hook in list(hooks.items()):
                yield hooks, key, hook


def has_hooks(model: nn.Module) -> bool:
    """Return whether the user registered anything that runs around a forward."""
    return any(True for _ in _hooks(model))


def remove_hooks(model: nn.Module) -> None:
    """Take all hooks off."""
    for hooks, key, _ in _hooks(model):
        del hooks[key]


def effective_hooks(model: nn.Module, run: Callable[[], Any]) -> Any:
    """Return ``run()``, which calls ``model``, and take those hooks off that changed no value meanwhile."""
    watched = []
    for hooks, key, hook in _hooks(model):
        hooks[key] = watch = _Watch(hook)
        watched.append((hooks, key, watch))
    try:
        return run()
    finally:
        for hooks, key, watch in watched:
            if watch.effective:
                hooks[key] = watch.hook
            else:
                del hooks[key]


class _Nothing(nn.Module):
    """What an exported network checks of its input, left out."""

    def forward(self, *args: Any) -> None:
        """Return nothing."""


class _Watch:
    """A hook that notes whether it changes what it is given, by what it returns or in place."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook, self.effective = hook, False

    def __call__(self, *args: Any) -> Any:
        given = tensors_in(args[1:])
        versions = [version_of(value) for value in given]
        result = self.hook(*args)
        same = result is None or any(result is part for part in args)
        self.effective |= not same or versions != [version_of(value) for value in given]
        return result

"""In-place operations become ordinary ones, so that an edge of the graph is a value and nothing changes behind it."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from conversion_ext.capture.passes.base import refuse
from conversion_ext.data.inputs import device_of
from conversion_ext.graph import info, is_stock, module_of, note, refresh, rename_free
from conversion_ext.graph.memory import Memory, overlap

__all__ = ["OutOfPlace"]

_OPERATORS = {getattr(operator, f"i{name}"): getattr(operator, name) for name in
              ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}  # fmt: skip
_SAME, _PART = "the same elements", "some of its elements, or in another order"
# Without an example, by name: what returns its input, and torch's documented views.
_RETURNED = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featurealphadropout", "identity", "contiguous",
    "detach", "stochastic_depth", "data", "to", "float", "double", "type_as", "cpu",
}  # fmt: skip
_VIEWS = {
    "as_strided", "broadcast_to", "chunk", "diagonal", "expand", "expand_as", "flatten", "getitem", "h", "hsplit", "mh",
    "movedim", "moveaxis", "mt", "narrow", "permute", "ravel", "real", "imag", "reshape", "reshape_as", "select",
    "split", "split_with_sizes", "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "transpose", "unbind",
    "unflatten", "unfold", "unsqueeze", "view", "view_as", "vsplit", "dsplit",
}  # fmt: skip


class OutOfPlace:
    """``relu_(x); y = f(x)`` reads as ``x2 = relu(x); y = f(x2)``.

    Later users of the changed tensor, and of other names of it (dropout and identity return their input),
    get the new value; those of another view of its memory get that view with the elements that were changed.
    Without an example nobody knows which these are, and a view that is used later is refused.
    """

    def run(self, model: GraphModule) -> None:
        """Rewrite every in-place module, method, operator and function."""
        in_place = [node for node in model.graph.nodes if _is_in_place(model, node)]
        for node in in_place:
            changed = _first(node)
            on_tensor = isinstance(changed, Node) and "dropout" not in _name(model, node)
            if not _make_pure(model, node):
                refuse(model, node, "changes a tensor in place.", "Write it as an operation that returns its result.")
            elif on_tensor and changed is not None:
                self._redirect(model, changed, node)
        refresh(model)

    def _redirect(self, model: GraphModule, changed: Node, node: Node) -> None:
        """Let what reads the memory of ``changed`` after ``node`` read the result of ``node``."""
        order = {other: index for index, other in enumerate(model.graph.nodes)}
        for name, relation in _names_of(model, changed, order):
            if order[name] > order[node]:
                continue  # a view of the result of ``node``, or of what is redirected here
            merged: Node | None = None
            for user in [user for user in name.users if order.get(user, -1) > order[node]]:
                if relation is _SAME:
                    user.replace_input_with(name, node)
                elif not _elsewhere(user, changed) and not _again(model, name, changed, node, user):
                    merged = merged or _merged(model, name, node)
                    if merged is not None:
                        user.replace_input_with(name, merged)
                    else:
                        still = f"changes a tensor in place while {user.name!r} still uses a view of it."
                        refuse(model, node, still, "Write it as an operation that returns its result.")

    def ensures(self, model: GraphModule) -> list[str]:
        """No node changes its input, but those refused."""
        left = [node for node in model.graph.nodes if _is_in_place(model, node) and not info(node).refused]
        return [f"{node.name} works in place." for node in left]


def _is_in_place(model: GraphModule, node: Node) -> bool:
    """Return whether ``node`` changes its first input."""
    if node.op == "call_module":
        return getattr(module_of(model, node), "inplace", False) is True
    if node.op == "call_method":
        return _marked(str(node.target))
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        flagged = node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None
        return flagged or node.target in _OPERATORS or (_marked(name) and name != "and_" and name != "or_")
    return False


def _marked(name: str) -> bool:
    """Return whether ``name`` has PyTorch's mark of an in-place operation, one underscore at its end."""
    return name.endswith("_") and not name.endswith("__")


def _make_pure(model: GraphModule, node: Node) -> bool:
    """Give ``node`` the target that returns its result; return False when there is none."""
    if node.op == "call_module":
        module: Any = module_of(model, node)
        module.inplace = False
        return True
    if node.op == "call_method":
        if node.target == "copy_" and _same_shape(node):
            node.target, node.args = "clone", (node.args[1],)
            return True
        name = str(node.target)[:-1]
        known = callable(getattr(Tensor, name, None))
        node.target = name if known else node.target
        return known
    if node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
        return True
    if node.kwargs.get("out") is not None:
        return False
    node.kwargs = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "out")}
    name = getattr(node.target, "__name__", "")
    if _marked(name):
        pure = getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)
        node.target = pure or node.target
        return pure is not None
    return True


def _same_shape(node: Node) -> bool:
    """Return whether ``node`` copies a tensor over one of its shape."""
    value = node.args[1]
    return isinstance(value, Node) and info(value).shape is not None and info(value).shape == info(node).shape


def _names_of(model: GraphModule, changed: Node, order: dict[Node, int]) -> list[tuple[Node, str]]:
    """Return (node, relation) of all nodes made before now whose value shares memory with that of ``changed``."""
    if not _located(changed):
        return _named(model, changed)
    names = []
    (place,) = _memory(changed)
    for other in order:
        memory = _memory(other)
        if other is changed or memory == (place,):
            names.append((other, _SAME))
        elif overlap(memory, (place,)):
            names.append((other, _PART))
    return names


def _located(node: Node) -> bool:
    """Return whether it is known where the one tensor that ``node`` returns lies."""
    memory = info(node).memory
    return memory is not None and len(memory) == 1


def _memory(node: Node) -> tuple[Memory, ...]:
    return info(node).memory or ()


def _elsewhere(user: Node, changed: Node) -> bool:
    """Return whether ``user`` only takes views of what ``changed`` does not touch."""
    memory, place = _memory(user), _memory(changed)
    if user.op == "output":
        return False
    if len(memory) > 1 and all(part.target is operator.getitem for part in user.users):
        return all(_elsewhere(part, changed) for part in user.users)
    return bool(memory and place) and all(m.storage == place[0].storage for m in memory) and not overlap(memory, place)


def _again(model: GraphModule, view: Node, changed: Node, node: Node, user: Node) -> bool:
    """Let ``user`` read the same view of the result of ``node``; return whether ``view`` is one of ``changed``."""
    source = _first(view)
    if source is None or not _located(changed) or not overlap(_memory(view), _memory(source)):
        return False
    if source is not changed and _memory(source) != _memory(changed):
        return False
    with model.graph.inserting_before(user):
        again = model.graph.node_copy(view, lambda n: node if n is source else n)
    user.replace_input_with(view, again)
    return True


def _merged(model: GraphModule, view: Node, node: Node) -> Node | None:
    """Return ``view`` with those elements that ``node`` changed; None where that cannot be expressed.

    The elements of a sample, those of ``view`` and of ``node`` side by side, are picked by their number.
    """
    if not (_is_batch(view) and _is_batch(node)):
        return None
    places, changed = (_memory(each)[0].elements() for each in (view, node))
    number = {place: len(places) + i for i, place in enumerate(changed)}
    index = rename_free(model, f"{view.name}_elements")
    picks = [number.get(place, i) for i, place in enumerate(places)]
    model.register_buffer(index, torch.tensor(picks, device=device_of(model)))
    shape, create = info(view).shape, model.graph.create_node
    with model.graph.inserting_before(node.next):
        old, new = (create("call_method", "flatten", (each, 1)) for each in (view, node))
        both = create("call_function", torch.cat, ([old, new], 1))
        picked = create("call_function", operator.getitem, (both, (slice(None), create("get_attr", index))))
        merged = create("call_method", "unflatten", (picked, 1, tuple(shape[1:])))
    for each, count in (
        (old, len(places)),
        (new, len(changed)),
        (both, len(places) + len(changed)),
        (picked, len(places)),
    ):
        note(each, known=True, shape=torch.Size((1, count)), batch=1, line=info(node).line)
    note(merged, known=True, shape=shape, memory=_memory(view), batch=1, line=info(node).line)
    return merged


def _is_batch(node: Node) -> bool:
    """Return whether the value is one tensor [N, F, ...] of which it is known where it lies."""
    return _located(node) and info(node).batch == 1 and info(node).is_tensor and len(info(node).shape) >= 2


def _named(model: GraphModule, node: Node) -> list[tuple[Node, str]]:
    """Return what ``_names_of`` does where the graph was not run: aliases by the names of torch's functions."""
    base, relation = node, _SAME
    parts: dict[Node, object] = {}
    while (step := _alias(model, base)) is not None:
        if base.target is operator.getitem:
            parts[step[0]] = base.args[1]
        base, relation = step[0], _PART if _PART in (relation, step[1]) else _SAME
    names = {base: relation}
    stack = [base]
    while stack:
        name = stack.pop()
        for user in name.users:
            step = _alias(model, user)
            if name in parts and _other_number(user.args[1], parts[name]):
                continue  # another chunk of the same tensor
            if step is not None and step[0] is name and user not in names:
                names[user] = _PART if _PART in (names[name], step[1]) else _SAME
                stack.append(user)
    names[node] = _SAME
    return list(names.items())


def _other_number(index: object, other: object) -> bool:
    """Return whether two indices name different entries; slices may overlap."""
    return isinstance(index, int) and isinstance(other, int) and index != other


def _alias(model: GraphModule, node: Node) -> tuple[Node, str] | None:
    """Return (input, relation) when the value of ``node`` may share the memory of its first input."""
    first = _first(node)
    if first is None or node.op in ("placeholder", "output"):
        return None
    name = _name(model, node)
    if name in _RETURNED:
        return first, _SAME
    own = node.op == "call_module" and not is_stock(model.get_submodule(str(node.target)))
    return (first, _PART) if name in _VIEWS or own else None


def _name(model: GraphModule, node: Node) -> str:
    """Return the lower-case name of what ``node`` calls."""
    if node.op == "call_module":
        return type(module_of(model, node)).__name__.lower()
    return str(node.args[1]).lower() if node.target is getattr else getattr(node.target, "__name__", str(node.target))


def _first(node: Node) -> Node | None:
    """Return the tensor that a call works on."""
    given = node.args[0] if node.args else node.kwargs.get("input")
    return given if isinstance(given, Node) else None

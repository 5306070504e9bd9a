"""Capture: a private copy, traced, in the user's terms, with errors that name the place and the remedy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import prune

from conversion_ext.capture.tracing import capture
from conversion_ext.errors import UnsupportedError
from conversion_ext.graph import describe, info, key_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        return self.relu(x + F.relu(F.relu(x)))


class Net(nn.Module):
    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(), Block()) if body is None else body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.size(1)) if len(x) > 1 else x


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for row in x:
            x = x + row
        return x


EXAMPLE = (torch.linspace(-1, 2, 12).view(4, 3),)


def keys(model: fx.GraphModule) -> list[str]:
    return [key_of(node) for node in model.graph.nodes if node.op.startswith("call")]


def test_keys_are_paths_with_a_number_from_the_second_call_site() -> None:
    # the bare path belongs to the module; functions of the same name count on from its calls
    block = ["conv", "relu", "relu#2", "relu#3", "add", "relu#1"]
    assert keys(capture(Block())) == block
    captured = capture(Net())
    called = [key_of(n) for n in captured.graph.nodes if n.op == "call_module"]
    assert called == [f"body.{i}.{name}" for i in (0, 1) for name in ("conv", "relu", "relu#1")]
    assert len(keys(captured)) == len(set(keys(captured))) == 2 * len(block) + 1
    assert keys(captured)[-1] == "relu"


def test_a_block_called_twice_numbers_what_is_inside() -> None:
    block = Block()
    captured = capture(nn.Sequential(block, block))
    called = [key_of(n) for n in captured.graph.nodes if n.op == "call_module"]
    assert called == ["0.conv", "0.relu", "0.relu#1", "0.conv#1", "0.relu#2", "0.relu#3"]


def test_lines_are_those_of_the_user() -> None:
    captured = capture(Net())
    lines = {key_of(node): describe(node) for node in captured.graph.nodes}
    source = "test_tracing.py:"
    assert lines["body.0.conv"].startswith(source)
    assert lines["body.0.conv"].endswith("x = self.relu(self.conv(x))")
    assert lines["relu"].endswith("return torch.relu(self.body(x))")
    in_sequential = capture(Net(nn.Sequential(nn.Linear(2, 2))))
    assert describe(next(n for n in in_sequential.graph.nodes if n.op == "call_module")) == lines["relu"]


def test_the_copy_is_in_evaluation_mode_and_the_original_is_not() -> None:
    ann = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).train()
    captured = capture(ann)
    assert ann.training
    assert not any(module.training for module in captured.modules())
    assert {id(p) for p in captured.parameters()}.isdisjoint(map(id, ann.parameters()))


def test_subclasses_that_do_not_override_forward_are_leaves() -> None:
    class Narrow(nn.Conv1d):
        def __init__(self) -> None:
            super().__init__(2, 2, 1)

    class Shifted(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    captured = capture(nn.Sequential(Narrow(), Shifted()))
    targets = [n.target for n in captured.graph.nodes if n.op.startswith("call")]
    assert targets[0] == "0"
    assert "1" not in targets
    x = torch.randn(3, 2, 4)
    assert torch.equal(capture(nn.Sequential(Shifted()))(x), x.relu() + 1)


def test_torchvision_blocks_are_seen_through() -> None:
    ops = pytest.importorskip("torchvision").ops
    ann = nn.Sequential(ops.Conv2dNormActivation(1, 2), ops.StochasticDepth(0.5, "row"))
    kinds = [type(m) for n, m in capture(ann).named_modules() if n.startswith("0.")]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    video = pytest.importorskip("torchvision").models.video.resnet
    captured = capture(nn.Sequential(video.Conv3DSimple(1, 2)))
    assert [n.op for n in captured.graph.nodes] == ["placeholder", "call_module", "output"]


@pytest.mark.parametrize("options", [{"leaf": (Branching,)}, {"leaf": ("body.1",)}, {"skip": ("body.1",)}])
def test_leaf_and_skip_keep_a_module_whole(options: dict[str, Any]) -> None:
    ann = Net(nn.Sequential(nn.Linear(3, 3), Branching()))
    captured = capture(ann, **options)
    (node,) = [n for n in captured.graph.nodes if n.target == "body.1"]
    assert info(node).skip == ("skip" in options)
    for x in (torch.randn(4, 3), torch.randn(2, 3)):
        assert torch.equal(captured(x), ann(x))


WITHOUT_EXAMPLE = "cannot be followed without an example: it uses shapes or values of its input in Python"


@pytest.mark.parametrize(
    ("module", "example", "reason"),
    [
        (Branching(), None, WITHOUT_EXAMPLE), (Branching(), EXAMPLE, "control flow"),
        (Counting(), None, WITHOUT_EXAMPLE),
        (Looping(), None, WITHOUT_EXAMPLE), (Looping(), EXAMPLE, "takes a batch apart into its samples"),
    ],
)  # fmt: skip
def test_a_failure_names_module_line_reason_and_remedy(module: nn.Module, example: Any, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason) as raised:
        capture(Net(nn.Sequential(nn.ReLU(), Net(module))), example)
    (problem,) = raised.value.problems
    assert problem.path == "body.1.body"
    assert "skip=('body.1.body',)" in problem.remedy
    assert "leaf=('body.1.body',)" in problem.remedy
    assert problem.line.startswith("test_tracing.py:")
    assert "\n" not in str(problem)


def test_a_failure_at_the_top_has_its_own_remedy() -> None:
    with pytest.raises(UnsupportedError, match="module of its own") as raised:
        capture(Branching(), EXAMPLE)
    assert raised.value.problems[0].path == "Branching"
    assert raised.value.problems[0].line.endswith("if x.sum() > 0:")


def test_an_error_that_the_user_catches_is_not_blamed() -> None:
    class Trying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Branching()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.inner(x)
            except Exception:
                return Looping.forward(self, x)  # type: ignore[arg-type]

    with pytest.raises(UnsupportedError) as raised:
        capture(nn.Sequential(Trying()))
    assert raised.value.problems[0].path == "0"


def test_what_cannot_be_copied_is_said() -> None:
    ann = nn.Linear(1, 1)
    ann.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UnsupportedError, match=r"cannot be copied.*deepcopy"):
        capture(ann)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": ("body.7",)}, r"no module \['body.7'\]"),
        ({"leaf": ("nothing", nn.ReLU)}, "no module"),
        ({"skip": "body"}, r"skip=\('body',\)"),
        ({"leaf": nn.ReLU}, "give a tuple"),
        ({"leaf": (3,)}, r"\[3\]"),
        ({"skip": (nn.ReLU,)}, "subclasses of nn.Module"),
        ({"skip": ("",)}, "no module"),
    ],
)
def test_bad_leaf_and_skip(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        capture(Net(), **options)


def test_only_modules_are_accepted() -> None:
    with pytest.raises(TypeError, match=r"function.*nn\.Module"):
        capture(lambda x: x)  # type: ignore[arg-type]


def test_a_graph_module_is_captured_again() -> None:
    traced = fx.symbolic_trace(Net())
    captured = capture(traced)
    x = torch.randn(2, 2, 3)
    assert torch.equal(captured(x), traced(x))
    assert "body.0.relu#1" in keys(captured)


def test_arguments_with_a_default_keep_it() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 2.0) -> Tensor:
            if mask is not None:
                x = x * mask
            return x * scale

    x, mask = torch.randn(3), torch.tensor([0.0, 1.0, 0.0])
    assert torch.equal(capture(Optional())(x), Optional()(x))
    assert torch.equal(capture(Optional(), inputs=2)(x, mask), Optional()(x, mask))


def test_assertions_do_not_stop_the_trace() -> None:
    class Checked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dim() == 2, "a matrix"
            assert x.shape[1] > 1
            return x.relu()

    x = torch.randn(2, 2)
    assert torch.equal(capture(nn.Sequential(Checked()))(x), x.relu())


def test_keyword_calls_of_layers_become_positional() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(input=x)

    node = next(n for n in capture(Named()).graph.nodes if n.op == "call_module")
    assert [getattr(a, "name", None) for a in node.args] == ["x"]
    assert not node.kwargs


@pytest.mark.parametrize(
    "parametrize",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_parametrized_weights_are_baked_in(parametrize: Callable[[nn.Module], nn.Module]) -> None:
    layer = parametrize(nn.Linear(4, 4)).eval()
    layer(torch.randn(2, 4)).sum().backward()  # leaves results with a gradient behind, which deepcopy refuses
    captured = capture(nn.Sequential(layer))
    assert sorted(name for name, _ in captured.named_parameters()) == ["0.bias", "0.weight"]
    assert type(captured.get_submodule("0")) is nn.Linear
    x = torch.randn(3, 4)
    assert torch.allclose(captured(x), layer(x))
    layer.train()
    layer(x)  # the original still computes its own weight


def test_user_attributes_with_gradients_do_not_matter() -> None:
    ann = nn.Sequential(nn.Linear(2, 2))
    ann.cache = ann(torch.ones(1, 2))  # type: ignore[assignment]
    assert torch.equal(capture(ann)(torch.ones(1, 2)), ann.cache)


def spikingjelly_net(layer: Any) -> nn.Sequential:
    return nn.Sequential(
        layer.Conv2d(1, 2, 3), layer.BatchNorm2d(2), nn.ReLU(), layer.Dropout(0.5), layer.MaxPool2d(2), layer.Flatten(),
        layer.Linear(18, 3),
    )  # fmt: skip


def test_layers_of_spikingjelly_become_plain() -> None:
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    ann = spikingjelly_net(layer).eval()
    captured = capture(ann)
    kinds = [type(m) for m in captured.modules() if m is not captured]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Identity, nn.MaxPool2d, nn.Flatten, nn.Linear]
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(captured(x), ann(x))
    assert isinstance(ann[0], layer.Conv2d)


def test_layers_in_multi_step_mode_are_refused() -> None:
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    ann = spikingjelly_net(layer)
    functional.set_step_mode(ann, "m")
    with pytest.raises(UnsupportedError, match="set_step_mode") as raised:
        capture(ann)
    assert [problem.path for problem in raised.value.problems] == ["0", "1", "3", "4", "5", "6"]

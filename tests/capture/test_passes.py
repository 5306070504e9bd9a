"""What single passes promise beyond leaving the function as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import conversion_ext as cx
from conversion_ext.capture.passes import passes, run_passes
from conversion_ext.capture.passes.activations import RULES
from conversion_ext.capture.tracing import capture
from conversion_ext.errors import ConversionError, UnsupportedError
from conversion_ext.graph import info
from conversion_ext.graph.values import tensors_in
from tests.live import live_inputs
from tests.traps import Doubled, Net, trap


def activation_calls() -> Iterator[Any]:
    extra: dict[Any, tuple[Any, ...]] = {
        "clamp": (0.0, 2.0), "clip": (0.0,), "clamp_min": (0,), "softmax": (1,), "log_softmax": (1,),
        "threshold": (0.0, 0.0), "_threshold": (0.0, 0.0), "prelu": (torch.tensor([0.2], dtype=torch.double),),
    }  # fmt: skip
    for target in RULES:
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        args = extra.get(name, ())
        call = (lambda x, n=name, a=args: getattr(x, n)(*a)) if isinstance(target, str) else (
            lambda x, f=target, a=args: f(x, *a))  # fmt: skip
        yield pytest.param(call, id=name if isinstance(target, str) else f"{target.__module__}.{name}")  # type: ignore[union-attr]


@pytest.mark.parametrize("call", list(activation_calls()))
def test_every_functional_activation_becomes_a_module(call: Callable[[Tensor], Tensor]) -> None:
    ann = Net(lambda net, x: call(x))
    model = capture(ann)
    run_passes(model)
    x = torch.linspace(-8, 8, 30, dtype=torch.double).reshape(5, 6)
    assert torch.equal(model(x), call(x))
    assert [n.op for n in model.graph.nodes] == ["placeholder", "call_module", "output"]


@pytest.mark.parametrize(
    "ann", [nn.ReLU6(), nn.Hardtanh(0, 6), nn.ReLU6(inplace=True), Net(lambda n, x: x.clamp(0, 6))]
)
def test_clipped_relus_are_one_class(ann: nn.Module) -> None:
    model = capture(nn.Sequential(ann))
    run_passes(model)
    (module,) = [m for m in model.modules() if not list(m.children()) and m is not model]
    assert type(module) is nn.Hardtanh
    assert (module.min_val, module.max_val, module.inplace) == (0, 6, False)


def sites(ann: nn.Module, shape: tuple[int, ...]) -> list[str]:
    model = capture(ann)
    run_passes(model, torch.randn(2, *shape))
    return [info(n).key for n in model.graph.nodes if isinstance(_module(model, n), nn.ReLU | nn.Hardtanh)]


def _module(model: GraphModule, node: Any) -> nn.Module | None:
    return model.get_submodule(node.target) if node.op == "call_module" else None


@pytest.mark.parametrize(
    ("ann", "left"),
    [
        (nn.Sequential(nn.ReLU(), nn.ReLU()), ["0"]),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2), nn.ReLU()), ["0"]),
        (nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), ["1"]),
        (nn.Sequential(nn.ReLU(), nn.ReLU6()), ["1"]),
        (nn.Sequential(nn.ReLU6(), nn.ReLU()), ["0"]),
        (nn.Sequential(nn.ReLU6(), nn.Hardtanh(0, 4)), ["1"]),
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.ReLU6()), ["0", "2"]),
        (nn.Sequential(nn.Hardtanh(0, 4), nn.ReLU6()), ["0"]),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.ReLU6()), ["2"]),
        (nn.Sequential(nn.Hardtanh(-1, 1), nn.ReLU()), ["0", "1"]),
        (nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bicubic"), nn.ReLU()), ["0", "2"]),
        (Net(lambda n, x: F.relu(F.relu(x) + F.relu(-x))), ["relu", "relu#1"]),
        (Net(lambda n, x: F.relu(F.relu(x) - F.relu(-x))), ["relu", "relu#1", "relu#2"]),
        (Net(lambda n, x: F.relu(torch.cat([F.relu(x), x], 1))), ["relu", "relu#1"]),
        (Net(lambda n, x: F.relu(F.pad(F.relu(x), (1, 1), value=-1.0))), ["relu", "relu#1"]),
    ],
)
def test_only_redundant_activations_are_removed(ann: nn.Module, left: list[str]) -> None:
    assert sites(ann, (3, 8, 8)) == left


def test_relu_moves_before_the_max_pool() -> None:
    model = capture(nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.ReLU()))
    run_passes(model)
    assert [type(m) for n in model.graph.nodes if (m := _module(model, n))] == [
        nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.MaxPool2d]  # fmt: skip


def test_call_sites_share_parameters_until_folding_unties_them() -> None:
    ann, shape = trap("tied")
    ann.norm = nn.Identity()
    model = capture(ann)
    run_passes(model, live_inputs(ann, *shape))
    weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    assert len([m for m in model.modules() if isinstance(m, nn.Linear)]) == 3
    assert len(weights) == 1


def test_a_view_that_does_not_flatten_stays() -> None:
    ann = Net(lambda n, x: F.softmax(n.fc(x).view(-1, 2), 1).reshape(x.size(0), -1), fc=nn.Linear(3, 6))
    model = capture(ann)
    x = torch.randn(4, 3)
    run_passes(model, x)
    assert torch.equal(model(x), ann(x))


def test_a_leaf_with_a_forward_of_its_own_is_not_taken_for_its_base() -> None:
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), Doubled(), nn.MaxPool2d(2), Doubled())
    model = capture(ann, leaf=(Doubled,))
    x = torch.randn(4, 1, 8, 8)
    run_passes(model, x)
    assert torch.equal(model(x), ann(x))
    assert sum(isinstance(module, Doubled) for module in model.modules()) == 2


def test_layers_made_of_functions_know_their_sizes() -> None:
    ann = Net(lambda n, x: F.conv_transpose2d(x, n.up.weight, groups=2), up=nn.ConvTranspose2d(4, 6, 3, groups=2))
    model = capture(ann)
    run_passes(model)
    (made,) = [m for m in model.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert (made.in_channels, made.out_channels, made.kernel_size) == (4, 6, (3, 3))
    assert made.bias is None


@pytest.mark.parametrize("trained", [True, False])
def test_computed_weights_stay_trainable(trained: bool) -> None:
    ann = Net(lambda n, x: F.linear(x, n.fc.weight.tanh()), fc=nn.Linear(2, 2, bias=False).requires_grad_(trained))
    model = capture(ann)
    run_passes(model)
    (weight,) = model.parameters()
    expected = ann(torch.eye(2)).T
    assert weight.requires_grad == trained
    assert torch.equal(weight, expected)


def test_functional_layers_hold_the_same_parameters() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return F.linear(F.prelu(x, net.act.weight), net.head.weight)

    ann = Net(forward, head=nn.Linear(3, 2), act=nn.PReLU())
    model = capture(ann)
    before = {id(p) for p in model.parameters()}
    run_passes(model)
    modules = [m for m in model.modules() if isinstance(m, nn.Linear | nn.PReLU)]
    assert len(modules) == 2
    assert {id(m.weight) for m in modules} <= before


def test_skipped_modules_stay() -> None:
    ann = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Dropout()))
    model = capture(ann, skip=("1", "3"))
    run_passes(model, torch.randn(2, 3, 5, 5))
    kept = [n.target for n in model.graph.nodes if info(n).skip]
    assert kept == ["1", "3"]
    assert isinstance(model.get_submodule("1"), nn.BatchNorm2d)
    assert len(model.get_submodule("3")) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ann", "reason"),
    [
        (Net(lambda n, x: F.dropout(n.fc(x)), fc=nn.Linear(3, 3)), "random"),
        (Net(lambda n, x: F.linear(x, F.dropout(n.fc.weight)), fc=nn.Linear(3, 3)), "random"),
        (Net(lambda n, x: n.fc(x).zero_(), fc=nn.Linear(3, 3)), "in place"),
        (Net(lambda n, x: F.batch_norm(x[..., None].expand(-1, -1, 3), None, None, training=True)), "batch"),
    ],
)
def test_what_no_pass_can_rewrite_is_refused(ann: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason) as raised:
        run_passes(capture(ann), torch.randn(2, 3))
    (problem,) = raised.value.problems
    assert problem.line.startswith("test_passes.py:")
    assert problem.remedy


def test_stochastic_depth_that_stays_random_is_refused() -> None:
    ops = pytest.importorskip("torchvision").ops

    class Stuck(ops.StochasticDepth):  # type: ignore[name-defined]
        def train(self, mode: bool = True) -> Stuck:
            return super().train(True)

    with pytest.raises(UnsupportedError, match="random"):
        run_passes(capture(nn.Sequential(nn.ReLU(), Stuck(0.5, "row"))))


def test_a_view_changed_behind_its_back_is_refused() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x)
        F.relu_(y.flatten(1))
        return y

    with pytest.raises(UnsupportedError, match="view"):
        run_passes(capture(Net(forward, conv=nn.Conv2d(3, 3, 3))))


def test_a_pass_that_breaks_its_promise_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(passes.get("unshare")), "run", lambda self, model: None)
    relu = nn.ReLU()
    with pytest.raises(ConversionError, match="unshare"):
        run_passes(capture(nn.Sequential(relu, nn.Linear(2, 2), relu)))


def swapped(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = y.swapaxes(2, 3)
    y.relu_()
    return z + 1  # a view made before, which sees the change


def behind_a_view(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    y.movedim(1, -1).relu_()
    return y + 0


def overlapping(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    first, last = y[:, :3], y[:, 1:]
    first.relu_()
    return last + 0


def disjoint(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    y[:, :2].relu_()
    return y[:, 2:] + 0


def part_again(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    parts = y.tensor_split(2, 1)
    parts[0].relu_()
    return parts[1] + y.tensor_split(2, 1)[1]


def a_diagonal(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    y.diagonal(0, 2, 3).relu_()
    return y + 0


def both_from_one(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    first, turned = y[:, :3], y.transpose(2, 3)[:, 1:]
    y.relu_()
    return first + turned


def parts_of_rows(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    y.select(1, 2).mul_(-1.5)
    y.unbind(1)[1].tanh_()
    y.flatten(2)[..., ::3].sigmoid_()
    return y * 1


def beside_what_it_was(net: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = net.conv(x)
    z, kept = y + 0, y[:, :2] * 1
    z.chunk(2, 1)[-1].neg_()
    y.flatten(2)[:, 0].tanh_()
    return z, y, kept


ALIASES = (
    beside_what_it_was,
    swapped,
    behind_a_view,
    overlapping,
    disjoint,
    part_again,
    a_diagonal,
    both_from_one,
    parts_of_rows,
)


@pytest.mark.parametrize("function", ALIASES, ids=lambda f: f.__name__)
def test_who_shares_memory_is_a_fact_of_storage(function: Any) -> None:
    """With an example every view is followed, and for batches of any size; without one it is refused."""
    ann = Net(function, conv=nn.Conv2d(3, 4, 3)).double()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = ann(x.clone())
    model = capture(ann)
    run_passes(model, x)
    for rows in (slice(None), slice(1, 3)):
        found, wanted = tensors_in(model(x[rows].clone())), tensors_in(expected)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other[rows], rtol=1e-12, atol=1e-12)
    model = capture(ann)
    with pytest.raises(UnsupportedError, match="changes a tensor in place while"):
        run_passes(model, None)


def test_what_is_written_over_all_rows_at_once_is_refused() -> None:
    """The elements of a view without a batch are not the same for every number of samples."""

    def of_all_rows(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x).relu()
        y.view(-1).mul_(2)
        return y * 1

    (problem,) = cx.check(Net(of_all_rows, conv=nn.Conv2d(3, 4, 3)).eval(), torch.randn(4, 3, 6, 6))
    assert "changes a tensor in place while 'mul' still uses a view of it" in problem.reason


def test_an_input_that_is_changed_in_place_stays_the_users() -> None:
    ann = Net(lambda n, x: n.conv(x.sub_(0.4).div_(0.2)).relu(), conv=nn.Conv2d(3, 4, 3))
    x = torch.rand(4, 3, 6, 6)
    kept = x.clone()
    run_passes(capture(ann), x)
    assert torch.equal(x, kept)


def test_a_module_may_have_the_name_of_a_method():
    class Excited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.view = nn.Conv2d(2, 3, 1), nn.Linear(3, 2)

        def forward(self, x):
            x = torch.relu(self.squeeze(nn.functional.adaptive_avg_pool2d(x, 1)))
            return self.view(x.flatten(1))

    ann, x = Excited().eval(), torch.rand(4, 2, 5, 5)
    assert cx.check(ann, x) == []
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)
    torch.testing.assert_close(cx.simulate(snn, x, 256).output, ann(x).detach(), rtol=0.02, atol=0.02)

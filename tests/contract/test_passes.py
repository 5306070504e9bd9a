"""Laws 1 and 2: exact rewrites leave the function as it is, and the user's network untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from conversion_ext.capture.passes import passes, run_passes
from conversion_ext.capture.tracing import capture
from conversion_ext.errors import UnsupportedError
from conversion_ext.graph.shapes import propagate
from tests.live import live_inputs, make_live, tensors_of
from tests.traps import TRAPS, Net, trap

TOLERANCE = 1e-10
ZOO = {
    "resnet18": 32, "squeezenet1_1": 48, "densenet121": 32, "googlenet": 48, "inception_v3": 80, "mobilenet_v2": 32,
    "mobilenet_v3_small": 48, "efficientnet_b0": 48, "mnasnet0_5": 32, "shufflenet_v2_x0_5": 48, "regnet_y_400mf": 32,
}  # fmt: skip
LARGE = [
    "alexnet", "vgg11_bn", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "convnext_tiny", "efficientnet_v2_s",
    "mobilenet_v3_large", "regnet_x_400mf", "fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large",
]  # fmt: skip


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([tensor.flatten() for tensor in tensors_of(model(x.clone()))])


def assert_same(expected: Tensor, model: nn.Module, x: Tensor) -> None:
    error = (outputs(model, x) - expected).norm() / expected.norm()
    assert error <= TOLERANCE, f"the output changed by {error:.2g}"


def snapshot(model: GraphModule) -> tuple[str, list[Any]]:
    return str(model.graph), [(name, tensor.clone()) for name, tensor in model.state_dict().items()]


def assert_idempotent(model: GraphModule, run: Callable[[], None]) -> None:
    code, state = snapshot(model)
    run()
    again, state_again = snapshot(model)
    assert code == again
    assert [name for name, _ in state] == [name for name, _ in state_again]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(state, state_again, strict=True))


def assert_law(ann: nn.Module, shape: tuple[int, ...]) -> GraphModule:
    """Check law 2 on batches of another size and content than the example that the passes saw.

    They are inputs that the BatchNorm statistics come from: on others, gates make some networks so sensitive that
    rounding alone changes the output by 1e-10.
    """
    model = capture(ann)
    example = live_inputs(ann, *shape, samples=2, seed=5)
    run_passes(model, example)
    for x in live_inputs(ann, *shape).split([2, 6]):
        assert_same(outputs(ann, x), model, x)
    model.graph.lint()
    assert [broken for _, rewrite in passes.items() for broken in rewrite.ensures(model)] == []
    assert_idempotent(model, lambda: run_passes(model, example))
    return model


@pytest.mark.parametrize("name", TRAPS)
def test_function_is_preserved(name: str) -> None:
    _, _, gone, left = TRAPS[name]
    model = assert_law(*trap(name))
    called = [module for module in model.modules() if module is not model]
    assert not [module for module in called if gone and isinstance(module, gone)]
    for kind in left if isinstance(left, tuple) else (left,):
        assert any(isinstance(module, kind) for module in called), kind


@pytest.mark.parametrize("name", TRAPS)
def test_function_is_preserved_without_an_example(name: str) -> None:
    ann, shape = trap(name)
    model = capture(ann)
    run_passes(model)
    x = live_inputs(ann, *shape)
    assert_same(outputs(ann, x), model, x)
    assert_idempotent(model, lambda: run_passes(model))


def test_the_passes_are_found() -> None:
    assert len(passes.names()) >= 10


@pytest.mark.parametrize("name", TRAPS)
def test_every_pass_alone(name: str) -> None:
    ann, shape = trap(name)
    model = capture(ann)
    x = live_inputs(ann, *shape)
    for rewrite_name, rewrite in passes.items():
        propagate(model, (x,))
        expected = outputs(model, x)
        rewrite.run(model)
        assert_same(expected, model, x)
        assert rewrite.ensures(model) == [], rewrite_name
        model.graph.lint()
        assert_idempotent(model, lambda r=rewrite: r.run(model))


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    assert_law(*zoo(name, ZOO[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_zoo(name: str) -> None:
    assert_law(*zoo(name, 64))


def zoo(name: str, size: int) -> tuple[nn.Module, tuple[int, ...]]:
    models = pytest.importorskip("torchvision").models
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": name == "inception_v3", "init_weights": False}
    if name in LARGE[-3:]:
        options |= {"weights_backbone": None}
    torch.manual_seed(1)
    return make_live(models.get_model(name, **options).double(), 3, size, size), (3, size, size)


def everything(model: nn.Module) -> list[Any]:
    """What law 1 protects: tensors with address, version and flags; modules with class, mode, hooks and attributes."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    state: list[Any] = [(n, id(t), t._version, t.requires_grad, t.device, t.dtype, t.clone()) for n, t in tensors]
    for name, module in model.named_modules():
        names = [sorted(vars(module)), sorted(set(vars(type(module))) - {"__slotnames__"})]  # a cache of copy itself
        state.append((name, type(module), module.training, *names))
        state += [(k, list(v.items())) for k, v in vars(module).items() if "_hooks" in k and isinstance(v, dict)]
    return state


def assert_untouched(before: list[Any], after: list[Any]) -> None:
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def hooked(ann: nn.Module) -> nn.Module:
    def forbidden(*args: Any) -> None:
        raise AssertionError("a hook of the user was executed")

    for module in ann.modules():
        module.register_forward_hook(forbidden)
        module.register_full_backward_pre_hook(forbidden)
        module.register_state_dict_post_hook(forbidden)
    return ann.train()


@pytest.mark.parametrize("name", TRAPS)
def test_the_network_of_the_user_is_untouched(name: str) -> None:
    ann, shape = trap(name)
    next(ann.parameters()).requires_grad_(False)
    hooked(ann)
    before = everything(ann)
    model = capture(ann)
    assert_untouched(before, everything(ann))
    assert not next(iter(model.parameters())).requires_grad
    run_passes(model, live_inputs(ann, *shape))
    assert_untouched(before, everything(ann))


def test_the_network_is_untouched_after_a_failure() -> None:
    inner = Net(lambda n, x: x if x.sum() > 0 else -x, conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1)))
    ann = hooked(nn.Sequential(nn.ReLU(inplace=True), inner))
    before = everything(ann)
    with pytest.raises(UnsupportedError):
        capture(ann)
    assert_untouched(before, everything(ann))
    assert copy.deepcopy(ann) is not None

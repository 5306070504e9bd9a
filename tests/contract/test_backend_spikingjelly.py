"""What SpikingJelly's own functions do with our neurons, roots and stateful modules (2.0 and 0.0.0.0.14)."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from conversion_ext.backends import get_backend
from conversion_ext.backends.spikingjelly import adopt, choose_backend
from conversion_ext.errors import StateError
from conversion_ext.neurons import IF, Neuron, SignedEncoder, SignedIF
from conversion_ext.types import Reset

pytest.importorskip("spikingjelly")
from spikingjelly.activation_based import base, functional, layer, neuron, surrogate

SPECS = (IF(), IF(reset=Reset.ZERO), SignedIF(), SignedEncoder())
backend = get_backend("spikingjelly")


class Counter(nn.Module):
    """A stateful module of ours: the running sum of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.step_mode = "s"
        self.total: Tensor | float = 0.0

    def reset(self) -> None:
        self.total = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.total = self.total + (x if self.step_mode == "s" else x.sum(0))
        return self.total


class Strict(Counter):
    """The same with a step mode of its own that refuses other values."""

    @property
    def step_mode(self) -> str:
        return self.mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        if value not in ("s", "m"):
            raise ValueError(value)
        self.mode = value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Strict:
        return super()._apply(fn, recurse)  # torch's signature, which MemoryModule does not have


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What SpikingJelly warned of: 2.0 through loguru (muted unless enabled), 0.0.0.0.14 through logging."""
    stream = io.StringIO()
    try:
        from loguru import logger
    except ImportError:
        yield lambda: caplog.text
        return
    sink = logger.add(stream, level="WARNING")
    logger.enable("spikingjelly")
    yield lambda: stream.getvalue() + caplog.text
    logger.disable("spikingjelly")
    logger.remove(sink)


def use_functional(net: nn.Module) -> None:
    functional.set_step_mode(net, "m")
    functional.reset_net(net)
    functional.detach_net(net)
    functional.set_step_mode(net, "s")


@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_if_is_the_stock_node(v_reset: float | None) -> None:
    node = backend.neuron(IF(reset=Reset.SUBTRACT if v_reset is None else Reset.ZERO))
    assert type(node) is neuron.IFNode
    assert node.v_threshold == 1.0
    assert node.v_reset == v_reset


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_functional_drives_every_neuron(spec: Neuron, complaints: Callable[[], str]) -> None:
    node, x_seq = backend.neuron(spec), torch.randn(9, 4, 6, requires_grad=True)
    net = nn.Sequential(layer.Linear(6, 6), node).train()
    functional.set_step_mode(net, "m")
    multi = net(x_seq)
    functional.detach_net(net)
    assert not node.v.requires_grad
    functional.reset_net(net)
    assert backend.membrane_potential(node) is None
    functional.set_step_mode(net, "s")
    single = torch.stack([net(x) for x in x_seq])
    assert torch.equal(single, multi)
    assert not complaints()
    with pytest.raises(ValueError, match="step_mode"):
        functional.set_step_mode(net, "x")


@pytest.mark.parametrize("spec", SPECS[2:], ids=repr)
def test_our_own_nodes_refuse_another_batch_and_copy_without_state(spec: Neuron) -> None:
    node = backend.neuron(spec).train()
    node(torch.randn(4, 3, requires_grad=True))
    with pytest.raises(StateError, match=r"SignedIF|SignedEncoder.*cx\.reset"):
        node(torch.randn(5, 3))
    assert backend.membrane_potential(copy.deepcopy(node)) is None
    assert node.v.requires_grad


@pytest.mark.parametrize("kind", [Counter, Strict])
def test_adopted_modules_are_reset_and_switched_without_complaint(
    kind: type[Counter], complaints: Callable[[], str]
) -> None:
    use_functional(nn.Sequential(kind()))
    assert complaints().count("Trying to") == 3  # what adoption is for
    before = complaints()
    module = kind()
    net = nn.Sequential(adopt(module))
    assert net[0] is module
    assert isinstance(module, kind)
    assert isinstance(module, base.MemoryModule)
    functional.set_step_mode(net, "m")
    assert torch.equal(net(torch.ones(3, 2)), torch.full((2,), 3.0))
    functional.set_step_mode(net, "s")
    assert torch.equal(net(torch.ones(2)), torch.full((2,), 4.0))
    functional.reset_net(net)
    assert module.total == 0.0
    functional.detach_net(net)
    assert complaints() == before
    with pytest.raises(ValueError, match="x"):
        functional.set_step_mode(net, "x")
    assert type(copy.deepcopy(net.double())[0]) is type(module)
    assert "step_mode" in repr(module)


def test_adoption_leaves_other_modules_alone() -> None:
    for module in (nn.Linear(2, 2), neuron.IFNode(), backend.neuron(SignedIF())):
        before = type(module)
        assert type(adopt(module)) is before


def test_the_root_makes_citizens_of_all_it_is_built_from(complaints: Callable[[], str]) -> None:
    body = nn.Sequential(nn.Conv2d(1, 2, 3), backend.neuron(IF()), nn.Sequential(Counter()), backend.neuron(SignedIF()))
    snn = backend.root()(body, None)
    assert isinstance(snn, base.StepModule)
    use_functional(snn)
    functional.set_step_mode(snn, "m")
    modes = [m.step_mode for m in snn.modules() if hasattr(m, "step_mode")]
    assert modes == ["m"] * 4
    assert not complaints()
    with pytest.raises(ValueError, match="step_mode"):
        functional.set_step_mode(snn, "x")


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("cupy", [False, True])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_cupy_kernels_need_cuda_cupy_and_sequences(cuda: bool, cupy: bool, step_mode: str) -> None:
    assert choose_backend(cuda, cupy, step_mode) == (
        "cupy" if (cuda, cupy, step_mode) == (True, True, "m") else "torch"
    )


def test_a_surrogate_of_the_user_is_obeyed() -> None:
    grads: list[Tensor] = []
    for function in (surrogate.ATan(alpha=2.0), surrogate.ATan(alpha=8.0)):
        node = backend.neuron(SignedEncoder()).train()
        node.surrogate_function = function
        x = torch.full((1, 3), 0.3, requires_grad=True)
        node(x).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert not torch.equal(*grads)


if hasattr(neuron, "STBIFNode"):

    @pytest.mark.parametrize("scale", [8, 10])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_signed_if_spikes_as_stbif_where_that_runs(scale: int, dtype: torch.dtype) -> None:
        x_seq = torch.randint(-12, 14, (60, 200)).to(dtype) / scale
        stock = neuron.STBIFNode(1.0, level=2, pos_max=float("inf"), neg_min=0.0, step_mode="m")
        assert torch.equal(backend.run(backend.neuron(SignedIF()), x_seq, 0.5), stock(x_seq))
        with pytest.raises(RuntimeError, match="autograd"):  # why it is not used
            stock(x_seq.requires_grad_())

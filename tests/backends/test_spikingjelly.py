"""What SpikingJelly's own functions do with our neurons, roots and stateful modules (2.0 and 0.0.0.0.14)."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from conversion_ext.backends import get_backend
from conversion_ext.backends.spikingjelly import call, choose_kernel, make_memory_module
from conversion_ext.errors import StateError
from conversion_ext.network.spiking_network import SpikingNetwork
from conversion_ext.neurons import IF, LIF, PLIF, Neuron, SignedEncoder, SignedIF
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
    net = nn.Sequential(make_memory_module(module))
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
        assert type(make_memory_module(module)) is before


def test_the_root_subclasses_all_it_is_built_from(complaints: Callable[[], str]) -> None:
    body = nn.Sequential(nn.Conv2d(1, 2, 3), backend.neuron(IF()), nn.Sequential(Counter()), backend.neuron(SignedIF()))
    snn = backend.root(SpikingNetwork)(body, None)
    assert isinstance(snn, base.StepModule)
    use_functional(snn)
    functional.set_step_mode(snn, "m")
    modes = [m.step_mode for m in snn.modules() if hasattr(m, "step_mode")]
    assert modes == ["m"] * 4
    assert not complaints()
    with pytest.raises(ValueError, match="step_mode"):
        functional.set_step_mode(snn, "x")


KERNELS = """
    nvidia old   cupy  stock step_mode steps dtype   -> kernel
    no     no    no    yes   s         8     float32 -> step
    no     no    no    yes   m         8     float32 -> sequence
    no     yes   yes   yes   s         8     float32 -> step
    no     yes   yes   yes   m         8     float32 -> sequence
    yes    no    no    yes   s         8     float32 -> sequence
    yes    no    no    yes   m         1     float32 -> sequence
    yes    no    no    yes   m         8     float64 -> sequence
    yes    no    no    yes   s         1     float32 -> step
    yes    no    yes   no    s         8     float32 -> step
    yes    no    yes   no    m         8     float32 -> sequence
    yes    yes   yes   yes   s         8     float32 -> cupy
    yes    yes   yes   yes   m         8     float32 -> cupy
    yes    yes   yes   yes   m         1     float32 -> cupy
    yes    yes   yes   yes   s         1     float32 -> step
    yes    yes   no    yes   s         8     float32 -> step
    yes    yes   no    yes   m         8     float32 -> sequence
    yes    yes   yes   no    m         8     float32 -> sequence
    yes    yes   yes   yes   s         8     float64 -> step
    yes    yes   yes   yes   m         8     float64 -> sequence
"""


@pytest.mark.parametrize("row", [" ".join(row.split()) for row in KERNELS.strip().splitlines()[1:]])
def test_kernels_are_chosen_by_what_there_is(row: str) -> None:
    *flags, step_mode, steps, precision, _, expected = row.split()
    nvidia, old, cupy, stock = (flag == "yes" for flag in flags)
    number, dtype = int(steps), getattr(torch, precision)
    assert expected == choose_kernel(
        step_mode=step_mode, steps=number, nvidia=nvidia, stock=stock, dtype=dtype, old=old, cupy=cupy
    )


@pytest.mark.parametrize("spec", [IF(), LIF(tau=3.0), PLIF(beta=0.5), SignedIF()], ids=repr)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_every_way_to_take_up_a_sequence_gives_the_same(spec: Neuron, step_mode: str) -> None:
    x_seq, found = torch.randn(7, 3, 5), []
    for kernel in ("step", "sequence"):
        node = backend.neuron(spec)
        node.step_mode = "s" if kernel == "step" else step_mode
        found.append((call(node, x_seq, kernel).detach(), node.v.detach()))
        assert node.step_mode == ("s" if kernel == "step" else step_mode)
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


class OldNode(neuron.IFNode):
    """``IFNode`` as 0.0.0.0.14 has it where CuPy is installed: what would run on CUDA is put down instead."""

    called: tuple[object, ...] = ()
    kernels = "torch"

    @property
    def backend(self) -> str:
        return self.kernels

    @backend.setter
    def backend(self, value: str) -> None:
        if value not in (("torch", "cupy") if self.step_mode == "m" else ("torch",)):
            raise NotImplementedError(value)
        self.kernels = value

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        self.called = (self.backend, self.training, len(x_seq))
        return x_seq


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_cupy_is_asked_as_the_old_version_wants_it_and_the_node_left_as_it_was(step_mode: str) -> None:
    node = OldNode().eval()
    node.step_mode = step_mode
    call(node, torch.zeros(4, 2), "cupy")
    assert node.called == ("cupy", True, 4)  # it reads its backend while training alone, and for sequences
    assert (node.step_mode, node.backend, node.training) == (step_mode, "torch", False)


def test_the_installed_version_has_what_is_chosen_from() -> None:
    stock = [backend.neuron(spec) for spec in (IF(), LIF(), PLIF(beta=0.5))]
    if not hasattr(neuron.IFNode(), "backend"):
        chosen = [functional.neuron_implementation(kind, torch.device("cpu")) for kind in ("if", "lif", "plif")]
        assert [found["implementation"] for found in chosen] == ["torch-reference"] * 3
        return
    assert hasattr(base, "cupy")
    assert all(hasattr(node.surrogate_function, "cuda_codes") for node in stock)
    functional.set_step_mode(nn.ModuleList(stock), "m")
    assert all("cupy" in getattr(node, "supported_backends") for node in stock)  # noqa: B009
    node = stock[0].eval()
    setattr(node, "_backend", "cupy")  # noqa: B010 its setter asks for the library
    node(torch.zeros(2, 3))  # no kernel is called, or it would complain of a CPU
    functional.reset_net(node)
    with pytest.raises((RuntimeError, AssertionError, AttributeError, NameError)):
        node.train()(torch.zeros(2, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [IF(), IF(reset=Reset.ZERO), PLIF(beta=0.5), SignedIF()], ids=repr)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_kernels_on_a_gpu_spike_as_the_reference(spec: Neuron, step_mode: str) -> None:
    x_seq = torch.randint(-4, 12, (40, 300)) / 8  # ties with the threshold occur
    node, reference = backend.neuron(spec).cuda(), get_backend("reference")
    node.step_mode = step_mode
    found = torch.cat([backend.run(node, part.cuda(), 0.5) for part in x_seq.split(16)]).detach().cpu()
    assert torch.equal(found, reference.run(reference.neuron(spec), x_seq, 0.5).detach())


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

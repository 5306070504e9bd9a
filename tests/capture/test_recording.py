"""A network's Python runs on the shapes of an example: what it computes is captured, or refused in one sentence."""

from __future__ import annotations

import random
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.capture.tracing import capture

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # no value lies where a function jumps


class Net(nn.Module):
    """``after(y)`` behind a convolution of ``before(x)``."""

    def __init__(self, after: Callable[[Any], Any], before: Callable[[Any], Any] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.AvgPool2d(2)
        self.features = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.after, self.before = after, before

    def forward(self, x: Tensor) -> Any:
        return self.after(F.relu(self.conv(self.before(x))))


def assert_captured(ann: nn.Module, x: Any = X, other: Any = None) -> Any:
    """The graph gives what the network gives, for other values and another batch size too."""
    ann.eval()
    captured = capture(ann, (x,))
    for value in (x, torch.rand(7, *x.shape[1:]) if other is None else other):
        with torch.no_grad():
            torch.testing.assert_close(captured(value.clone()), ann(value.clone()), rtol=0, atol=1e-6)
    return captured


SHAPES = {
    "branch on dim()": lambda y: y if y.dim() == 4 else y[None],
    "branch on len(shape)": lambda y: y[None] if len(y.shape) != 4 else y * 2,
    "loop over a size": lambda y: sum(y[:, i] for i in range(y.size(1))),
    "batch size by len()": lambda y: (
        y.reshape(len(y), -1) + torch.zeros(1, 1).expand(len(y), 144) + torch.ones(len(y), 1)
    ),
    "is_cuda": lambda y: y.half() if y.is_cuda else y,
    "dtype": lambda y: y * 2 if y.dtype == torch.float32 else y,
    "isinstance": lambda y: y + 1 if isinstance(y, Tensor) else y,
    "is_tensor": lambda y: y + 1 if torch.is_tensor(y) else y,
    "casts": lambda y: y.float().to(y.device).to(torch.float32).cpu().contiguous().type_as(y),
    "global pool": lambda y: F.max_pool2d(y, y.size(2)).view(y.size(0), -1),
    "view as itself": lambda y: y.flatten(1).view(y.flatten(1).size()),
    "batch size in arithmetic": lambda y: y.reshape(y.size(0) * 2, -1).reshape(-1, y.size(2) * 8),
    "zeros of the batch": lambda y: torch.cat([y, torch.zeros(y.size(0), 2, 6, 6)], 1),
    "zeros like": lambda y: y + torch.zeros_like(y) + torch.ones_like(y[:, :1]),
    "made in forward": lambda y: nn.ReLU()(y - 0.5),
    "backwards": lambda y: torch.cat(y.split(1, 1)[::-1], 1),
    "constant of a size": lambda y: y + torch.arange(y.size(3)),
    "named results": lambda y: y.max(1).values,
    "reverse operators": lambda y: 1 - (2 / (1 + y)) ** 2,
    "unary plus": lambda y: +y,
}


def assigned(y: Tensor) -> Tensor:
    out = torch.zeros(y.size(0), 6, 6, 6)
    out[:, 1:5] = y
    return out


SHAPES["assignment"] = assigned


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_followed(name: str) -> None:
    assert_captured(Net(SHAPES[name]))


def test_parts_of_a_container() -> None:
    class Sliced(Net):
        def forward(self, x: Tensor) -> Any:
            return self.features[:2](super().forward(x))

    assert_captured(Sliced(lambda y: y))


def test_no_op_casts_vanish() -> None:
    captured = assert_captured(Net(lambda y: y, lambda x: x.float().to(torch.float32).cpu().contiguous()))
    assert [node.op for node in captured.graph.nodes] == ["placeholder", "call_module", "call_function", "output"]


def in_place(m: nn.Module, args: Any, out: Tensor) -> None:
    out.mul_(3)


@pytest.mark.parametrize(
    ("hook", "register"),
    [
        (lambda m, args: ((args[0] - 0.5) / 0.25,), "register_forward_pre_hook"),
        (lambda m, args, out: out * 2, "register_forward_hook"),
        (in_place, "register_forward_hook"),
    ],
    ids=["input", "output", "in place"],
)
@pytest.mark.parametrize("where", ["", "conv"])
def test_hooks_that_change_values_are_traced(hook: Any, register: str, where: str) -> None:
    ann = Net(lambda y: y.flatten(1))
    getattr(ann.get_submodule(where), register)(hook)
    captured = assert_captured(ann)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in captured.modules())


def test_hooks_that_only_look_are_left_out_and_see_no_shadows() -> None:
    ann, seen = Net(lambda y: y), list[Tensor]()
    ann.conv.register_forward_hook(lambda m, args, out: seen.append(out))
    assert_captured(ann)
    assert all(value.device == X.device for value in seen)


def test_forward_replaced_on_the_instance() -> None:
    ann = Net(lambda y: y)
    ann.forward = types.MethodType(lambda self, x: F.relu(self.conv(x)) + 1, ann)
    assert_captured(ann)
    ann = Net(lambda y: y)
    ann.conv.forward = types.MethodType(lambda self, x: type(self).forward(self, x) * 2, ann.conv)
    assert_captured(ann)


def test_call_overridden() -> None:
    class Called(Net):
        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x) * 2

    assert_captured(Called(lambda y: y))


def test_a_layer_attribute_set_in_forward_is_refused_with_the_layer() -> None:
    def growing(self: Any, x: Tensor) -> Tensor:
        self.conv.padding = (0, 0)
        y = self.conv(x)
        self.conv.padding = (1, 1)
        return self.conv(x)[..., 1:-1, 1:-1] - y * 0.5

    ann = Net(lambda y: y)
    ann.forward = types.MethodType(growing, ann)
    with pytest.raises(cx.UnsupportedError, match=r"conv.*first") as raised:
        capture(ann.eval(), (X,))
    assert raised.value.problems[0].path == "conv"


def test_randomness_in_python_is_refused() -> None:
    ann = Net(lambda y: y if random.random() < 2 else -y)
    state = random.getstate()
    with pytest.raises(cx.UnsupportedError, match="random"):
        capture(ann.eval(), (X,))
    assert random.getstate() == state


def test_constant_noise_is_refused() -> None:
    (problem,) = cx.check(Net(lambda y: (y + torch.randn(6)).flatten(1)).eval(), X)
    assert "random" in problem.reason


VALUES = {
    "branch": lambda y: y if y.sum() > 0 else -y,
    "item": lambda y: y * y.max().item(),
    "numpy": lambda y: torch.from_numpy(y.detach().numpy()),
    "samples": lambda y: torch.stack([row for row in y]),
    "batch decides": lambda y: y if y.size(0) == 4 else -y,
    "batch written down": lambda y: y.view(4, -1),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_depends_on_values_is_one_sentence(name: str) -> None:
    (problem,) = cx.check(Net(VALUES[name]).eval(), X)
    assert "\n" not in str(problem)
    assert "Proxy" not in str(problem)
    assert problem.line.startswith("test_recording.py:")
    with pytest.raises(cx.UnsupportedError) as raised:
        cx.convert(Net(VALUES[name]).eval(), X, backend="reference", progress=False)
    assert raised.value.problems == (problem,)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["parallel", "compiled"])
def test_wrappers_are_taken_off(wrap: Any) -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    for ann in (wrap(inner), nn.Sequential(wrap(inner))):
        captured = capture(ann, (X,))
        assert torch.equal(captured(X), inner(X))


def test_an_exported_network_converts() -> None:
    inner = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    ).eval()
    exported = torch.export.export(inner, (X,))
    for ann in (exported, exported.module()):
        assert cx.check(ann, X) == []
        snn = cx.convert(ann, X, backend="reference", progress=False)
        assert len(snn.conversion.thresholds) == 1


def test_nested_inputs() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, batch: dict[str, Any], *more: Tensor) -> Tensor:
            left, (right,) = batch["left"], batch["right"]
            return F.relu(self.a(left) + self.b(right)) + sum(more)

    ann = Nested().eval()
    left, right, third = torch.rand(5, 3), torch.rand(5, 2), torch.rand(5, 4)
    captured = capture(ann, ({"left": left, "right": [right]}, third))
    expected = ann({"left": left, "right": [right]}, third)
    assert torch.equal(captured(left, right, third), expected)


@pytest.mark.parametrize("name", ["graph", "code", "meta", "steps", "training_"])
def test_children_with_names_of_ours(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(6, 8))

        def forward(self, steps: Tensor) -> Tensor:
            return F.relu(self.get_submodule(name)(steps))

    x = torch.rand(5, 6)
    ann = Named().eval()
    snn = cx.convert(ann, x, backend="reference", progress=False)
    out = cx.simulate(snn, x, 512, at=(512,)).output
    torch.testing.assert_close(out, ann(x), rtol=0, atol=0.02)


def test_the_users_input_is_not_spoilt() -> None:
    ann, x = Net(lambda y: y.flatten(1), lambda x: x.sub_(0.4).div_(0.2)).eval(), X.clone()
    snn = cx.convert(ann, x, backend="reference", progress=False)
    assert torch.equal(x, X)
    plain = cx.convert(
        Net(lambda y: y.flatten(1), lambda x: (x - 0.4) / 0.2).eval(), X, backend="reference", progress=False
    )
    for a, b in zip(snn.conversion.thresholds.values(), plain.conversion.thresholds.values(), strict=True):
        assert torch.equal(a, b)


def test_attributes_of_the_user_named_hooks_are_kept() -> None:
    class Hooked(Net):
        def __init__(self) -> None:
            super().__init__(lambda y: y)
            self.my_hooks = {"scale": 3.0}

        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * self.my_hooks["scale"]

    assert_captured(Hooked())


def test_two_threads_convert_at_once() -> None:
    errors: list[Exception] = []

    def work() -> None:
        for _ in range(5):
            try:
                ann = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
                cx.convert(ann, torch.ones(8, 4), backend="reference", progress=False)
                cx.check(ann)
                ann(torch.ones(1, 4))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_einops() -> None:
    einops = pytest.importorskip("einops")
    layers = pytest.importorskip("einops.layers.torch")
    ann = Net(lambda y: einops.rearrange(y, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2))
    assert_captured(ann)
    assert_captured(Net(lambda y: einops.reduce(y, "b c h w -> b c", "mean")))
    assert_captured(nn.Sequential(layers.Rearrange("b c h w -> b (c h w)"), nn.Linear(192, 3)))


FUNCTIONS = {
    "torch.max over a dimension": lambda y: torch.max(y, 2)[0],
    "max over channels": lambda y: y.max(1, keepdim=True).values * 2,
    "amax over space": lambda y: y.amax((2, 3)),
    "amax, kept": lambda y: y.amax((-1, -2), keepdim=True),
    "amin": lambda y: (-y).amin((1, 3)),
    "max of two": lambda y: torch.max(y, 0.5 - y),
    "expand_as": lambda y: y * y.mean((2, 3), keepdim=True).expand_as(y),
    "tile": lambda y: torch.tile(y, (2, 1, 1)),
    "index_select": lambda y: torch.index_select(y, 1, torch.tensor([1, 3])),
    "select": lambda y: y.select(-1, 2),
    "addmm": lambda y: torch.addmm(y.new_ones(3), y.flatten(1), y.new_ones(144, 3), beta=2, alpha=0.5),
    "where": lambda y: torch.where(y > 0.1, y, torch.zeros_like(y)),
    "where at zero": lambda y: torch.where((z := y - 0.2) >= 0, z, 0.0),
    "threshold": lambda y: F.threshold(y, 0.1, 0.0),
    "norm": lambda y: y / y.norm(dim=1, keepdim=True).clamp(min=0.1),
    "cosine similarity": lambda y: F.cosine_similarity(y + 0.1, y.flip(1) + 0.1, 1),
    "pairwise distance": lambda y: F.pairwise_distance(y.flatten(1), y.flatten(1).flip(1)),
    "glu": lambda y: F.glu(y, 1),
    "clamp_min": lambda y: (y - 0.2).clamp_min(0),
    "clamp_max": lambda y: torch.clamp_max(y, 0.3),
    "clamps in place": lambda y: (y - 0.2).clamp_min_(0).clamp_max_(max=0.3),
    "instance_norm": lambda y: F.instance_norm(y, eps=0.1),
    "instance_norm by statistics": lambda y: F.instance_norm(
        y, torch.ones(4).to(y), torch.ones(4).to(y), use_input_stats=False
    ),
    "sums of pools": lambda y: nn.LPPool2d(1, 2)(y) + 0.0,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_convert(name: str) -> None:
    """The captured graph is right for any batch, and the spiking network tends to the network."""
    ann = Net(FUNCTIONS[name]).double().eval()
    x = X.double()
    assert_captured(ann, x, torch.rand(7, 3, 8, 8).double())
    recipe = cx.Recipe(normalizer=cx.Maximum())
    for fold in (True, False):
        snn = cx.convert(ann, x, recipe=recipe, fold=fold, backend="reference", progress=False)
        expected = ann(x).detach()
        few, many = (cx.simulate(snn, x, T, at=(T,)).output for T in (64, 1024))
        error = (many - expected).norm() / expected.norm()
        assert error <= max(0.3 * (few - expected).norm() / expected.norm(), 2e-3)
        assert error < 0.03


def test_indices_before_an_embedding() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc, self.head = nn.Embedding(10, 6), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, words: Tensor) -> Tensor:
            return self.head(F.relu(self.fc(self.table(words))).mean(1))

    torch.manual_seed(0)
    ann, words = Words().eval(), torch.randint(0, 10, (20, 7))
    snn = cx.convert(ann, words, recipe=cx.Recipe(normalizer=cx.Maximum()), backend="reference", progress=False)
    out = cx.simulate(snn, words, 1024, at=(1024,)).output
    assert (out - ann(words)).norm() < 3e-3 * ann(words).norm()
    with pytest.raises(cx.ConversionError, match="int64"):
        cx.convert(nn.Sequential(nn.Linear(7, 2), nn.ReLU()), words, backend="reference", progress=False)


OUTPUTS: dict[str, tuple[Any, bool]] = {
    "none": (lambda y: (y, None), True),
    "number": (lambda y: {"out": y, "stride": 4}, True),
    "text": (lambda y: [y, "logits"], True),
    "same twice": (lambda y: (y, y), True),
    "batch size": (lambda y: (y, y.size(0)), False),
    "constant": (lambda y: (y, torch.ones(3)), False),
    "nothing": (lambda y: None, False),
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("backend", cx.backends.available())
def test_outputs(name: str, backend: str) -> None:
    function, converts = OUTPUTS[name]
    ann = Net(lambda y: function(y.flatten(1))).eval()
    assert (cx.check(ann, X) == []) == converts
    if converts:
        out = cx.simulate(cx.convert(ann, X, backend=backend, progress=False), X, 4).output
        assert type(out) is type(ann(X))
    else:
        with pytest.raises(cx.UnsupportedError, match="Return"):
            cx.convert(ann, X, backend=backend, progress=False)


def test_arrays_and_nested_batches_are_data() -> None:
    ann = Net(lambda y: y.flatten(1)).eval()
    expected = cx.convert(ann, X, backend="reference", progress=False)
    for data in (X.numpy(), [X.numpy()], [[X]], [{"image": X.numpy()}]):
        snn = cx.convert(ann, data, backend="reference", progress=False)
        assert torch.equal(snn.conversion.thresholds["relu"], expected.conversion.thresholds["relu"])
    assert torch.equal(cx.simulate(snn, X.numpy(), 3).output, cx.simulate(expected, X, 3).output)


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_modes_of_torch_change_nothing(mode: Any) -> None:
    ann = Net(lambda y: y.flatten(1)).eval()
    expected = cx.convert(ann, X, backend="reference", progress=False)
    with mode():
        snn = cx.convert(ann, X.clone(), backend="reference", progress=False)
        assert cx.check(ann, X) == []
    assert torch.equal(snn.conversion.thresholds["relu"], expected.conversion.thresholds["relu"])
    assert not any(value.is_inference() for value in (*snn.parameters(), *snn.buffers()))
    snn(X).sum().backward()
    assert all(p.grad is not None for p in snn.parameters())


def test_nothing_spikes_and_it_is_said() -> None:
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ELU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    with pytest.warns(UserWarning, match=r"no spiking neuron.*relay=True") as seen:
        snn = cx.convert(ann, X, backend="reference", progress=False)
    assert seen[0].filename == __file__
    assert str(snn.conversion.table()).endswith("No neuron of this network spikes.")
    assert any("no spiking neuron" in note for note in snn.conversion.notes)
    with pytest.warns(UserWarning, match="no spiking neuron"):
        assert cx.check(ann, X) == []
    relayed = cx.convert(ann, X, relay=True, backend="reference", progress=False)  # the remedy holds
    assert cx.simulate(relayed, X, 16).spikes_per_sample.sum() > 0


def test_counts_of_outputs_that_are_never_positive_are_refused() -> None:
    ann = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3), nn.LogSoftmax(1)).eval()
    recipe = cx.Recipe(readout=cx.readouts.SpikeCount())
    with pytest.raises(cx.UnsupportedError, match="never is positive"):
        cx.convert(ann, X, recipe=recipe, backend="reference", progress=False)


def test_a_batch_of_another_size_is_one_sentence() -> None:
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    with pytest.raises(cx.CalibrationError, match=r"batch 1, of shape \[4, 3, 9, 9\]"):
        cx.convert(ann, [X, torch.rand(4, 3, 9, 9)], backend="reference", progress=False)


def test_a_pass_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="ensures"):
        cx.register_pass("x", 3)


def test_one_fault_is_one_complaint() -> None:
    wrong = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(100, 2)).eval()
    (problem,) = cx.check(wrong, X)
    assert problem.path == "3"
    assert "[4, 3, 8, 8]" in problem.reason
    (problem,) = cx.check(nn.Sequential(nn.Conv2d(5, 4, 3), nn.ReLU()).eval(), X)
    assert "expected input[4, 3, 8, 8] to have 5 channels" in problem.reason


class Floor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class IF(nn.Module):
    """The activation of public repositories of QCFS: while it is trained, T is 0."""

    def __init__(self, levels: int = 8, threshold: float = 2.0) -> None:
        super().__init__()
        self.act, self.T, self.L = Floor.apply, 0, levels
        self.thresh = nn.Parameter(torch.tensor([threshold]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(x / self.thresh, 0, 1)
        return self.act(x * self.L + 0.5) / self.L * self.thresh


@pytest.mark.parametrize(("levels", "threshold"), [(4, 0.7), (8, 2.0), (16, 1.3)])
def test_networks_trained_with_qcfs_elsewhere_are_recognized(levels: int, threshold: float) -> None:
    """The spiking network gives the trained one exactly after as many steps as levels."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), IF(levels, threshold), nn.Flatten(), nn.Linear(144, 4)).double().eval()
    snn = cx.convert(ann, X.double(), recipe="bu2022", T=levels, backend="reference", progress=False)
    assert snn.conversion.thresholds["1"].item() == pytest.approx(threshold)
    out = cx.simulate(snn, X.double(), levels, at=(levels,)).output
    torch.testing.assert_close(out, ann(X.double()), rtol=0, atol=1e-9)


def test_what_only_resembles_qcfs_is_not_taken_for_it() -> None:
    class Shifted(IF):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - 0.1)

    ann = nn.Sequential(nn.Conv2d(3, 4, 3), Shifted(), nn.Flatten(), nn.Linear(144, 4)).eval()
    assert [problem.path for problem in cx.check(ann, X)] != []


def test_views_of_what_was_changed_in_place_follow_it() -> None:
    def gated(y: Tensor) -> Tensor:
        z = (y - 0.3).relu_()
        context = z.reshape(z.size(0), 4, -1).unsqueeze(1)
        return context.mean(-1).squeeze(1) + z.flatten(2).unsqueeze(1).amax((1, 3))

    assert cx.check(Net(gated).eval(), X) == []
    assert_captured(Net(gated))


def doubled_in_place(y: Tensor) -> Tensor:
    y[:, 1] *= 2
    y[:, :, 0] += 1
    y[..., 1:] = y[..., :-1] * 0.5
    return y


def filled_in_place(y: Tensor) -> Tensor:
    y[:, 2].zero_()
    y.select(1, 3).fill_(0.3)
    return y.masked_fill_(y > 0.4, 0.2).lerp_(torch.ones(1), 0.25)


def turned_in_place(y: Tensor) -> Tensor:
    row = y[:, :1]
    y.unsqueeze_(1).transpose_(2, 3).squeeze_(1)
    row.mul_(3)
    return y.transpose(1, 2) + row


def shifted_in_time(y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, :, 1:] = y[:, :, :-1]
    z[:, :, :-1] += y[:, :, 1:]
    return z


@pytest.mark.parametrize("backend", ["spikingjelly", "snntorch"])
@pytest.mark.parametrize(
    "function", [doubled_in_place, filled_in_place, turned_in_place, shifted_in_time], ids=lambda f: f.__name__
)
def test_parts_that_are_written_in_place(function: Callable[[Tensor], Tensor], backend: str) -> None:
    """The network and the graph agree, and so does what is converted, folded or not."""
    torch.manual_seed(0)
    ann = nn.Sequential(Net(lambda y: function(y).flatten(1)), nn.Linear(144, 3)).eval()
    with torch.no_grad():
        expected = ann(X)
    recipe = cx.Recipe(cx.Maximum(granularity=cx.PerChannel()))
    for fold in (True, False):
        snn = cx.convert(ann, X, recipe=recipe, backend=backend, fold=fold, progress=False)
        early, late = (
            (out - expected).norm() / expected.norm() for out in cx.simulate(snn, X, 256, at=(16, 256)).outputs
        )
        assert late < min(0.02, 0.3 * early)


def test_the_builtin_len_is_back_and_the_same_for_all_else() -> None:
    """While one thread records, another measures its own tensors and lists."""
    import builtins

    known, lengths = builtins.len, []

    def forward(y: Tensor) -> Tensor:
        other = threading.Thread(target=lambda: lengths.append((len([1, 2]), len(torch.zeros(5, 2)), type(len(X)))))
        other.start()
        other.join()
        return y.reshape(len(y), -1)

    capture(Net(forward).eval(), (X,))
    assert builtins.len is known
    assert set(lengths) == {(2, 5, int)}


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (lambda y: (part for part in (y,)), "returns a generator"), (lambda y: (), "nothing that is computed from the"),
        (lambda y: types.SimpleNamespace(y=y), "a SimpleNamespace"), (lambda y: y / y.max(), "max over the batch dim"),
    ],
)  # fmt: skip
def test_what_cannot_be_returned_is_named(returned: Any, reason: str) -> None:
    (problem,) = cx.check(Net(returned).eval(), X)
    assert reason in problem.reason


def test_one_fault_in_place_is_one_problem() -> None:
    """What cannot be rewritten is named, and nothing that follows from it."""

    def written(y: Tensor) -> Tensor:
        z = F.relu(y)
        torch.add(z, y, out=z)
        return torch.stack([z[:, 0], z[:, 1]], 1) + y[:, :2]

    (problem,) = cx.check(Net(written).eval(), X)
    assert problem.reason == "changes a tensor in place."

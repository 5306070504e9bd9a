"""Dimension 0 may hold a multiple of the batch: windows, frames and heads of a sample side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.capture.passes import batch_problems, run_passes
from conversion_ext.capture.preparation import prepare
from conversion_ext.capture.tracing import capture
from conversion_ext.readouts import Confidence
from tests import laws
from tests.capture.test_attention import randomized
from tests.traps import Net

C, SIZE, WINDOW = 4, 4, 2


def windows(net: Any, x: Tensor) -> Tensor:
    """Swin: shifted windows in the batch, a mask for each of them, then the image again (sizes of torchvision)."""
    N, H, W, _ = x.shape
    y = torch.roll(net.norm(x), shifts=(-1, -1), dims=(1, 2))
    y = y.view(N, H // WINDOW, WINDOW, W // WINDOW, WINDOW, C).permute(0, 1, 3, 2, 4, 5).reshape(N * 4, 4, C)
    q, k, v = net.qkv(y).reshape(y.size(0), 4, 3, 2, C // 2).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1)
    mask = torch.linspace(-1, 1, 16, dtype=x.dtype).view(4, 2, 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    scores = scores.view(y.size(0) // 4, 4, 2, 4, 4) + mask.unsqueeze(1).unsqueeze(0)
    y = torch.matmul(F.softmax(scores.view(-1, 2, 4, 4), -1), v).transpose(1, 2).reshape(y.size(0), 4, C)
    y = net.proj(y).view(N, H // WINDOW, W // WINDOW, WINDOW, WINDOW, C).permute(0, 1, 3, 2, 4, 5).reshape(N, H, W, C)
    return net.head((x + torch.roll(y, shifts=(1, 1), dims=(1, 2))).flatten(1))


def frames(net: Any, x: Tensor) -> Tensor:
    """A convolutional network for each frame, then one decision."""
    N, T, *image = x.shape
    y = F.relu(net.conv(x.reshape(N * T, *image)))
    return net.head(y.flatten(1).view(N, T, -1).mean(1))


def flattened(net: Any, x: Tensor) -> Tensor:
    """The same without a word of the batch size."""
    y = F.max_pool2d(F.relu(net.conv(x.flatten(0, 1))), 2)
    return net.head(y.unflatten(0, (-1, x.size(1))).flatten(1))


def heads(net: Any, x: Tensor) -> Tensor:
    """Heads in the batch, and bmm."""
    N, L, _ = x.shape

    def split(y: Tensor) -> Tensor:
        return y.view(N, L, 2, C // 2).transpose(1, 2).reshape(N * 2, L, C // 2)

    q, k, v = split(net.q(x)), split(net.k(x)), split(F.relu(net.v(x)))
    y = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
    return net.head(y.view(N, 2, L, C // 2).transpose(1, 2).reshape(N, L * C))


def pixels(net: Any, x: Tensor) -> Tensor:
    """MobileViT: rows of patches in the batch, then attention among equal pixels of all patches."""
    x = F.relu(net.conv(x))
    N, channels, H, W = x.shape
    high, wide = H // WINDOW, W // WINDOW
    y = x.reshape(N * channels * high, WINDOW, wide, WINDOW).transpose(1, 2)
    y = y.reshape(N, channels, high * wide, WINDOW**2).transpose(1, 3).reshape(N * WINDOW**2, high * wide, -1)
    y = torch.softmax(y @ y.transpose(1, 2), -1) @ y
    y = y.view(N, WINDOW**2, high * wide, -1).transpose(1, 3).reshape(N * channels * high, wide, WINDOW, WINDOW)
    y = y.transpose(1, 2).reshape(N, channels, high * WINDOW, wide * WINDOW)
    return net.head((x + y).flatten(1))


def patches(net: Any, x: Tensor) -> Tensor:
    """Overlapping patches by nn.Unfold, each with a layer of its own features."""
    return net.head(F.relu(net.each(net.unfold(F.relu(net.conv(x))).transpose(1, 2))).flatten(1))


def linear(o: int = C) -> nn.Linear:
    return nn.Linear(C, o)


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "windows": (
        lambda: Net(windows, norm=nn.LayerNorm(C), qkv=linear(3 * C), proj=linear(), head=nn.Linear(64, 3)),
        (SIZE, SIZE, C),
    ),
    "frames": (lambda: Net(frames, conv=nn.Conv2d(2, 3, 3), head=nn.Linear(12, 3)), (3, 2, 4, 4)),
    "flattened": (lambda: Net(flattened, conv=nn.Conv2d(2, 3, 3), head=nn.Linear(9, 3)), (3, 2, 4, 4)),
    "pixels": (lambda: Net(pixels, conv=nn.Conv2d(2, 3, 3, padding=1), head=nn.Linear(48, 3)), (2, SIZE, SIZE)),
    "patches": (
        lambda: Net(
            patches,
            conv=nn.Conv2d(2, 2, 3),
            unfold=nn.Unfold(3, padding=1),
            each=nn.Linear(18, 3),
            head=nn.Linear(12, 3),
        ),
        (2, SIZE, SIZE),
    ),
    "heads": (lambda: Net(heads, q=linear(), k=linear(), v=linear(), head=nn.Linear(12, 3)), (3, C)),
}


def network(name: str, samples: int = 6) -> tuple[Any, Tensor]:
    build, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(1)
    return randomized(build()), torch.randn(samples, *shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_the_network_computes_at_every_batch_size(name: str) -> None:
    ann, x = network(name)
    model = prepare(ann, (x[:2],))
    for part in x.split([1, 5]):
        torch.testing.assert_close(model(part), ann(part), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", available())
def test_folded_batches_over_time_are_exact(name: str, backend: str) -> None:
    """Laws 6 and 9: sites conserve their input, the whole is the ANN of its rates, and errors fall with 1 / T."""
    ann, x = network(name)
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend=backend, progress=False)
    laws.assert_sites_exact(snn, (x[:2],), T=5)
    laws.assert_is_ann_of_rates(ann, snn, (x[:2],), T=5)
    expected = ann(x).detach()
    found = {T: cx.simulate(snn, x, T).output for T in (16, 256)}
    assert (found[256] - expected).norm() < 0.15 * (found[16] - expected).norm() + 1e-9
    torch.testing.assert_close(cx.simulate(snn, x, 16, time_chunk=3).output, found[16])
    torch.testing.assert_close(cx.simulate(snn, x[2:3], 16).output, found[16][2:3])


@pytest.mark.parametrize("name", NETWORKS)
def test_thresholds_of_each_position_need_no_unit_of_each_row(name: str) -> None:
    """Law 4: PerChannel(1) gives thresholds to what later is folded into the batch; folding keeps the function."""
    ann, x = network(name)
    recipe = cx.Recipe(cx.Maximum(), relay=True)
    outputs = []
    for fold in (True, False):
        snn = cx.convert(ann, x, recipe=recipe, fold=fold, backend="reference", progress=False)
        outputs.append(cx.simulate(snn, x, 8).output)
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-8)


def test_reports_count_all_rows_of_a_sample() -> None:
    """Three frames of 12 activations each; a convolution of 12 x 18 weights for each, and one head of 12 x 3."""
    ann, x = network("frames")
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)
    run = cx.simulate(snn, x, 4, record=("spikes",))
    (rate,), (train,) = run.firing_rate.values(), run.recorded["spikes"].values()
    assert rate.shape == (6, 3, 3, 2, 2)
    assert train.shape == (4, *rate.shape)
    torch.testing.assert_close(train.mean(0), rate)
    torch.testing.assert_close(run.spikes_per_sample, 4 * rate.flatten(1).sum(1))
    count = cx.synops(snn, x, 4)
    assert count.macs == 3 * 12 * 18 + 12 * 3 == cx.synops(snn, x, 4, ann=ann).macs
    assert sum(count.neurons.values()) == sum(row.neurons for row in snn.conversion.table()) == 36
    assert sum(count.spikes.values()) == pytest.approx(float(run.spikes_per_sample.mean()))


def test_samples_that_exit_early_take_their_rows_along() -> None:
    ann, x = network("frames", samples=12)
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend="reference", progress=False)
    run = cx.simulate(snn, x, 16, exit=Confidence(1.0))
    assert run.steps is not None
    assert len(set(run.steps.tolist())) > 1
    for i, t in enumerate(run.steps.tolist()):
        alone = cx.simulate(snn, x[i : i + 1], t)
        torch.testing.assert_close(run.output[i], alone.output[0])
        for key, rate in alone.firing_rate.items():
            torch.testing.assert_close(run.firing_rate[key][i], rate[0])


@pytest.mark.parametrize(
    ("function", "key", "reason"),
    [
        (lambda n, x: x.transpose(0, 1).flatten(0, 1), "transpose", "dimension 0 is not the batch"),
        (lambda n, x: x.flatten(1) @ x.flatten(1).t().relu(), "t", "dimension 0 is not the batch"),
        (lambda n, x: F.linear(x.flatten(1), x.flatten(1)).relu(), "linear", "more than dimension 0 depends"),
        (lambda n, x: x.transpose(0, 1).reshape(-1, 4).relu(), "transpose", "dimension 0 is not the batch"),
        (lambda n, x: x.flatten(0, 1).roll(1, 0), "roll", "depends on the other samples"),
        (lambda n, x: F.softmax(x.flatten(0, 1), 0), "softmax", "depends on the other samples"),
        (lambda n, x: x.flatten(0, 1).view(4, -1, 4).relu(), "view", "dimension 0 is not the batch"),
        (lambda n, x: x.flatten(0, 1).flip(0), "flip", "depends on the other samples"),
        (lambda n, x: x.flatten(0, 1) - x.flatten(0, 1).mean(0), "mean_1", "dimension 0 is not the batch"),
        (lambda n, x: x.flatten(0, 1)[: 2 * x.size(0)], "getitem", "depends on the other samples"),
        (lambda n, x: x.repeat(2, 1, 1), "repeat", "come after what they were folded with"),
        (lambda n, x: torch.cat([x, x.relu()]), "cat", "come after what they were folded with"),
    ],
)
def test_what_crosses_samples_is_refused(function: Any, key: str, reason: str) -> None:
    problems = batch_problems(capture(Net(function), (torch.randn(2, 4, 4),)), torch.randn(2, 4, 4))
    assert problems
    assert reason in problems[0].reason


def test_sizes_are_those_of_the_tensor_that_is_viewed() -> None:
    """Where time is folded into one tensor and not yet into another, sizes of the other would be too small."""

    def function(net: Any, x: Tensor) -> Tensor:
        N = x.size(0)
        y = F.relu(net.conv(x.reshape(N * 3, 2, 4, 4)))
        return net.head(y.reshape(N, 36))

    ann = Net(function, conv=nn.Conv2d(2, 3, 3), head=nn.Linear(36, 2))
    model = capture(ann, (torch.randn(2, 3, 2, 4, 4),))
    run_passes(model, (torch.randn(2, 3, 2, 4, 4),))
    views = [n for n in model.graph.nodes if n.target == "reshape"]
    (divided,) = (n for n in views[-1].all_input_nodes if n.target.__class__.__name__ == "builtin_function_or_method")
    assert divided.args[1] == 3
    assert divided.args[0].args == (views[-1].args[0], 0)

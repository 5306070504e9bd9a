"""Attention is opened into what it consists of; the function stays the same, and the batch stays in dimension 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.capture.attention import OpenAttention
from conversion_ext.capture.preparation import prepare
from tests import laws
from tests.live import live_inputs, make_live

E, HEADS, POSITIONS = 12, 3, 5


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return the module in float64 with random parameters: biases and norms of fresh ones hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.double().parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / max(1, p.shape[-1]) ** 0.5)
    return module.eval()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"kdim": 7, "vdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True, "add_bias_kv": True}],
    ids=["one size", "own sizes of keys and values", "a learned position", "a learned position and zeros"],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"mask": "bool"}, {"mask": "float"}, {"mask": "heads"}, {"padding": True}, {"need_weights": False},
     {"average_attn_weights": False}],
    ids=str,
)  # fmt: skip
def test_opened_attention_is_torchs(
    batch_first: bool, bias: bool, sizes: dict[str, int], options: dict[str, Any]
) -> None:
    layer: Any = randomized(nn.MultiheadAttention(E, HEADS, bias=bias, batch_first=batch_first, **sizes))
    shapes = [(2, POSITIONS, E), (2, 6, sizes.get("kdim", E)), (2, 6, sizes.get("vdim", E))]
    torch.manual_seed(0)
    inputs = [torch.randn(s, dtype=torch.float64) for s in shapes]
    inputs = inputs if batch_first else [x.transpose(0, 1) for x in inputs]
    given = {k: v for k, v in options.items() if k not in ("mask", "padding")}
    if "mask" in options:
        kept = torch.rand(POSITIONS, 6) > 0.3
        kept[:, 0] = True
        shape = (2 * HEADS, POSITIONS, 6) if options["mask"] == "heads" else (POSITIONS, 6)
        given["attn_mask"] = ~kept if options["mask"] == "bool" else torch.randn(shape, dtype=torch.float64)
    if "padding" in options:
        given["key_padding_mask"] = torch.tensor([[False] * 4 + [True] * 2, [False] * 6])
    expected, weights = layer(*inputs, **given)
    output, opened_weights = OpenAttention(layer)(*inputs, **given)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    if weights is None:
        assert opened_weights is None
    else:
        torch.testing.assert_close(opened_weights, weights, rtol=1e-12, atol=1e-12)


class Encoder(nn.Module):
    """One layer of attention with its shortcut, as most people write it."""

    def __init__(self, attention: nn.MultiheadAttention, positions_first: bool = False) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(E), attention
        self.mlp = nn.Sequential(nn.LayerNorm(E), nn.Linear(E, 20), nn.ReLU(), nn.Linear(20, E))
        self.head = nn.Linear(E, 4)
        self.positions_first = positions_first

    def forward(self, x: Tensor) -> Tensor:
        if self.positions_first:  # CLIP: everything between two permutations
            x = x.permute(1, 0, 2)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(x)
        if self.positions_first:
            x = x.permute(1, 0, 2)
        return self.head(x[:, 0])


class Heads(nn.Module):
    """timm's attention: one layer for queries, keys and values, and the batch in dimension 1 for a while."""

    def __init__(self, how: str, **options: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.how, self.options = nn.Linear(E, 3 * E), nn.Linear(E, E), how, options

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0) if self.how == "unbind" else (qkv[0], qkv[1], qkv[2])
        x = F.scaled_dot_product_attention(q, k, v, **self.options)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class Grouped(nn.Module):
    """Six heads of queries on two of keys and values, as in large language models."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(E, E), nn.Linear(E, 8), nn.Linear(E, E)

    def forward(self, x: Tensor) -> Tensor:
        N, L, _ = x.shape
        k, v = self.kv(x).view(N, L, 2, 2, 2).permute(0, 2, 3, 1, 4).unbind(1)
        q = self.q(x).view(N, L, 6, 2).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.proj(y.transpose(1, 2).reshape(N, L, E))


class Cross(nn.Module):
    """Queries of one part of the input on keys and values of the other, with RMSNorm and a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(E, E), nn.RMSNorm(E)
        self.attention, self.scale = nn.MultiheadAttention(E, HEADS, batch_first=True), nn.Parameter(torch.ones(E))
        self.head = nn.Linear(E, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        query, other = x[:, :2], self.norm(x[:, 2:])
        return self.head((query + self.scale * self.attention(query, other, other)[0]).mean(1))


class Mapped(nn.Module):
    """Heads behind a layer and in front of one."""

    def __init__(self, heads: nn.Module) -> None:
        super().__init__()
        self.first, self.heads, self.last = nn.Linear(E, E), heads, nn.Linear(E, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.heads(F.relu(self.first(x))).mean(1))


def encoder(norm_first: bool, norm: bool) -> nn.Module:
    """torch's own encoder, as users of time series build it."""
    layer = nn.TransformerEncoderLayer(E, HEADS, 16, activation="gelu", batch_first=True, norm_first=norm_first)
    stack = nn.TransformerEncoder(layer, 2, nn.LayerNorm(E) if norm else None, enable_nested_tensor=False)
    return Mapped(stack)


NETWORKS: dict[str, Any] = {
    "encoder": lambda: encoder(norm_first=False, norm=False),
    "encoder, norms first": lambda: encoder(norm_first=True, norm=True),
    "batch first": lambda: Encoder(nn.MultiheadAttention(E, HEADS, batch_first=True)),
    "positions first": lambda: Encoder(nn.MultiheadAttention(E, HEADS), positions_first=True),
    "learned position": lambda: Encoder(nn.MultiheadAttention(E, HEADS, batch_first=True, add_bias_kv=True)),
    "zeros": lambda: Encoder(nn.MultiheadAttention(E, HEADS, batch_first=True, add_zero_attn=True)),
    "grouped heads": lambda: Mapped(Grouped()),
    "cross": Cross,
    "unbind": lambda: Mapped(Heads("unbind")),
    "entries": lambda: Mapped(Heads("entries")),
    "causal": lambda: Mapped(Heads("unbind", is_causal=True)),
    "scale": lambda: Mapped(Heads("unbind", scale=0.3)),
    "numbers added": lambda: Mapped(Heads("unbind", attn_mask=torch.linspace(-1, 1, 25).double().view(5, 5))),
    "mask": lambda: Mapped(Heads("unbind", attn_mask=torch.eye(POSITIONS, dtype=torch.bool).logical_not())),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_the_network_computes(name: str) -> None:
    ann = randomized(NETWORKS[name]())
    torch.manual_seed(1)
    x = torch.randn(3, POSITIONS, E, dtype=torch.float64)
    model = prepare(ann, (x,))
    with torch.no_grad():
        torch.testing.assert_close(model(x), ann(x), rtol=1e-10, atol=1e-10)
    called = {node.target for node in model.graph.nodes if node.op == "call_function"}
    assert F.scaled_dot_product_attention not in called
    assert not any(isinstance(m, nn.MultiheadAttention) for m in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", available())
def test_attention_over_time_is_exact(name: str, backend: str) -> None:
    """Law 9: every site conserves its input, and the whole is the ANN of its rates; so is the network in time."""
    ann = randomized(NETWORKS[name]())
    torch.manual_seed(1)
    x = torch.randn(6, POSITIONS, E, dtype=torch.float64)
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend=backend, progress=False)
    laws.assert_sites_exact(snn, (x[:2],), T=8)
    laws.assert_is_ann_of_rates(ann, snn, (x[:2],), T=8)
    with torch.no_grad():
        errors = [float((cx.simulate(snn, x, T).output - ann(x)).norm()) for T in (16, 256)]
    assert errors[1] < 0.15 * errors[0]


def test_a_vision_transformer_of_torchvision_converts() -> None:
    """Class token, positions, convolution in front: exact without spikes, and with spikes into all linear layers."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    ann: Any = make_live(models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=5), 3, 32, 32).double()
    x = live_inputs(ann, 3, 32, 32, samples=6)
    assert cx.check(ann, x) == []
    options: dict[str, Any] = {"recipe": cx.Recipe(cx.Maximum()), "backend": "reference", "progress": False}
    laws.assert_is_ann_of_rates(ann, cx.convert(ann, x, **options), (x[:2],), T=8)
    snn = cx.convert(ann, x, relay=True, **options)
    laws.assert_sites_exact(snn, (x[:2],), T=8)
    with torch.no_grad():
        errors = [float((cx.simulate(snn, x, T).output - ann(x)).norm()) for T in (16, 256)]
    assert errors[1] < 0.15 * errors[0]

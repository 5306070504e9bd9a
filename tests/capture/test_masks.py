"""Text: tokens in, positions, class tokens, masks of padding, decoders on two inputs; exact, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.operators import operators
from tests import laws
from tests.capture.test_attention import randomized

WORDS, LENGTH, E, HEADS, PADDING = 20, 5, 12, 2, 0
T = 6
Function = Callable[["Reader", Tensor], Tensor]


def tokens(samples: int = 6) -> Tensor:
    """Random words; every second sentence ends in padding."""
    found = torch.randint(1, WORDS, (samples, LENGTH), generator=torch.Generator().manual_seed(0))
    found[::2, -1] = PADDING
    found[::4, -2] = PADDING
    return found


class Reader(nn.Module):
    """A table of words, then what ``function`` makes of it, then a linear layer."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.words = nn.Embedding(WORDS, E, padding_idx=PADDING)
        self.places, self.start = nn.Embedding(LENGTH + 2, E), nn.Parameter(torch.ones(1, 1, E))
        layer = nn.TransformerEncoderLayer(E, HEADS, 16, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.qkv, self.head = nn.Linear(E, 3 * E), nn.Linear(E, 4)

    def forward(self, t: Tensor, *masks: Tensor) -> Tensor:
        return self.head(self.function(self, t, *masks))


def class_token(net: Reader, t: Tensor) -> Tensor:
    x = torch.cat([net.start.expand(t.size(0), -1, -1), net.words(t)], 1)
    return net.encoder(x + net.places.weight[: LENGTH + 1])[:, 0]


def own_scores(net: Reader, t: Tensor, masked: float) -> Tensor:
    q, k, v = net.qkv(net.words(t)).chunk(3, -1)
    scores = (q @ k.transpose(1, 2)).masked_fill((t == PADDING)[:, None], masked)
    return (scores.softmax(-1) @ v).mean(1)


def attention_in_one_call(net: Reader, t: Tensor, mask: Any) -> Tensor:
    q, k, v = net.qkv(net.words(t)).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).mean(1)


def mean_of_words(net: Reader, t: Tensor) -> Tensor:
    kept = (~(t == PADDING)).to(net.words.weight.dtype).unsqueeze(-1)
    return (F.gelu(net.qkv(net.words(t)))[..., :E] * kept).sum(1) / kept.sum(1)


def zeros_for_padding(net: Reader, t: Tensor) -> Tensor:
    x = F.relu(net.qkv(net.words(t)))[..., :E]
    return x.masked_fill((t == PADDING).unsqueeze(-1), 0.0).sum(1)


READERS: dict[str, Function] = {
    "positions": lambda net, t: net.encoder(net.words(t) + net.places(torch.arange(t.size(1)))).mean(1),
    "counted positions": lambda net, t: net.encoder(net.words(t) + net.places((t != PADDING).long().cumsum(1))).mean(1),
    "class token": class_token,
    "padding": lambda net, t: net.encoder(net.words(t), src_key_padding_mask=t == PADDING).mean(1),
    "two conditions": lambda net, t: net.encoder(
        net.words(t), src_key_padding_mask=torch.logical_or(t == PADDING, t > WORDS)
    ).mean(1),
    "infinite scores": lambda net, t: own_scores(net, t, -torch.inf),
    "large scores": lambda net, t: own_scores(net, t, -1e9),
    "one call": lambda net, t: attention_in_one_call(net, t, (t != PADDING)[:, None]),
    "mean of words": mean_of_words,
    "zeros": zeros_for_padding,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("backend", available())
def test_masks_of_tokens_are_exact(name: str, backend: str) -> None:
    """Law 9a; and where no neuron spikes, the network in time is the network."""
    ann, t = randomized(Reader(READERS[name])), tokens()
    snn = cx.convert(ann, t, recipe=cx.Recipe(cx.Maximum()), backend=backend, progress=False)
    laws.assert_is_ann_of_rates(ann, snn, (t,), T)
    if name != "zeros":  # which has a ReLU
        with torch.no_grad():
            torch.testing.assert_close(cx.simulate(snn, t, T).output, ann(t), rtol=1e-8, atol=1e-8)
    spiking = cx.convert(ann, t, recipe=cx.Recipe(cx.Maximum()), relay=True, backend=backend, progress=False)
    laws.assert_sites_exact(spiking, (t,), T)


@pytest.mark.parametrize("recipe", ["default-attention", "default-attention-weighted"])
def test_words_of_padding_change_nothing(recipe: str) -> None:
    """What stands behind a mask is not read: the first word of a sentence hears nothing of another row in its place."""
    ann = randomized(Reader(lambda net, t: net.encoder(net.words(t), src_key_padding_mask=t == PADDING)[:, 0]))
    t = tokens()
    snn: Any = cx.convert(ann, t, T=4, recipe=recipe, backend="reference", progress=False)
    before = cx.simulate(snn, t, 4).output
    with torch.no_grad():
        assert (before - ann(t)).norm() < 0.3 * ann(t).norm()
        snn.body.words.weight[PADDING] += 3.0
    torch.testing.assert_close(cx.simulate(snn, t, 4).output, before)


def test_masks_as_inputs() -> None:
    """Booleans that the user gives: True for what is not read."""
    ann = randomized(Reader(lambda net, t, mask: net.encoder(net.words(t), src_key_padding_mask=mask).mean(1)))
    t = tokens()
    mask = t == PADDING
    snn = cx.convert(
        ann, [(t, mask)], recipe=cx.Recipe(cx.Maximum()), forward=lambda model, batch: model(*batch),
        backend="reference", progress=False,
    )  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(cx.simulate(snn, (t, mask), T).output, ann(t, mask), rtol=1e-8, atol=1e-8)


class Shared(nn.Module):
    """One layer three times over."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer] * 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


SIZES: tuple[int, int, int] = (E, HEADS, 16)
WHOLE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "an encoder layer": (lambda: nn.TransformerEncoderLayer(*SIZES, batch_first=True), 1),
    "one layer, shared": (lambda: Shared(nn.TransformerEncoderLayer(*SIZES, batch_first=True)), 1),
    "a decoder layer": (lambda: nn.TransformerDecoderLayer(*SIZES, batch_first=True), 2),
    "a decoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(*SIZES, batch_first=True, norm_first=True), 2), 2
    ),
    "encoder and decoder": (lambda: nn.Transformer(E, HEADS, 1, 1, 16, batch_first=True), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("backend", available())
def test_layers_of_torch_are_whole_networks(name: str, backend: str) -> None:
    build, count = WHOLE[name]
    ann = randomized(build())
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(4, n, E, dtype=torch.float64, generator=generator) for n in (LENGTH, LENGTH + 2)[:count]]
    given: Any = inputs[0] if count == 1 else tuple(inputs)
    snn = cx.convert(
        ann, given if count == 1 else [given], recipe=cx.Recipe(cx.Maximum()), relay=True, backend=backend,
        forward=None if count == 1 else lambda model, batch: model(*batch), progress=False,
    )  # fmt: skip
    laws.assert_sites_exact(snn, tuple(inputs), T)
    with torch.no_grad():
        errors = [float((cx.simulate(snn, given, steps).output - ann(*inputs)).norm()) for steps in (16, 256)]
    assert errors[1] < 0.15 * errors[0]


def test_a_mask_of_values_is_refused_in_one_sentence() -> None:
    """Where a value is compared that a rate may carry, no number of steps is enough."""
    ann = Reader(lambda net, x: net.encoder(x, src_key_padding_mask=F.relu(x).sum(-1) == 0).mean(1))
    (problem,) = cx.check(ann, torch.randn(4, LENGTH, E))
    assert "a step between two values" in str(problem)
    assert "give a mask as an input" in str(problem)


def test_an_operator_of_the_user_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of the user's own that reads tokens is what its rule says, here refused."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(WORDS, E)

        def forward(self, t: Tensor) -> Tensor:
            return self.table(t)

    own = cx.Problem("words", "this table is of the user's own.", "Take another.")
    monkeypatch.setattr(operators, "_entries", dict(operators._entries))  # what is registered goes with the test
    cx.register_operator(Words)(lambda node, module: own)
    ann = nn.Sequential(Words(), nn.ReLU(), nn.Flatten(), nn.Linear(LENGTH * E, 3))
    assert cx.check(ann, tokens()) == [own]

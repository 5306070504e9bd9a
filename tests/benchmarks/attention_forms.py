"""Forms of attention beside those that the laws are tested on: what ``check`` says of each.

python -m tests.benchmarks.attention_forms --write tests/benchmarks/RESULTS.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conversion_ext as cx

__all__ = ["FORMS", "said"]

BEGIN, END = "<!-- attention-forms:begin -->", "<!-- attention-forms:end -->"
E, HEADS, LENGTH, WORDS = 12, 2, 5, 20
Function = Callable[[Any, Tensor], Any]


class Form(nn.Module):
    """What attention usually has at hand, and a function of it."""

    cached: Tensor | None = None
    buffered: Tensor
    turns: Tensor

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.words, self.first, self.head = nn.Embedding(WORDS, E), nn.Linear(E, E), nn.Linear(E, 3)
        self.attention = nn.MultiheadAttention(E, HEADS, batch_first=True)
        layer = nn.TransformerEncoderLayer(E, HEADS, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("buffered", torch.zeros(4, 2 * LENGTH, E))
        self.register_buffer("turns", torch.polar(torch.ones(LENGTH, E // 2), torch.rand(LENGTH, E // 2)))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)

    def attend(self, query: Tensor, key: Tensor, added: Any = 0.0) -> Tensor:
        """Return logits of attention without layers of its own."""
        return self.head(((query @ key.transpose(1, 2) + added).softmax(-1) @ key).mean(1))


def hidden(net: Form, x: Tensor) -> Tensor:
    return F.gelu(net.first(x))


def with_weights(net: Form, x: Tensor) -> tuple[Tensor, Tensor]:
    y = hidden(net, x)
    y, weights = net.attention(y, y, y, need_weights=True)
    return net.head(y.mean(1)), weights


def causal(net: Form, x: Tensor) -> Tensor:
    y = hidden(net, x)
    return net.head(F.scaled_dot_product_attention(y, y, y, is_causal=True).mean(1))


def computed_causal(net: Form, x: Tensor) -> Tensor:
    y = hidden(net, x)
    return net.head(F.scaled_dot_product_attention(y, y, y, is_causal=bool((x > 0).all())).mean(1))


def masked_by_values(net: Form, x: Tensor) -> Tensor:
    y = hidden(net, x)
    return net.head(net.encoder(y, src_key_padding_mask=y.sum(-1) > 0).mean(1))


def local_window(net: Form, x: Tensor) -> Tensor:
    places = torch.arange(x.size(1))
    far = (places[:, None] - places[None]).abs() > 1
    return net.attend(hidden(net, x), hidden(net, x), torch.zeros(far.shape).masked_fill(far, -torch.inf))


def rotary(net: Form, x: Tensor) -> Tensor:
    y = hidden(net, x)
    a, b = y.chunk(2, -1)
    turned = y * net.turns.real.repeat(1, 2) + torch.cat([-b, a], -1) * net.turns.imag.repeat(1, 2)
    return net.attend(turned, turned)


def complex_rotary(net: Form, x: Tensor) -> Tensor:
    y = hidden(net, x)
    turned = torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * net.turns).flatten(2)
    return net.attend(turned, turned)


def cache(net: Form, x: Tensor) -> Tensor:
    y = hidden(net, x)
    net.cached = y if net.cached is None else torch.cat([net.cached, y], 1)
    return net.attend(y, net.cached)


def cache_in_a_buffer(net: Form, x: Tensor) -> Tensor:
    y = hidden(net, x)
    net.buffered[:, LENGTH:] = y
    return net.attend(y, net.buffered)


def best_tokens(net: Form, x: Tensor) -> Tensor:
    y = hidden(net, x)
    return net.head(y.gather(1, y.norm(dim=-1).topk(3, 1).indices.unsqueeze(-1).expand(-1, -1, E)).mean(1))


def over_samples(net: Form, x: Tensor) -> Tensor:
    y = hidden(net, x).transpose(0, 1)
    return net.attend(y, y)


def padding_of_tokens(net: Form, t: Tensor) -> Tensor:
    return net.head(net.encoder(net.words(t), src_key_padding_mask=t == 0).mean(1))


def max_vit() -> nn.Module:
    from torchvision.models.maxvit import MaxVit

    return MaxVit((32, 32), 8, 4, [8], [1], 4, 0.0, num_classes=3)


def odd_windows() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([2, 2], 8, [2], [2], [7, 7], num_classes=3)


def floats() -> Tensor:
    return torch.randn(4, LENGTH, E, generator=torch.Generator().manual_seed(0))


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def of(function: Function) -> tuple[Callable[[], nn.Module], Callable[[], Any]]:
    return lambda: Form(function), floats


FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "`need_weights=True`, weights as an output": of(with_weights),
    "`is_causal=True`": of(causal),
    "`is_causal` computed from values": of(computed_causal),
    "mask of padding, from tokens": (
        lambda: Form(padding_of_tokens), lambda: torch.arange(4 * LENGTH).view(4, LENGTH) % WORDS
    ),
    "mask of a window, from positions": of(local_window),
    "mask from values": of(masked_by_values),
    "rotary positions": of(rotary),
    "rotary positions as complex numbers": of(complex_rotary),
    "cache of keys and values in an attribute": of(cache),
    "cache of keys and values in a buffer": of(cache_in_a_buffer),
    "the best tokens alone (`topk`)": of(best_tokens),
    "attention among samples": of(over_samples),
    "`nn.Transformer(batch_first=True)`": (
        lambda: nn.Transformer(E, HEADS, 1, 1, 16, batch_first=True), lambda: (floats(), floats()[:, :3])
    ),
    "`nn.Transformer()`, positions in dimension 0": (
        lambda: nn.Transformer(E, HEADS, 1, 1, 16), lambda: (floats(), floats()[:3])
    ),
    "MaxViT (torchvision)": (max_vit, images),
    "Swin, windows that do not divide the image": (odd_windows, images),
}  # fmt: skip


def said(name: str) -> list[cx.Problem]:
    """Return what ``check`` says of a form; nothing where it converts."""
    build, inputs = FORMS[name]
    torch.manual_seed(0)
    return cx.check(build().eval(), inputs())


def lines() -> list[str]:
    """Return a table of all forms: converted, or the first reason and remedy."""
    rows = ["| form | what `check` says |", "|---|---|"]
    for name in FORMS:
        problems = said(name)
        rest = f" (and {len(problems) - 1} more places)" if len(problems) > 1 else ""
        rows.append(f"| {name} | {f'{problems[0].reason} {problems[0].remedy}{rest}' if problems else 'converts'} |")
    return rows


def main() -> None:
    """Print the table, and write it between the markers of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a file with the markers attention-forms:begin and :end")
    arguments = parser.parse_args()
    table = lines()
    print("\n".join(table))
    if arguments.write:
        before, rest = arguments.write.read_text().split(BEGIN)
        arguments.write.write_text("\n".join([before + BEGIN, *table, END + rest.split(END)[1]]))


if __name__ == "__main__":
    main()

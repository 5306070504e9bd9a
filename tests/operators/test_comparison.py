"""Choices by comparison, masks, casts: right, or one sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conversion_ext as cx

pytestmark = pytest.mark.filterwarnings("ignore")
MASK = torch.tensor([[True, False, True, False, True, False]])
Function = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A function between two layers, of values that spikes carry."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(5, 6), nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.last(F.relu(self.first(x))))


def assigned(y: Tensor) -> Tensor:
    z = y * 1.0
    z[z < 0] = 0
    return z


def filled(y: Tensor) -> Tensor:
    z = torch.empty(y.size(0), 12, dtype=y.dtype)
    z[:, :6] = F.relu(y)
    z[:, 6:] = y
    return z


CHOICES: dict[str, Function] = {
    "slope": lambda y: torch.where(y > 0, y, 0.2 * y),
    "elu": lambda y: torch.where(y > 0, y, y.exp() - 1),
    "below": lambda y: torch.where(y < 0, torch.zeros_like(y), y),
    "method": lambda y: y.where(y.ge(0), -y),
    "two": lambda y: torch.where(y > y.mean(1, keepdim=True), y, y.mean(1, keepdim=True)),
    "number": lambda y: torch.where(torch.le(y, 0.0), 0.0, y),
    "assigned": assigned,
    "masked": lambda y: F.relu(y).masked_fill(MASK, 0.0),
    "masked softmax": lambda y: y.masked_fill(MASK, -torch.inf).softmax(1),
    "two masks": lambda y: torch.where(MASK, F.relu(y), y),
    "filled": filled,
    "gelu": lambda y: 0.5 * y * (1 + torch.erf(y / 2**0.5)),
    "positions": lambda y: F.max_pool1d(F.relu(y)[:, None], 2, return_indices=True)[0],
    "scale factors": lambda y: F.interpolate(F.relu(y)[:, None, None], scale_factor=[2.0, 3.0]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_what_the_network_chooses(name: str) -> None:
    ann = Net(CHOICES[name]).double().eval()
    x = torch.randn(8, 5, dtype=torch.float64)
    recipe = cx.Recipe(cx.Maximum(granularity=cx.PerChannel()))
    snn = cx.convert(ann, x, recipe=recipe, backend="reference", progress=False)
    target = ann(x).detach()
    short, long = (
        float((out - target).norm() / target.norm()) for out in cx.simulate(snn, x, 512, at=(64, 512)).outputs
    )
    assert long < 0.01
    assert long < 0.3 * short


REFUSED: dict[str, tuple[Function, str]] = {
    "mask of data": (lambda y: y * (y > 0.2), "step between two values"),
    "positions": (lambda y: y.argmax(1, keepdim=True) * y, "step between two values"),
    "cast": (lambda y: y.float().mean(1, keepdim=True), "changes the type of numbers"),
    "indices": (lambda y: F.max_pool1d(y[:, None], 2, return_indices=True)[1] * 1.0, "positions of maxima"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_steps_and_casts_are_refused_in_one_place(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(cx.UnsupportedError, match=reason) as error:
        cx.convert(Net(function).double().eval(), torch.randn(8, 5, dtype=torch.float64), progress=False)
    assert len(error.value.problems) == 1


def test_compiled_code_is_named() -> None:
    net = nn.Sequential(torch.jit.script(nn.Linear(5, 6)), nn.ReLU())
    for ann in (net, torch.jit.trace(nn.Sequential(nn.Linear(5, 6), nn.ReLU()), torch.ones(2, 5))):
        with pytest.raises(cx.UnsupportedError, match=r"compiled by torch\.jit"):
            cx.convert(ann, torch.randn(8, 5), progress=False)

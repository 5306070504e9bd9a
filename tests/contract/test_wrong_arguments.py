"""Arguments of another kind are refused in one sentence, and never taken for something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import conversion_ext as cx

X, Y = torch.rand(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
pytestmark = pytest.mark.filterwarnings("ignore")


def ann() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def snn() -> Any:
    return cx.convert(ann(), X, backend="reference", progress=False)


def converted(**options: Any) -> Any:
    return cx.convert(ann(), X, **{"backend": "reference", "progress": False, **options})


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a word for a switch": (lambda snn: converted(fold="no"), "fold='no'"),
    "a seed for a generator": (lambda snn: converted(generator=3), "generator=3"),
    "a number for a function": (lambda snn: converted(forward=3), "forward=3"),
    "a converted network": (lambda snn: cx.convert(snn, X, progress=False), "converted network already"),
    "a converted network to check": (lambda snn: cx.check(snn, X), "converted network already"),
    "half a chunk": (lambda snn: cx.simulate(snn, X, 2, time_chunk=1.5), "time_chunk=1.5"),
    "a name for a tuple of names": (lambda snn: cx.simulate(snn, X, 2, record="spikes"), "give a tuple"),
    "two inputs": (lambda snn: cx.simulate(snn, (X, X), 2), r"\[12, 6\], \[12, 6\] does not fit"),
    "another shape": (lambda snn: cx.simulate(snn, X[:, :5], 2), r"converted for \[N, 6\]"),
    "another shape in a step": (lambda snn: snn(X[:, :5]), r"converted for \[N, 6\]"),
    "one sample": (lambda snn: cx.convert(ann(), X[0], progress=False), r"x\[None\] for one sample"),
    "targets of others": (lambda snn: cx.finetune(snn, (X, Y[:5]), T=2), "12 inputs and 5 targets"),
    "no sample to train on": (lambda snn: cx.finetune(snn, X[:0], T=2, teacher=ann()), "loader is empty"),
    "a word for a tuple of words": (lambda snn: cx.finetune(snn, (X, Y), T=2, learn="weights"), r"\('weights',\)"),
    "no family": (lambda snn: cx.Recipe(family="ternary"), "family='ternary'.*weighted, signed"),  # type: ignore[arg-type]
    "another ANN": (lambda snn: cx.evaluate(snn, [(X, Y)], 2, ann=nn.Linear(5, 3), progress=False), "ann fails on a"),
    "no target that counts": (lambda snn: cx.evaluate(snn, [(X, -Y - 1)], 2, progress=False), "No target counts"),
    "a metric of one argument": (lambda snn: cx.evaluate(snn, [(X, Y)], 2, metric=lambda out: 1.0, progress=False),
                                 r"called as metric\(output, target\)"),
    "a number for a file": (lambda snn: cx.load(3), "path=3"),  # type: ignore[arg-type]
    "a number for a network": (lambda snn: cx.reset(3), "give a network"),  # type: ignore[arg-type]
    "a number for a normalizer": (lambda snn: cx.register_normalizer("x", 3), "derived from Normalizer"),  # type: ignore[arg-type]
    "a number for a tuner": (lambda snn: cx.register_tuner("x", 3), "derived from Tuner"),  # type: ignore[arg-type]
    "a number for a recipe": (lambda snn: cx.register_recipe("x", 3), "register a Recipe"),  # type: ignore[arg-type]
    "a number for a backend": (lambda snn: cx.register_backend("x", 3), "register a Backend"),  # type: ignore[arg-type]
    "a number for an operator": (lambda snn: cx.register_operator(nn.Bilinear)(3), "register a function"),  # type: ignore[arg-type]
    "an operator of a number": (lambda snn: cx.register_operator(3)(lambda node, module: None), "register_operator"),  # type: ignore[arg-type,return-value]
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named(snn: Any, what: str) -> None:
    call, sentence = WRONG[what]
    with pytest.raises((ValueError, TypeError, cx.ConversionError), match=sentence) as error:
        call(snn)
    assert "\n" not in str(error.value)
    cx.reset(snn)


@pytest.mark.parametrize("T", [np.int64(3), torch.tensor(3)])
def test_integers_of_numpy_and_torch_are_numbers_of_steps(snn: Any, T: Any) -> None:
    assert cx.simulate(snn, X, T).at == (1, 2, 3)
    assert cx.simulate(snn, X, 4, at=T).at == (3,)
    assert cx.forecast(snn, [(X, Y)], np.array([1, 2]), progress=False).T == (1, 2)


def test_a_question_of_shapes_asks_for_an_example(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = ann()

        def forward(self, x: Any) -> Any:
            return self.net(x.flatten(1)) if x.dim() > 2 else self.net(x)

    (problem,) = cx.check(Branch())
    assert "Give one" in problem.remedy
    assert not any(word in str(problem) for word in ("Proxy", "TraceError", "symbolic"))
    assert cx.check(Branch(), X) == []

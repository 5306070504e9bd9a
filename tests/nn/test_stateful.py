"""What every stateful module of conversion_ext.nn obeys: laws 6 and 10, wide state, copies, clear refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from conversion_ext.errors import StateError
from conversion_ext.nn import Differential, SpikingMaxPool, SpikingMaxPool1d, SpikingMaxPool2d, SpikingMaxPool3d
from conversion_ext.nn.max_pool import METHODS as POOL_METHODS
from conversion_ext.nn.softmax import METHODS as SOFTMAX_METHODS
from conversion_ext.nn.softmax import SpikingSoftmax
from conversion_ext.nn.stateful import Stateful
from conversion_ext.types import Steps

T, N = 16, 3
Case = tuple[Callable[[], Stateful], list[tuple[int, ...]]]
CASES: dict[str, Case] = {
    **{f"pool2d-{m}": (partial(SpikingMaxPool2d, 3, 2, 1, method=m), [(N, 9, 7, 6)]) for m in POOL_METHODS},
    "pool1d": (partial(SpikingMaxPool1d, 3), [(N, 6, 31)]),
    "pool3d": (partial(SpikingMaxPool3d, 2, padding=1), [(N, 4, 6, 5, 5)]),
    "adaptive": (lambda: SpikingMaxPool.from_module(nn.AdaptiveMaxPool2d((2, None))), [(N, 6, 7, 5)]),
    **{f"softmax-{m}": (partial(SpikingSoftmax, -1, m, 0.5, 7), [(N, 5)]) for m in SOFTMAX_METHODS},
    # hardswish and the product: no last bit depends on the size of the batch, as that of torch.sigmoid does
    "hardswish": (lambda: Differential(nn.Hardswish()), [(N, 4, 3, 3)]),
    "product": (lambda: Differential(torch.mul, inputs=2), [(N, 4, 3, 3), (N, 4, 1, 1)]),
}
every = pytest.mark.parametrize(("make", "shapes"), CASES.values(), ids=CASES.keys())


def sequences(shapes: list[tuple[int, ...]], steps: int = T, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Spike trains whose rates differ from place to place, so that a gate has something to choose."""
    return [(torch.rand(steps, *shape) < torch.rand(shape)).to(dtype) for shape in shapes]


def state(module: Stateful) -> list[Tensor]:
    values = [getattr(module, name) for name in module.state_names]
    flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
    return [v for v in flat if isinstance(v, Tensor)]


@every
def test_step_modes_chunks_and_runs_agree(make: Callable[[], Stateful], shapes: list[tuple[int, ...]]) -> None:
    module, xs = make(), sequences(shapes)
    single = torch.stack([module(*(x[t] for x in xs)) for t in range(T)])
    assert module.t == T
    module.reset()
    module.step_mode = "m"
    whole = module(*xs)
    assert torch.equal(whole, single)
    module.reset()
    chunks = torch.cat([module(*(x[:5] for x in xs)), module(*(x[5:] for x in xs))])
    assert torch.equal(chunks, whole)
    others = [x.flip(0) for x in xs]
    after = module(*others)
    module.reset()
    assert torch.equal(module(*others), after) == (not state(module))  # else these laws would say nothing


@every
def test_body_form_folds_time_and_holds_static_inputs(
    make: Callable[[], Stateful], shapes: list[tuple[int, ...]]
) -> None:
    xs = sequences(shapes)
    plain = make()
    plain.step_mode = "m"
    folded = make()  # the step mode plays no part in the body of a converted network
    y_seq = plain(*xs)
    assert torch.equal(folded(*(x.flatten(0, 1) for x in xs), Steps(T)), y_seq.flatten(0, 1))

    plain.reset()
    static = [x[0].expand(T, *x.shape[1:]) if i == 0 else x for i, x in enumerate(xs)]
    once = [x[0] if i == 0 else x.flatten(0, 1) for i, x in enumerate(xs)]
    folded.reset()
    folded.static_inputs = (True,)
    assert torch.equal(folded(*once, Steps(T, constant=True)), plain(*static).flatten(0, 1))
    folded.reset()  # the mark holds for constant input only
    assert torch.equal(folded(*(x.flatten(0, 1) for x in xs), Steps(T)), y_seq.flatten(0, 1))


@every
@pytest.mark.parametrize("change", ["shape", "dtype", "narrow dtype", "device"])
def test_changed_input_raises_until_reset(
    make: Callable[[], Stateful], shapes: list[tuple[int, ...]], change: str
) -> None:
    module = make()
    xs = [x[0] for x in sequences(shapes, dtype=torch.float32)]
    other = {
        "shape": [x[:2] for x in xs],
        "dtype": [x.double() for x in xs],
        "narrow dtype": [x.bfloat16() for x in xs],  # has the same float32 state
        "device": [x.to("meta") for x in xs],
    }[change]
    first = module(*xs)
    with pytest.raises(StateError, match="reset it"):
        module(*other)
    module.reset()
    if change != "device":
        module(*other)
        module.reset()
    assert torch.equal(module(*xs), first)


@every
def test_copies_start_anew_and_state_stays_out_of_state_dict(
    make: Callable[[], Stateful], shapes: list[tuple[int, ...]]
) -> None:
    module, xs = make(), sequences(shapes)
    keys = set(module.state_dict())
    first = module(*(x[0].requires_grad_() for x in xs))
    second = copy.deepcopy(module)(*(x[0] for x in xs))
    assert torch.equal(second, first)
    assert module.t == 1
    assert set(module.state_dict()) == keys
    assert torch.equal(pickle.loads(pickle.dumps(module))(*(x[0] for x in xs)), first)
    module.to(torch.float64)
    assert module.t == 0
    assert not state(module)
    assert torch.equal(module(*(x[0] for x in xs)), first)


@every
def test_two_modules_do_not_disturb_each_other(make: Callable[[], Stateful], shapes: list[tuple[int, ...]]) -> None:
    a, b, alone = make(), make(), make()
    xs, ys = sequences(shapes), sequences(shapes)
    expected = [alone(*(x[t] for x in xs)) for t in range(T)]
    for t in range(T):
        assert torch.equal(a(*(x[t] for x in xs)), expected[t])
        b(*(y[t] for y in ys))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_state_is_wide_and_output_as_given(
    make: Callable[[], Stateful], shapes: list[tuple[int, ...]], dtype: torch.dtype
) -> None:
    module = make()
    assert module(*(x[0] for x in sequences(shapes, dtype=dtype))).dtype == dtype
    assert all(s.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) for s in state(module))


@every
def test_inference_mode_may_change_midway(make: Callable[[], Stateful], shapes: list[tuple[int, ...]]) -> None:
    module, xs = make(), sequences(shapes)
    with torch.no_grad():
        expected = [module(*(x[t] for x in xs)) for t in range(3)]
    module.reset()
    with torch.inference_mode():
        assert torch.equal(module(*(x[0] for x in xs)), expected[0])
    with torch.no_grad():
        assert torch.equal(module(*(x[1] for x in xs)), expected[1])
    assert torch.equal(module(*(x[2].requires_grad_() for x in xs)), expected[2])


@every
def test_outputs_and_inputs_belong_to_the_caller(make: Callable[[], Stateful], shapes: list[tuple[int, ...]]) -> None:
    module, xs = make(), sequences(shapes)
    kept = [x.clone() for x in xs]
    with torch.no_grad():
        expected = [module(*(x[t] for x in xs)).clone() for t in range(T)]
        module.reset()
        for t in range(T):
            y = module(*(x[t] for x in xs))
            assert torch.equal(y, expected[t])
            y.fill_(9)  # as an in-place activation behind the module would
    assert all(torch.equal(x, k) for x, k in zip(xs, kept, strict=True))


def test_bad_calls_say_what_to_do() -> None:
    module = Differential(torch.mul, inputs=2)
    with pytest.raises(ValueError, match="was given 1 inputs; it takes 2"):
        module(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"int64.*\.float\(\)"):
        module(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="list"):
        module([1.0], torch.zeros(2, 3))
    with pytest.raises(ValueError, match="step_mode='x'"):
        module.step_mode = "x"
    with pytest.raises(ValueError, match="step_mode='x'"):
        SpikingMaxPool2d(2, step_mode="x")
    module.step_mode = "m"
    with pytest.raises(ValueError, match=r"sequences of \[2, 3\] steps"):
        module(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"sequences of \[0\] steps"):
        module(torch.zeros(0, 3), torch.zeros(0, 3))

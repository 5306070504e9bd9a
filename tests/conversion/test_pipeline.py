"""What convert promises its caller: clear refusals, an untouched network, and data in every usual form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import conversion_ext as cx


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)
    )


X = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return torch.relu(self.inner(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 5), nn.Linear(2, 5), nn.Linear(5, 2)

    def forward(self, a, b):
        return self.head(torch.relu(self.a(a) + self.b(b)))


BAD = {
    "no calibration": (small, {}, cx.CalibrationError, "pass a tensor"),
    "empty loader": (small, {"calibration": []}, cx.CalibrationError, "no batch"),
    "one-shot iterator": (small, {"calibration": iter([X])}, cx.CalibrationError, "one-shot"),
    "nan": (small, {"calibration": [X, X / 0 * 0]}, cx.CalibrationError, "NaN"),
    "empty batch": (small, {"calibration": X[:0]}, cx.CalibrationError, "empty"),
    "wrong device": (small, {"calibration": X.to("meta")}, cx.CalibrationError, "meta"),
    "wrong dtype": (small, {"calibration": X.double()}, cx.CalibrationError, "float64"),
    "integers": (small, {"calibration": (X * 255).byte()}, cx.CalibrationError, "uint8"),
    "no activation": (lambda: nn.Linear(4, 2), {"calibration": torch.rand(2, 4)}, cx.UnsupportedError, "no activation"),
    "untraceable": (Untraceable, {"calibration": torch.rand(2, 4)}, cx.UnsupportedError, "skip="),
    "unknown recipe": (small, {"calibration": X, "recipe": "no such"}, cx.errors.UnknownNameError, "default"),
    "recipe class": (small, {"calibration": X, "recipe": cx.Recipe}, TypeError, "Recipe"),
    "unknown backend": (small, {"calibration": X, "backend": "no such"}, cx.errors.UnknownNameError, "reference"),
    "T zero": (small, {"calibration": X, "T": 0}, ValueError, ">= 1"),
    "T float": (small, {"calibration": X, "T": 2.5}, ValueError, "integer"),
    "unknown skip": (small, {"calibration": X, "skip": ("nowhere",)}, ValueError, "nowhere"),
    "dict without input": (small, {"calibration": [{"label": X}]}, cx.CalibrationError, "forward="),
    "data-free without shapes": (
        small, {"recipe": cx.Recipe(cx.normalizers.ModelBased())}, cx.CalibrationError, "example_input",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_the_network_stays(case):
    build, options, error, words = BAD[case]
    ann = build()
    before, flags = copy.deepcopy(ann.state_dict()), [m.training for m in ann.modules()]
    options = dict(options)
    with pytest.raises(error, match=words) as caught:
        cx.convert(ann, options.pop("calibration", None), **{"backend": "reference", "progress": False, **options})
    assert 20 < len(str(caught.value)) < 600
    assert all(torch.equal(a, b) for a, b in zip(before.values(), ann.state_dict().values(), strict=True))
    assert flags == [m.training for m in ann.modules()]


@pytest.mark.parametrize("p", [-1, 0, 100.5, float("nan"), "99.9%"])
def test_a_bad_percentile_is_refused(p):
    with pytest.raises((ValueError, TypeError), match="p"):
        cx.Percentile(p)


def test_not_a_module():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        cx.convert("net", X)


def test_conversion_leaves_the_network_as_it_was():
    """Law 1: state dict, flags, hooks, requires_grad, device."""
    ann = small().train()
    ann[0].weight.requires_grad_(False)
    calls = []
    ann[2].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(ann.state_dict())
    snn = cx.convert(ann, X, backend="reference", progress=False)
    cx.check(ann, X)
    cx.simulate(snn, X, 3)
    assert all(m.training for m in ann.modules())
    assert not ann[0].weight.requires_grad
    assert len(calls) == 2  # convert and check ran it once each, as its user does
    assert len(ann[2]._forward_hooks) == 1
    assert all(torch.equal(a, b) for a, b in zip(before.values(), ann.state_dict().values(), strict=True))
    shared = {p.data_ptr() for p in ann.parameters()} & {p.data_ptr() for p in snn.parameters()}
    assert not shared  # training the copy must not train the original


@pytest.mark.parametrize(
    "data",
    [
        X,
        [X[:4], X[4:]],
        (X, torch.zeros(8, dtype=torch.long)),
        DataLoader(TensorDataset(X, torch.zeros(8)), batch_size=3),
        [{"image": X, "label": 0}],
        [[X]],
    ],
    ids=["tensor", "list", "pair", "loader", "dict", "nested"],
)
def test_calibration_takes_what_loaders_yield(data):
    expected = cx.convert(small_seeded(), X, backend="reference", progress=False).conversion.thresholds["2"]
    found = cx.convert(small_seeded(), data, backend="reference", progress=False).conversion
    assert torch.equal(found.thresholds["2"], expected)
    assert found.samples == 8


def small_seeded() -> nn.Sequential:
    torch.manual_seed(3)
    return small()


def test_several_inputs_through_forward():
    ann = TwoInputs().double()
    a, b = torch.rand(6, 3).double(), torch.rand(6, 2).double()
    snn = cx.convert(
        ann, [(a, b, 0)], backend="reference", progress=False, forward=lambda model, batch: model(*batch[:2])
    )
    result = cx.simulate(snn, (a, b), 4096, at=(4096,))
    torch.testing.assert_close(result.output, ann(a, b), rtol=0, atol=2e-3)


def test_skip_keeps_a_subtree_analog():
    ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Untraceable_(), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(6, 4).double()
    with pytest.raises(cx.UnsupportedError, match="2"):
        cx.convert(ann, x, backend="reference", progress=False)
    snn = cx.convert(ann, x, backend="reference", progress=False, skip=("2",))
    assert [row.kind for row in snn.conversion.table()].count("Differential") == 1
    result = cx.simulate(snn, x, 4096, at=(4096,))
    torch.testing.assert_close(result.output, ann(x), rtol=0, atol=2e-3)


class Untraceable_(nn.Module):  # noqa: N801
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 4)

    def forward(self, x):
        if x.sum() > 1e9:
            x = -x
        return torch.tanh(self.inner(x))


def test_sites_of_one_current_share_a_threshold():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            z = self.stem(x)
            return self.one(torch.relu(z)) + self.two(torch.clamp(z, 0, 0.5))

    snn = cx.convert(Fork(), torch.randn(50, 4), backend="reference", progress=False)
    relu, clamp = snn.conversion.thresholds.values()
    assert torch.equal(relu.clamp(max=0.5), clamp)


def test_simulate_and_evaluate_refuse_what_they_cannot_run():
    snn = cx.convert(small(), X, backend="reference", progress=False)
    for call, words in [
        (lambda: cx.simulate(snn, X), "T=None"),
        (lambda: cx.simulate(snn, X, 0), "integer >= 1"),
        (lambda: cx.simulate(snn, X, 4, at=(5,)), "from 1 to T=4"),
        (lambda: cx.simulate(snn, X, 4, record=("voltage",)), "potential"),
        (lambda: cx.simulate(snn, X, 4, x_seq=X), "either"),
        (lambda: cx.simulate(snn, X / 0, 4), "NaN"),
        (lambda: cx.evaluate(snn, [X], 4, progress=False), "target"),
        (lambda: cx.evaluate(snn, [], 4, progress=False), "no batch"),
        (lambda: cx.evaluate(snn, (X, torch.zeros(8, dtype=torch.long)), 4, progress=False).latency(), "ann="),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="convert"):
        cx.simulate(nn.ReLU(), X, 4)


def test_evaluate_counts_what_simulate_shows():
    torch.manual_seed(1)
    ann, snn = small_seeded().eval(), cx.convert(small_seeded(), X, backend="reference", progress=False)
    labels = torch.randint(0, 3, (8,))
    result = cx.evaluate(snn, [(X[:5], labels[:5]), (X[5:], labels[5:])], 6, ann=ann, progress=False)
    decided = cx.simulate(snn, X, 6).outputs.argmax(2)
    assert result.accuracy.tolist() == [(row == labels).double().mean().item() for row in decided]
    expected = ann(X).argmax(1)
    assert result.agreement is not None
    assert result.ann_accuracy is not None
    assert result.agreement.tolist() == [(row == expected).double().mean().item() for row in decided]
    assert result.ann_accuracy == (expected == labels).double().mean().item()
    reached = [t for t, a in zip(result.at, result.accuracy, strict=True) if a >= result.ann_accuracy - 0.01]
    assert result.latency(0.01) == (reached[0] if reached else None)
    assert result.firing_rate["2"] == pytest.approx(cx.simulate(snn, X, 6).firing_rate["2"].mean().item())


def test_nothing_is_converted_silently():
    """Functional and method activations are sites too, and their number is what the network applies."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()

        def forward(self, x):
            x = nn.functional.relu(self.a(x))
            x = self.act(self.b(x)).mul(2.0)
            x = self.act(self.b(x)).relu()
            return self.c(x).clamp(min=0)

    snn = cx.convert(Hidden(), torch.randn(9, 4), backend="reference", progress=False)
    assert list(snn.conversion.thresholds) == ["relu", "act", "act#1", "clamp"]


def test_check_lists_what_passes_refuse_beside_the_rest():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            x = nn.functional.dropout(torch.relu(self.inner(x)), training=True)
            return torch.sort(x, 1)[0]

    assert {p.path for p in cx.check(Both(), torch.rand(2, 4))} == {"dropout", "sort"}
    with pytest.raises(cx.UnsupportedError) as caught:
        cx.convert(Both(), torch.rand(2, 4), backend="reference")
    assert len(caught.value.problems) == 2


def test_a_wrong_shape_is_one_sentence():
    with pytest.raises(cx.UnsupportedError, match=r"5: fails on an example of shape \[2, 1, 9, 9\]"):
        cx.convert(small(), torch.rand(2, 1, 9, 9), backend="reference")


def test_check_names_place_line_reason_and_remedy():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.both = nn.Bilinear(4, 4, 2)

        def forward(self, x):
            x = torch.sort(self.inner(x), 1)[0]
            return self.both(x, x)

    problems = cx.check(Odd(), torch.rand(2, 4))
    assert [p.path for p in problems] == ["sort", "both"]
    assert all(p.reason and p.remedy for p in problems)
    assert "test_pipeline.py" in problems[0].line
    assert "sort" in problems[0].line
    assert cx.check(small(), X) == []
    assert cx.check(small()) == []


def test_what_is_random_in_a_network_is_seeded_by_the_generator_given():
    """Never by torch's own: two conversions alike draw alike, and nobody else's numbers change."""
    ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(1))
    x = torch.rand(16, 4)

    def counts(seed: int | None) -> torch.Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        recipe = cx.Recipe(cx.Maximum(), softmax="poisson")
        snn = cx.convert(ann, x, recipe=recipe, generator=generator, backend="reference", progress=False)
        return cx.simulate(snn, x, 5).output

    state = torch.get_rng_state()
    assert torch.equal(counts(None), counts(0))
    assert torch.equal(counts(3), counts(3))
    assert not torch.equal(counts(3), counts(4))
    assert torch.equal(torch.get_rng_state(), state)


class Rows(TorchDispatchMode):
    """Counts the samples that go through the convolutions, meta tensors left out."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default and not args[0].is_meta:
            self.rows += len(args[0])
        return func(*args, **(kwargs or {}))


def test_the_example_runs_few_times():
    """As the network, as the graph, rewritten, to see samples apart and to calibrate: once each, and not for shapes."""
    ann, x = (
        nn.Sequential(small(), nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten()).eval(),
        X[:1],
    )
    for work, most in ((lambda: cx.check(ann, x), 4), (lambda: cx.convert(ann, x, progress=False), 5)):
        with Rows() as counted:
            work()
        assert 2 * 1 < counted.rows <= 2 * most

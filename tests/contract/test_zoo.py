"""The laws on every family of convolutional networks in torchvision, and on five that timm's authors wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.types import Family
from tests import laws, zoo
from tests.live import live, tensors_of

pytest.importorskip("torchvision")
pytest.importorskip("timm")


PER_CHANNEL = cx.Recipe(cx.Maximum(granularity=cx.PerChannel()))
PER_LAYER = cx.Recipe(cx.Maximum())
SPIKES = (Family.BINARY, Family.SIGNED)
# SiLU, Hardswish, GELU, LayerNorm, sigmoid gates and softmax weights are not positively homogeneous.
GRADED = {"mobilenet_v3", "efficientnet", "efficientnet_v2", "regnet_y", "convnext", "ghostnet", "sknet"}


class Case(NamedTuple):
    name: str
    ann: nn.Module
    x: Tensor
    snn: Any


def network(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a live network, two samples to evaluate it on, and four others for calibration, so that some clip."""
    ann, x = live(name, samples=6, seed=5, dtype=dtype)
    x, calibration = x.split((2, 4))
    return ann, x, calibration


def converted(ann: nn.Module, calibration: Tensor, recipe: cx.Recipe = PER_CHANNEL, **options: Any) -> Any:
    return cx.convert(ann, calibration, recipe=recipe, progress=False, **{"backend": "reference", **options})


@pytest.fixture(scope="module", params=zoo.FAMILIES)
def family(request: pytest.FixtureRequest) -> Case:
    ann, x, calibration = network(request.param)
    return Case(request.param, ann, x, converted(ann, calibration))


def test_every_site_conserves_what_it_is_given(family):
    laws.assert_sites_exact(family.snn, (family.x,), T=16)


def test_the_whole_is_the_ann_of_its_rates(family):
    laws.assert_is_ann_of_rates(family.ann, family.snn, (family.x,), T=16)


def test_the_table_says_what_weights_see_and_what_is_graded(family):
    laws.assert_table_is_what_weights_see(family.snn, family.x, T=8)
    refused = cx.check(family.ann, family.x, graded=False)
    assert bool(refused) == (family.name in GRADED)
    assert all("graded" in problem.reason and problem.remedy for problem in refused)
    operations = [row for row in family.snn.conversion.table() if row.kind not in ("synapse", "shortcut", "scale")]
    assert [problem.path for problem in refused] == [row.key for row in operations if row.emits is Family.GRADED]


@pytest.mark.parametrize("name", ["mobilenet_v3", "convnext"])
def test_refusing_what_is_graded_names_all_of_it(name):
    ann, x, calibration = network(name)
    with pytest.raises(cx.UnsupportedError) as error:
        converted(ann, calibration, graded=False)
    assert list(error.value.problems) == cx.check(ann, x, graded=False)
    assert all(problem.path in str(error.value) for problem in error.value.problems)


@pytest.mark.parametrize("options", [{"recipe": PER_LAYER}, {"fold": False}], ids=["per layer", "unfolded"])
@pytest.mark.parametrize("name", ["resnet", "densenet", "shufflenet_v2", "mobilenet_v3"])
def test_laws_hold_per_layer_and_unfolded(name, options):
    ann, x, calibration = network(name)
    snn = converted(ann, calibration, **options)
    laws.assert_sites_exact(snn, (x,), T=16)
    laws.assert_is_ann_of_rates(ann, snn, (x,), T=16)


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet", "resnet", "efficientnet"])
def test_with_relays_every_weight_but_the_first_sees_spikes(name):
    ann, x, calibration = network(name)
    snn = converted(ann, calibration, relay=True)
    image, *later = [row for row in snn.conversion.table() if row.kind in ("synapse", "shortcut")]
    assert image.sees is Family.ANALOG
    assert [row.key for row in later if row.sees not in SPIKES] == []
    laws.assert_sites_exact(snn, (x,), T=16)
    laws.assert_table_is_what_weights_see(snn, x, T=8)


def test_what_meets_the_input_sees_its_mean_over_time_not_its_frames():
    """Where nothing spikes, a sequence of frames gives exactly what the ANN makes of their mean, at every step."""
    ann = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Flatten(), nn.Linear(96, 5)).double()
    x_seq = torch.randn(12, 2, 3, 12, 12, dtype=torch.float64)
    outputs = cx.simulate(converted(ann, x_seq[0]), x_seq=x_seq).outputs
    with torch.no_grad():
        expected = torch.stack([ann(x_seq[:t].mean(0)) for t in range(1, 13)])
        per_frame = torch.stack([ann(x) for x in x_seq]).mean(0)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(outputs[-1], per_frame, rtol=0.1)


def test_a_broken_operator_fails_these_tests():
    """Stock pooling of spikes (method "instant") in GoogLeNet, the rest as it should be."""
    ann, x, calibration = network("googlenet")
    snn = converted(ann, calibration, replace(PER_CHANNEL, max_pool="instant"))
    with pytest.raises(AssertionError, match="maxpool"):
        laws.assert_sites_exact(snn, (x,), T=16)
    with pytest.raises(AssertionError, match="relative error"):
        laws.assert_is_ann_of_rates(ann, snn, (x,), T=16)


def spikes(snn: nn.Module, sites: dict[str, nn.Module], run: Callable[[], object], T: int) -> dict[str, Tensor]:
    """Return {site: spikes [T, N, ...]} that hooks see during ``run``, whatever framework drives it."""
    seen: dict[str, list[Tensor]] = {key: [] for key in sites}
    handles = [m.register_forward_hook(lambda m, a, out, key=key: seen[key].append(out)) for key, m in sites.items()]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return {key: torch.cat(parts).unflatten(0, (T, -1)) for key, parts in seen.items()}


def stepwise(snn: nn.Module, x_seq: Tensor) -> None:
    for x in x_seq:
        snn(x)


def drive(backend: str, snn: Any, mode: str, x_seq: Tensor) -> dict[str, Tensor]:
    """Run ``snn`` as users of its framework do, and return its spikes."""
    if backend == "spikingjelly":
        from spikingjelly.activation_based import functional

        functional.set_step_mode(snn, mode)
        functional.reset_net(snn)
    else:
        cx.reset(snn)
        snn.step_mode = mode
    run = (lambda: snn(x_seq)) if mode == "m" else (lambda: stepwise(snn, x_seq))
    return spikes(snn, snn.sites(), run, len(x_seq))


MODES = [("spikingjelly", "s"), ("spikingjelly", "m"), ("snntorch", "s")]


@pytest.mark.parametrize(("backend", "mode"), [mode for mode in MODES if mode[0] in available()])
@pytest.mark.parametrize("name", ["resnet", "squeezenet", "mobilenet_v3"])
def test_frameworks_equal_the_reference_spike_for_spike(name, backend, mode):
    ann, x, calibration = network(name, torch.float32)
    x_seq = x.expand(8, *x.shape).contiguous()
    expected = drive("reference", converted(ann, calibration), mode, x_seq)
    snn = converted(ann, calibration, backend=backend)
    for _ in range(2):  # the second time after a reset
        found = drive(backend, snn, mode, x_seq)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert sum(float(s.sum()) for s in expected.values()) > 1000


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.lstm(x)[0][:, -1]))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if x.sum() > 0:
            x = 2 * x
        return self.head(x)


class Steered(nn.Module):
    """Numbers from shapes, as a divisor and as an argument of a graded function: constants, as the example has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x) / x.shape[1] ** 0.5)
        return self.head(nn.functional.layer_norm(x, x.shape[1:]))


UNSUPPORTED = {
    "recurrent": (Recurrent, (5, 4), ["lstm"], "self.lstm(x)"),
    "branching": (Branching, (4,), ["Branching"], "if x.sum() > 0"),
}  # fmt: skip


class Untouched:
    """Calibration data that nobody may ask for."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("calibration began")


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_said_before_calibration(name):
    build, shape, paths, line = UNSUPPORTED[name]
    ann, x = build().eval(), torch.randn(2, *shape)
    problems = cx.check(ann, x)
    assert [problem.path for problem in problems] == paths
    assert all(problem.reason and "skip=" in problem.remedy and line in problem.line for problem in problems)
    with pytest.raises(cx.UnsupportedError) as error:
        cx.convert(ann, Untouched(), example_input=x, progress=False)
    assert list(error.value.problems) == problems
    assert all(path in str(error.value) for path in paths)


def test_numbers_from_shapes_are_constants():
    assert cx.check(Steered().eval(), torch.randn(2, 4)) == []


def test_what_is_kept_analog_must_return_one_tensor():
    (problem,) = cx.check(Recurrent().eval(), torch.randn(2, 5, 4), skip=("lstm",))
    assert problem.path == "lstm"
    assert "several values" in problem.reason


CHEAP = ["resnet", "vgg_bn", "squeezenet", "densenet", "googlenet", "mobilenet_v2", "mobilenet_v3", "shufflenet_v2",
         "regnet_x", "regnet_y", "repvgg", "ghostnet"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [*zoo.SMALL, *CHEAP])
def test_the_error_falls_as_one_over_T(name):
    """Law 9b: four times the steps leave at most 0.45 of the error where nothing is clipped."""
    small, large = errors(name)
    assert 0 < large <= 0.45 * small


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet", "mobilenet_v2", "efficientnet", "efficientnet_v2", "convnext"])
def test_the_error_falls_as_one_over_T_with_relays(name):
    small, large = errors(name, relay=True)
    assert 0 < large <= 0.45 * small


def errors(name: str, **options: Any) -> tuple[float, float]:
    """Return the relative errors of the output after 256 and 1,024 steps, thresholds from the very same samples."""
    ann, _, x = network(name)
    snn = converted(ann, x, PER_LAYER, **options)
    with torch.no_grad():
        expected = torch.cat([leaf.flatten() for leaf in tensors_of(ann(x))])
    outputs = tensors_of(cx.simulate(snn, x, 1024, at=(256, 1024)).outputs)
    found = torch.cat([leaf.flatten(1) for leaf in outputs], 1)
    small, large = ((found - expected).norm(dim=1) / expected.norm()).tolist()
    return small, large

"""Activations trained for spikes: QCFS and SoftLIF alone, as sites of a conversion, and put in the place of ReLUs."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.data import load
from conversion_ext.demo.demo import network as network_of_the_demo
from conversion_ext.demo.demo import train
from conversion_ext.neurons import RefractoryLIF
from conversion_ext.nn import QCFS, SoftLIF
from conversion_ext.normalizers import Trained
from conversion_ext.recipes import max_to_average, replace_relu
from conversion_ext.types import Family
from tests import zoo

ORDERS = ("clamp-floor", "floor-clamp")
X = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(*activations: nn.Module) -> nn.Sequential:
    first, second = activations
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), first, nn.Flatten(), nn.Linear(64, 8), second, nn.Linear(8, 3)
    ).double()  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("levels", [1, 3, 8])
def test_qcfs_is_the_count_law_and_leaves_its_own_values_alone(order, levels):
    threshold = 1.75
    x = torch.linspace(-1, 3, 403, dtype=torch.float64)
    h = QCFS(levels, threshold, order).double()
    expected = [threshold / levels * min(max(math.floor(levels * v / threshold + 0.5), 0), levels) for v in x.tolist()]
    torch.testing.assert_close(h(x), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(h(h(x)), h(x))


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_of_qcfs_are_those_that_its_text_says(order):
    L, scale = 4, 2.0
    h = QCFS(L, scale, order).double()
    x = torch.linspace(-1.03, 3.01, 200, dtype=torch.float64, requires_grad=True)
    margin = 0.0 if order == "clamp-floor" else scale / (2 * L)
    inside, above = (x >= -margin) & (x < scale + margin), x >= scale + margin
    for n in range(0, 200, 7):
        gx, gt = torch.autograd.grad(h(x)[n], (x, h.threshold))
        assert gx[n] == float(inside[n])
        expected = (h(x)[n] - x[n]) / scale if inside[n] else float(above[n])
        torch.testing.assert_close(gt, torch.as_tensor(expected, dtype=torch.float64).detach())


def test_soft_lif_is_the_published_curve():
    """The values that algorithms.md lists for the authors' defaults."""
    listed = [0.03, 0.29, 1.55, 2.55, 3.51, 4.43, 5.32, 6.18, 7.01, 7.82, 8.61, 9.37]
    found = SoftLIF()(torch.arange(-1.0, 11.0))
    assert [round(v, 2) for v in found.tolist()] == pytest.approx(listed, abs=0.011)


def test_soft_lif_tends_to_the_rate_of_lif():
    x = torch.linspace(-1, 10, 331, dtype=torch.float64)  # 0 among them, where the gap is largest
    j = 0.825 * x + 1
    hard = torch.where(j > 1, 0.063 / (0.001 + 0.05 * torch.log1p(1 / (j - 1).clamp_min(1e-300))), 0.0)
    gaps = [float((SoftLIF(gamma=g)(x) - hard).abs().max()) / 0.063 for g in (0.1, 0.02, 0.001)]
    assert gaps == pytest.approx([7.3, 4.6, 2.7], abs=0.15)  # Hz, as listed in algorithms.md


def test_the_derivative_of_soft_lif_is_that_of_finite_differences_and_never_nan():
    x = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SoftLIF().double(), x)
    for dtype in (torch.float32, torch.float64):
        far = torch.tensor([-1e6, -1e3, -1.0, 0.0, 1e3, 1e6], dtype=dtype, requires_grad=True)
        (gradient,) = torch.autograd.grad(SoftLIF()(far).sum(), far)
        assert gradient.isfinite().all()
        assert (gradient >= 0).all()


def test_noise_is_added_in_training_where_the_neuron_is_active():
    module, x = SoftLIF(noise=10.0), torch.tensor([-0.5, 5.0]).repeat(40_000, 1)
    assert torch.equal(module.eval()(x), SoftLIF()(x))
    noisy = module.train()(x) - SoftLIF()(x)
    assert (noisy[:, 0] == 0).all()
    assert noisy[:, 1].std() == pytest.approx(0.063 * 10.0, rel=0.03)
    assert noisy[:, 1].mean() == pytest.approx(0.0, abs=0.02)
    assert (module(torch.full((40_000,), 0.01)) >= 0).all()


@pytest.mark.parametrize("fold", [True, False])
def test_a_qcfs_network_keeps_its_thresholds_and_its_first_layer_is_exact_after_l_steps(fold):
    ann = network(QCFS(4, 0.5), QCFS(4, 0.375))
    for recipe in (cx.Recipe(Trained()), cx.Recipe(cx.Percentile(50.0))):  # nothing of it is left to the normalizer
        snn = cx.convert(ann, X, recipe=recipe, fold=fold, backend="reference", progress=False)
        assert {k: float(v) for k, v in snn.conversion.thresholds.items()} == {"1": 0.5, "4": 0.375}
        rate = cx.simulate(snn, X, 4).firing_rate["1"]
        torch.testing.assert_close(0.5 * rate, ann[:2](X))
        assert 0 < rate.mean() < 1
    error = [(cx.simulate(snn, X, T, at=(T,)).output - _smooth(ann)(X)).abs().max() for T in (64, 4096)]
    assert error[1] < 0.1 * error[0]


def _smooth(ann: nn.Sequential) -> nn.Sequential:
    """The network with its quantization taken away, to which many steps converge: a ReLU clipped at the threshold."""
    ann = copy.deepcopy(ann)
    for n, module in enumerate(ann):
        if isinstance(module, QCFS):
            ann[n] = nn.Hardtanh(0.0, module.threshold.item())
    return ann


@pytest.mark.parametrize("fold", [True, False])
def test_a_soft_lif_network_becomes_lif_neurons_of_the_same_rate(fold):
    ann = network(SoftLIF(gamma=1e-3), SoftLIF(gamma=1e-3)).double()
    ann[0].get_parameter("weight").data.mul_(4)
    snn = cx.convert(ann, X, fold=fold, backend="reference", progress=False)
    assert all(float(v) == pytest.approx(63.0) for v in snn.conversion.thresholds.values())
    assert isinstance(snn.sites()["1"].spec, RefractoryLIF)
    rate = cx.simulate(snn, X, 4000, at=(4000,)).firing_rate["1"]
    hard = _hard_lif(ann[0](X))
    assert (63.0 * rate - hard).abs().max() <= 63.0 / 4000 + 1e-9
    assert (hard > 0).double().mean() > 0.3


def _hard_lif(x):
    j = 0.825 * x + 1
    return torch.where(j > 1, 0.063 / (0.001 + 0.05 * torch.log1p(1 / (j - 1).clamp_min(1e-300))), 0.0)


def test_the_neuron_of_soft_lif_goes_behind_the_filter_of_the_recipe():
    ann = network(SoftLIF(), nn.ReLU())
    recipe = cx.Recipe(cx.Maximum(), cx.neurons.Filtered(cx.IF(), tau=3.0))
    specs = [
        site.spec for site in cx.convert(ann, X, recipe=recipe, backend="reference", progress=False).sites().values()
    ]
    assert specs == [cx.neurons.Filtered(ann[1].site_neuron, tau=3.0), cx.neurons.Filtered(cx.IF(), tau=3.0)]


def test_bursts_divide_the_threshold_of_qcfs_and_not_that_of_soft_lif():
    ann = network(QCFS(4, 0.5), SoftLIF())
    recipe = cx.Recipe(Trained(), cx.neurons.BurstIF(5), family=Family.MULTI_LEVEL)
    found = cx.convert(ann, example_input=X, recipe=recipe, backend="reference", progress=False).conversion.thresholds
    assert [float(v) for v in found.values()] == pytest.approx([0.1, 63.0])


def test_two_qcfs_of_one_current_keep_a_threshold_each():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.a, self.b, self.head = nn.Linear(3, 4), QCFS(4, 0.5), QCFS(4, 2.0), nn.Linear(4, 2)

        def forward(self, x):
            z = self.one(x)
            return self.head(self.a(z) + self.b(z))

    ann, x = Two().double(), torch.rand(6, 3).double()
    snn = cx.convert(ann, x, recipe=cx.Recipe(Trained()), backend="reference", progress=False)
    assert [float(v) for v in snn.conversion.thresholds.values()] == [0.5, 2.0]
    torch.testing.assert_close(cx.simulate(snn, x, 4).output, ann(x))  # one layer, T = L: exact


def test_trained_thresholds_are_caps_and_nothing_else():
    ann = network(nn.ReLU6(), nn.Hardtanh(0.0, 2.0))
    snn = cx.convert(ann, example_input=X, recipe=cx.Recipe(Trained()), backend="reference", progress=False)
    assert [float(v) for v in snn.conversion.thresholds.values()] == [6.0, 2.0]
    with pytest.raises(cx.UnsupportedError, match=r"1: it has no threshold of its own.*QCFS"):
        cx.convert(network(nn.ReLU(), nn.ReLU6()), example_input=X, recipe=cx.Recipe(Trained()), progress=False)


def test_a_threshold_that_is_not_positive_is_refused():
    ann = network(QCFS(), QCFS())
    ann[1].threshold.data.fill_(-0.1)
    with pytest.raises(ValueError, match=r"threshold of -0\.1"):
        cx.convert(ann, X, backend="reference", progress=False)


@pytest.mark.parametrize("name", ["functional", "residual"])
def test_replaced_activations_of_fine_resolution_leave_the_function(name):
    build, shape = zoo.SMALL[name]
    ann = build().double().eval()
    x = torch.rand(4, *shape, dtype=torch.float64)
    before = copy.deepcopy(ann.state_dict())
    ready = replace_relu(ann, partial(QCFS, levels=2**20), x, p=100.0)
    torch.testing.assert_close(ready(x), ann(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), ann.state_dict().values(), strict=True))
    # A ReLU of what is not negative is a ReLU here, and deleted in a conversion.
    assert sum(isinstance(m, QCFS) for m in ready.modules()) == {"functional": 4, "residual": 5}[name]


def test_a_replaced_network_trains_and_converts():
    torch.manual_seed(0)
    x = torch.rand(200, 8)
    y = (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()
    act = nn.ReLU()
    ann = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), act, nn.Linear(32, 32), act, nn.Linear(32, 2))
    ready = replace_relu(ann.train(), partial(QCFS, levels=4), x)
    assert ready.training
    assert sum(isinstance(m, QCFS) for m in ready.modules()) == 2  # the module called twice is two sites
    optimizer = torch.optim.Adam(ready.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(ready(x), y).backward()
        optimizer.step()
    accuracy = (ready.eval()(x).argmax(1) == y).float().mean()
    assert accuracy > 0.95
    snn = cx.convert(ready, recipe=cx.Recipe(Trained()), example_input=x, backend="reference", progress=False)
    learned = [m.threshold.item() for m in ready.modules() if isinstance(m, QCFS)]
    assert [float(v) for v in snn.conversion.thresholds.values()] == pytest.approx(learned)
    assert cx.evaluate(snn, [(x, y)], 8, progress=False).accuracy[-1] > accuracy - 0.05


@pytest.mark.slow
def test_fine_tuning_with_qcfs_before_conversion_pays_at_few_steps():
    """The third route: ReLUs become QCFS, two epochs, conversion; beside the ANN trained on as long and converted.

    Means of three seeds: the sign of the difference of single ones depends on the processor.
    """
    found = torch.stack([_routes(seed) for seed in range(3)]).mean(0)
    qcfs, control, untrained = found
    assert (qcfs[:2] > control[:2]).all(), found
    assert qcfs[1] > untrained[1], found


def _routes(seed):
    """Return accuracies [3, 4] after 1 to 4 steps: trained with QCFS, trained with ReLU, not trained on."""
    torch.manual_seed(seed)
    data = load("digits")
    (x, y), calibration = data.test.tensors, data.calibration.tensors[0]
    ann = network_of_the_demo()
    train(ann, data.train, epochs=4, progress=False)
    recipe = cx.recipes.get("bu2022_opi")
    start = cx.convert(ann, calibration, recipe=recipe, backend="reference", progress=False)
    ready = replace_relu(ann.train(), partial(QCFS, levels=4), calibration)
    before = cx.convert(ready, example_input=x, recipe="bu2022", backend="reference", progress=False)
    same = (list(snn.conversion.thresholds.values()) for snn in (before, start))
    torch.testing.assert_close(*same)  # training starts from what is converted without it
    networks = []
    for trained, name in ((ready, "bu2022"), (ann, recipe)):
        train(trained, data.train, epochs=2, progress=False)
        networks.append(cx.convert(trained, calibration, recipe=name, backend="reference", progress=False))
    found = torch.stack([cx.evaluate(snn, [(x, y)], 4, progress=False).accuracy for snn in (*networks, start)])
    accuracy = (ready(x).argmax(1) == y).double().mean()
    assert found[0, 3] > accuracy - 0.02  # L = 4 levels in T = 4 steps
    return found


def test_max_to_average_warns_and_pools_the_same_windows():
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    with pytest.warns(UserWarning, match=r"train the network anew \(2, 3\)"):
        ready = max_to_average(ann)
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(ready(x), nn.functional.avg_pool2d(ann[:2](x), 2).mean((2, 3)))
    with pytest.raises(cx.UnsupportedError, match="dilated"):
        max_to_average(nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2, dilation=2)))


@pytest.mark.parametrize(
    "bad",
    [lambda: QCFS(0), lambda: QCFS(4, -1.0), lambda: QCFS(order="both"), lambda: SoftLIF(gamma=0),
     lambda: SoftLIF(tau_ref=0.0001), lambda: SoftLIF(noise=-1)],
)  # fmt: skip
def test_bad_values_are_refused(bad):
    with pytest.raises(ValueError, match="="):
        bad()


def test_a_network_without_relu_cannot_be_replaced():
    with pytest.raises(cx.UnsupportedError, match="no ReLU"):
        replace_relu(nn.Linear(2, 2), QCFS)

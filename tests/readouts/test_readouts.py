"""Readouts: each against its closed form, alone and behind a network."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import conversion_ext as cx
from conversion_ext.backends import available
from conversion_ext.readouts.base import Readout
from conversion_ext.readouts.first_spike import FirstSpike
from conversion_ext.readouts.mean_output import MeanOutput
from conversion_ext.readouts.membrane_potential import MembranePotential
from conversion_ext.readouts.population import Population
from conversion_ext.readouts.spike_count import SpikeCount

X = torch.rand(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def decoded(readout: Readout, x_seq: Tensor) -> Tensor:
    """Return the outputs after every step."""
    memory = readout.begin(x_seq[0])
    found = []
    for t, x in enumerate(x_seq, 1):
        memory = readout.step(memory, x, t)
        found.append(readout.decode(memory, t))
    return torch.stack(found)


def linear(weight: list[list[float]]) -> nn.Sequential:
    """Two layers whose hidden activation is the input itself."""
    ann = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, len(weight))).double()
    ann[0].weight.data, ann[0].bias.data = torch.eye(3).double(), torch.zeros(3).double()
    ann[2].weight.data, ann[2].bias.data = torch.tensor(weight).double(), torch.zeros(len(weight)).double()
    return ann


def converted(ann: nn.Module, readout: Readout, **options):
    recipe = cx.Recipe(cx.Maximum(granularity=cx.PerChannel()), readout=readout)
    return cx.convert(ann, X, recipe=recipe, progress=False, **{"backend": "reference", **options})


@pytest.mark.parametrize("start", [0, 3])
def test_the_mean_is_that_of_the_steps_that_count(start):
    x_seq = torch.randn(8, 2, 4)
    found = decoded(MeanOutput(start), x_seq)
    for t in range(1, 9):
        torch.testing.assert_close(found[t - 1], x_seq[start:t].mean(0) if t > start else torch.zeros(2, 4))


@pytest.mark.parametrize("start", [0, 3])
def test_a_count_is_the_number_of_spikes(start):
    x_seq = 2.5 * (torch.rand(8, 2, 4) < 0.4)
    found = decoded(SpikeCount(start), x_seq)
    for t in range(1, 9):
        assert torch.equal(found[t - 1], (x_seq[start:t] > 0).sum(0).float())


def test_the_first_spike_is_the_largest():
    x_seq = torch.zeros(6, 1, 4)
    x_seq[4, 0, 0] = x_seq[1, 0, 1] = x_seq[3, 0, 1] = x_seq[2, 0, 2] = 0.7
    found = decoded(FirstSpike(), x_seq)[:, 0]
    assert found[0].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(found[-1], torch.tensor([1 / 5, 1 / 2, 1 / 3, 0]))
    assert found.argmax(1).tolist() == [0, 1, 1, 1, 1, 1]


def test_first_spikes_that_tie_are_warned_of():
    """Behind a softmax of logits that differ little all neurons spike at once; behind the logits one does."""
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    ann = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Softmax(1))
    recipe = cx.Recipe(cx.Percentile(99.9), cx.IF(), readout=FirstSpike())
    with pytest.warns(UserWarning, match="cannot tell them apart") as seen:
        snn = cx.convert(ann, x, recipe=recipe, progress=False, backend="reference")
    assert any("spike at the first step" in note for note in snn.record.notes)
    number = float(next(str(w.message) for w in seen if "apart" in str(w.message)).split("data ")[1].split()[0])
    assert abs(float((cx.simulate(snn, x, 1).output == 1).sum(1).float().mean()) - number) < 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = linear([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
        cx.convert(single, 0.2 + 0.7 * torch.eye(3).double(), recipe=recipe, progress=False, backend="reference")


@pytest.mark.parametrize("beta", [1.0, 0.75])
def test_a_membrane_is_the_sum_of_what_has_not_leaked(beta):
    x_seq = torch.randn(9, 2, 3, dtype=torch.float64)
    weights = beta ** torch.arange(8, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(decoded(MembranePotential(beta), x_seq)[-1], torch.einsum("t,tnc->nc", weights, x_seq))


def test_a_population_is_the_mean_of_its_members():
    x_seq = torch.randn(5, 2, 12)
    found = decoded(Population(4), x_seq)[-1]
    torch.testing.assert_close(found, torch.stack([x_seq.mean(0)[:, 3 * c : 3 * c + 3].mean(1) for c in range(4)], 1))
    assert Population(4, SpikeCount()).spiking
    with pytest.raises(ValueError, match=r"classes=5.*\[2, 12\] evenly"):
        decoded(Population(5), x_seq)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_memories_are_wide_and_outputs_stay_as_they_were(dtype):
    x_seq = torch.ones(600, 1, 2, dtype=dtype)
    for readout in (MeanOutput(), SpikeCount(), MembranePotential(), Population(1, SpikeCount())):
        memory = readout.begin(x_seq[0])
        memory = readout.step(memory, x_seq[0], 1)
        first = readout.decode(memory, 1)
        kept = first.clone()
        for t in range(2, 601):
            memory = readout.step(memory, x_seq[0], t)
        assert memory[0].flatten()[0] == 600  # bfloat16 would have stopped at 256
        assert torch.equal(first, kept)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("backend", available())
def test_output_neurons_count_what_the_law_says(backend, fold):
    """Against a loop over the recorded spikes of the hidden layer, the output neurons written out by hand."""
    weight = [[1.0, 0.5, -0.25], [0.25, 0.25, 0.25], [-1.0, -1.0, -1.0]]
    snn = converted(linear(weight), SpikeCount(), backend=backend, fold=fold)
    thresholds = snn.conversion.thresholds
    assert thresholds["2.output"].dim() == 0  # counts compare only under one threshold
    found = cx.simulate(snn, X, 64, record=("spikes",))
    v, count = torch.full((6, 3), 0.5, dtype=torch.float64), torch.zeros(6, 3, dtype=torch.float64)
    for t, spikes in enumerate(found.recorded["spikes"]["1"]):
        v += (spikes * thresholds["1"]) @ torch.tensor(weight).double().T / thresholds["2.output"]
        count += v >= 1
        v -= (v >= 1).double()
        assert torch.equal(found.outputs[t], count)
    assert count[:, 2].sum() == 0 < count[:, :2].min()  # an output below 0 is silent


def test_every_readout_decides_as_the_ann_does():
    ann = linear([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.2], [0.2, 0.0, 1.0]])
    x = 0.2 + 0.7 * torch.eye(3).double()
    for readout in (SpikeCount(), FirstSpike(), MeanOutput(), MembranePotential()):
        recipe = cx.Recipe(cx.Maximum(), cx.IF(v_init=0.0), readout=readout)
        snn = cx.convert(ann, x, recipe=recipe, progress=False, backend="reference")
        found = cx.evaluate(snn, [(x, torch.arange(3))], 64, ann=ann, progress=False)
        assert found.accuracy[-1] == found.ann_accuracy == 1


def test_the_membrane_decides_as_the_mean_does():
    ann = linear([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.2]])
    snn = converted(ann, MeanOutput())
    mean, membrane = (cx.simulate(snn, X, 16, readout=r).outputs for r in (MeanOutput(), MembranePotential()))
    torch.testing.assert_close(membrane, mean * torch.arange(1, 17).view(-1, 1, 1))


def test_a_network_that_ends_in_a_relu_has_its_output_neurons():
    ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).double()
    assert list(converted(ann, SpikeCount()).conversion.thresholds) == ["1"]


def test_spiking_readouts_need_output_neurons_and_single_spikes():
    with pytest.raises(ValueError, match=r"SpikeCount.*no output neurons"):
        cx.simulate(converted(linear([[1.0, 1.0, 1.0]]), MeanOutput()), X, 2, readout=SpikeCount())


@pytest.mark.parametrize(
    "bad", [lambda: MeanOutput(-1), lambda: SpikeCount(1.5), lambda: MembranePotential(0), lambda: Population(0)]
)
def test_bad_values_are_refused(bad):
    with pytest.raises(ValueError, match="="):
        bad()


def test_recorded_outputs_go_through_the_losses_of_snntorch():
    """Spikes of output neurons in units of a spike, and membranes (Eshraghian et al., 2023), with gradients."""
    functional = pytest.importorskip("snntorch.functional")
    ann = linear([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.2], [0.2, 0.0, 1.0]]).float()
    x, y = X.float(), ann(X.float()).argmax(1)
    recipe = cx.Recipe(cx.Maximum(), readout=SpikeCount())
    snn = cx.convert(ann, x, recipe=recipe, backend="snntorch", progress=False)
    spikes = torch.stack([snn(x) for _ in range(16)]) / snn.conversion.thresholds["2.output"]
    count = cx.simulate(snn, x, 16).output
    assert torch.equal(spikes.sum(0), count)
    loss = functional.ce_count_loss()(spikes, y)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(count, y))
    assert functional.acc.accuracy_rate(spikes, y) == float(cx.evaluate(snn, [(x, y)], 16, progress=False).accuracy[-1])
    assert all(g is not None and g.isfinite().all() for g in torch.autograd.grad(loss, list(snn.parameters())))
    snn = cx.convert(ann, x, recipe=cx.Recipe(cx.Maximum()), backend="snntorch", progress=False)
    membranes = torch.stack([snn(x) for _ in range(16)]).cumsum(0)  # MembranePotential() with gradients
    torch.testing.assert_close(membranes[-1], cx.simulate(snn, x, 16, readout=MembranePotential()).output)
    assert functional.ce_max_membrane_loss()(membranes, y) < functional.ce_max_membrane_loss()(membranes, (y + 1) % 3)

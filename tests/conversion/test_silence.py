"""A network that would not spike at all is told of: by check, by convert, in its notes and in its table."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import conversion_ext as cx

X = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))


def network(*activations: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), *(part for act in activations for part in (act, nn.Linear(8, 8)))]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("activations", [(nn.ELU(),), (nn.GELU(), nn.Sigmoid())], ids=len)
def test_a_network_without_spikes_is_told_of(activations):
    ann = network(*activations)
    with pytest.warns(UserWarning, match="no spiking neuron: 1.* no ReLU, .* relay=True"):
        assert cx.check(ann, X) == []
    with pytest.warns(UserWarning, match="no spiking neuron") as caught:
        snn = cx.convert(ann, X, backend="reference", progress=False)
    assert caught[0].filename == __file__
    assert "no spiking neuron" in snn.conversion.notes[0]
    assert str(snn.conversion.table()).endswith("No neuron of this network spikes.")


def test_the_remedy_leads_to_spikes_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Not active on the calibration data")
        for ann, options in ((network(nn.ELU()), {"relay": True}), (network(nn.ELU(), nn.ReLU()), {})):
            snn = cx.convert(ann, X, backend="reference", progress=False, **options)
            assert cx.simulate(snn, X, 8).spikes_per_sample.sum() > 0
            assert "No neuron" not in str(snn.conversion.table())


def test_all_activations_kept_out():
    with pytest.warns(UserWarning, match="kept out by skip= or leaf="):
        cx.convert(network(nn.ReLU()), X, skip=("1",), backend="reference", progress=False)

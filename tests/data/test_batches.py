"""How data reach the network: as what it computes on, where it computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import conversion_ext as cx
from conversion_ext.data.batches import call_inputs
from conversion_ext.data.inputs import device_of, streamed

META = torch.device("meta")
"""Stands for an accelerator: another device than that of the data."""


def test_data_on_the_cpu_are_streamed_to_the_device_of_the_network():
    x, y = torch.rand(4, 3), torch.arange(4)
    assert device_of(nn.Linear(2, 2, device="meta")) == META
    assert device_of(nn.ReLU()) == torch.device("cpu")
    for batch, forward in (
        (x, None), ((x, y), None), ({"x": x}, None), (x.numpy(), None), ((x, y), lambda model, b: model(b[0])),
    ):  # fmt: skip
        (inputs,) = call_inputs(batch, forward, META)
        assert inputs.device == META
        assert inputs.shape == x.shape
        (kept,) = call_inputs(batch, forward)
        assert torch.equal(kept, x)
    nested = streamed({"a": [x, (y, "name")], "b": None}, META)
    assert nested["a"][0].is_meta
    assert nested["a"][1][0].is_meta
    assert nested["a"][1][1] == "name"
    assert nested["b"] is None


def test_data_on_another_device_are_the_users_to_move():
    """Nothing guesses which of two accelerators was meant."""
    x = torch.rand(4, 3, device="meta")
    assert streamed(x, torch.device("cpu")) is x
    with pytest.raises(cx.CalibrationError, match="is on meta, the network on cpu; move one to the other's device"):
        cx.convert(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), [x], progress=False)


def test_a_network_without_weights_is_refused_before_any_work():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).to("meta")
    for data in (torch.rand(4, 3), np.zeros((4, 3), dtype=np.float32)):
        with pytest.raises(cx.CalibrationError, match="on the meta device, where it has no weights; load them"):
            cx.convert(net, data, progress=False)

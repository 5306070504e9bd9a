"""Which backends there are, and what they share."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from conversion_ext.backends import available, base, get_backend
from conversion_ext.backends.base import backends, check_state, initial_potential
from conversion_ext.errors import BackendError, StateError, UnknownNameError


def test_available_lists_what_is_installed_in_order_of_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    order = ["spikingjelly", "snntorch", "reference"]
    assert available() == [name for name in order if name in available()]
    assert set(order) <= set(backends.names())
    for missing in order[:2]:
        monkeypatch.setitem(sys.modules, missing, None)
        assert missing not in available()
    assert available() == ["reference"]
    assert get_backend(None).name == "reference"


def test_a_missing_framework_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spikingjelly", "snntorch"):
        monkeypatch.setitem(sys.modules, name, None)
    base._get_installed.cache_clear()
    for name in ("spikingjelly", "snntorch"):
        with pytest.raises(BackendError, match=rf'pip install "conversion-ext\[{name}\]".*: reference\.'):
            get_backend(name)


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"'norse'.*reference.*snntorch.*spikingjelly"):
        get_backend("norse")


def test_importing_the_backends_imports_no_framework() -> None:
    code = (
        "import sys, conversion_ext.backends as b; b.available(); b.get_backend('reference'); "
        "sys.exit(bool({'spikingjelly', 'snntorch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_check_state_accepts_narrow_inputs_of_a_wide_state() -> None:
    check_state(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bfloat16), "a pool")
    with pytest.raises(StateError, match=r"a pool is \[2, 3\], torch\.float32 on cpu.*\[2, 4\], torch\.float64"):
        check_state(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.float64), "a pool")


def test_initial_potential_takes_the_layout_of_the_input() -> None:
    x = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    v = initial_potential(torch.arange(3.0)[:, None, None], x)
    assert v.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(v[1, :, 2, 3], torch.arange(3.0))

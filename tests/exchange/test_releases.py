"""What a release wrote is loaded by every later one."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import conversion_ext as cx
from conversion_ext.__main__ import main
from tests.exchange.releases import T, networks

FILES = sorted(f for f in Path(__file__).parent.glob("release_*/*.safetensors") if ".expected." not in f.name)


def test_there_is_a_file_of_every_kind() -> None:
    assert {file.stem for file in FILES} >= networks().keys()


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_old_files_load_and_give_what_they_gave(file: Path, backend: str | None) -> None:
    expected = safetensors.torch.load_file(file.with_suffix(".expected.safetensors"))
    outputs = cx.simulate(cx.load(file, backend=backend), expected["x"], T=T).outputs
    # Other processors round sums of floats elsewhere; integers are the same on all.
    tolerance = 0.0 if file.stem == "integers" else 1e-5
    torch.testing.assert_close(outputs, expected["outputs"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_info(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snn = cx.load(file)
    assert main(["info", str(file)]) == 0
    printed = capsys.readouterr().out
    for fact in (str(file), snn.record.recipe, "checksum fits", *snn.conversion.thresholds):
        assert fact in printed


def test_info_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(b"something else")
    assert main(["info", str(tmp_path / "a")]) == 2
    assert "is not a file that conversion_ext.save wrote" in capsys.readouterr().err

"""What a release wrote is loaded by every later one."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import conversion_ext as cx
from conversion_ext.__main__ import main
from conversion_ext.exchange import container, names
from conversion_ext.neurons import IF
from tests.exchange.releases import T, networks
from tests.papers import bias_free, images

FILES = sorted(f for f in Path(__file__).parent.glob("release_*/*.safetensors") if ".expected." not in f.name)


def test_there_is_a_file_of_every_kind() -> None:
    assert {file.stem for file in FILES} >= networks().keys()


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_old_files_load_and_give_what_they_gave(file: Path, backend: str | None) -> None:
    expected = safetensors.torch.load_file(file.with_suffix(".expected.safetensors"))
    outputs = cx.simulate(cx.load(file, backend=backend), expected["x"], T=T).outputs
    # Other processors round sums of floats elsewhere; integers are the same on all.
    tolerance = 0.0 if file.stem.startswith("integers") else 1e-5
    torch.testing.assert_close(outputs, expected["outputs"], rtol=0, atol=tolerance)


def test_names_in_files_outlive_those_in_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class, a field and an attribute that were renamed since: old files load, and new ones are written alike."""
    snn = cx.convert(bias_free(), images(), recipe=cx.Recipe(neuron=cx.IF(0.25)), backend="reference", progress=False)
    before = container.read(cx.save(snn, tmp_path / "before"))[0]
    monkeypatch.setitem(names.CLASSES, "IF", "IntegrateAndFire")
    monkeypatch.setitem(names.PARTS, "IntegrateAndFire", {"v_init": "start"})
    monkeypatch.setitem(names.PARTS, "SpikingSite", {"static_input": "constant", "threshold": "scale"})
    monkeypatch.setitem(names.PARTS, "NodeInfo", {"key": "path"})
    path = cx.save(snn, tmp_path / "after")
    after = container.read(path)[0]
    site = next(module for module in after["modules"] if module["class"] == "cx.SpikingSite")
    assert site["attributes"]["spec"]["value"][0] == "neuron.IntegrateAndFire"
    assert site["attributes"]["spec"]["value"][1]["start"] == 0.25
    assert "constant" in site["attributes"]
    assert "scale" in site["buffers"]
    assert {"path"} & {key for node in after["graph"]["nodes"] for key in node["info"]}
    assert before != after
    loaded = cx.load(path)
    assert all(site.spec == IF(0.25) for site in loaded.sites().values())
    assert torch.equal(cx.simulate(loaded, images(), T=T).outputs, cx.simulate(snn, images(), T=T).outputs)


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

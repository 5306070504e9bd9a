"""Plug-in points: names, duplicates, and a package that registers through an entry point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import conversion_ext as cx
from conversion_ext.registry import Registry

PLUGIN = '''
import conversion_ext as cx
from torch import nn
from conversion_ext.operators import Activation
from conversion_ext.operators.sites import SiteKind

cx.register_recipe("toy", cx.Recipe(cx.Maximum(), cx.IF(v_init=0.0)))

class Swish(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()

@cx.register_operator(Swish)
def swish(node, module):
    """Swish."""
    return Activation(SiteKind.GRADED)
'''

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "toy-plugin"
version = "1.0"

[project.entry-points."conversion_ext.plugins"]
toy = "toy_plugin"

[tool.setuptools]
py-modules = ["toy_plugin"]
"""

USE = """
import torch
from torch import nn
import conversion_ext as cx
assert "toy" in cx.recipes.names(), cx.recipes.names()
from toy_plugin import Swish
ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), Swish(), nn.Linear(4, 2)).double()
x = torch.randn(8, 3).double()
snn = cx.convert(ann, x, recipe="toy", backend="reference", progress=False)
assert (cx.simulate(snn, x, 4096, at=(4096,)).output - ann(x)).abs().max() < 5e-3
print("plugged")
"""


def test_names_are_unique_and_unknown_ones_list_what_there_is():
    shapes = Registry[int]("shape")
    shapes.register("square", 4)
    with pytest.raises(ValueError, match="square"):
        shapes.register("square", 5)
    with pytest.raises(cx.errors.UnknownNameError, match="no shape named 'circle'; there are: square"):
        shapes.get("circle")


def test_several_names_of_any_kind_lead_to_one_value():
    sides = Registry[int]("shape", show=lambda key: f"<{key}>")
    sides.register(("square", 4.0), 4)
    assert sides.names() == ["<square>", "<4.0>"]
    assert sides.find(4.0) == sides.find("square") == 4
    assert sides.find("circle") is None
    with pytest.raises(ValueError, match=r"The shape '<4.0>' is registered already"):
        sides.register(4.0, 5)


def test_an_installed_package_registers_through_its_entry_point(tmp_path: Path):
    """A distribution on the path, as pip lays it out: module, metadata, entry point."""
    (tmp_path / "toy_plugin.py").write_text(PLUGIN)
    info = tmp_path / "toy_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[conversion_ext.plugins]\ntoy = toy_plugin\n")
    root = Path(__file__).parents[1]
    path = f"{tmp_path}:{root}"
    done = subprocess.run(
        [sys.executable, "-c", USE], env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "plugged", done.stderr[-2000:]


@pytest.mark.slow
def test_a_package_that_pip_installed_registers_through_its_entry_point(tmp_path: Path):
    """A distribution of its own, built and installed by pip into a folder of its own, next to this package."""
    pytest.importorskip("setuptools")  # the toy's build backend, which torch brings along
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    (source / "toy_plugin.py").write_text(PLUGIN)
    (source / "pyproject.toml").write_text(PYPROJECT)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=300)
    assert not (target / "conversion_ext").exists()
    done = subprocess.run(
        [sys.executable, "-c", USE],
        env={"PYTHONPATH": f"{target}:{Path(__file__).parents[1]}", "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == "plugged", done.stderr[-2000:]


def test_importing_the_package_imports_no_framework():
    code = (
        "import sys, conversion_ext; print([m for m in ('spikingjelly', 'snntorch', 'matplotlib') if m in sys.modules])"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": root, "PATH": ""}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


def test_public_names_exist_and_are_few():
    assert len(cx.__all__) < 55
    for name in cx.__all__:
        assert hasattr(cx, name), name
    for name in ("recipes", "normalizers", "backends"):
        assert getattr(cx, name).__all__

"""The notebooks run from top to bottom, and are stored with the outputs of such a run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests import tutorials

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
CHINESE = [path for path in NOTEBOOKS if path.stem.endswith("_zh")]
ENGLISH = [path for path in NOTEBOOKS if path not in CHINESE]


def test_the_index_names_every_notebook():
    assert ENGLISH
    assert CHINESE
    index = (ROOT / "tutorials" / "README.md").read_text()
    assert not [path.name for path in NOTEBOOKS if f"({path.name})" not in index]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_as_it_ran(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_time_that_is_stated_is_that_of_the_stored_run(path):
    notebook = nbformat.read(path, as_version=4)
    took = tutorials.seconds(notebook)
    assert tutorials.stated(notebook, "_zh" if path in CHINESE else "") == took
    row = next(line for line in tutorials.INDEX.read_text("utf-8").splitlines() if f"({path.name})" in line)
    assert row.endswith(f"| {took} s |" if took else "| - s |")


@pytest.mark.parametrize("path", CHINESE, ids=lambda path: path.stem)
def test_chinese_edition_differs_in_its_text_alone(path):
    chinese = nbformat.read(path, as_version=4)
    english = nbformat.read(path.with_stem(path.stem.removesuffix("_zh")), as_version=4)
    assert code_cells(chinese) == code_cells(english)  # outputs too, so running one of them is enough
    assert [cell.cell_type for cell in chinese.cells] == [cell.cell_type for cell in english.cells]
    text = [cell.source for cell in chinese.cells if cell.cell_type == "markdown"]
    assert all(any("\u4e00" <= letter <= "\u9fff" for letter in cell) for cell in text)


@pytest.mark.slow
@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch):
    """A cell that raises fails; what a tutorial claims, its cells assert."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the kernel is a process of its own
    pytest.importorskip("spikingjelly")
    pytest.importorskip("snntorch")
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(ROOT)}}).execute()

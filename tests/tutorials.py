"""Run notebooks and store what they print: ``python -m tests.tutorials 01 03`` (all without arguments).

The seconds of one core that a run took are stored in the notebook, stated in its first cell and listed in
``tutorials/README.md``; a Chinese edition beside it gets the same code and outputs.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tutorials"
INDEX = FOLDER / "README.md"
STATED = {"": "It takes about {} s of one core.", "_zh": "运行约需单核 {} 秒。"}


def seconds(notebook: nbformat.NotebookNode) -> int:
    """Return the seconds of one core that the stored run took, 0 where none is stored."""
    return notebook.metadata.get("seconds", 0)


def stated(notebook: nbformat.NotebookNode, language: str = "") -> int:
    """Return the seconds that the first cell states, 0 where it states none."""
    match = re.search(re.escape(STATED[language]).replace(r"\{\}", r"(\d+)"), notebook.cells[0].source)
    return int(match[1]) if match else 0


def run(path: Path) -> int:
    """Run a notebook, store it, and return the seconds of one core that it took."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import time; time.process_time()"))
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT)}}).execute()
    took = float(notebook.cells.pop().outputs[0].data["text/plain"])
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day, which differ at each run
    narrow(notebook)
    notebook.metadata["seconds"] = max(1, round(took))
    state(notebook, "")
    nbformat.write(notebook, path)
    chinese = path.with_stem(f"{path.stem}_zh")
    if chinese.exists():
        edition = nbformat.read(chinese, as_version=4)
        pairs = zip(edition.cells, notebook.cells, strict=True)
        edition.cells = [ours if ours.cell_type == "markdown" else cell for ours, cell in pairs]
        edition.metadata["seconds"] = notebook.metadata["seconds"]
        state(edition, "_zh")
        nbformat.write(edition, chinese)
    return notebook.metadata["seconds"]


def narrow(notebook: nbformat.NotebookNode) -> None:
    """Store pictures with 128 colours, in a third of the bytes."""
    for cell in notebook.cells:
        for data in (output.data for output in cell.get("outputs", []) if "image/png" in output.get("data", {})):
            file = io.BytesIO()
            picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
            picture.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
            data["image/png"] = base64.b64encode(file.getvalue()).decode()


def state(notebook: nbformat.NotebookNode, language: str) -> None:
    """Write the seconds into the first cell."""
    sentence, first = STATED[language].format(seconds(notebook)), notebook.cells[0]
    pattern = re.escape(STATED[language]).replace(r"\{\}", r"\d+")
    known = re.search(pattern, first.source)
    separator = "\n" if language == "" else ""
    first.source = re.sub(pattern, sentence, first.source) if known else f"{first.source.rstrip()}{separator}{sentence}"


def index(name: str, took: int) -> None:
    """Write the seconds into the row of the index."""
    rows = INDEX.read_text("utf-8").splitlines()
    changed = [re.sub(r"\| [\d -]+ s \|$", f"| {took} s |", row) if f"({name})" in row else row for row in rows]
    INDEX.write_text("\n".join(changed) + "\n", "utf-8")


def main(chosen: list[str]) -> None:
    """Run the notebooks whose names begin so."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("MPLBACKEND", None)  # pictures go into the notebook
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not path.stem.endswith("_zh") and (not chosen or path.stem.startswith(tuple(chosen))):
            took = run(path)
            index(path.name, took)
            print(f"{path.name}: {took} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

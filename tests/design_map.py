"""The map of rooms in the README, made of the first line of each room's docstring.

``python -m tests.design_map`` writes it between the markers; a test compares.
"""

from __future__ import annotations

import ast
from pathlib import Path

__all__ = ["README", "design_map", "written"]

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- map:begin -->\n", "<!-- map:end -->"


def design_map() -> str:
    """Return a row per folder of the package, in the order of names, and one of the files beside them."""
    package = ROOT / "conversion_ext"
    folders = {f"`{file.parent.name}/`": _first_sentence(file) for file in sorted(package.glob("*/__init__.py"))}
    files = ", ".join(f"`{file.name}`" for file in sorted(package.glob("*.py")) if file.name != "__init__.py")
    rows = (f"| {name} | {text} |\n" for name, text in (folders | {files: "The ground floor, and the doors"}).items())
    return "| room | what is in it |\n| --- | --- |\n" + "".join(rows)


def written(text: str) -> str:
    """Return ``text`` with the map between its markers."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + design_map() + END + rest.partition(END)[2]


def _first_sentence(file: Path) -> str:
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    sentence = doc.partition("\n")[0].partition(". ")[0].rstrip(".")
    return sentence.replace("``", "`").replace("|", "&#124;")


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")

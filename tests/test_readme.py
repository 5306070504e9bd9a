"""What the README and the pages beside it promise is so: their examples run, what they name exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from conversion_ext import recipes
from tests.design_map import README as FILE
from tests.design_map import ROOT, written

README = FILE.read_text(encoding="utf-8")
PAGES = tuple(ROOT / "tutorials" / f"{name}.md" for name in ("FAQ", "FROM_SPIKINGJELLY", "FROM_SNN_TOOLBOX"))
RESULTS = ROOT / "tests" / "benchmarks" / "RESULTS.md"
TEXTS = (FILE, *PAGES, ROOT / "tutorials" / "README_zh.md", RESULTS)


def run(page: Path) -> dict[str, Any]:
    """Run the Python blocks of a page in one namespace, and return it."""
    pytest.importorskip("spikingjelly")
    pytest.importorskip("snntorch")
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page.name}, example {number}", "exec"), namespace)
    return namespace


def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = run(FILE)["result"]
    # The promise under the examples, checked on what they left behind.
    assert result.ann_accuracy > 0.95
    assert result.latency(drop=0.01) is not None
    assert "binary" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::UserWarning")  # a page shows code, not how to silence what it warns of
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


def test_the_chinese_readme_shows_the_same_code_and_figures():
    chinese = (ROOT / "tutorials" / "README_zh.md").read_text("utf-8")
    blocks = re.findall(r"^```(?:python|bash)\n.*?^```$", chinese, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    assert not [block for block in blocks if block not in README]
    rows = [
        line
        for line in README.partition("## Try it")[0].splitlines()
        if line.startswith(("| `default", "| SpikingJelly"))
    ]
    assert rows
    assert not [row for row in rows if row not in chinese]


def test_twenty_questions_are_answered_by_code():
    answers = re.split(r"^## \d+\. ", PAGES[0].read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert len(answers) >= 20
    assert not [answer.partition("\n")[0] for answer in answers if "```python" not in answer]


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.encode()) < 15 * 1024


def test_the_map_is_that_of_the_package():
    assert written(README) == README, "update the README: python -m tests.design_map"


def test_every_recipe_is_in_the_table_of_recipes():
    table = README.partition("## Choosing a recipe")[2].partition("## Results")[0]
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "conversion_ext" / "recipes").glob("*.py"))
    names = re.findall(r'register(?:_recipe)?\(\s*"([^"]+)"', sources)
    assert set(names) <= set(recipes.names())
    assert len(names) >= 18
    assert not [name for name in names if f"`{name}`" not in table]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_links_work_outside_the_repository(text):
    # On a package index relative links lead nowhere, so files are named, not linked.
    links = re.findall(r"\]\(([^)]+)\)", text.read_text("utf-8"))
    assert not [link for link in links if not link.startswith("https://")]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_files_that_are_named_exist(text):
    named = re.findall(r"`((?:tutorials|tests|conversion_ext|\.ci)/[\w./-]+)`", text.read_text("utf-8"))
    assert not [name for name in named if not (ROOT / name).exists()]

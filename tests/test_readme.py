"""What the README says is so: its examples run, and its table of methods is that of the package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_examples_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("spikingjelly")
    pytest.importorskip("snntorch")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict[str, Any] = {"__name__": "readme"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"README.md, example {number}", "exec"), namespace)
    # The promise under the examples, checked on what they left behind.
    result = namespace["result"]
    assert result.ann_accuracy > 0.95
    assert result.latency(drop=0.01) is not None
    assert "binary" in capsys.readouterr().out


def test_table_of_methods_is_that_of_the_package():
    # In a process of its own: other tests register methods too.
    command = [sys.executable, "-m", "conversion_ext", "methods", "--markdown"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    table = README.partition("<!-- methods:begin -->\n")[2].partition("<!-- methods:end -->")[0]
    assert table == printed, "update the README: python -m conversion_ext methods --markdown"


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("path", re.findall(r"^\| `([^|]+)` \|", README.partition("## Design")[2], flags=re.MULTILINE))
def test_rooms_exist(path):
    for name in path.replace("`", "").split(", "):
        assert (ROOT / "conversion_ext" / name).exists()

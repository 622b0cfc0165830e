"""The page on pruning: its example runs, and its defaults are the package's."""

from __future__ import annotations

import re
from pathlib import Path

from st_hpo.rung_points import PRUNERS

PAGE = Path(__file__).parents[1] / "docs" / "pruning.md"


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, {})
    assert "completed" in capsys.readouterr().out


def test_the_defaults_on_the_page_are_the_packages():
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `\"(\w+)\"`[^|]*\| ([\d., ]+) \|", text, re.MULTILINE)
    found = [(name, tuple(map(float, rungs.split(",")))) for name, rungs in rows]
    assert found == [*[("asha", PRUNERS["asha"])] * 2, *PRUNERS.items()]  # asha is three, depending on where it runs

"""The page on a good start: its examples run, one after the other, and its default space is the package's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from st_hpo import default_search_space

PAGE = (Path(__file__).parents[1] / "docs" / "warm-start.md").read_text(encoding="utf-8")


def test_the_examples_of_the_page_run_in_their_order(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    scope: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(block, scope)  # they assert what they promise
    assert "matryoshka_sts.py" in capsys.readouterr().out


def test_the_default_spaces_on_the_page_are_the_packages():
    table = PAGE.split("## The default space")[1]
    header, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    for column, model in enumerate(header, start=1):
        space = default_search_space(model)
        for row in rows:
            dimension = space[re.findall(r"`(\w+)`", row[0])[0]]
            assert [float(bound) for bound in row[column].split(" to ")] == [dimension.low, dimension.high]
            assert dimension.log == ("logarithmic" in row[0])

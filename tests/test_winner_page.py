"""The page on what comes after a search: its examples run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "winner.md"


@pytest.mark.slow
def test_the_examples_of_the_page_run_in_their_order(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    scope: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(block, scope)  # they assert what they promise
    result = scope["best"].run_summary
    assert result.default is not None and result.confirmation is scope["confirmation"]
    assert "over 3 seeds" in capsys.readouterr().out
    assert Path("checkpoints/best_model/st_hpo.json").is_file() and not list(Path("checkpoints").glob("run-*"))
    assert "### Hyperparameter Search" in Path("model/README.md").read_text(encoding="utf-8")

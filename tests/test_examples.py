"""The examples run as they are, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from st_hpo import SearchResult

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_hpo_nli_searches_the_embedded_workload_and_retrains_to_the_same_number(tmp_path):
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "hpo_nli.py"), "--trials", "2", "--output", str(tmp_path / "result.json")],
        capture_output=True,
        text=True,
        timeout=580,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert "the same, to the last bit." in run.stdout
    result = SearchResult.load(tmp_path / "result.json")
    assert [trial.state for trial in result.trials] == ["completed", "completed"]
    assert result.baseline.objective == pytest.approx(0.697, abs=1e-3)
    assert max(trial.objective for trial in result.trials) > result.baseline.objective

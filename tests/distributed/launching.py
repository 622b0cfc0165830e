"""Two ranks on gloo, started as a user would, and what they have left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

HERE = Path(__file__).parent
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(script: str, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    path = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "examples"), *sys.path]
    more = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen(
        [*LAUNCHER, str(HERE / script), *arguments],
        env={**os.environ, **more},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float) -> str:
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the ranks hang: {process.communicate()[0][-3000:]}")
    return output


def ranks(case: str, folder: Path, env: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Runs a case on two ranks, with a hard timeout, and requires the return code 0."""
    process = launch("rank_script.py", case, str(folder), cwd=folder, env=env)
    output = finish(process, 240)
    assert process.returncode == 0, output[-4000:]
    return left(folder)


def left(folder: Path) -> list[dict[str, Any]]:
    """What the ranks have left; nothing for one that was killed."""
    paths = [folder / f"rank{rank}.json" for rank in range(2)]
    return [json.loads(path.read_text()) if path.exists() else {} for path in paths]


def ends(case: str, folder: Path) -> list[dict[str, Any]]:
    """Runs a case that ends the job."""
    process = launch("rank_script.py", case, str(folder), cwd=folder)
    output = finish(process, 300)
    assert process.returncode != 0, output[-4000:]
    return left(folder)


def stored(folder: Path) -> list[Any]:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/study.db").trials


def trials(found: dict[str, Any]) -> list[dict[str, Any]]:
    return found["result"]["trials"]


def states(found: dict[str, Any]) -> list[str]:
    return [trial["state"] for trial in trials(found)]


def alike(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Requires that both ranks have got the same; the study itself is rank 0's."""
    first, second = ({key: value for key, value in item.items() if key != "native"} for item in found)
    assert first == second
    return found[0]


def by_hand(folder: Path, found: dict[str, Any], **order: Any) -> list[dict[str, float]]:
    """What plain training under torchrun gives with the values of the completed trials."""
    values = [trial["hyperparameters"] for trial in trials(found) if trial["state"] == "completed"]
    (folder / "trials.json").write_text(json.dumps({"trials": values, **order}))
    process = launch("hand_script.py", str(folder), cwd=folder)
    output = finish(process, 240)
    assert process.returncode == 0, output[-4000:]
    return json.loads((folder / "hand.json").read_text())


def objectives(found: dict[str, Any]) -> list[Any]:
    return [trial["objective"] for trial in trials(found) if trial["state"] == "completed"]

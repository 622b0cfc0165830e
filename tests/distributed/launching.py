"""Two ranks on gloo, started as a user would, and what they have left."""

from __future__ import annotations

import itertools
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
        process.terminate()  # torchrun ends its ranks; killed, it would leave them, and they hold the pipe
        try:
            output, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired as exc:
            output = str(exc.output)
        pytest.fail(f"the ranks hang: {output[-3000:]}")
    finally:
        if process.poll() is None:
            process.kill()
    return output


def ranks(case: str, folder: Path, env: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Runs a case on two ranks, with a hard timeout, and requires the return code 0."""
    process = launch("rank_script.py", case, str(folder), cwd=folder, env=env)
    output = finish(process, 480)
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
    """What plain training under torchrun gives with the values of the completed trials.

    Args:
        folder: Where it runs.
        found: What a search has found.
        order: See :func:`order_by_hand`.
    """
    order_by_hand(folder, found, **order)
    train_by_hand([folder])
    return json.loads((folder / "hand.json").read_text())


def order_by_hand(folder: Path, found: dict[str, Any], **order: Any) -> None:
    """Leaves in a folder what is to be trained there by hand.

    Args:
        folder: The folder.
        found: What a search has found.
        order: ``fixed`` training arguments, or the ``scenario``.
    """
    values = [trial["hyperparameters"] for trial in trials(found) if trial["state"] == "completed"]
    for each in values:  # a name that `loss_init` has suggested
        if "scale" in each:
            each["loss.scale"] = each.pop("scale")
    (folder / "trials.json").write_text(json.dumps({"trials": values, **order}))


def train_by_hand(folders: list[Path]) -> None:
    process = launch("hand_script.py", *map(str, folders), cwd=folders[0])
    output = finish(process, 480 + 40 * len(folders))
    assert process.returncode == 0, output[-4000:]


class Case:
    """A case that has run with others in one job.

    Attributes:
        folder: Where it has run.
        ranks: What its ranks have left.
        hand: What plain training gives with the values of its completed trials; None if it was not asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranks = left(folder)
        path = folder / "hand.json"
        self.hand = json.loads(path.read_text()) if path.exists() else None


def run_together(cases: dict[str, dict[str, Any] | None], folders: dict[str, Path]) -> dict[str, Case]:
    """Runs cases one after the other in one job, and then, in another one, what is to be trained by hand.

    Starting a job takes longer than most cases do; and a search must not disturb the next one of its process.

    Args:
        cases: The cases, each with the order for :func:`order_by_hand`, or None.
        folders: The folder of each.
    """
    pairs = [(case, str(folders[case])) for case in cases]
    process = launch("rank_script.py", *itertools.chain(*pairs), cwd=next(iter(folders.values())))
    output = finish(process, 480 + 40 * len(cases))
    assert process.returncode == 0, output[-4000:]
    by_hand = [case for case, order in cases.items() if order is not None and "result" in left(folders[case])[0]]
    for case in by_hand:
        order_by_hand(folders[case], left(folders[case])[0], **cases[case])  # type: ignore[arg-type]
    if by_hand:
        train_by_hand([folders[case] for case in by_hand])
    return {case: Case(folders[case]) for case in cases}


def objectives(found: dict[str, Any]) -> list[Any]:
    return [trial["objective"] for trial in trials(found) if trial["state"] == "completed"]

"""What the tests of worker processes have in common: callbacks, and a look at what is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState
from transformers import TrainerCallback

from st_hpo import Float, SearchSpace
from st_hpo.testing import (
    METRIC,
    SPACE,
)

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # a test that waits for a condition must hold on a busy machine, too
RATE = SearchSpace({"learning_rate": Float(1e-4, 1e-2, log=True)})
COMPLETE, FAIL, RUNNING = (TrialState[name] for name in ("COMPLETE", "FAIL", "RUNNING"))


@contextlib.contextmanager
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Gives a folder for temporary files; no file and no process of a search may be left at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert not [item.name for item in folder.iterdir() if item.name.startswith("st_hpo")]
    assert workers_of(os.getpid()) == []


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a process, without the helper that multiprocessing keeps until that ends."""
    return [child for child in psutil.Process(pid).children(recursive=True) if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return "popen_loky_posix" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def searched(trainer: Any, n_trials: int = 4, **kwargs: Any) -> Any:
    options = {"hp_space": SPACE, "compute_objective": METRIC, "backend": "optuna", "n_jobs": 2, "baseline": False}
    return trainer.hyperparameter_search(**{**options, "n_trials": n_trials, **kwargs})


def until(condition: Any, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to this in time"
        time.sleep(0.05)


class Note(TrainerCallback):
    """Leaves a file for every trial that has begun: its name, and the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (self.folder / f"{state.trial_name}-{os.getpid()}").touch()

    def begun(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("run-*-*"))  # the trial's own folder may lie there, too


class Slow(Note):
    """Makes the steps of some trials slow.

    Args:
        folder: See :class:`Note`.
        names: The trials' names; None for all.
    """

    def __init__(self, folder: Path, names: set[str] | None = None) -> None:
        super().__init__(folder)
        self.names = names

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.names is None or state.trial_name in self.names:
            time.sleep(0.2)


class DiesIn(Note):
    """Kills its process in the middle of a trial.

    Args:
        folder: See :class:`Note`.
        times: How often.
    """

    def __init__(self, folder: Path, times: int) -> None:
        super().__init__(folder)
        self.times = times

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.learning_rate == 5e-3 and len(list(self.folder.glob("died-*"))) < self.times:
            (self.folder / f"died-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)

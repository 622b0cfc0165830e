"""What the tests of shared studies have in common: a search whose training is a nap, processes, storages."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from st_hpo import Float, SearchSpace, TrialRecord
from st_hpo.backends.optuna.backend import OptunaBackend

SPACE = SearchSpace({"learning_rate": Float(1e-6, 1e-2, log=True)})
# For what takes seconds on an idle machine: a test that waits for a condition must hold on a busy one, too
PATIENCE = 240.0
STORAGES = ("sqlite", "journal", "postgres", "mariadb")
COMPLETE, FAIL, RUNNING, WAITING = (TrialState[name] for name in ("COMPLETE", "FAIL", "RUNNING", "WAITING"))
# Of this process's copies, so that a test needs seconds for a process of its own, not for its imports
fork = multiprocessing.get_context("fork")


class Search:
    """A search as a backend sees it, whose training is a nap.

    Args:
        seconds: How long a trial takes.
        begun: Called with the number when a trial begins.
    """

    def __init__(self, seconds: float = 0.0, begun: Callable[[int], None] = lambda number: None) -> None:
        self.hp_space = SPACE
        self.verbose = False
        self.objective_names = ["eval_x"]
        self.directions = ["maximize"]
        self.rungs: list[int] = []
        self.output_dir = "output"
        self.ending: BaseException | None = None
        self.own: dict[int, TrialRecord] = {}
        self._seconds = seconds
        self._begun = begun

    @property
    def no_more(self) -> BaseException | None:
        return self.ending

    def waiting(self) -> None:
        pass

    def run_trial(
        self, number, propose, native=None, report=None, *, checkpoints=None, backend_id=None, catch=(), continues=None
    ):
        record = self.own[number] = TrialRecord(number)
        try:
            record.hyperparameters = dict(propose())
            self._begun(number)
            time.sleep(self._seconds * random.SystemRandom().uniform(0.5, 1.5))
            if self.ending is not None:
                raise self.ending
            record.state, record.objective = "completed", record.hyperparameters["learning_rate"]
        except BaseException as exc:
            record.state, record.error = "failed", f"{type(exc).__name__}: {exc}"
            raise
        return record

    def record_of(self, number: int) -> TrialRecord | None:
        return self.own.get(number)


def storage_of(request: Any, kind: str, folder: Path) -> Callable[[], Any]:
    if kind == "sqlite":
        return lambda: f"sqlite:///{folder}/study.db"
    if kind == "journal":
        return lambda: JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    url = request.getfixturevalue(kind).new_database(f"study{time.time_ns()}")
    return lambda: url


def search(where: Callable[[], Any], n_trials: int, target: Search | None = None, **kwargs: Any) -> OptunaBackend:
    backend = OptunaBackend()
    arguments = {"storage": where(), "study_name": "s", "resume": True, "heartbeat_interval": 1.0, **kwargs}
    backend.run(target or Search(), n_trials, "maximize", **arguments)
    return backend


def trials_in(where: Callable[[], Any]) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=where()).get_trials()


def started(target: Callable[..., None], *args: Any) -> Any:
    process = fork.Process(target=target, args=args)
    process.start()
    return process


@contextlib.contextmanager
def processes(count: int, target: Callable[..., None], *args: Any) -> Iterator[list[Any]]:
    """Runs some, and leaves none behind."""
    running = [started(target, *args) for _ in range(count)]
    try:
        yield running
    finally:
        for process in running:
            if process.is_alive():
                process.kill()
            process.join()


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to this in time"
        time.sleep(0.02)


def ended_with(process: Any, seconds: float = PATIENCE) -> int:
    """Waits for a process, and returns its exit code. One that hangs shows where it does."""
    process.join(seconds)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGABRT)  # pytest's fault handler prints all its stacks
        process.join(10)
        raise AssertionError(f"process {process.pid} has not ended in {seconds} s")
    return int(process.exitcode)


def hang_in(number: int, flag: Path) -> Callable[[int], None]:
    """Returns what makes the trial of this number hang, and says so."""

    def begun(trial: int) -> None:
        if trial == number:
            flag.touch()
            time.sleep(600)

    return begun


def search_that_hangs(where: Callable[[], Any], n_trials: int, number: int, flag: Path) -> None:
    search(where, n_trials, Search(begun=hang_in(number, flag)))


def search_in(where: Callable[[], Any], n_trials: int, seconds: float, results: Any, others: Any = None) -> None:
    """Searches in a process of its own.

    Args:
        where: Opens the storage.
        n_trials: The total.
        seconds: How long a trial takes.
        results: Gets this process's id, the numbers of its trials, and all records.
        others: A barrier: the first trial waits until the others have begun theirs.
    """
    first = [] if others is None else [others]
    target = Search(seconds, lambda number: first.pop().wait(PATIENCE) if first else None)
    try:
        records = search(where, n_trials, target).records(target)
    except BaseException:
        if others is not None:
            others.abort()  # whoever waits for this process says so at once
        raise
    results.put((os.getpid(), sorted(target.own), [record.to_dict() for record in records]))

"""A study on a disk that is full: its file stays whole, its trial fails, and the search goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import OperationalError

from st_hpo.backends.optuna import patience
from st_hpo.backends.optuna.journal import WholeLinesJournal
from st_hpo.backends.optuna.patience import Patience, in_trial
from st_hpo.backends.optuna.storage import JOURNAL, open_journal, open_storage
from st_hpo.errors import BackendUnavailableError
from st_hpo.faults import is_disk_full
from st_hpo.records import COMPLETED, FAILED

from fast_trainer import METRIC, RATES, Ballast, fast_arguments, fast_trainer, random_sampler
from scenarios import embedding_evaluator

pytest_plugins = ["shared_fixtures", "small_disk"]
pytestmark = pytest.mark.usefixtures("quiet_optuna")

PAGE = os.sysconf("SC_PAGE_SIZE")
TORN = b'{"op_code":4,"worker_id":"0'


class Never(optuna.pruners.BasePruner):
    """Prunes nothing, so that every trial reports."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return False


def plain(path: Path) -> JournalStorage:
    """A journal as Optuna opens it."""
    return JournalStorage(JournalFileBackend(str(path)))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- searches


def fill_the_page(journal: Path) -> None:
    """Adds a line to a journal, so that only 40 bytes more fit into the page that its file has on the disk."""
    line = {"op_code": 2, "worker_id": "another", "study_id": 0, "user_attr": {"padding": ""}}
    size = journal.stat().st_size + len(json.dumps(line, separators=(",", ":"))) + 1
    line["user_attr"] = {"padding": "x" * ((PAGE - 40 - size) % PAGE)}
    JournalFileBackend(str(journal)).append_logs([line])
    assert journal.stat().st_size % PAGE == PAGE - 40


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_report_for_which_there_is_no_room_fails_its_trial_alone(kind, small_disk):
    journal = small_disk / JOURNAL
    where: dict[str, Any] = {}
    if kind == "sqlite":
        where = {"storage": f"sqlite:///{small_disk}/study.db", "study_name": "s"}
    ballast = Ballast("run-1", before=lambda: fill_the_page(journal) if kind == "journal" else None)
    evaluator = embedding_evaluator()
    evaluator.write_csv = False  # for which there is no room either
    args = fast_arguments(output_dir=str(small_disk))
    trainer = fast_trainer(args=args, evaluator=evaluator, callbacks=[ballast])
    trainer.hyperparameter_search(
        RATES,
        METRIC,
        n_trials=3,
        sampler=random_sampler(),
        pruner=Never(),
        rungs=[0.5],
        resume=True,
        heartbeat_interval=600.0,
        storage_patience=5.0,
        **where,
    )
    records = trainer.last_search.trials
    assert [record.state for record in records] == [COMPLETED, FAILED, COMPLETED]
    assert records[1].error.startswith("Disk full: OSError: [Errno 28] The study cannot be written to: ")
    storage = plain(journal) if kind == "journal" else where["storage"]
    trials = optuna.load_study(study_name=where.get("study_name", "st_hpo"), storage=storage).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert [len(trial.intermediate_values) for trial in trials] == [1, 0, 1]


# -- the file


@contextmanager
def room_for(path: Path, count: int) -> Iterator[None]:
    """Has files grow to a size only at which this one has so many bytes more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_for_which_there_is_no_room_leaves_nothing_behind(tmp_path):
    path = tmp_path / "study.journal"
    study = optuna.create_study(storage=open_journal(str(path), 1.0), study_name="s")
    trial = study.ask()
    content = path.read_bytes()
    with room_for(path, 20), pytest.raises(OSError, match="File too large"):
        trial.set_user_attr("x", "y" * 50)
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["study.journal"]
    trial.set_user_attr("x", "z")
    assert len(lines(path)) == len(content.splitlines()) + 1
    (found,) = optuna.load_study(study_name="s", storage=plain(path)).get_trials()
    assert found.user_attrs == {"x": "z"}


@pytest.mark.parametrize("own", [True, False])
def test_what_another_process_has_torn_is_cut_before_the_next_line(own, tmp_path):
    path = tmp_path / "study.journal"
    storage = open_journal(str(path), 1.0) if own else open_storage(plain(path), 1.0)
    study = optuna.create_study(storage=storage, study_name="s")
    trial = study.ask()
    with open(path, "ab") as file:
        file.write(TORN)
    trial.set_user_attr("x", 1)
    assert lines(path)[-1]["user_attr"] == {"x": 1}
    (found,) = optuna.load_study(study_name="s", storage=plain(path)).get_trials()
    assert found.user_attrs == {"x": 1} == study.get_trials()[0].user_attrs


def test_a_file_of_nothing_but_a_torn_line_is_begun_anew(tmp_path):
    path = tmp_path / "study.journal"
    path.write_bytes(TORN)
    optuna.create_study(storage=open_journal(str(path), 1.0), study_name="s")
    assert [line["op_code"] for line in lines(path)] == [0]


def test_a_journal_is_the_same_in_a_worker(tmp_path):
    path = tmp_path / "study.journal"
    storage = open_journal(str(path), 7.0)
    optuna.create_study(storage=storage, study_name="s").ask()
    there = cloudpickle.loads(cloudpickle.dumps(storage))
    assert isinstance(there.inner._backend, WholeLinesJournal) and there.patience.seconds == 7.0
    there.set_trial_user_attr(0, "x", 1)
    assert storage.get_trial(0).user_attrs == {"x": 1}


# -- waiting


def sqlites() -> StorageInternalError:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
    return error


def journals() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", "study.journal")


class Clock:
    """Stands for the module time: sleeping takes no time."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("error", [sqlites, journals])
def test_between_trials_room_is_waited_for_and_within_one_it_is_not(error, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)

    def write() -> str:
        if clock.now < 1060.0:
            raise error()
        return "written"

    waiting = Patience(300.0)
    with in_trial(), pytest.raises(OSError, match="The study cannot be written to: ") as caught:
        waiting.call(write)
    assert clock.now == 1000.0 and is_disk_full(caught.value)
    assert waiting.call(write) == "written" and clock.now >= 1060.0


@pytest.mark.parametrize("error", [sqlites, journals])
def test_a_disk_that_stays_full_ends_the_search_and_is_no_fault_of_a_trial(error, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)

    def write() -> None:
        raise error()

    with pytest.raises(BackendUnavailableError, match=r"could not be used for .* s: .*(full|No space left)") as caught:
        Patience(60.0).call(write)
    assert not is_disk_full(caught.value)


def test_other_errors_of_a_file_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(patience, "time", Clock())

    def write() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        Patience(60.0).call(write)

"""The storages of shared studies: servers that go away, passwords, and what must not be unpickled."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.storages import GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from st_hpo import TrialRecord
from st_hpo.backends.optuna import opening
from st_hpo.backends.optuna.backend import OptunaBackend
from st_hpo.backends.optuna.journal import FindableLock, WholeLinesJournal, with_whole_lines
from st_hpo.backends.optuna.records import counts, ended
from st_hpo.backends.optuna.shared import SharedStudy
from st_hpo.backends.optuna.storage import open_journal, open_storage
from st_hpo.errors import BackendUnavailableError, ConfigurationError

from postgres import PASSWORD, QUOTED_PASSWORD, free_port, running_postgres
from shared_setup import (
    COMPLETE,
    FAIL,
    PATIENCE,
    SPACE,
    Search,
    ended_with,
    fork,
    processes,
    search,
    search_in,
    storage_of,
    trials_in,
    until,
)

pytest_plugins = ["shared_fixtures"]
pytestmark = pytest.mark.usefixtures("quiet_optuna")


@pytest.mark.slow
def test_a_server_that_restarts_in_the_middle_costs_no_trial(request, postgres, tmp_path):
    where = storage_of(request, "postgres", tmp_path)
    results, begun = fork.Queue(), fork.Barrier(3)
    with processes(2, search_in, where, 30, 0.2, results, begun) as running:
        begun.wait(PATIENCE)  # both have opened the study: a server that is away at that moment is an error
        for _ in range(2):
            postgres.stop()
            time.sleep(0.7)
            postgres.start()
            time.sleep(0.7)
        found = [results.get(timeout=PATIENCE) for _ in running]
        assert [ended_with(process) for process in running] == [0, 0]
    trials = trials_in(where)
    assert sum(map(counts, trials)) == 30
    assert {trial.state for trial in trials} <= {COMPLETE, FAIL}
    run = Counter(number for _, own, _ in found for number in own)
    assert set(run.values()) == {1} and len(run) == 30
    # Where the answer to it was lost, Optuna makes a trial twice; the second one is nobody's, and has not run
    left = {trial.number: ended(trial).get("why") for trial in trials if trial.state == FAIL}
    assert set(left.values()) <= {"surplus", "lost"} and not set(left) & set(run)


PROXY = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@contextlib.contextmanager
def proxy(url: str, port: int) -> Iterator[None]:
    """Runs Optuna's gRPC server in front of a database."""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROXY, url, str(port)])
    try:
        until(lambda: answers(port))
        yield
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_optunas_grpc_proxy_is_a_storage_too_and_may_be_restarted(request, tmp_path):
    direct = storage_of(request, "postgres", tmp_path)
    port = free_port()
    results, begun = fork.Queue(), fork.Barrier(3)
    with contextlib.ExitStack() as stack:
        with proxy(direct(), port):
            through = functools.partial(GrpcStorageProxy, host="127.0.0.1", port=port)
            running = stack.enter_context(processes(2, search_in, through, 20, 0.3, results, begun))
            begun.wait(PATIENCE)
        time.sleep(1.0)
        with proxy(direct(), port):
            found = [results.get(timeout=PATIENCE) for _ in running]
    run = Counter(number for _, own, _ in found for number in own)
    trials = trials_in(direct)
    assert sum(map(counts, trials)) == 20 and {trial.state for trial in trials} <= {COMPLETE, FAIL}
    assert set(run.values()) == {1} and len(run) == 20


def test_a_server_that_stays_away_ends_the_search_with_what_to_do_and_without_the_password(request, tmp_path, caplog):
    with running_postgres() as server:
        url = server.new_database("study")

        def begun(number: int) -> None:
            if number == 2:
                server.stop()

        target, backend = Search(begun=begun), OptunaBackend()
        with pytest.raises(BackendUnavailableError) as caught, caplog.at_level(logging.DEBUG):
            backend.run(target, 5, "maximize", storage=url, study_name="s", resume=True, storage_patience=1.0)
        message = str(caught.value)
        assert message.startswith("The storage of the study could not be used for ")
        assert "When it is back, run the search again with resume=True" in message
        assert target.own[2].state == "completed"
        everything = message + caplog.text + "".join(map(str, caught.getrepr(chain=True).chain))
        assert PASSWORD not in everything and QUOTED_PASSWORD not in everything
        server.start()
        resumed = Search()
        search(lambda: url, 5, resumed)
        assert sum(map(counts, trials_in(lambda: url))) == 5


def test_nothing_is_done_twice_where_only_the_answer_was_lost(postgres, monkeypatch):
    from sqlalchemy.exc import OperationalError

    opened = open_storage(postgres.new_database(f"study{time.time_ns()}"), 5.0)
    study = optuna.create_study(study_name="s", storage=opened, direction="maximize")
    lost: list[str] = []

    def losing(name: str) -> None:
        real = getattr(opened.inner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = real(*args, **kwargs)
            if name not in lost:
                lost.append(name)
                raise OperationalError("COMMIT", {}, Exception("the server has gone"))
            return answer

        monkeypatch.setattr(opened.inner, name, call)

    for name in ("create_new_trial", "set_trial_state_values", "set_trial_param", "set_trial_user_attr"):
        losing(name)
    source = SharedStudy(study, 1, False, 60.0, True)
    trial = source.next()
    values = SPACE.suggest(trial)
    source.tell(trial, TrialRecord(trial.number, "completed", 0.5, values))
    assert len(lost) == 4 and source.disowned == set()
    assert [(trial.number, trial.state, trial.value) for trial in study.trials] == [(0, COMPLETE, 0.5)]


@pytest.mark.parametrize("given", ["st_hpo", "optuna"])
def test_the_lock_of_a_killed_process_is_taken_away_though_the_path_is_relative(given, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    path = os.path.join("out", "study.journal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a grace period as short as this
        if given == "st_hpo":
            journal = WholeLinesJournal(path, FindableLock(path, 1))
        else:
            own = JournalFileBackend(path, JournalFileSymlinkLock(path, 1))
            journal = with_whole_lines(JournalStorage(own))._backend
    journal._writers.acquire()  # and is never released
    monkeypatch.chdir("out")
    began = time.process_time()
    study = optuna.create_study(storage=JournalStorage(journal), study_name="s")
    assert time.process_time() - began < 0.9, "it must sleep meanwhile"
    assert study.ask().number == 0 and os.listdir() == ["study.journal"]


def test_an_object_is_a_storage_too_and_sqlite_counts_right(tmp_path):
    def where() -> RDBStorage:
        return RDBStorage(f"sqlite:///{tmp_path}/study.db")

    where()  # Optuna's own constructor fails if two processes make the tables at once; ours tries again
    results = fork.Queue()
    with processes(3, search_in, where, 9, 0.02, results) as running:
        found = [results.get(timeout=PATIENCE) for _ in running]
    run = Counter(number for _, own, _ in found for number in own)
    assert set(run.values()) == {1} and sum(map(counts, trials_in(where))) == 9


def test_a_journal_that_ends_well_stays_as_it_is(tmp_path):
    path = tmp_path / "study.journal"
    optuna.create_study(storage=open_journal(str(path), 1.0), study_name="s").ask()
    content = path.read_bytes()
    open_journal(str(path), 1.0)
    assert path.read_bytes() == content and [item.name for item in tmp_path.iterdir()] == ["study.journal"]


def test_a_database_whose_tables_others_make_is_opened_as_soon_as_they_are_there(monkeypatch, tmp_path):
    """MariaDB's transactions do not hold tables: whoever comes meanwhile fails at one after the other."""
    said = [
        "(1050, \"Table 'trials' already exists\")",
        "(1213, 'Deadlock found when trying to get lock; try restarting transaction')",
        "(1412, 'Table definition has changed, please retry transaction')",
        *["(1062, \"Duplicate entry '1' for key 'PRIMARY'\")"] * 10,
    ]
    real = RDBStorage.__init__

    def busy(self: Any, *args: Any, **kwargs: Any) -> None:
        if said:
            try:
                raise OSError(said.pop(0))
            except OSError as exc:
                raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.") from exc
        real(self, *args, **kwargs)

    monkeypatch.setattr(RDBStorage, "__init__", busy)
    naps: list[float] = []
    monkeypatch.setattr(opening.time, "sleep", naps.append)
    target = Search()
    search(lambda: f"sqlite:///{tmp_path}/study.db", 1, target)
    assert len(target.own) == 1 and len([nap for nap in naps if nap >= 0.05]) == 13

    said[:] = ["(1146, \"Table 'trials' doesn't exist\")"]
    with pytest.raises(ConfigurationError, match=r"cannot be opened: OSError: .*doesn.t exist"):
        search(lambda: f"sqlite:///{tmp_path}/study.db", 2)


def test_a_database_that_stays_busy_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(opening, "_OPENING_SECONDS", 2.0)
    looks: list[int] = []

    def always(*args: Any, **kwargs: Any) -> None:
        looks.append(1)
        raise OSError("(1050, \"Table 'trials' already exists\")")

    monkeypatch.setattr(RDBStorage, "__init__", always)
    with pytest.raises(ConfigurationError, match="already exists"):
        search(lambda: f"sqlite:///{tmp_path}/study.db", 1)
    assert len(looks) > 1

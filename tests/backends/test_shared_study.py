"""One study that several processes share: exact totals, the dead and their retries, storages that go away.

The trials are as short as can be: what is tested is who runs which. ``test_workers.py`` has real trainings.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import multiprocessing
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import optuna
import pytest
from optuna.storages import GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from postgres import PASSWORD, QUOTED_PASSWORD, PostgresServer, running_postgres

from st_hpo import ConfigurationError, Float, SearchSpace, TrialRecord
from st_hpo.backends.optuna import liveness, storage
from st_hpo.backends.optuna.backend import OptunaBackend
from st_hpo.backends.optuna.records import ENDED_ATTRIBUTE, RETRY_ATTRIBUTE, WORKER_ATTRIBUTE, counts, ended
from st_hpo.backends.optuna.shared import MAX_RETRIES, SharedStudy
from st_hpo.backends.optuna.storage import open_journal, open_storage
from st_hpo.backends.optuna.urls import redacted
from st_hpo.errors import BackendUnavailableError
from st_hpo.faults import SearchStopped

SPACE = SearchSpace({"learning_rate": Float(1e-6, 1e-2, log=True)})
STORAGES = ("sqlite", "journal", "postgres")
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
        self.output_dir = "output"
        self.ending: BaseException | None = None
        self.own: dict[int, TrialRecord] = {}
        self._seconds = seconds
        self._begun = begun

    def run_trial(self, number, propose, native=None, report=None, *, backend_id=None, catch=()):
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


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=STORAGES)
def where(request, tmp_path) -> Callable[[], Any]:
    """Returns what opens the storage, for each process anew."""
    return storage_of(request, request.param, tmp_path)


def storage_of(request: Any, kind: str, folder: Path) -> Callable[[], Any]:
    if kind == "sqlite":
        return lambda: f"sqlite:///{folder}/study.db"
    if kind == "journal":
        return lambda: JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    url = request.getfixturevalue("postgres").new_database(f"study{time.time_ns()}")
    return lambda: url


@pytest.fixture(autouse=True)
def _quiet():
    previous = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(previous)


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


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to this in time"
        time.sleep(0.02)


def hang_in(number: int, flag: Path) -> Callable[[int], None]:
    """Returns what makes the trial of this number hang, and says so."""

    def begun(trial: int) -> None:
        if trial == number:
            flag.touch()
            time.sleep(600)

    return begun


def search_that_hangs(where: Callable[[], Any], n_trials: int, number: int, flag: Path) -> None:
    search(where, n_trials, Search(begun=hang_in(number, flag)))


# -- resuming


def test_a_search_that_was_killed_is_resumed_to_its_total_and_its_trial_is_retried(where, tmp_path):
    flag = tmp_path / "hangs"
    with processes(1, search_that_hangs, where, 6, 2, flag) as (process,):
        until(flag.exists)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert [trial.state for trial in trials_in(where)] == [COMPLETE, COMPLETE, RUNNING]
    target = Search()
    records = search(where, 6, target).records(target)
    trials = trials_in(where)
    assert [trial.state for trial in trials] == [COMPLETE, COMPLETE, FAIL, COMPLETE, COMPLETE, COMPLETE, COMPLETE]
    assert sum(map(counts, trials)) == 6
    assert trials[3].params == trials[2].params and trials[3].user_attrs[RETRY_ATTRIBUTE] == {"of": 2, "count": 1}
    assert sorted(target.own) == [3, 4, 5, 6]
    host = trials[2].user_attrs[WORKER_ATTRIBUTE]["host"]
    assert records[2].error == f"lost: process {process.pid} on {host} has ended"
    assert records[2].hyperparameters == trials[2].params
    assert [record.objective for record in records] == [trial.value for trial in trials]
    assert len({trial.params["learning_rate"] for trial in trials}) == 6


def test_a_total_that_is_reached_needs_no_trial(where):
    first = Search()
    search(where, 3, first)
    again = Search()
    records = search(where, 3, again).records(again)
    assert again.own == {} and records == list(first.own.values())


def test_without_resume_the_search_runs_as_many_trials_again(where):
    search(where, 2, resume=False)
    target = Search()
    records = search(where, 2, target, resume=False, load_if_exists=True).records(target)
    assert sorted(target.own) == [2, 3] and len(records) == 4


def test_trials_that_failed_by_themselves_count_and_those_that_were_stopped_are_run_again(where):
    class Failing(Search):
        def run_trial(self, number, propose, native=None, report=None, **kwargs):
            if number == 1:
                self._begun = lambda number: [][0]
            if number == 2:
                self.ending = SearchStopped("SIGTERM")
            try:
                return super().run_trial(number, propose, native, report, **kwargs)
            except IndexError:
                self._begun = lambda number: None
                return self.own[number]

    target = Failing()
    with pytest.raises(SearchStopped):
        search(where, 5, target)
    assert [trial.state for trial in trials_in(where)] == [COMPLETE, FAIL, FAIL, WAITING]
    search(where, 5)
    trials = trials_in(where)
    assert [counts(trial) for trial in trials] == [True, True, False, True, True, True]
    assert ended(trials[1]) == {} and ended(trials[2])["why"] == "stopped"
    assert trials[3].params == trials[2].params


def test_a_trial_that_kills_its_process_again_and_again_fails_in_the_end(where, tmp_path):
    def kills_itself(where: Callable[[], Any]) -> None:
        def begun(number: int) -> None:
            trial = optuna.load_study(study_name="s", storage=where()).trials[number]
            if number == 1 or RETRY_ATTRIBUTE in trial.user_attrs:
                os.kill(os.getpid(), signal.SIGKILL)

        search(where, 3, Search(begun=begun))

    for _ in range(MAX_RETRIES + 2):
        with processes(1, kills_itself, where) as (process,):
            process.join(60)
    assert process.exitcode == 0
    trials = trials_in(where)
    assert sum(map(counts, trials)) == 3
    assert [trial.state for trial in trials].count(FAIL) == 1 + MAX_RETRIES
    lost = [trial for trial in trials if trial.state == FAIL]
    assert [counts(trial) for trial in lost] == [False] * MAX_RETRIES + [True]
    assert len({trial.params["learning_rate"] for trial in lost}) == 1


def test_a_search_without_a_storage_is_resumed_from_its_output_folder(tmp_path):
    flag = tmp_path / "hangs"

    def run(target: Search) -> OptunaBackend:
        backend = OptunaBackend()
        backend.run(target, 4, "maximize", resume=True)
        return backend

    with processes(1, run, Search(begun=hang_in(1, flag))) as _:
        until(flag.exists)
    path = Path("output", storage.JOURNAL)
    with open(path, "ab") as file:  # what a power cut leaves
        file.write(b'{"op_code":4,"worker_id":"0')
    target = Search()
    backend = run(target)
    assert sum(map(counts, backend.native.trials)) == 4 and backend.native.study_name == "st_hpo"
    assert all(json.loads(line) for line in path.read_text().splitlines())


# -- several at once


def search_in(where: Callable[[], Any], n_trials: int, seconds: float, results: Any) -> None:
    target = Search(seconds)
    records = search(where, n_trials, target).records(target)
    results.put((os.getpid(), sorted(target.own), [record.to_dict() for record in records]))


def test_two_searches_at_once_run_the_total_together_and_both_return_it_all(where):
    results = fork.Queue()
    with processes(2, search_in, where, 12, 0.05, results) as running:
        found = [results.get(timeout=60) for _ in running]
        for process in running:
            process.join(30)
    (_, one, records_of_one), (_, two, records_of_two) = found
    trials = trials_in(where)
    assert sum(map(counts, trials)) == 12 and {trial.state for trial in trials} <= {COMPLETE, FAIL}
    assert sorted(one + two) == [trial.number for trial in trials if trial.state == COMPLETE]
    assert one and two
    assert records_of_one == records_of_two and len(records_of_one) == 12
    assert len({trial.params["learning_rate"] for trial in trials if trial.state == COMPLETE}) == 12


def test_the_survivor_takes_over_what_the_other_one_had_begun(where, tmp_path):
    flag = tmp_path / "hangs"
    with processes(1, search_that_hangs, where, 5, 0, flag) as (process,):
        until(flag.exists)

        def kill_later() -> None:
            time.sleep(1.5)
            process.kill()

        killer = threading.Thread(target=kill_later)
        killer.start()
        target = Search()
        search(where, 5, target)
        killer.join()
    trials = trials_in(where)
    assert [trial.state for trial in trials].count(COMPLETE) == 5 and trials[0].state == FAIL
    assert trials[5].params == trials[0].params and sorted(target.own) == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_eight_processes_on_one_server_run_two_hundred_trials_and_not_one_more(request, tmp_path):
    where = storage_of(request, "postgres", tmp_path)
    results = fork.Queue()
    with processes(8, search_in, where, 200, 0.02, results) as running:
        found = [results.get(timeout=240) for _ in running]
        for process in running:
            process.join(60)
    trials = trials_in(where)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert sum(map(counts, trials)) == 200
    run = Counter(number for _, own, _ in found for number in own)
    assert set(run.values()) == {1} and len(run) == 200
    assert {ended(trial).get("why") for trial in trials if trial.state == FAIL} <= {"surplus"}
    assert all(len(records) == 200 for _, _, records in found)


@pytest.mark.slow
def test_processes_that_are_killed_all_the_time_lose_nothing(request, where):
    """Whoever dies is replaced by a new process, until the total is there."""
    results = fork.Queue()
    chance = random.Random(3)
    with processes(3, search_in, where, 25, 0.1, results) as running:
        for _ in range(6):
            time.sleep(0.6)
            victim = chance.randrange(3)
            running[victim].kill()
            running[victim].join()
            running[victim] = started(search_in, where, 25, 0.1, results)
        deadline = time.monotonic() + 90
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
        assert [process.exitcode for process in running] == [0, 0, 0]
    trials = trials_in(where)
    assert sum(map(counts, trials)) == 25
    assert {trial.state for trial in trials} <= {COMPLETE, FAIL}
    retried = [trial.user_attrs[RETRY_ATTRIBUTE]["of"] for trial in trials if RETRY_ATTRIBUTE in trial.user_attrs]
    assert len(set(retried)) == len(retried)


def test_of_two_that_ask_at_the_same_time_the_later_one_steps_back(where, monkeypatch):
    study = optuna.create_study(study_name="s", storage=open_storage(where(), 5.0), direction="maximize")
    one, two = (SharedStudy(study, 1, True, 1.0, True) for _ in range(2))
    first = one.next()
    real, looks = study.get_trials, []

    def nothing_there_yet(*args: Any, **kwargs: Any) -> Any:
        looks.append(1)
        return [] if len(looks) <= 2 else real(*args, **kwargs)

    monkeypatch.setattr(study, "get_trials", nothing_there_yet)
    assert first is not None and two.next() is None and not two.is_done
    monkeypatch.undo()
    record = TrialRecord(0, "completed", 1.0)
    one.tell(first, record)
    assert [trial.state for trial in study.trials] == [COMPLETE, FAIL]
    assert study.trials[1].user_attrs[ENDED_ATTRIBUTE] == {"why": "surplus", "counts": False}
    target = Search()
    assert search(where, 1, target).records(target) == [record]


def test_what_others_began_is_not_proposed_once_more(where):
    """With a seed, whoever joins a study would propose the very same values as whoever has created it."""

    def rates(**kwargs: Any) -> list[float]:
        target = Search()
        search(where, 6, target, sampler=optuna.samplers.RandomSampler(seed=5), **kwargs)
        return [record.hyperparameters["learning_rate"] for record in target.own.values()]

    alone = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=5))
    expected = [SPACE.suggest(alone.ask())["learning_rate"] for _ in range(6)]
    assert rates() == expected
    assert not set(rates(resume=False, load_if_exists=True)) & set(expected)


def test_a_worker_that_dies_too_often_uses_up_its_trial():
    source = SharedStudy(optuna.create_study(), 1, False, 1.0, False)
    for number in range(1 + MAX_RETRIES):
        trial = source.next()
        assert trial.number == number and source.next() is None and not source.is_done
        source.lost(trial, TrialRecord(number, "failed", error="lost: for a test"))
    assert source.is_done and source.next() is None
    assert [counts(trial) for trial in source.study.trials] == [False] * MAX_RETRIES + [True]


# -- life and death


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_process_of_this_machine_is_looked_up():
    watch = liveness.Watch(10.0)
    me = liveness.this_process(10.0)
    assert watch.death_of(1, me) == f"an earlier search in process {os.getpid()} on {me['host']} has left it"
    liveness.running_here.add(me["id"])
    assert watch.death_of(1, me) is None
    liveness.running_here.discard(me["id"])
    with processes(1, time.sleep, 600) as (process,):
        worker = {**me, "pid": process.pid, "started": liveness.started_at(process.pid)}
        assert watch.death_of(2, worker) is None
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: watch.death_of(2, worker) is not None)  # a zombie until it is joined
    assert watch.death_of(2, worker) == f"process {process.pid} on {me['host']} has ended"
    reused = {**me, "started": "1"}
    assert watch.death_of(3, reused) == f"process {os.getpid()} on {me['host']} has ended"


def test_of_another_machine_heartbeats_tell_by_this_machines_clock():
    clock = Clock()
    watch = liveness.Watch(10.0, clock)
    worker = {**liveness.this_process(10.0), "place": "elsewhere", "host": "elsewhere", "beat": 4e9}
    assert watch.death_of(1, worker) is None
    clock.now = 39.0
    assert watch.death_of(1, worker) is None
    worker["beat"] -= 3600.0  # a clock that was put back: it has changed, and that is all that matters
    clock.now = 45.0
    assert watch.death_of(1, worker) is None
    clock.now = 86.0
    assert watch.death_of(1, worker) == f"no heartbeat of process {os.getpid()} on elsewhere"


def test_a_machine_without_a_process_table_is_known_by_its_heartbeats(monkeypatch):
    monkeypatch.setattr(liveness, "place", lambda: None)
    clock = Clock()
    watch = liveness.Watch(1.0, clock)
    worker = {**liveness.this_process(1.0), "place": None}
    assert watch.death_of(1, worker) is None
    clock.now = 5.0
    assert watch.death_of(1, worker) == f"no heartbeat of process {os.getpid()} on {worker['host']}"


def test_a_machine_that_gives_signs_of_life_is_waited_for_and_one_that_stops_is_replaced(where, monkeypatch):
    study = optuna.create_study(study_name="s", storage=open_storage(where(), 5.0), direction="maximize")
    other = SharedStudy(study, 3, True, 0.2, True)
    other._process.update(place="elsewhere", host="elsewhere")
    with other.running():
        trial = other.next()
        SPACE.suggest(trial)
        done = threading.Event()
        target = Search()
        thread = threading.Thread(
            target=lambda: (search(where, 3, target, heartbeat_interval=0.2), done.set()), daemon=True
        )
        thread.start()
        assert not done.wait(3.0)
        assert [trial.state for trial in trials_in(where)] == [RUNNING, COMPLETE, COMPLETE]
    assert done.wait(20.0)
    trials = trials_in(where)
    assert [trial.state for trial in trials] == [FAIL, COMPLETE, COMPLETE, COMPLETE]
    assert trials[3].params == trials[0].params
    assert ended(trials[0])["error"] == f"lost: no heartbeat of process {os.getpid()} on elsewhere"
    record = TrialRecord(0, "completed", 1.0)
    other.tell(trial, record)  # it was not dead after all
    assert other.disowned == {0} and trials_in(where)[0].state == FAIL


def test_what_other_programs_left_running_is_waited_for_a_while_only(where):
    study = optuna.create_study(study_name="s", storage=where(), direction="maximize")
    study.ask()
    target = Search()
    began = time.monotonic()
    records = search(where, 2, target, heartbeat_interval=0.2).records(target)
    assert [record.state for record in records] == ["running", "completed", "completed"]
    assert time.monotonic() - began < 20


def test_trials_that_the_user_enqueues_come_first(where):
    study = optuna.create_study(study_name="s", storage=where(), direction="maximize")
    study.enqueue_trial({"learning_rate": 1e-3})
    target = Search()
    search(where, 2, target)
    assert [record.hyperparameters["learning_rate"] == 1e-3 for record in target.own.values()] == [True, False]


# -- storages that go away


@pytest.mark.slow
def test_a_server_that_restarts_in_the_middle_costs_no_trial(request, postgres, tmp_path):
    where = storage_of(request, "postgres", tmp_path)
    results = fork.Queue()
    with processes(2, search_in, where, 30, 0.2, results) as running:
        until(lambda: Path(tmp_path).exists() and len(_peek(where)) > 5)
        for _ in range(2):
            postgres.stop()
            time.sleep(0.7)
            postgres.start()
            time.sleep(0.7)
        found = [results.get(timeout=90) for _ in running]
        for process in running:
            process.join(30)
    trials = trials_in(where)
    assert sum(map(counts, trials)) == 30
    assert {trial.state for trial in trials} <= {COMPLETE, FAIL}
    assert {ended(trial).get("why") for trial in trials if trial.state == FAIL} <= {"surplus"}
    run = Counter(number for _, own, _ in found for number in own)
    assert set(run.values()) == {1} and len(run) == 30


def _peek(where: Callable[[], Any]) -> list[Any]:
    try:
        return trials_in(where)
    except Exception:
        return []


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = fork.Queue()
    with contextlib.ExitStack() as stack:
        with proxy(direct(), port):
            through = functools.partial(GrpcStorageProxy, host="127.0.0.1", port=port)
            running = stack.enter_context(processes(2, search_in, through, 20, 0.3, results))
            until(lambda: len(_peek(direct)) > 4)
        time.sleep(1.0)
        with proxy(direct(), port):
            found = [results.get(timeout=90) for _ in running]
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


@pytest.mark.parametrize(
    ("password", "sent"), [("wrong", "wrong"), ("wr@ng/one", "wr@ng/one"), ("wr@ng one", "wr%40ng%20one")]
)
def test_a_password_in_a_url_is_never_shown(password, sent, postgres):
    with pytest.raises(ConfigurationError) as caught:
        open_storage(postgres.url(password=sent), 1.0)
    message = str(caught.value)
    assert "postgresql+psycopg2://searcher:***@127.0.0.1:" in message and " cannot be opened: " in message
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    for part in (password, sent, "ng/one", "ng%20one", "ng one"):
        assert part not in message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql+pymysql://u:s3cret@host/db", "mysql+pymysql://u:***@host/db"),
        ("postgresql://host/db?user=u&password=s3cret", "postgresql://host/db?user=u&password=***"),
        ("postgresql:/u:s3cret@host", "postgresql:***"),
        ("postgresql://u:s3cret:more@ho@st/db", "postgresql://u:***@st/db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("postgresql://u@host/db", "postgresql://u@host/db"),
    ],
)
def test_of_a_url_all_but_the_password_is_shown(url, shown):
    assert redacted(f"<{url}>", url) == f"<{shown}>"


def test_an_object_is_a_storage_too_and_sqlite_counts_right(tmp_path):
    def where() -> RDBStorage:
        return RDBStorage(f"sqlite:///{tmp_path}/study.db")

    where()  # Optuna's own constructor fails if two processes make the tables at once; ours tries again
    results = fork.Queue()
    with processes(3, search_in, where, 9, 0.02, results) as running:
        found = [results.get(timeout=60) for _ in running]
    run = Counter(number for _, own, _ in found for number in own)
    assert set(run.values()) == {1} and sum(map(counts, trials_in(where))) == 9


def test_nothing_is_unpickled_that_came_from_a_study(where, monkeypatch):
    search(where, 2)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    for module, name in ((pickle, "loads"), (pickle, "load"), (cloudpickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    target = Search()
    assert len(search(where, 4, target).records(target)) == 4


def test_a_journal_that_ends_well_stays_as_it_is(tmp_path):
    path = tmp_path / "study.journal"
    optuna.create_study(storage=open_journal(str(path)), study_name="s").ask()
    content = path.read_bytes()
    open_journal(str(path))
    assert path.read_bytes() == content and [item.name for item in tmp_path.iterdir()] == ["study.journal"]

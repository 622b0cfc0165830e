"""Resuming a study after whatever has ended a search: to its total, with the trials of the dead retried."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from st_hpo import TrialRecord
from st_hpo.backends.optuna import liveness, storage
from st_hpo.backends.optuna.backend import OptunaBackend
from st_hpo.backends.optuna.records import RETRY_ATTRIBUTE, WORKER_ATTRIBUTE, counts, ended
from st_hpo.backends.optuna.shared import MAX_RETRIES, SharedStudy
from st_hpo.backends.optuna.storage import open_storage
from st_hpo.faults import SearchStopped

from shared_setup import (
    COMPLETE,
    FAIL,
    PATIENCE,
    RUNNING,
    SPACE,
    WAITING,
    Search,
    ended_with,
    hang_in,
    processes,
    search,
    search_that_hangs,
    trials_in,
    until,
)

pytest_plugins = ["shared_fixtures"]
pytestmark = pytest.mark.usefixtures("quiet_optuna")


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

    codes = []
    for _ in range(MAX_RETRIES + 2):
        with processes(1, kills_itself, where) as (process,):
            codes.append(ended_with(process))
    assert codes == [-signal.SIGKILL] * (1 + MAX_RETRIES) + [0]
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


@pytest.mark.slow
def test_a_machine_that_gives_signs_of_life_is_waited_for_and_one_that_stops_is_replaced(where, monkeypatch):
    study = optuna.create_study(study_name="s", storage=open_storage(where(), 5.0), direction="maximize")
    other = SharedStudy(study, 3, True, 2.0, True)
    other._own.process.update(place="elsewhere", host="elsewhere")
    with other.running():
        trial = other.next()
        SPACE.suggest(trial)
        done = threading.Event()
        target = Search()
        thread = threading.Thread(
            target=lambda: (search(where, 3, target, heartbeat_interval=2.0), done.set()), daemon=True
        )
        thread.start()
        until(lambda: [trial.state for trial in trials_in(where)] == [RUNNING, COMPLETE, COMPLETE])
        assert not done.wait(2.0 * (liveness.MISSED_BEATS + 1))
        assert [trial.state for trial in trials_in(where)] == [RUNNING, COMPLETE, COMPLETE]
    assert done.wait(PATIENCE)
    thread.join()
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
    assert time.monotonic() - began < PATIENCE


def test_trials_that_the_user_enqueues_come_first(where):
    study = optuna.create_study(study_name="s", storage=where(), direction="maximize")
    study.enqueue_trial({"learning_rate": 1e-3})
    target = Search()
    search(where, 2, target)
    assert [record.hyperparameters["learning_rate"] == 1e-3 for record in target.own.values()] == [True, False]

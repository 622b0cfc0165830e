"""One study that several processes share: exact totals, each trial once.

The trials are as short as can be: what is tested is who runs which. ``test_workers.py`` has real trainings.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

import optuna
import pytest

from st_hpo import TrialRecord
from st_hpo.backends.optuna.records import ENDED_ATTRIBUTE, RETRY_ATTRIBUTE, counts, ended
from st_hpo.backends.optuna.shared import MAX_RETRIES, SharedStudy
from st_hpo.backends.optuna.storage import open_storage

from shared_setup import (
    COMPLETE,
    FAIL,
    PATIENCE,
    RUNNING,
    SPACE,
    WAITING,
    Search,
    ended_with,
    fork,
    processes,
    search,
    search_in,
    search_that_hangs,
    started,
    storage_of,
    trials_in,
    until,
)

pytest_plugins = ["shared_fixtures"]
pytestmark = pytest.mark.usefixtures("quiet_optuna")


def test_two_searches_at_once_run_the_total_together_and_both_return_it_all(where):
    results = fork.Queue()
    with processes(2, search_in, where, 12, 0.05, results, fork.Barrier(2)) as running:
        found = [results.get(timeout=PATIENCE) for _ in running]
        assert [ended_with(process) for process in running] == [0, 0]
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
            until(lambda: [record.state for record in list(target.own.values())].count("completed") == 4)
            process.kill()

        killer = threading.Thread(target=kill_later)
        target = Search()
        killer.start()
        search(where, 5, target)
        killer.join()
    trials = trials_in(where)
    assert [trial.state for trial in trials].count(COMPLETE) == 5 and trials[0].state == FAIL
    assert trials[5].params == trials[0].params and sorted(target.own) == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_eight_processes_on_one_server_run_two_hundred_trials_and_not_one_more(request, tmp_path):
    where = storage_of(request, "postgres", tmp_path)
    results = fork.Queue()
    with processes(8, search_in, where, 200, 0.02, results, fork.Barrier(8)) as running:
        found = [results.get(timeout=2 * PATIENCE) for _ in running]
        assert [ended_with(process) for process in running] == [0] * 8
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
    optuna.create_study(study_name="s", storage=open_storage(where(), 5.0), direction="maximize")
    with processes(3, search_in, where, 25, 0.1, results) as running:
        for _ in range(6):
            time.sleep(0.6)
            victim = chance.randrange(3)
            running[victim].kill()
            running[victim].join()
            running[victim] = started(search_in, where, 25, 0.1, results)
        assert [ended_with(process) for process in running] == [0, 0, 0]
    trials = trials_in(where)
    assert sum(map(counts, trials)) == 25
    # One that dies before it has stepped back leaves its trial to nobody
    assert {trial.state for trial in trials} <= {COMPLETE, FAIL, WAITING}
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
    assert study.trials[1].user_attrs[ENDED_ATTRIBUTE] == {"why": "surplus", "counts": False, "retried": False}
    target = Search()
    assert search(where, 1, target).records(target) == [record]


def test_what_another_process_begins_as_the_last_one_ends_is_no_trial_of_the_result(where):
    """It is about to step back: the total is there. One that really runs, in a search for more, is shown."""
    target = Search()
    backend = search(where, 2, target)
    study = optuna.load_study(study_name="s", storage=open_storage(where(), 5.0))
    other = SharedStudy(study, 3, True, 1.0, True)
    with other.running():
        trial = other.next()
        assert [trial.state for trial in trials_in(where)] == [COMPLETE, COMPLETE, RUNNING]
        assert [record.number for record in backend.records(target)] == [0, 1]
        SPACE.suggest(trial)
        assert [(record.number, record.state) for record in backend.records(target)][2:] == [(2, "running")]


def test_a_trial_that_steps_back_leaves_no_trace_in_a_sampler(where, monkeypatch):
    """It would use up a point of the grid that nobody then runs."""
    storage = open_storage(where(), 5.0)
    sampler = optuna.samplers.GridSampler({"learning_rate": [1e-5, 1e-4, 1e-3]}, seed=1)
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize", sampler=sampler)
    one, two = (SharedStudy(study, 1, True, 1.0, True) for _ in range(2))
    assert one.next() is not None
    real, looks = study.get_trials, []

    def nothing_there_yet(*args: Any, **kwargs: Any) -> Any:
        looks.append(1)
        return [] if len(looks) <= 2 else real(*args, **kwargs)

    monkeypatch.setattr(study, "get_trials", nothing_there_yet)
    assert two.next() is None
    monkeypatch.undo()
    assert [trial.state for trial in study.trials] == [RUNNING, FAIL]
    assert "grid_id" not in study.trials[1].system_attrs


def test_what_is_enqueued_beyond_the_total_stays_enqueued(where):
    study = optuna.create_study(study_name="s", storage=open_storage(where(), 5.0), direction="maximize")
    for rate in (1e-3, 2e-3, 3e-3):
        study.enqueue_trial({"learning_rate": rate})
    one, two = (SharedStudy(study, 2, True, 1.0, True) for _ in range(2))
    first, second = one.next(), two.next()
    assert SPACE.suggest(first) == {"learning_rate": 1e-3} and SPACE.suggest(second) == {"learning_rate": 2e-3}
    one.tell(first, TrialRecord(0, "completed", 1.0))
    assert one.next() is None  # the second one is being run
    assert [trial.state for trial in study.trials] == [COMPLETE, RUNNING, WAITING]


def test_an_enqueued_trial_that_steps_back_is_enqueued_again(where, monkeypatch):
    study = optuna.create_study(study_name="s", storage=open_storage(where(), 5.0), direction="maximize")
    for rate in (1e-3, 2e-3):
        study.enqueue_trial({"learning_rate": rate})
    one, two = (SharedStudy(study, 1, True, 1.0, True) for _ in range(2))
    assert SPACE.suggest(one.next()) == {"learning_rate": 1e-3}
    real, looks = study.get_trials, []

    def before_the_other_one(*args: Any, **kwargs: Any) -> Any:
        looks.append(1)
        found = real(*args, **kwargs)
        return [trial for trial in found if trial.state == WAITING] if len(looks) <= 2 else found

    monkeypatch.setattr(study, "get_trials", before_the_other_one)
    assert two.next() is None
    monkeypatch.undo()
    assert [trial.state for trial in study.trials] == [RUNNING, FAIL, WAITING]
    assert study.trials[2].system_attrs["fixed_params"] == {"learning_rate": 2e-3}


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

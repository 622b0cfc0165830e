"""What happens to a trial whose other rank does not come, without ranks: how long it is waited for, what it counts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch.distributed as dist

from st_hpo import RankError, distributed
from st_hpo.backends.optuna.endings import is_lost, says_nothing
from st_hpo.backends.optuna.records import counts
from st_hpo.backends.optuna.shared import MAX_RETRIES, SharedStudy
from st_hpo.distributed import Ranks
from st_hpo.faults import SearchStopped, StopSignal
from st_hpo.records import COMPLETED, FAILED, TrialRecord

TIMEOUT = 1000.0


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: dict[float, Callable[[], Any]] = {}

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.1)
        for at in [at for at in self.events if at <= self.now]:
            self.events.pop(at)()


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(distributed, "time", found)
    return found


@pytest.fixture
def leader(monkeypatch, clock):
    """Rank 0 of two; the other one is what a test has happen at some time."""
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(Ranks, "_open_store", lambda self: dist.HashStore())
    ranks = Ranks(TIMEOUT)
    ranks.stop = SimpleNamespace(terminated=False, reason=None)
    return ranks


def test_a_rank_that_does_not_come_costs_the_timeout_once(leader, clock):
    with pytest.raises(RankError, match=r"In trial 1, rank\(s\) \[1\] have died or hang") as caught:
        leader.together("trial 1", leader.fence)
    assert caught.value.fatal and is_lost(caught.value) and leader.lost
    assert TIMEOUT <= clock.now < TIMEOUT + 15


def test_a_collective_operation_that_has_run_into_its_timeout_is_heard_of_by_a_rank_that_failed_before(leader, clock):
    def fail() -> None:
        raise MemoryError("in the backward pass")

    clock.events[TIMEOUT + 5] = lambda: leader._set("outcome/1/1", {"broken": True})
    with pytest.raises(
        RankError, match="the ranks have lost each other; rank 0 says: Out of memory: MemoryError"
    ) as caught:
        leader.together("trial 1", fail)
    assert caught.value.fatal and not is_lost(caught.value)


@pytest.mark.parametrize(
    "text", ["Timed out waiting 15000ms for recv operation", "Application timeout caused pair closure"]
)
def test_whatever_gloo_says_of_a_rank_that_did_not_come_the_search_does_not_go_on(leader, clock, text):
    def train() -> None:
        leader._set("failed/1", {"rank": 1, "error": "Out of memory", "kinds": [], "fatal": False, "stopped": None})
        leader._set("outcome/1/1", {"broken": False})
        raise RuntimeError(text)

    with pytest.raises(RankError, match="the ranks have lost each other; rank 1 says: Out of memory") as caught:
        leader.together("trial 1", train)
    assert caught.value.fatal and leader.lost


def test_after_sigterm_the_others_are_waited_for_so_that_all_end_after_the_same_step(leader, clock):
    leader.stop = SimpleNamespace(terminated=True, reason="SIGTERM")

    def train() -> None:
        for step in (1, 2, 3):
            clock.events[clock.now + 5] = lambda: leader._store.add(f"fence/1/{leader._fences}", 1)
            leader.fence()
            leader.check_stop(step)

    clock.events[14.0] = lambda: leader._set("outcome/1/1", {"broken": False})
    with pytest.raises(SearchStopped, match="SIGTERM"):
        leader.together("trial 1", train)
    assert leader._fences == 2


def test_after_sigterm_nobody_is_waited_for_until_the_launcher_kills(leader, clock):
    leader.stop = SimpleNamespace(terminated=True, reason="SIGTERM")
    with pytest.raises(RankError, match="have died or hang"):
        leader.together("trial 1", leader.fence)
    leader.close()
    assert clock.now < 20


@pytest.fixture
def follower(monkeypatch, leader):
    """Rank 1 of two, on the store of rank 0."""
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(Ranks, "_open_store", lambda self: leader._store)
    ranks = Ranks(TIMEOUT)
    ranks.stop = SimpleNamespace(terminated=False, reason=None)
    return ranks


def test_rank_0_is_waited_for_as_long_as_it_says_that_it_waits_for_other_jobs(leader, follower, clock):
    for seconds in range(1, 5 * int(TIMEOUT), 500):
        clock.events[seconds] = leader.still_deciding
    clock.events[5 * TIMEOUT] = lambda: leader.share(lambda: {"trial": 7})
    assert follower.share() == {"trial": 7}
    assert 5 * TIMEOUT <= clock.now < 5 * TIMEOUT + 1


def test_rank_0_that_says_nothing_any_more_is_given_up(leader, follower, clock):
    clock.events[TIMEOUT / 2] = leader.still_deciding
    with pytest.raises(RankError, match="Rank 0 has not decided within 1000 s"):
        follower.share()
    assert 1.5 * TIMEOUT <= clock.now < 2 * TIMEOUT + 1 and follower.lost


@pytest.mark.parametrize(
    ("raised", "heard"), [(optuna.TrialPruned(), RankError), (SearchStopped("timeout of 1 s"), SearchStopped)]
)
def test_what_all_ranks_raise_as_a_rule_does_not_strand_the_others_if_one_does(leader, follower, clock, raised, heard):
    """An evaluator runs on rank 0 alone."""

    def leaves() -> None:
        raise raised

    clock.events[1.0] = lambda: leader._set("outcome/1/1", {"broken": False})
    with pytest.raises(type(raised)):
        leader.together("trial 1", leaves, agreed=(optuna.TrialPruned,))
    with pytest.raises(heard) as caught:
        follower.together("trial 1", follower.fence, agreed=(optuna.TrialPruned,))
    assert clock.now < 30 and not follower.lost
    assert heard is SearchStopped or ("TrialPruned" in caught.value.kinds and not caught.value.fatal)


def test_sigterm_on_another_machine_alone_ends_all_ranks(leader, follower):
    leader.stop, follower.stop = StopSignal(), StopSignal()
    follower.stop.terminate()
    follower.check_stop(3)
    leader.check_stop(3)
    assert leader.stop.terminated
    for ranks in (leader, follower):
        with pytest.raises(SearchStopped, match="SIGTERM"):
            ranks.check_stop(4)


def test_a_rank_that_fails_after_a_fence_is_not_heard_of_at_that_fence(leader, monkeypatch):
    """It may have begun to exchange gradients, so the process group is of no use without this rank."""
    has = leader._has

    def slowly(key: str) -> bool:  # the other rank comes, and fails, after this rank has looked who is there
        if key == "failed/1" and not has(key):
            leader._store.add("fence/1/1", 1)
            failed = {"rank": 1, "error": "Out of memory", "kinds": ["MemoryError"], "fatal": False, "stopped": None}
            leader._set(key, failed)
        return has(key)

    monkeypatch.setattr(leader, "_has", slowly)
    leader._sections = leader._inside = 1
    leader.fence()
    with pytest.raises(RankError, match="Out of memory"):
        leader.fence()


def test_when_the_store_goes_the_trial_is_named(leader):
    def gone() -> None:
        leader._store = SimpleNamespace(check=broken, set=broken, add=broken, get=broken)
        leader.fence()

    def broken(*args: Any) -> None:
        raise dist.DistNetworkError("Connection reset by peer")

    with pytest.raises(RankError, match=r"^In trial 1, rank 0 has died") as caught:
        leader.together("trial 1", gone)
    assert caught.value.fatal
    with pytest.raises(RankError, match=r"^After trial 1, rank 0 has died"):
        leader.share(lambda: 1)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RankError("rank(s) [1] have died or hang", fatal=True), True),
        (RankError("rank 1 says: Out of memory", fatal=True, kinds=["OutOfMemoryError"]), False),
        (RankError("Rank 1 failed: ValueError", kinds=["ValueError"]), False),
        (ValueError("its own"), False),
    ],
)
def test_a_lost_rank_says_nothing_of_the_hyperparameters_unless_one_has_said_why(error, lost):
    assert (is_lost(error), says_nothing(error)) == (lost, lost)


def test_a_trial_that_loses_its_ranks_every_time_counts_in_the_end():
    study = optuna.create_study()
    tried = []
    for _ in range(MAX_RETRIES + 1):
        source = SharedStudy(study, 1, in_total=True, interval=15.0, shared=True)
        with source.running():
            trial = source.next()
            tried.append(trial.suggest_float("x", 0.0, 1.0))
            source.tell(trial, TrialRecord(trial.number, state=FAILED), stopped=True, tried=True)
    assert len(set(tried)) == 1
    assert [counts(trial) for trial in study.trials] == [False] * MAX_RETRIES + [True]
    assert SharedStudy(study, 1, in_total=True, interval=15.0, shared=True).next() is None


def test_a_trial_that_is_stopped_is_retried_however_often():
    study = optuna.create_study()
    for _ in range(MAX_RETRIES + 2):
        source = SharedStudy(study, 1, in_total=True, interval=15.0, shared=True)
        with source.running():
            trial = source.next()
            source.tell(trial, TrialRecord(trial.number, state=FAILED), stopped=True)
    assert study.trials[-1].state.name == "WAITING"


def test_a_trial_that_was_through_when_the_search_was_stopped_is_not_retried():
    study = optuna.create_study()
    source = SharedStudy(study, 2, in_total=True, interval=15.0, shared=True)
    with source.running():
        trial = source.next()
        source.tell(trial, TrialRecord(trial.number, state=COMPLETED, objective=0.5), stopped=True)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] and counts(study.trials[0])

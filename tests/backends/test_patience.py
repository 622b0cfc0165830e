"""Waiting for a storage that is away: how long, what ends it, and what it does to the trials meanwhile."""

from __future__ import annotations

import logging

import optuna
import pytest
from sqlalchemy.exc import OperationalError

from st_hpo import TrialRecord
from st_hpo.backends.optuna import liveness, patience
from st_hpo.backends.optuna.backend import OptunaBackend
from st_hpo.backends.optuna.patience import Patience
from st_hpo.backends.optuna.records import ended
from st_hpo.backends.optuna.shared import SharedStudy
from st_hpo.backends.optuna.steady import heed, impatient
from st_hpo.backends.optuna.storage import open_storage
from st_hpo.errors import BackendUnavailableError
from st_hpo.faults import SearchStopped

from shared_setup import FAIL, WAITING, Search, search, trials_in

pytest_plugins = ["shared_fixtures"]
pytestmark = pytest.mark.usefixtures("quiet_optuna")


class Clock:
    """Stands for the module time: sleeping takes no time.

    Args:
        now: The seconds at the start.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


class Server:
    """What answers from a certain time on.

    Args:
        clock: Gives the time.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.back = float("inf")

    def __call__(self) -> str:
        if self.clock.now < self.back:
            raise OperationalError("SELECT", {}, Exception("connection refused"))
        return "here"


def test_all_calls_wait_together_not_one_after_the_other(clock):
    waiting, server = Patience(300.0), Server(clock)
    with pytest.raises(BackendUnavailableError, match="could not be used for"):
        waiting.call(server)
    assert 290 < clock.now - 1000 <= 300
    for _ in range(5):  # the trials that run are told on the way out
        with pytest.raises(BackendUnavailableError):
            waiting.call(server)
    assert clock.now - 1000 <= 310
    server.back = clock.now
    assert waiting.call(server) == "here"
    began, server.back = clock.now, float("inf")
    with pytest.raises(BackendUnavailableError):
        waiting.call(server)
    assert clock.now - began > 290


def test_a_call_that_never_works_ends_though_others_do(clock):
    waiting, server, other = Patience(60.0), Server(clock), Server(clock)
    other.back = 0.0

    def broken() -> str:
        waiting.call(other)
        return server()

    with pytest.raises(BackendUnavailableError):
        waiting.call(broken)
    assert 50 < clock.now - 1000 <= 60


def test_what_ends_the_search_ends_the_waiting(clock):
    waiting, server = Patience(300.0), Server(clock)
    waiting.ending = lambda: SearchStopped("SIGTERM") if clock.now > 1010 else None
    with pytest.raises(SearchStopped, match="SIGTERM"):
        waiting.call(server)
    assert clock.now < 1020


def test_who_could_not_give_signs_of_life_is_not_taken_for_dead(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    monkeypatch.setattr(liveness, "place", lambda: "here")
    monkeypatch.setattr("st_hpo.backends.optuna.shared.time.monotonic", clock.monotonic)
    storage = open_storage("sqlite:///study.db", 300.0)
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    one, two = (SharedStudy(study, 2, True, 15.0, True) for _ in range(2))
    two._own.process.update(place="elsewhere", host="elsewhere")
    one._watch = liveness.Watch(15.0, clock.monotonic, one._watch._mute_until)
    trial = two.next()
    assert one.next() is not None and one.next() is None  # it has seen the other one's trial
    real, back = storage.inner.get_all_trials, clock.now + 100.0

    def away(*args, **kwargs):
        if clock.now < back:
            raise OperationalError("SELECT", {}, Exception("connection refused"))
        return real(*args, **kwargs)

    monkeypatch.setattr(storage.inner, "get_all_trials", away)
    one._look_again_at = 0.0
    assert one.next() is None and clock.now >= back
    assert not study.trials[trial.number].state.is_finished()
    clock.now += 100.0  # but now it has had the time
    one._look_again_at = 0.0
    assert one.next() is not None and study.trials[trial.number].state == FAIL


@pytest.fixture
def away(monkeypatch):
    """Returns what makes a study's storage unusable."""

    def make(study: optuna.Study) -> None:
        def refuse(*args, **kwargs):
            raise OperationalError("SELECT", {}, Exception("connection refused"))

        for name in ("get_all_trials", "get_trial", "set_trial_user_attr", "set_trial_state_values"):
            monkeypatch.setattr(study._storage.inner, name, refuse)

    return make


def test_the_error_of_a_trial_is_raised_though_it_cannot_be_stored(away, caplog):
    backend = OptunaBackend()

    def begun(number: int) -> None:
        away(backend.native)
        raise ZeroDivisionError("of one's own")

    with pytest.raises(ZeroDivisionError, match="of one's own"), caplog.at_level(logging.WARNING):
        backend.run(Search(begun=begun), 3, "maximize", storage="sqlite:///study.db", storage_patience=0.5)
    assert "How trial 0 ended could not be stored: BackendUnavailableError" in caplog.text


def test_a_trial_that_its_storage_has_ended_is_run_again():
    def where() -> str:
        return "sqlite:///study.db"

    def begun(number: int) -> None:
        if number == 1:
            raise BackendUnavailableError("The storage of the study could not be used")

    with pytest.raises(BackendUnavailableError):
        search(where, 3, Search(begun=begun))
    trials = trials_in(where)
    assert ended(trials[1])["why"] == "stopped" and [trial.state for trial in trials[1:]] == [FAIL, WAITING]
    target = Search()
    records = search(where, 3, target).records(target)
    assert [record.state for record in records] == ["completed", "failed", "completed", "completed"]
    assert records[2].hyperparameters == trials[1].params


def test_a_search_that_ends_waits_no_more(away):
    study = optuna.create_study(storage=open_storage("sqlite:///study.db", 300.0), direction="maximize")
    source = SharedStudy(study, 2, False, 15.0, True)
    heed(study, lambda: SearchStopped("SIGTERM"))
    trials = [source.next(), source.next()]
    away(study)
    with pytest.raises(SearchStopped):
        source.tell(trials[0], TrialRecord(0, "failed", error="x"))
    impatient(study, 0.0)
    with pytest.raises(BackendUnavailableError):
        source.tell(trials[1], TrialRecord(1, "failed", error="x"))

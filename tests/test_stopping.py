"""Searches that have enough: patience, a budget, a terminator, with every way to run trials."""

from __future__ import annotations

import math
from typing import Any

import optuna
import optuna.terminator
import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_hpo import Categorical, ConfigurationError, SearchResult, SearchSpace
from st_hpo.backends.optuna.terminators import asked, default_terminator
from st_hpo.objective import Objective
from st_hpo.records import COMPLETED, FAILED, PRUNED, TrialRecord
from st_hpo.stopping import Limits, trainings_done, trials_since_better

from fast_trainer import (
    METRIC,
    RATES,
    CountTrainings,
    FailIn,
    fast_arguments,
    fast_trainer,
    model_init,
    random_sampler,
)

MAXIMIZE = Objective(["x"], ["maximize"])
PATIENT = "no better objective in 2 trials in a row (patience)"
# The first of these learning rates is the best on the two steps of the fast trainer, measured; 0 trains nothing
RATES_DOWN = SearchSpace({"learning_rate": Categorical([1e-3, 0.0, 1e-9, 2e-9, 3e-9, 4e-9])})


class InOrder(optuna.samplers.GridSampler):
    """The learning rates in their order."""

    def __init__(self) -> None:
        super().__init__({"learning_rate": list(RATES_DOWN["learning_rate"].choices)}, seed=0)

    def before_trial(self, study: Any, trial: Any) -> None:
        study._storage.set_trial_system_attr(trial._trial_id, "search_space", self._search_space)
        study._storage.set_trial_system_attr(trial._trial_id, "grid_id", trial.number)


class LastHalf(optuna.pruners.BasePruner):
    """Prunes all trials but the first."""

    def prune(self, study: Any, trial: Any) -> bool:
        return trial.number > 0


def search(trainer: Any, **changes: Any) -> Any:
    options = {"hp_space": RATES, "compute_objective": METRIC, "sampler": random_sampler(), "baseline": False}
    return trainer.hyperparameter_search(direction="maximize", **{**options, **changes}).run_summary


def record(state: str, value: float | None = None, fraction: float | None = 1.0, end: float | None = None) -> Any:
    times = {} if end is None else {"started": end - 1.0, "seconds": 1.0}
    return TrialRecord(0, state, value if state == COMPLETED else None, fraction=fraction, **times)


# ---- Counting ----


@pytest.mark.parametrize(
    ("trials", "since"),
    [
        ([], 0),
        ([record(PRUNED)] * 3, 3),
        ([record(COMPLETED, 0.5), record(COMPLETED, 0.5), record(PRUNED)], 2),
        ([record(PRUNED), record(COMPLETED, 0.1), record(FAILED), record(COMPLETED, 0.0), record(FAILED)], 1),
        ([record(COMPLETED, 0.5, end=9.0), record(COMPLETED, 0.1, end=2.0), record(PRUNED, end=3.0)], 0),
        ([record(COMPLETED, 0.1, end=2.0), record(COMPLETED, 0.5), record(PRUNED, end=1.0)], 1),
    ],
)
def test_trials_without_a_better_objective_count_in_the_order_in_which_they_ended(trials, since):
    assert trials_since_better(trials, MAXIMIZE) == since


@given(st.lists(st.integers(0, 5), min_size=1))
def test_whatever_the_direction(values):
    up = [record(COMPLETED, float(value)) for value in values]
    down = [record(COMPLETED, -float(value)) for value in values]
    expected = len(values) - 1 - values.index(max(values))
    assert trials_since_better(up, MAXIMIZE) == trials_since_better(down, Objective(["x"], ["minimize"])) == expected


def test_what_a_trial_has_trained_is_what_it_costs():
    trials = [record(COMPLETED, 0.1), record(PRUNED, fraction=0.25), record(FAILED, fraction=0.5)]
    trials += [record(FAILED, fraction=None), record(COMPLETED, 0.1, fraction=None)]
    assert trainings_done(trials) == 2.75


def test_a_budget_is_used_up_to_the_last_bit_of_a_float():
    limits = Limits(budget=0.3)
    stopped_early = record(COMPLETED, 0.5, fraction=0.1)
    limits.look(lambda: [stopped_early, record(PRUNED, fraction=0.1)], MAXIMIZE)
    assert limits.reason is None
    limits.look(lambda: [stopped_early, *[record(PRUNED, fraction=0.1)] * 2], MAXIMIZE)
    assert limits.reason == "the budget of 0.3 full trainings is used up"


def test_no_search_ends_before_it_has_a_result():
    limits = Limits(patience=1, budget=1)
    limits.look(lambda: [record(PRUNED)] * 9, MAXIMIZE)
    assert limits.reason is None


def test_records_are_not_read_where_nothing_is_limited():
    Limits().look(lambda: pytest.fail("they may come from a server"), MAXIMIZE)


def test_a_budget_alone_leaves_trials_enough():
    assert (Limits().trials(None), Limits(budget=2.5).trials(None), Limits(budget=2.5).trials(3)) == (20, 25, 3)
    assert Limits(budget=0.01).trials(None) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 0}, "`patience` must be a number of trials.*but got 0"),
        ({"patience": True}, "`patience` must be"),
        ({"patience": 2.0}, "`patience` must be"),
        ({"budget": 0}, "`budget` must be a number of full trainings above 0.*but got 0"),
        ({"budget": math.inf}, "`budget` must be"),
        ({"budget": "6"}, "`budget` must be"),
        ({"patience": 2, "compute_objective": ["a", "b"], "direction": ["maximize"] * 2}, "there are 2 of them"),
        ({"terminator": "emmr"}, "`terminator` must be True"),
        ({"terminator": optuna.terminator.Terminator}, "`terminator` must be True"),
        ({"terminator": True, "compute_objective": ["a", "b"], "direction": ["maximize"] * 2}, "single objective"),
    ],
)
def test_what_cannot_be_is_refused_before_any_model_is_made(changes, message):
    made = []
    trainer = fast_trainer(model_init=lambda: made.append(1) or model_init())
    made.clear()
    options = {"hp_space": RATES, "compute_objective": METRIC, "direction": "maximize", **changes}
    with pytest.raises(ConfigurationError, match=message):
        trainer.hyperparameter_search(**options)
    assert made == []


# ---- In this process ----


def test_patience_ends_a_search_in_good_order(caplog):
    counting = CountTrainings()
    result = search(fast_trainer(callbacks=[counting]), hp_space=RATES_DOWN, sampler=InOrder(), n_trials=6, patience=2)
    values = [trial.objective for trial in result.trials]
    assert [trial.state for trial in result.trials] == [COMPLETED] * 3 and values[0] == max(values)
    assert counting.begun == 3 and len(result.native.trials) == 3
    assert result.ended_early == PATIENT
    assert f"The search has ended early: {PATIENT}." in caplog.text
    assert SearchResult.from_json(result.to_json()).ended_early == PATIENT


def test_pruned_trials_are_no_better():
    trainer = fast_trainer(args=fast_arguments(max_steps=4))
    result = search(trainer, n_trials=6, patience=2, pruner=LastHalf(), rungs=[0.5])
    assert [trial.state for trial in result.trials] == [COMPLETED, PRUNED, PRUNED]


def test_a_search_that_has_run_all_its_trials_has_not_ended_early(caplog):
    result = search(fast_trainer(), hp_space=RATES_DOWN, sampler=InOrder(), n_trials=3, patience=2, budget=3)
    assert len(result.trials) == 3 and result.ended_early is None
    assert "ended early" not in caplog.text


def test_a_budget_counts_full_trainings():
    trainer = fast_trainer(args=fast_arguments(max_steps=4), callbacks=[FailIn({2}, ValueError("no"))])
    result = search(trainer, budget=2, pruner=LastHalf(), rungs=[0.5], catch=ValueError)
    found = [(trial.state, trial.fraction) for trial in result.trials]
    assert found == [(COMPLETED, 1.0), (PRUNED, 0.5), (FAILED, 0.25), (PRUNED, 0.5)]
    assert result.ended_early == "the budget of 2 full trainings is used up"


def test_what_comes_first_ends_the_search():
    assert len(search(fast_trainer(), n_trials=2, budget=5, patience=9).trials) == 2
    assert len(search(fast_trainer(), n_trials=5, budget=1.5).trials) == 2


def test_a_study_that_is_continued_keeps_its_account(tmp_path):
    """A budget and a patience are those of the study: running the script once more trains nothing."""
    options = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "s", "resume": True}
    first = search(fast_trainer(), n_trials=9, budget=2, **options)
    counting = CountTrainings()
    for limits in ({"budget": 2}, {"n_trials": 9, "budget": 1.5}):
        again = search(fast_trainer(callbacks=[counting]), **options, **limits)
        assert [trial.objective for trial in again.trials] == [trial.objective for trial in first.trials]
    assert counting.begun == 0 and "budget" in again.ended_early
    more = search(fast_trainer(callbacks=[counting]), budget=3, **options)
    assert counting.begun == 1 and len(more.trials) == 3


# ---- Terminators ----


class After:
    """A terminator that has enough after so many trials."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count, self.error, self.asked = count, error, 0

    def should_terminate(self, study: Any) -> bool:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return len(study.trials) >= self.count


def test_a_terminator_is_asked_after_each_trial():
    terminator = After(2)
    result = search(fast_trainer(), n_trials=5, terminator=terminator)
    assert len(result.trials) == terminator.asked == 2
    assert result.ended_early == "the terminator expects no better objective"


def test_a_terminator_is_not_asked_before_a_trial_is_completed():
    """Trials that pause are none: the search would have no result."""
    terminator = After(1)
    result = search(fast_trainer(), n_trials=9, terminator=terminator, pruner="asha")
    assert len(result.completed) == terminator.asked == 1 < len(result.trials)
    assert result.ended_early == "the terminator expects no better objective"


def test_optunas_own_terminators_end_a_search():
    with pytest.warns(FutureWarning, match="deprecated"):
        stagnation = optuna.terminator.BestValueStagnationEvaluator(1)
        terminator = optuna.terminator.Terminator(stagnation, optuna.terminator.StaticErrorEvaluator(0.5), 1)
    result = search(fast_trainer(), hp_space=RATES_DOWN, sampler=InOrder(), n_trials=6, terminator=terminator)
    assert len(result.trials) == 2


def test_a_terminator_that_fails_costs_no_result(caplog):
    terminator = After(1, ValueError("no cross-validation scores"))
    result = search(fast_trainer(), n_trials=2, terminator=terminator)
    assert len(result.trials) == 2 and terminator.asked == 1 and result.ended_early is None
    assert "is asked no more: ValueError: no cross-validation scores" in caplog.text


def test_the_default_terminator_ends_a_study_that_has_found_its_best():
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    terminates = asked(True)
    while not terminates(study) and len(study.trials) < 60:
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", -1.0, 1.0) ** 2)
    assert 30 <= len(study.trials) < 60
    assert isinstance(default_terminator(), optuna.terminator.Terminator)


# ---- Elsewhere ----


@pytest.mark.slow
def test_workers_train_what_they_have_begun():
    result = search(fast_trainer(), n_trials=8, n_jobs=2, budget=2)
    assert 2 <= len(result.trials) <= 3 and {trial.state for trial in result.trials} == {COMPLETED}
    assert result.ended_early == "the budget of 2 full trainings is used up"


def test_the_local_search_of_sigopt():
    options = {"compute_objective": METRIC, "baseline": False, "direction": "maximize"}
    result = fast_trainer().hyperparameter_search(RATES, backend="sigopt", seed=0, budget=2, **options).run_summary
    assert len(result.trials) == len(result.native.trials) == 2
    assert result.ended_early == "the budget of 2 full trainings is used up"

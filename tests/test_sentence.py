"""Every objective that a search reports is exactly the number of training once, by hand, in a fresh process."""

from __future__ import annotations

from functools import cache
from typing import Any

import optuna
import pytest
from transformers import TrainerCallback

import st_hpo
from st_hpo.backends.optuna.promotion import promoted_numbers
from st_hpo.backends.optuna.pruners import AshaPruner

from by_hand import train_each
from scenarios import SCENARIOS, SMALL_MODEL, Scenario, arguments, pairs
from small_model import build_small_model


@pytest.fixture(scope="module", autouse=True)
def small_model(tmp_path_factory):
    texts = [text for name in ("sentence1", "sentence2") for text in pairs("train", 64)[name]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SMALL_MODEL, build_small_model(tmp_path_factory.mktemp("small"), texts))
        yield


@cache
def by_hand(name: str) -> list[float]:
    """The objectives of the scenario's trials, each trained in a process of its own."""
    scenario = SCENARIOS[name]
    return [metrics[scenario.metric] for metrics in train_each(name, scenario.trials)]


def trainer_of(scenario: Scenario, **changes: Any) -> Any:
    parts = {
        "args": arguments(scenario.arguments, **(scenario.fixed or {})),
        "train_dataset": scenario.train(),
        "eval_dataset": scenario.eval_data() if scenario.eval_data else None,
        "evaluator": scenario.evaluator(),
        "model_init": scenario.model_init,
        "loss_init": scenario.loss_init,
    }
    return getattr(st_hpo, scenario.trainer)(**{**parts, **changes})


def objective_of(scenario: Scenario) -> dict[str, str]:
    minimized = scenario.metric == "eval_loss"
    return {"compute_objective": scenario.metric, "direction": "minimize" if minimized else "maximize"}


def in_order(scenario: Scenario, order: list[int]) -> Any:
    """A search space that gives the k-th trial the values of the scenario's trial ``order[k]``."""

    def hp_space(trial: optuna.Trial) -> dict[str, Any]:
        return scenario.trials[trial.suggest_categorical(f"values of {trial.number}", [order[trial.number]])]

    return hp_space


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_search_and_its_best_run_give_what_training_by_hand_gives(name):
    """The four families, several datasets with a dict of losses, and the trainer's default loss."""
    scenario = SCENARIOS[name]
    trainer = trainer_of(scenario)
    best = trainer.hyperparameter_search(in_order(scenario, [0, 1, 2, 3]), n_trials=4, **objective_of(scenario))
    assert [trial.objective for trial in best.run_summary.trials] == by_hand(name)
    assert len(set(by_hand(name))) == 4, "the values of the trials must matter"

    trainer.apply_best_run(best)
    trainer.train()
    assert trainer.evaluate()[scenario.metric] == best.objective


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_the_order_of_the_trials_does_not_matter(name):
    scenario = SCENARIOS[name]
    best = trainer_of(scenario).hyperparameter_search(
        in_order(scenario, [3, 1, 0, 2, 1]), n_trials=5, **objective_of(scenario)
    )
    expected = by_hand(name)
    assert [trial.objective for trial in best.run_summary.trials] == [expected[k] for k in (3, 1, 0, 2, 1)]


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_evaluations_at_rungs_change_nothing(name):
    """A training that evaluates for itself is another one: an evaluation draws from the random states."""
    scenario = SCENARIOS[name]
    best = trainer_of(scenario).hyperparameter_search(
        in_order(scenario, [0, 1, 2, 3]),
        n_trials=4,
        pruner=PruneOnce(-1),
        rungs=[0.3, 0.6],
        **objective_of(scenario),
    )
    records = best.run_summary.trials
    assert [trial.objective for trial in records] == by_hand(name)
    assert all([rung["at"] for rung in trial.rungs] == [30, 60] for trial in records)


class PauseAtEachRung(AshaPruner):
    """Pauses every trial at every rung, and takes it up again at once."""

    def __init__(self) -> None:
        super().__init__(pauses=True)

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True

    def promotable(self, study: optuna.Study, last: bool) -> optuna.trial.FrozenTrial | None:
        trials = study.get_trials(deepcopy=False)
        paused = [trial for trial in trials if trial.state == optuna.trial.TrialState.PRUNED]
        return next((trial for trial in paused if trial.number not in promoted_numbers(trials)), None)


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_trials_that_pause_twice_and_go_on_from_checkpoints_give_the_same(name):
    scenario = SCENARIOS[name]

    def hp_space(trial: optuna.Trial) -> dict[str, Any]:
        return scenario.trials[trial.suggest_categorical(f"values of {trial.number}", [trial.number // 3])]

    best = trainer_of(scenario).hyperparameter_search(
        hp_space, n_trials=4, pruner=PauseAtEachRung(), rungs=[0.3, 0.6], **objective_of(scenario)
    )
    trials = best.run_summary.trials
    assert [trial.state for trial in trials] == ["pruned", "pruned", "completed"] * 4
    assert [trial.objective for trial in trials[2::3]] == by_hand(name)
    # SPLADE's own callback sets the weights of its regularizers anew whenever a training begins
    whole = 3 if name == "sparse_encoder" else 1
    for first in range(0, 12, 3):
        done = [trial.fraction for trial in trials[first : first + 3]]
        assert (sum(done) == pytest.approx(1)) == (whole == 1), done
        assert trials[first + 2].fraction == 1 or whole == 1
        assert [item["step"] for item in trials[first + 2].evaluations] == sorted(
            {item["step"] for trial in trials[first : first + 3] for item in trial.evaluations}
        ) or whole == 3


class PruneOnce(optuna.pruners.BasePruner):
    """Prunes the trial of one number at its first report."""

    def __init__(self, number: int) -> None:
        self.number = number

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number == self.number


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_failed_and_a_pruned_trial_leave_no_trace_in_the_next(name):
    """Trial 0 fails in the middle of its training, trial 2 is pruned at its first evaluation."""
    scenario = SCENARIOS[name]

    class FailIn(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.trial_name == "run-0" and state.global_step == 2:
                raise RuntimeError("the third step never comes")

    fixed = {**(scenario.fixed or {}), "eval_strategy": "steps", "eval_steps": 2}
    trainer = trainer_of(scenario, args=arguments(scenario.arguments, **fixed), callbacks=[FailIn])
    best = trainer.hyperparameter_search(
        in_order(scenario, [0, 1, 2, 3]),
        n_trials=4,
        catch=(RuntimeError,),
        pruner=PruneOnce(2),
        rungs="evaluations",
        **objective_of(scenario),
    )
    records = best.run_summary.trials
    assert [record.state for record in records] == ["failed", "completed", "pruned", "completed"]
    assert "third step" in records[0].error and records[2].error == "pruned at step 2"
    # An evaluation draws from the random state, so a run with evaluations is another one than without
    alike = [{**scenario.trials[k], "eval_strategy": "steps", "eval_steps": 2} for k in (1, 3)]
    expected = [metrics[scenario.metric] for metrics in train_each(name, alike)]
    assert [records[1].objective, records[3].objective] == expected

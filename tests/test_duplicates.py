"""Proposals that were trained before: whose value is taken over, and when a trial is trained all the same."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from st_hpo import Categorical, ConfigurationError, SearchResult, SearchSpace
from st_hpo.duplicates import taken_over, trained_before
from st_hpo.records import COMPLETED, FAILED, PRUNED, TrialRecord

from fast_trainer import METRIC, CountTrainings, FailIn, fast_arguments, fast_trainer, loss_init, model_init

ONE = SearchSpace({"learning_rate": Categorical([1e-3]), "loss.scale": Categorical([10.0])})
SAID = "2 of 3 proposals had been trained before; their values were taken over."


def search(trainer: Any, **changes: Any) -> Any:
    options = {"hp_space": ONE, "compute_objective": METRIC, "n_trials": 3, "baseline": False}
    return trainer.hyperparameter_search(direction="maximize", **{**options, **changes}).run_summary


def counted(**changes: Any) -> tuple[CountTrainings, Any]:
    counting = CountTrainings()
    callbacks = [counting, *changes.pop("callbacks", [])]
    return counting, fast_trainer(callbacks=callbacks, **changes)


def test_a_repeated_proposal_takes_over_the_value_it_would_have():
    counting, trainer = counted()
    result = search(trainer)
    trained = search(fast_trainer(), reuse_duplicates=False)
    assert counting.begun == 1
    assert [trial.objective for trial in result.trials] == [trial.objective for trial in trained.trials]
    first, *others = result.trials
    assert first.copied_from is None and first.fraction == 1
    for trial in others:
        assert (trial.state, trial.copied_from, trial.fraction) == (COMPLETED, 0, 0)
        assert trial.hyperparameters == first.hyperparameters and trial.metrics == first.metrics
        assert trial.metrics is not first.metrics and "train" in first.phases.keys() - trial.phases.keys()
    assert [trial.value for trial in result.native.trials] == [first.objective] * 3
    assert [trial.copied_from for trial in SearchResult.from_json(result.to_json()).trials] == [None, 0, 0]
    assert SAID in str(result) and SAID not in str(trained)


def test_they_cost_no_budget_and_are_no_better():
    assert len(search(fast_trainer(), budget=1.5, n_trials=5).trials) == 5
    assert len(search(fast_trainer(), patience=2, n_trials=5).trials) == 3


def test_values_are_compared_as_they_are_trained():
    """The text and the number are the same learning rate once converted; 1 and 1.0 are not the same scale."""
    space = SearchSpace({"learning_rate": Categorical([1e-3, "0.001"])})
    counting, trainer = counted()
    sampler = optuna.samplers.GridSampler({"learning_rate": [1e-3, "0.001"]}, seed=0)
    result = search(trainer, hp_space=space, sampler=sampler, n_trials=2)
    assert counting.begun == len({repr(trial.hyperparameters) for trial in result.trials})
    records = [TrialRecord(0, COMPLETED, 0.1, {"loss.scale": 1})]
    assert trained_before({"loss.scale": 1}, records) is records[0]
    assert trained_before({"loss.scale": 1.0}, records) is trained_before({"loss.scale": True}, records) is None
    assert trained_before({"loss.scale": 1, "seed": 1}, records) is None


def test_only_a_completed_trial_has_a_value_to_take_over():
    values = {"seed": 1}
    records = [TrialRecord(number, state, hyperparameters=values) for number, state in ((0, PRUNED), (1, FAILED))]
    assert trained_before(values, records) is None
    records += [TrialRecord(3, COMPLETED, 0.5, values), TrialRecord(2, COMPLETED, 0.5, values, copied_from=3)]
    assert trained_before(values, records).number == 3
    assert taken_over(records) == "1 of 4 proposals had been trained before; its value was taken over."
    assert taken_over(records[:2]) is None


def test_a_trial_that_failed_is_tried_again():
    counting, trainer = counted(callbacks=[FailIn({0}, ValueError("no"))])
    result = search(trainer, catch=ValueError)
    assert [trial.state for trial in result.trials] == [FAILED, COMPLETED, COMPLETED] and counting.begun == 2
    assert [trial.copied_from for trial in result.trials] == [None, None, 1]


def test_a_function_that_gets_the_trial_may_read_anything_from_it():
    def of_trial(trial: Any) -> SentenceTransformer:
        return model_init()

    def loss_of_trial(model: Any, trial: Any, scale: float = 20.0) -> Any:
        return loss_init(model, scale=scale)

    for changes in ({"model_init": of_trial}, {"loss_init": loss_of_trial}):
        counting, trainer = counted(**changes)
        assert all(trial.copied_from is None for trial in search(trainer, n_trials=2).trials)
        assert counting.begun >= 2


def test_what_was_suggested_on_the_way_counts():
    def rising(trial: Any) -> dict[str, float]:
        return {"learning_rate": 1e-3 if trial.suggest_float("unused", 0, 1) < 2 else 0.0}

    counting, trainer = counted()
    search(trainer, hp_space=rising, sampler=optuna.samplers.RandomSampler(seed=0), n_trials=2)
    assert counting.begun == 2


def test_a_search_that_continues_a_study_trains_what_another_run_has_trained(tmp_path):
    """Between two runs of a script, its data or its model may have changed."""
    storage = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "s", "load_if_exists": True, "n_trials": 1}
    first = search(fast_trainer(), **storage)
    counting, trainer = counted(args=fast_arguments(max_steps=1))
    again = search(trainer, **storage)
    assert counting.begun == 1 and again.trials[1].objective != first.trials[0].objective


def test_a_copy_leaves_no_folder_and_no_run(tmp_path):
    seen = []

    class Names(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state.trial_name)

    args = fast_arguments(output_dir=str(tmp_path / "out"), save_strategy="steps", save_steps=1)
    search(fast_trainer(args=args, callbacks=[Names()]), save_best_model=True)
    assert seen == ["run-0"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["best_model", "run-0"]


def test_the_local_search_of_sigopt_trains_nothing_twice():
    space = SearchSpace({"per_device_train_batch_size": Categorical([2, 4])})
    counting, trainer = counted()
    result = search(trainer, hp_space=space, backend="sigopt", seed=0, n_trials=4)
    assert counting.begun == len({trial.objective for trial in result.trials}) == 2
    assert [trial.state for trial in result.trials] == [COMPLETED] * 4


@pytest.mark.slow
def test_workers_are_not_asked_for_what_is_known():
    result = search(fast_trainer(), n_trials=6, n_jobs=2)
    assert {trial.objective for trial in result.trials} == {result.trials[0].objective}
    trained = [trial for trial in result.trials if trial.copied_from is None]
    assert 1 <= len(trained) <= 2  # two begin at once
    assert [trial.value for trial in result.native.trials] == [result.trials[0].objective] * 6


def test_the_switch_is_on_or_off():
    with pytest.raises(ConfigurationError, match="`reuse_duplicates` must be True or False, but got 'yes'"):
        search(fast_trainer(), reuse_duplicates="yes")

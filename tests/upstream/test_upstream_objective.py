"""Rows 15 to 17 of the README's table of defects: what upstream makes of a wrong, a missing and a repeated metric."""

from __future__ import annotations

import inspect

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments

from defect_setup import (
    KEY,
    Recorder,
    arguments,
    by_hand,
    in_turn,
    our_search,
    our_trainer,
    train_pairs,
    upstream_search,
    upstream_trainer,
)

MISSPELT = "eval_sts-dev_spearman_cosin"
LEARNING_RATES = [1e-4, 1e-3]


def test_upstream_finds_a_misspelt_metric_after_a_whole_trial():
    """A KeyError that names only the wrong key, after all of trial 0's steps; the trainer stays set to searching."""
    recorder = Recorder()
    trainer = upstream_trainer(callbacks=[recorder])

    with pytest.raises(KeyError) as caught:
        upstream_search(trainer, in_turn(learning_rate=LEARNING_RATES), 2, key=MISSPELT)

    assert caught.value.args == (MISSPELT,)
    assert recorder.steps_done == [arguments().max_steps]
    assert trainer.hp_search_backend == "optuna"


@pytest.mark.parametrize("objective", [MISSPELT, lambda metrics: metrics[MISSPELT]], ids=["key", "callable"])
def test_ours_finds_a_misspelt_metric_before_any_training(objective):
    """The untrained model's evaluation has shown which keys there are: the error names the nearest, no step is
    trained, and the trainer is as good as new."""
    from st_hpo import MetricNotFoundError

    recorder = Recorder()
    trainer = our_trainer(callbacks=[recorder])
    with pytest.raises(MetricNotFoundError, match=KEY):
        our_search(
            trainer,
            in_turn(learning_rate=LEARNING_RATES),
            2,
            compute_objective=objective,
            direction="maximize",
        )

    assert recorder.begun == []
    assert trainer.hp_search_backend is None

    _, objectives = our_search(trainer, in_turn(learning_rate=LEARNING_RATES), 1)
    assert objectives == [by_hand(arguments(learning_rate=LEARNING_RATES[0]))[1][KEY]]


def turned_upside_down() -> Dataset:
    """Training pairs whose labels say the opposite: each step of training makes the model worse, and more of it when
    the learning rate is higher."""
    return train_pairs().map(lambda pair: {"score": 1.0 - pair["score"]})


def test_upstream_minimises_the_sum_of_all_metrics_by_default():
    """No objective, no direction, an evaluator of correlations: upstream adds Pearson's to Spearman's and looks for
    the lowest sum, so the best run is the one that ruined the model."""
    recorder = Recorder()
    trainer = upstream_trainer(train_dataset=turned_upside_down(), callbacks=[recorder])
    best = trainer.hyperparameter_search(hp_space=in_turn(learning_rate=LEARNING_RATES), n_trials=2, backend="optuna")
    mild, ruined = (metrics["eval_sts-dev_pearson_cosine"] + metrics[KEY] for metrics in recorder.evaluations)

    assert best.run_id == "1"
    assert best.objective == ruined < mild


def test_ours_maximises_the_primary_metric_by_default():
    """The evaluator says which of its metrics counts, and that greater is better."""
    trainer = our_trainer(train_dataset=turned_upside_down())
    best, objectives = our_search(
        trainer, in_turn(learning_rate=LEARNING_RATES), 2, compute_objective=None, direction=None
    )

    assert objectives == [
        by_hand(arguments(learning_rate=rate), train_dataset=turned_upside_down())[1][KEY] for rate in LEARNING_RATES
    ]
    assert best.run_id == "0"
    assert best.objective == objectives[0] == max(objectives)


def evaluating(every: int) -> SentenceTransformerTrainingArguments:
    return arguments(eval_strategy="steps", eval_steps=every)


def test_upstream_reports_the_last_evaluation_and_offers_no_other():
    """Evaluations at the steps 2 and 4, the second one worse: the trial is worth the second, and the search has no
    parameter to ask for the best one."""
    recorder = Recorder()
    trainer = upstream_trainer(args=evaluating(every=2), train_dataset=turned_upside_down(), callbacks=[recorder])
    best, _ = upstream_search(trainer, in_turn(learning_rate=[1e-3]), 1)
    at_step_2, at_step_4 = (metrics[KEY] for metrics in recorder.evaluations)

    assert best.objective == at_step_4 < at_step_2
    assert list(inspect.signature(trainer.hyperparameter_search).parameters) == [
        "hp_space",
        "compute_objective",
        "n_trials",
        "direction",
        "backend",
        "hp_name",
        "kwargs",
    ]


def test_ours_reports_the_best_evaluation_when_asked():
    """With ``objective_from="best"`` the objective is the best of the evaluations during training."""
    trainer = our_trainer(args=evaluating(every=2), train_dataset=turned_upside_down())
    _, objectives = our_search(trainer, in_turn(learning_rate=[1e-3]), 1, objective_from="best")
    alone, metrics = by_hand(evaluating(every=2), train_dataset=turned_upside_down())
    during = [entry[KEY] for entry in alone.state.log_history if KEY in entry]

    assert objectives == [during[0]]
    assert during[0] == max(during) > metrics[KEY]


@pytest.mark.parametrize("every", [2, 3])
def test_ours_reports_the_end_of_training_by_default(every):
    """Wherever the evaluations during training fall, the objective is that of the model which training has made."""
    trainer = our_trainer(args=evaluating(every), train_dataset=turned_upside_down())
    _, objectives = our_search(trainer, in_turn(learning_rate=[1e-3]), 1)

    assert objectives == [by_hand(evaluating(every), train_dataset=turned_upside_down())[1][KEY]]

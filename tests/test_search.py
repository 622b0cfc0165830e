"""A search from start to end: what comes back, spaces, objectives and pruning."""

from __future__ import annotations

import optuna
import pytest
from sentence_transformers.base.evaluation import SequentialEvaluator
from transformers import TrainerCallback
from transformers.trainer_utils import BestRun

import st_hpo
from st_hpo import Categorical, Float, Int, SearchResult, SearchSpace

from fast_trainer import (
    METRIC,
    RATES,
    fast_arguments,
    fast_trainer,
    loss_init,
    model_init,
    random_sampler,
)
from scenarios import embedding_evaluator, pairs, triplet_evaluator


def rates_of(result: SearchResult) -> list[float]:
    return [trial.hyperparameters["learning_rate"] for trial in result.trials]


# ---- What comes back ----


def test_the_best_run_has_every_value_that_was_set_and_the_result():
    def hp_space(trial):
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3),
            "weight_decay": 0.1,
            "loss.scale": 5,
        }

    trainer = fast_trainer()
    best = trainer.hyperparameter_search(hp_space, METRIC, n_trials=3, sampler=random_sampler())
    result = best.run_summary
    assert isinstance(best, BestRun) and isinstance(result, SearchResult)
    assert best.hyperparameters.keys() == {"learning_rate", "weight_decay", "loss.scale"}
    assert best.hyperparameters["weight_decay"] == 0.1 and best.hyperparameters["loss.scale"] == 5
    assert (
        best.objective == max(trial.objective for trial in result.trials) == result.trials[int(best.run_id)].objective
    )
    assert isinstance(result.native, optuna.Study) and len(result.native.trials) == 3
    assert result.native.best_trial.number == int(best.run_id)
    assert trainer.last_search is result
    for number, trial in enumerate(result.trials):
        assert (trial.number, trial.state, trial.error) == (number, "completed", None)
        assert trial.metrics[METRIC] == trial.objective and "eval_sts-dev_pearson_cosine" in trial.metrics
        assert 0.5 * trial.seconds < sum(trial.phases.values()) <= trial.seconds


def test_the_baseline_is_the_untrained_model():
    result = fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=1).run_summary
    assert result.baseline.objective == embedding_evaluator()(model_init())["sts-dev_spearman_cosine"]
    assert result.baseline.metrics[METRIC] == result.baseline.objective


def test_the_baseline_can_be_left_out():
    best = fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=1, direction="maximize", baseline=False)
    assert best.run_summary.baseline is None


def test_a_result_of_a_search_survives_a_file(tmp_path):
    result = fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=2).run_summary
    result.save(tmp_path / "result.json")
    assert SearchResult.load(tmp_path / "result.json") == result
    assert list(result.to_pandas()["objective"]) == [trial.objective for trial in result.trials]
    assert result.to_dataset()["hyperparameters.learning_rate"][:] == rates_of(result)


# ---- Spaces ----


def test_five_trials_get_five_proposals_though_every_trial_seeds_everything():
    best = fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=5, baseline=True)
    assert len(set(rates_of(best.run_summary))) == 5


def test_the_default_space_is_searched_when_none_is_given():
    trainer = fast_trainer(args=fast_arguments(max_steps=1), train_dataset=pairs("train", 128))
    result = trainer.hyperparameter_search(n_trials=2).run_summary
    names = {"learning_rate", "per_device_train_batch_size", "num_train_epochs", "warmup_steps"}
    assert [set(trial.hyperparameters) for trial in result.trials] == [names, names]


def test_a_conditional_space_sets_what_it_returns_and_nothing_else():
    seen = []

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append((args.lr_scheduler_type.value, args.weight_decay))

    def hp_space(trial):
        if trial.number == 1:
            return {"lr_scheduler_type": trial.suggest_categorical("kind", ["cosine"]), "weight_decay": 0.5}
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)}

    best = fast_trainer(callbacks=[Note]).hyperparameter_search(hp_space, METRIC, n_trials=3)
    assert seen == [("linear", 0.0), ("cosine", 0.5), ("linear", 0.0)]
    assert best.run_summary.trials[1].hyperparameters == {
        "kind": "cosine",
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.5,
    }


def test_suggestions_inside_model_init_and_loss_init_are_recorded_and_applied():
    lengths, scales = [], []

    def model(trial):
        built = model_init()
        built.max_seq_length = 32 if trial is None else trial.suggest_int("length", 8, 64)
        lengths.append(built.max_seq_length)
        return built

    def loss(built, trial):
        scale = 20.0 if trial is None else trial.suggest_float("scale", 5.0, 50.0)
        scales.append(scale)
        return loss_init(built, scale)

    trainer = fast_trainer(model_init=model, loss_init=loss)
    best = trainer.hyperparameter_search(lambda trial: {}, METRIC, n_trials=3)
    assert [trial.hyperparameters for trial in best.run_summary.trials] == [
        {"length": length, "scale": scale} for length, scale in zip(lengths[-3:], scales[-3:], strict=True)
    ]
    trainer.apply_best_run(best)
    trainer.train()
    assert trainer.model.max_seq_length == best.hyperparameters["length"]
    assert trainer.loss.scale == best.hyperparameters["scale"]
    assert trainer.evaluate()[METRIC] == best.objective


def test_a_plain_name_may_be_read_from_the_trial_as_on_other_backends():
    def model(trial):
        built = model_init()
        built.max_seq_length = 32 if trial is None else trial["length"]
        return built

    def loss(built, trial):
        return loss_init(built, 20.0 if trial is None else trial.params["scale_of_mine"])

    trainer = fast_trainer(model_init=model, loss_init=loss)
    space = SearchSpace({"length": Int(8, 16), "scale_of_mine": Float(5.0, 6.0)})
    best = trainer.hyperparameter_search(space, METRIC, n_trials=2)
    trainer.apply_best_run(best)
    assert trainer.model.max_seq_length == best.hyperparameters["length"]
    assert trainer.loss.scale == best.hyperparameters["scale_of_mine"]


def test_values_reach_model_and_loss_by_keyword_and_defaults_hold_outside_of_trials():
    def model(max_length=48):
        built = model_init()
        built.max_seq_length = max_length
        return built

    trainer = fast_trainer(model_init=model)
    assert (trainer.model.max_seq_length, trainer.loss.scale) == (48, 20.0)
    space = SearchSpace({"model.max_length": Categorical([16, 24]), "loss.scale": Float(5.0, 9.0)})
    best = trainer.hyperparameter_search(space, METRIC, n_trials=2)
    assert (trainer.model.max_seq_length, trainer.loss.scale) == (48, 20.0), "outside of trials"
    trainer.apply_best_run(best)
    assert trainer.model.max_seq_length == best.hyperparameters["model.max_length"]
    assert trainer.loss.scale == best.hyperparameters["loss.scale"]


def test_lists_and_dicts_can_be_choices():
    choices = [{"sentence1": "query: "}, None]
    space = SearchSpace({"prompts": Categorical(choices), "learning_rate": Categorical([1e-3])})
    result = fast_trainer().hyperparameter_search(space, METRIC, n_trials=4, sampler=random_sampler()).run_summary
    by_prompt = {str(trial.hyperparameters["prompts"]): trial.objective for trial in result.trials}
    assert by_prompt.keys() == {str(choice) for choice in choices}
    assert len(set(by_prompt.values())) == 2, "the prompts must matter"


# ---- Objectives ----


@pytest.mark.parametrize("key", [METRIC, METRIC.removeprefix("eval_")])
def test_a_key_may_be_written_with_or_without_its_prefix(key):
    best = fast_trainer().hyperparameter_search(RATES, key, n_trials=2)
    assert best.run_summary.directions == ["maximize"]
    assert [t.objective for t in best.run_summary.trials] == [t.metrics[METRIC] for t in best.run_summary.trials]


def test_no_objective_means_the_primary_metric_of_the_evaluator():
    result = fast_trainer().hyperparameter_search(RATES, n_trials=2).run_summary
    assert (result.objective_names, result.directions) == ([METRIC], ["maximize"])


def test_no_objective_and_no_evaluator_mean_the_evaluation_loss():
    trainer = fast_trainer(evaluator=None, eval_dataset=pairs("dev", 16))
    best = trainer.hyperparameter_search(RATES, n_trials=2)
    assert best.run_summary.directions == ["minimize"]
    assert best.objective == min(trial.metrics["eval_loss"] for trial in best.run_summary.trials)


def test_several_objectives_give_the_pareto_front():
    trainer = fast_trainer(eval_dataset=pairs("dev", 16))
    front = trainer.hyperparameter_search(
        RATES, [METRIC, "eval_loss"], n_trials=4, direction=["maximize", "minimize"], sampler=random_sampler()
    )
    result = front[0].run_summary
    assert {int(run.run_id) for run in front} == {trial.number for trial in result.native.best_trials}
    for trial in result.trials:
        assert trial.objective == [trial.metrics[METRIC], trial.metrics["eval_loss"]]


def test_a_function_may_return_several_objectives():
    def both(metrics):
        return [metrics[METRIC], metrics["eval_sts-dev_pearson_cosine"]]

    front = fast_trainer().hyperparameter_search(RATES, both, n_trials=2, direction=["maximize", "maximize"])
    assert isinstance(front, list) and len(front[0].objective) == 2


@pytest.mark.parametrize("together", [list, SequentialEvaluator])
def test_several_evaluators_give_their_metrics_side_by_side(together):
    trainer = fast_trainer(evaluator=together([embedding_evaluator(), triplet_evaluator()]))
    result = trainer.hyperparameter_search(RATES, "triplets_cosine_accuracy", n_trials=1).run_summary
    assert {METRIC, "eval_triplets_cosine_accuracy", "eval_sequential_score"} <= result.trials[0].metrics.keys()
    primary = trainer.hyperparameter_search(RATES, n_trials=1).run_summary
    assert primary.objective_names == ["eval_sequential_score"]


@pytest.mark.parametrize("strategy", ["no", "epoch"])
@pytest.mark.parametrize("key", [METRIC, "eval_second_sts-dev_spearman_cosine"])
def test_with_several_evaluation_sets_both_spellings_of_a_metric_are_known_at_any_time(strategy, key):
    """Upstream calls the metric one thing during the training and another after it."""
    trainer = fast_trainer(
        args=fast_arguments(eval_strategy=strategy, max_steps=-1, num_train_epochs=1),
        eval_dataset={"first": pairs("dev", 8), "second": pairs("train", 8)},
    )
    best = trainer.hyperparameter_search(
        RATES, key, n_trials=1, direction="maximize", pruner=optuna.pruners.NopPruner()
    )
    trial = best.run_summary.trials[0]
    assert trial.metrics[METRIC] == trial.metrics["eval_second_sts-dev_spearman_cosine"] == trial.objective


def test_a_nan_objective_fails_its_trial_and_the_search_goes_on():
    values = iter([0.0, float("nan"), 1.0])
    best = fast_trainer().hyperparameter_search(
        RATES, lambda metrics: next(values), n_trials=2, direction="maximize", baseline=True
    )
    first, second = best.run_summary.trials
    assert (first.state, first.objective) == ("failed", None) and "NaN" in first.error
    assert (second.state, best.objective) == ("completed", 1.0)
    assert [trial.state.name for trial in best.run_summary.native.trials] == ["FAIL", "COMPLETE"]


def test_a_search_without_a_finished_trial_says_why():
    trainer = fast_trainer()
    with pytest.raises(st_hpo.NoFinishedTrialError, match=r"None of the 2 trials was finished(?s:.)*NaN") as caught:
        trainer.hyperparameter_search(
            RATES, lambda metrics: float("nan"), n_trials=2, direction="maximize", baseline=False
        )
    assert [trial.state for trial in caught.value.result.trials] == ["failed", "failed"]


# ---- Pruning ----


def test_a_pruner_sees_the_intermediate_objectives_and_ends_trials():
    class Below(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number > 0

    trainer = fast_trainer(args=fast_arguments(max_steps=4, eval_strategy="steps", eval_steps=2))
    result = trainer.hyperparameter_search(RATES, METRIC, n_trials=3, pruner=Below(), rungs="evaluations").run_summary
    assert [trial.state for trial in result.trials] == ["completed", "pruned", "pruned"]
    assert list(result.native.trials[0].intermediate_values) == [2, 4]
    assert result.trials[1].objective is None and METRIC in result.trials[1].metrics


def test_user_code_may_prune_its_own_trial():
    def model(trial):
        if trial is not None and trial.number == 0:
            raise optuna.TrialPruned("too large")
        return model_init()

    result = fast_trainer(model_init=model).hyperparameter_search(RATES, METRIC, n_trials=2).run_summary
    assert [trial.state for trial in result.trials] == ["pruned", "completed"]

"""What surrounds the trials: a trainer that is whole after any end, callbacks, subclasses, bars, checkpoints."""

from __future__ import annotations

import random
from contextlib import redirect_stderr
from io import StringIO

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import EarlyStoppingCallback, TrainerCallback

import st_hpo
from st_hpo import Categorical, Float, Int, SearchResult, SearchSpace, SentenceTransformerHPOTrainer

from embedded import model_path
from fast_trainer import (
    METRIC,
    RATES,
    CountTrainings,
    FailIn,
    fast_arguments,
    fast_trainer,
    loss_init,
    model_init,
    random_sampler,
)
from scenarios import embedding_evaluator, pairs, triplet_evaluator

# ---- The trainer afterwards ----


def assert_whole(trainer, args):
    """The trainer has its own arguments, trains as if there had been no search, and can search."""
    assert trainer.args is args
    expected = fast_trainer()
    expected.train()
    trainer.train()
    assert trainer.evaluate()[METRIC] == expected.evaluate()[METRIC]
    again = trainer.hyperparameter_search(RATES, METRIC, n_trials=1)
    assert again.run_summary.trials[0].state == "completed"


def test_after_a_search_the_trainer_is_whole():
    args = fast_arguments()
    before = args.to_dict()
    trainer = fast_trainer(args=args)
    space = SearchSpace({"learning_rate": Float(1e-4, 1e-3), "per_device_train_batch_size": Categorical([2])})
    trainer.hyperparameter_search(space, METRIC, n_trials=2)
    assert args.to_dict() == before
    assert isinstance(trainer.model, SentenceTransformer) and trainer.loss.model is trainer.model
    assert_whole(trainer, args)


def test_after_an_error_the_trials_are_kept_and_the_trainer_is_whole():
    args = fast_arguments()
    trainer = fast_trainer(args=args, callbacks=[FailIn({1}, RuntimeError("no space left"))])
    with pytest.raises(RuntimeError, match="no space left"):
        trainer.hyperparameter_search(RATES, METRIC, n_trials=3)
    result = trainer.last_search
    assert [(trial.state, trial.error) for trial in result.trials] == [
        ("completed", None),
        ("failed", "RuntimeError: no space left"),
    ]
    assert [trial.state.name for trial in result.native.trials] == ["COMPLETE", "FAIL"]
    assert_whole(trainer, args)


def test_caught_errors_fail_their_trials_and_the_search_goes_on():
    trainer = fast_trainer(callbacks=[FailIn({0, 2}, RuntimeError("boom"))])
    best = trainer.hyperparameter_search(RATES, METRIC, n_trials=4, catch=(RuntimeError,))
    assert [trial.state for trial in best.run_summary.trials] == ["failed", "completed", "failed", "completed"]


def test_ctrl_c_gives_back_the_trials_done_so_far():
    args = fast_arguments()
    trainer = fast_trainer(args=args, callbacks=[FailIn({2}, KeyboardInterrupt())])
    best = trainer.hyperparameter_search(RATES, METRIC, n_trials=5)
    result = best.run_summary
    assert result.interrupted
    assert [trial.state for trial in result.trials] == ["completed", "completed", "failed"]
    assert best.objective == max(trial.objective for trial in result.trials[:2])
    assert_whole(trainer, args)


def test_ctrl_c_before_the_first_trial_is_done_is_not_swallowed():
    args = fast_arguments()
    trainer = fast_trainer(args=args, callbacks=[FailIn({0}, KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        trainer.hyperparameter_search(RATES, METRIC, n_trials=2)
    assert trainer.last_search.interrupted
    trainer.remove_callback(FailIn)
    assert_whole(trainer, args)


def test_an_applied_run_reproduces_its_objective_also_from_a_loaded_result(tmp_path):
    trainer = fast_trainer()
    space = SearchSpace(
        {"learning_rate": Float(1e-4, 1e-2), "loss.scale": Float(5, 50), "warmup_steps": Float(0, 0.5)}
    )
    best = trainer.hyperparameter_search(space, METRIC, n_trials=3, sampler=random_sampler())
    best.run_summary.save(tmp_path / "result.json")
    for record in SearchResult.load(tmp_path / "result.json").trials:
        other = fast_trainer()
        other.apply_best_run(record)
        other.train()
        assert other.evaluate()[METRIC] == record.objective
        other.train()
        assert other.evaluate()[METRIC] == record.objective, "training twice gives the same"


def test_a_search_starts_from_the_applied_run():
    trainer = fast_trainer()
    trainer.apply_best_run(st_hpo.TrialRecord(0, hyperparameters={"loss.scale": 7.0, "weight_decay": 0.2}))
    assert (trainer.loss.scale, trainer.args.weight_decay) == (7.0, 0.2)
    best = trainer.hyperparameter_search(SearchSpace({"learning_rate": Categorical([5e-4])}), METRIC, n_trials=1)
    trainer.train()
    assert trainer.evaluate()[METRIC] == best.objective


# ---- What surrounds the trials ----


def test_callbacks_are_copied_for_every_trial_in_the_state_they_had():
    """An EarlyStoppingCallback counts on from trial to trial upstream: its counter is never set back."""
    args = fast_arguments(
        max_steps=8, eval_strategy="steps", eval_steps=1, metric_for_best_model=METRIC, learning_rate=1e-12
    )
    trainer = fast_trainer(args=args, callbacks=[EarlyStoppingCallback(3)])
    steps = []

    class Note(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    trainer.add_callback(Note)
    trainer.train()
    space = SearchSpace({"warmup_steps": Int(0, 1)})
    trainer.hyperparameter_search(space, METRIC, n_trials=2, reuse_duplicates=False)
    assert steps[1:] == [steps[0]] * 2


def test_callbacks_that_belong_to_one_model_are_refused():
    class HoldsAModel(TrainerCallback):
        def __init__(self, model):
            self.model = model

    trainer = fast_trainer()
    trainer.add_callback(HoldsAModel(trainer.model))
    with pytest.raises(st_hpo.ConfigurationError, match="HoldsAModel holds a SentenceTransformer as `model`"):
        trainer.hyperparameter_search(RATES, METRIC, n_trials=1)


def test_a_callback_that_knows_its_trainer_knows_the_trainer_of_the_trial():
    seen = []

    class KnowsItsTrainer(TrainerCallback):
        def __init__(self, trainer):
            self.trainer = trainer

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen.append(self.trainer.model is model and self.trainer.args is args)

    trainer = fast_trainer()
    trainer.add_callback(KnowsItsTrainer(trainer))
    trainer.hyperparameter_search(RATES, METRIC, n_trials=2)
    assert seen == [True, True]


def test_a_subclass_trains_its_trials_with_its_own_methods_and_attributes():
    class Weighted(SentenceTransformerHPOTrainer):
        def __init__(self, *args, weight=1.0, **kwargs):
            super().__init__(*args, **kwargs)
            self.weight = weight

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return (loss[0] * self.weight, loss[1]) if return_outputs else loss * self.weight

    space = SearchSpace({"learning_rate": Categorical([1e-3])})

    def objective(**changes):
        trainer = fast_trainer(Weighted, args=fast_arguments(optim="sgd", max_grad_norm=0.0), **changes)
        return trainer.hyperparameter_search(space, METRIC, n_trials=1).objective

    assert objective(weight=0.0) != objective(weight=5.0)


def test_what_is_replaced_on_the_trainer_is_searched_with():
    trainer = fast_trainer()
    trainer.train_dataset = pairs("train", 64).select(range(32, 64))
    trainer.evaluator = triplet_evaluator()
    best = trainer.hyperparameter_search(SearchSpace({"learning_rate": Categorical([5e-4])}), n_trials=1)
    assert best.run_summary.objective_names == ["eval_triplets_cosine_accuracy"]
    trainer.evaluator = embedding_evaluator()
    by_data = trainer.hyperparameter_search(SearchSpace({"learning_rate": Categorical([5e-4])}), n_trials=1).objective
    other = fast_trainer().hyperparameter_search(SearchSpace({"learning_rate": Categorical([5e-4])}), n_trials=1)
    assert by_data != other.objective


def test_the_users_datasets_are_not_touched():
    """Upstream adds the dataset's name to the user's own datasets, where a later trainer would find it."""
    data = {"a": pairs("train", 16).select(range(16)), "b": pairs("dev", 16).select(range(16))}
    trainer = fast_trainer(train_dataset=data, loss_init={"a": loss_init, "b": loss_init})
    trainer.hyperparameter_search(RATES, METRIC, n_trials=1)
    assert all("dataset_name" not in part[0] for part in data.values())


def test_one_bar_is_shown_and_the_trials_stay_quiet():
    shown = StringIO()
    with redirect_stderr(shown):
        trainer = fast_trainer(args=fast_arguments(disable_tqdm=False, logging_strategy="steps", logging_steps=1))
        shown.truncate(0)
        trainer.hyperparameter_search(RATES, METRIC, n_trials=2)
    text = shown.getvalue()
    assert "Hyperparameter search: 100%" in text and "2/2" in text and "best 0." in text
    assert "train_loss" not in text and "Computing widget" not in text and "it/s" not in text


def test_a_trial_leaves_the_random_state_where_a_full_construction_leaves_it():
    """The work on the model card is left out of trials, but it draws from Python's random: so must they."""
    drawn = []

    class Draw(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))

    trainer = fast_trainer(callbacks=[Draw])
    trainer.hyperparameter_search(RATES, METRIC, n_trials=3)
    trainer.train()
    assert len(drawn) == 4 and len(set(drawn)) == 1


def test_checkpoints_of_a_trial_lie_in_its_own_folder(tmp_path):
    args = fast_arguments(output_dir=str(tmp_path), save_strategy="steps", save_steps=2)
    trainer = fast_trainer(args=args)
    trainer.hyperparameter_search(RATES, METRIC, n_trials=2, hp_name=lambda trial: f"trial-{trial.number}")
    saved = SentenceTransformer(str(tmp_path / "trial-1" / "checkpoint-2"), device="cpu")
    score = embedding_evaluator()(saved)["sts-dev_spearman_cosine"]
    assert score == trainer.last_search.trials[1].objective
    card = (tmp_path / "trial-1" / "checkpoint-2" / "README.md").read_text(encoding="utf-8")
    assert "generated_from_trainer" in card and "dataset_size:32" in card


def test_a_study_in_a_storage_is_continued_with_its_earlier_trials(tmp_path):
    study = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "mine", "load_if_exists": True}
    first = fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=2, **study).run_summary
    second = fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=1, **study).run_summary
    assert second.trials[:2] == first.trials and len(second.trials) == 3


def test_the_untouched_hpo_script_of_the_guide_runs_with_only_the_class_changed():
    """The calls of sentence-transformers' hpo_nli.py, with the embedded model and data in their place."""

    def hpo_search_space(trial):
        return {
            "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 2),
            "per_device_train_batch_size": trial.suggest_int("per_device_train_batch_size", 32, 128),
            "warmup_steps": trial.suggest_float("warmup_steps", 0, 0.3),
            "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True),
        }

    def hpo_model_init(trial):
        return SentenceTransformer(model_path(), device="cpu")

    def hpo_loss_init(model):
        return loss_init(model)

    def hpo_compute_objective(metrics):
        return metrics["eval_sts-dev_spearman_cosine"]

    trainer = SentenceTransformerHPOTrainer(
        model=None,
        args=fast_arguments(max_steps=-1),
        train_dataset=pairs("train", 128),
        eval_dataset=pairs("dev", 32),
        evaluator=embedding_evaluator(),
        model_init=hpo_model_init,
        loss=hpo_loss_init,
    )
    best_trial = trainer.hyperparameter_search(
        hp_space=hpo_search_space,
        compute_objective=hpo_compute_objective,
        n_trials=2,
        direction="maximize",
        backend="optuna",
    )
    assert best_trial.hyperparameters["warmup_steps"] > 0
    assert all(trial.state == "completed" for trial in best_trial.run_summary.trials)


def test_counting_callbacks_see_every_training():
    trainings = CountTrainings()
    fast_trainer(callbacks=[trainings]).hyperparameter_search(RATES, METRIC, n_trials=3)
    assert trainings.begun == 3


def test_the_trainer_can_evaluate_right_after_a_search():
    """Its own, untrained model is built again when it is asked for."""
    trainer = fast_trainer()
    best = trainer.hyperparameter_search(RATES, METRIC, n_trials=1)
    assert trainer.evaluate()[METRIC] == best.run_summary.baseline.objective


def test_the_old_name_of_the_processing_class_still_works():
    tokenizer = model_init().tokenizer
    trainer = fast_trainer(tokenizer=tokenizer)
    assert trainer.processing_class is tokenizer
    best = trainer.hyperparameter_search(RATES, METRIC, n_trials=1)
    assert best.run_summary.trials[0].state == "completed"


def test_a_direction_against_the_evaluators_own_is_followed_with_a_warning(caplog):
    best = fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=2, direction="minimize")
    assert best.objective == min(trial.objective for trial in best.run_summary.trials)
    assert "but the metric itself says 'maximize'" in caplog.text


def test_a_trial_that_has_suggested_nothing_yet_is_still_a_trial():
    def model(trial):
        built = model_init()
        built.max_seq_length = trial.suggest_int("length", 8, 16) if trial else 32
        return built

    best = fast_trainer(model_init=model).hyperparameter_search(lambda trial: {}, METRIC, n_trials=1)
    assert best.hyperparameters.keys() == {"length"}


def test_verbose_shows_the_bars_of_the_trials():
    shown = StringIO()
    with redirect_stderr(shown):
        trainer = fast_trainer(args=fast_arguments(disable_tqdm=False))
        shown.truncate(0)
        trainer.hyperparameter_search(RATES, METRIC, n_trials=1, verbose=True)
    assert "it/s" in shown.getvalue()

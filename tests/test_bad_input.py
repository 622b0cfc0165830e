"""Bad input gets a clear error before any training, and before any model is loaded where that can be known."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss

import st_hpo
from st_hpo import Categorical, Float, Int, SearchSpace

from fast_trainer import METRIC, RATES, CountTrainings, fast_arguments, fast_trainer, loss_init, model_init
from scenarios import pairs


class CountedModels:
    """A ``model_init`` that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return model_init()


def refused_at_once(error, match, changes=None, **search):
    """Runs a search that must be refused before it loads a model, and leave the trainer as it was."""
    models = CountedModels()
    trainer = fast_trainer(model_init=models, **(changes or {}))
    args, loaded = trainer.args, models.calls
    with pytest.raises(error, match=match):
        trainer.hyperparameter_search(**{"hp_space": RATES, "compute_objective": METRIC, "n_trials": 1, **search})
    assert models.calls == loaded, "a model was loaded before the error"
    assert trainer.args is args and trainer.hp_search_backend is None


@pytest.mark.parametrize("n_trials", [0, -3, 2.5, True, "many"])
def test_n_trials_must_be_at_least_one(n_trials):
    refused_at_once(st_hpo.ConfigurationError, "`n_trials` must be an integer of at least 1", n_trials=n_trials)


def test_an_empty_space_is_refused():
    refused_at_once(st_hpo.SearchSpaceError, "empty", hp_space={})
    with pytest.raises(st_hpo.SearchSpaceError, match="empty"):
        SearchSpace({})


def test_a_function_that_suggests_nothing_is_an_empty_space():
    trainings = CountTrainings()
    trainer = fast_trainer(callbacks=[trainings])
    with pytest.raises(st_hpo.SearchSpaceError, match="empty"):
        trainer.hyperparameter_search(lambda trial: {}, METRIC, n_trials=1)
    assert trainings.begun == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("scale", "Did you mean 'loss.scale'"),
        ("learning_rte", "Did you mean 'learning_rate'"),
        ("loss.scales", "Did you mean 'loss.scale'"),
        ("model.dropout", "is no training argument"),
    ],
)
def test_a_name_that_nothing_uses_is_refused_with_what_was_meant(name, hint):
    space = SearchSpace({name: Float(0.0, 1.0)})
    refused_at_once(st_hpo.UnknownHyperparameterError, hint, hp_space=space)


def test_all_unknown_names_come_in_one_message():
    space = SearchSpace({"scale": Float(0.0, 1.0), "warmup_stps": Float(0.0, 1.0), "learning_rate": Float(1e-5, 1e-3)})
    refused_at_once(st_hpo.UnknownHyperparameterError, "'scale'(?s:.)*'warmup_stps'", hp_space=space)


def test_an_unknown_name_from_a_function_is_refused_before_the_training():
    trainings = CountTrainings()
    trainer = fast_trainer(callbacks=[trainings])
    with pytest.raises(st_hpo.UnknownHyperparameterError, match="Did you mean 'weight_decay'"):
        trainer.hyperparameter_search(
            lambda trial: {"weight_dcay": trial.suggest_float("w", 0, 1)}, METRIC, n_trials=2
        )
    assert trainings.begun == 0


def test_a_name_that_the_trial_offers_but_nobody_reads_is_refused_before_the_training():
    trainings = CountTrainings()
    trainer = fast_trainer(callbacks=[trainings], model_init=lambda trial: model_init())
    with pytest.raises(st_hpo.UnknownHyperparameterError, match="'base'"):
        trainer.hyperparameter_search(SearchSpace({"base": Categorical(["a", "b"])}), METRIC, n_trials=1)
    assert trainings.begun == 0


@pytest.mark.parametrize(
    ("name", "dimension", "expected"),
    [
        ("per_device_train_batch_size", Float(8, 32), "expected int"),
        ("num_train_epochs", Categorical(["many"]), "expected float"),
        ("lr_scheduler_type", Categorical(["linear", "zigzag"]), "'cosine'"),
        ("seed", Categorical([1, 2.5]), "The fraction would be lost"),
        ("bf16", Int(0, 2), "expected bool"),
    ],
)
def test_a_value_that_its_argument_cannot_take_is_refused(name, dimension, expected):
    refused_at_once(st_hpo.HyperparameterValueError, expected, hp_space=SearchSpace({name: dimension}))


def test_both_spellings_of_warmup_are_refused():
    """The constructor of the arguments would ignore one of them."""
    trainer = fast_trainer()
    with pytest.raises(st_hpo.ConfigurationError, match="'warmup_ratio' and 'warmup_steps' set the same thing"):
        trainer.hyperparameter_search(lambda trial: {"warmup_ratio": 0.1, "warmup_steps": 0.2}, METRIC, n_trials=1)


@pytest.mark.parametrize(
    ("objective", "direction", "match"),
    [
        (METRIC, "max", "must be 'minimize' or 'maximize'.*but got 'max'"),
        (METRIC, ["maximize", "minimize"], "1 objective.*2 direction"),
        ([METRIC, "eval_loss"], "maximize", "2 objective.*1 direction"),
        (METRIC, [], "empty list"),
        (lambda metrics: metrics[METRIC], None, "`direction` must be given with a callable"),
        (None, ["maximize", "maximize"], "there is one objective"),
    ],
)
def test_a_wrong_direction_or_count_of_directions_is_refused(objective, direction, match):
    refused_at_once(st_hpo.DirectionError, match, compute_objective=objective, direction=direction)


def test_a_metric_without_a_direction_of_its_own_needs_one():
    trainer = fast_trainer()
    with pytest.raises(st_hpo.DirectionError, match="neither a loss nor the primary metric"):
        trainer.hyperparameter_search(RATES, "eval_sts-dev_pearson_cosine", n_trials=1)


def test_a_function_that_returns_more_objectives_than_directions_is_refused_before_the_training():
    trainings = CountTrainings()
    trainer = fast_trainer(callbacks=[trainings])
    with pytest.raises(st_hpo.DirectionError, match=r"returned 2 value\(s\), but `direction` has 1"):
        trainer.hyperparameter_search(RATES, lambda metrics: [1.0, 2.0], n_trials=1, direction="maximize")
    assert trainings.begun == 0


@pytest.mark.parametrize("objective", ["sts-dev_spearman", lambda metrics: metrics["sts-dev_spearman"]])
def test_a_missing_metric_is_found_before_the_training_and_the_nearest_are_named(objective):
    trainings = CountTrainings()
    trainer = fast_trainer(callbacks=[trainings])
    with pytest.raises(st_hpo.MetricNotFoundError) as caught:
        trainer.hyperparameter_search(RATES, objective, n_trials=1, direction="maximize")
    assert trainings.begun == 0
    assert caught.value.key == "sts-dev_spearman"
    assert caught.value.available[0] == METRIC
    assert f"Did you mean '{METRIC}'" in str(caught.value)


def test_without_a_baseline_a_missing_metric_is_found_after_the_first_trial():
    trainings = CountTrainings()
    trainer = fast_trainer(callbacks=[trainings])
    with pytest.raises(st_hpo.MetricNotFoundError):
        trainer.hyperparameter_search(RATES, "spearman", n_trials=3, direction="maximize", baseline=False)
    assert trainings.begun == 1
    assert [trial.state for trial in trainer.last_search.trials] == ["failed"]


def test_without_evaluator_and_evaluation_data_there_is_no_objective():
    refused_at_once(st_hpo.ConfigurationError, "neither an `evaluator` nor an `eval_dataset`", {"evaluator": None})


def test_without_training_data_there_is_no_search():
    refused_at_once(st_hpo.ConfigurationError, "no `train_dataset`", {"train_dataset": None})


def test_a_loss_instance_trains_but_is_refused_in_a_search_with_the_words_for_the_factory():
    trainer = fast_trainer(loss=CoSENTLoss(model_init()), loss_init=None)
    trainer.train()
    with pytest.raises(st_hpo.FactoryError, match=r"loss_init=lambda model: CoSENTLoss\(model, \.\.\.\)"):
        trainer.hyperparameter_search(RATES, METRIC, n_trials=1)


def test_a_loss_instance_in_a_dict_is_named():
    data = {"a": pairs("train", 16), "b": pairs("train", 16)}
    losses = {"a": loss_init, "b": CoSENTLoss(model_init())}
    with pytest.raises(st_hpo.ConfigurationError, match=r"`loss_init\['b'\]` is an instance of CoSENTLoss"):
        fast_trainer(loss_init=losses, train_dataset=data)


def test_loss_and_loss_init_are_one_argument():
    with pytest.raises(st_hpo.ConfigurationError, match="two spellings of one argument"):
        fast_trainer(loss=loss_init)


def test_a_model_instance_trains_but_is_refused_in_a_search():
    trainer = fast_trainer(model=model_init(), model_init=None)
    trainer.train()
    with pytest.raises(st_hpo.FactoryError, match="pass `model_init` instead of `model`"):
        trainer.hyperparameter_search(RATES, METRIC, n_trials=1)


def test_a_model_init_that_returns_none_is_refused():
    with pytest.raises(st_hpo.FactoryError, match="returned None: did it forget its `return`"):
        fast_trainer(model_init=lambda: None)


def test_a_model_init_that_takes_too_much_is_refused():
    with pytest.raises(st_hpo.FactoryError, match="takes too much: 'pooling', 'rank'"):
        fast_trainer(model_init=lambda pooling, rank: model_init())


def test_a_loss_init_that_returns_no_loss_is_refused():
    with pytest.raises(st_hpo.FactoryError, match="`loss_init` must return a loss"):
        fast_trainer(loss_init=lambda model: 3)


def test_optimizers_belong_to_one_model():
    model = SentenceTransformer(fast_trainer().model[0].auto_model.config._name_or_path, device="cpu")
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(st_hpo.ConfigurationError, match="`optimizers` belong to one model"):
        fast_trainer(optimizers=(optimizer, None))


def test_an_unknown_backend_is_refused():
    refused_at_once(st_hpo.ConfigurationError, "Did you mean 'optuna'", backend="optunna")


def test_an_unknown_backend_argument_is_refused():
    refused_at_once(st_hpo.ConfigurationError, "Did you mean 'study_name'", study_nam="mine")


def test_several_processes_are_refused(monkeypatch):
    trainer = fast_trainer()
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    with pytest.raises(st_hpo.NotSupportedError, match="start the script with `python`"):
        trainer.hyperparameter_search(RATES, METRIC, n_trials=1)


def test_the_best_evaluation_needs_evaluations_and_one_objective():
    refused_at_once(st_hpo.ConfigurationError, "eval_strategy='no'", objective_from="best")
    refused_at_once(st_hpo.ConfigurationError, "must be 'end' or 'best', but got 'last'", objective_from="last")
    several = {"compute_objective": [METRIC, "eval_loss"], "direction": ["maximize", "minimize"]}
    changes = {"args": fast_arguments(eval_strategy="steps", eval_steps=1)}
    refused_at_once(st_hpo.ConfigurationError, "needs a single objective", changes, objective_from="best", **several)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", "..", 7])
def test_a_run_name_cannot_leave_the_output_folder(name):
    trainings = CountTrainings()
    trainer = fast_trainer(callbacks=[trainings])
    with pytest.raises(st_hpo.ConfigurationError, match="`hp_name` must return the name of a folder"):
        trainer.hyperparameter_search(RATES, METRIC, n_trials=1, hp_name=lambda trial: name)
    assert trainings.begun == 0


def test_apply_best_run_takes_one_run():
    trainer = fast_trainer()
    with pytest.raises(st_hpo.ConfigurationError, match="choose one of the Pareto front"):
        trainer.apply_best_run([])
    with pytest.raises(st_hpo.ConfigurationError, match="takes what `hyperparameter_search` returned"):
        trainer.apply_best_run("best")


def test_a_model_init_that_returns_the_same_model_again_is_refused():
    """Each trial would train on what the trial before has left."""
    model = model_init()
    trainer = fast_trainer(model_init=lambda: model)
    with pytest.raises(st_hpo.FactoryError, match=r"the same model again.*copy\.deepcopy"):
        trainer.hyperparameter_search(RATES, METRIC, n_trials=1)


def test_a_loss_init_that_returns_the_same_loss_again_is_refused():
    kept = []

    def same(model):
        kept.append(CoSENTLoss(model))
        return kept[0]

    with pytest.raises(st_hpo.FactoryError, match="the same loss again"):
        fast_trainer(loss_init=same).hyperparameter_search(RATES, METRIC, n_trials=1)


def test_a_study_that_optimizes_something_else_is_not_continued(tmp_path):
    study = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "mine", "load_if_exists": True}
    fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=1, **study)
    with pytest.raises(st_hpo.ConfigurationError, match=r"in the direction\(s\) \['maximize'\], this search in"):
        fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=1, direction="minimize", **study)
    other = {"compute_objective": "sts-dev_pearson_cosine", "direction": "maximize"}
    with pytest.raises(st_hpo.ConfigurationError, match=r"optimizes .*spearman.*, this search .*pearson"):
        fast_trainer().hyperparameter_search(RATES, n_trials=1, **other, **study)


UNDER_TORCHRUN = """
import torch, transformers
transformers.logging.set_verbosity_error()
import st_hpo
from fast_trainer import METRIC, RATES, fast_trainer
try:
    fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=1)
except st_hpo.NotSupportedError as error:
    assert "2 processes" in str(error)
else:
    raise SystemExit("the search was not refused")
"""


@pytest.mark.slow
def test_a_search_under_torchrun_is_refused_on_every_rank(tmp_path):
    (tmp_path / "script.py").write_text(UNDER_TORCHRUN)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-3000:]

"""Schedulers and search algorithms of Ray Tune on a real cluster: trials that stop, pause and take over."""

from __future__ import annotations

import pytest
from optuna.pruners import MedianPruner
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from st_hpo import ConfigurationError, Float, Int, NotSupportedError, SearchSpace
from st_hpo.records import COMPLETED, FAILED, PRUNED
from st_hpo.testing import METRIC, SPACE, make_trainer

from ray_setup import EVALUATING, Together, by_hand, checkpoints, evaluating, search

pytest_plugins = ["ray_fixtures"]
pytestmark = pytest.mark.slow

#: The first is behind the second at every evaluation, with any batch size: a population always takes over from one
WORSE_AND_BETTER = [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}]


def test_asha_ends_trials_early_and_the_others_are_those_by_hand(cluster, tiny_model, tmp_path):
    trainer = evaluating(make_trainer(tiny_model, tmp_path))
    scheduler = tune.schedulers.ASHAScheduler(grace_period=1, reduction_factor=2, max_t=4)
    result = search(
        trainer,
        n_trials=6,
        scheduler=scheduler,
        search_alg=OptunaSearch(seed=3),
        max_concurrent_trials=1,
        storage_path=str(tmp_path / "storage"),
    ).run_summary
    states = [record.state for record in result.trials]
    assert PRUNED in states and COMPLETED in states and FAILED not in states
    for record in result.trials:
        if record.state == COMPLETED:
            assert record.objective == by_hand(tiny_model, tmp_path, record, **EVALUATING)
        else:
            assert record.objective is None and record.error.startswith("stopped at step")
            assert record.hyperparameters and METRIC in record.metrics
    assert checkpoints(tmp_path / "storage") == []


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_a_pruner_by_its_name_needs_no_evaluations_and_leaves_no_trace(cluster, tiny_model, tmp_path, name):
    trainer = make_trainer(tiny_model, tmp_path)
    trainer.args.max_steps = 8
    result = search(
        trainer,
        n_trials=5,
        pruner=name,
        search_alg=OptunaSearch(seed=3),
        max_concurrent_trials=1,
        trial_evaluator=trainer.evaluator,
        storage_path=str(tmp_path / "storage"),
    ).run_summary
    assert {record.state for record in result.trials} <= {COMPLETED, PRUNED}
    if name == "asha":  # Hyperband draws its brackets
        assert {record.state for record in result.trials} == {COMPLETED, PRUNED}
    for record in result.trials:
        if record.state == COMPLETED:
            assert record.objective == by_hand(tiny_model, tmp_path, record, max_steps=8)
            assert [rung["at"] for rung in record.rungs] == ([26] if name == "asha" else [26, 78])
        else:
            assert record.objective is None and record.rungs and METRIC in record.metrics
    assert checkpoints(tmp_path / "storage") == []


def test_medians_are_those_of_rungs_also_when_trials_have_ended(cluster, tiny_model, tmp_path):
    """Ray's own rule looks for the step of a trial's last report, which is that of its end."""
    trainer = make_trainer(tiny_model, tmp_path)
    trainer.args.max_steps = 8
    options = {"pruner": "median", "search_alg": OptunaSearch(seed=3), "max_concurrent_trials": 1}
    result = search(trainer, n_trials=8, **options).run_summary
    states = [record.state for record in result.trials]
    assert len(states) == 8 and set(states) <= {COMPLETED, PRUNED} and states[:5] == [COMPLETED] * 5
    for record in result.trials:
        assert record.state == PRUNED or [rung["at"] for rung in record.rungs] == [26, 52]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": "evaluations", "pruner": "asha"}, "compares trials at fractions of their trainings"),
        ({"rungs": [0.5]}, "are for a scheduler, but there is none"),
        ({"rungs": [0.5], "scheduler": tune.schedulers.HyperBandScheduler(max_t=4)}, "pauses trials"),
        ({"rungs": [0.5], "scheduler": "hyperband"}, "hyperband pauses trials"),
        ({"pruner": "asha", "scheduler": tune.schedulers.ASHAScheduler()}, "Leave one of them out"),
        ({"pruner": "ash"}, "'asha'"),
        ({"pruner": MedianPruner()}, "prunes by a scheduler"),
        ({"scheduler": tune.schedulers.ASHAScheduler()}, "there are none: eval_strategy='no'. Pass rungs"),
    ],
)
def test_rungs_that_cannot_be_are_refused_before_anything_runs(tiny_model, tmp_path, changes, message):
    with pytest.raises((ConfigurationError, NotSupportedError), match=message):
        search(make_trainer(tiny_model, tmp_path), n_trials=1, **changes)


def test_hyperband_pauses_trials_and_they_are_continued_to_the_last_bit(cluster, tiny_model, tmp_path):
    trainer = evaluating(make_trainer(tiny_model, tmp_path))
    scheduler = tune.schedulers.HyperBandScheduler(max_t=4, reduction_factor=2)
    result = search(trainer, n_trials=4, scheduler=scheduler, storage_path=str(tmp_path / "storage")).run_summary
    finished = [record for record in result.trials if record.state == COMPLETED]
    assert finished
    for record in finished:
        assert record.objective == by_hand(tiny_model, tmp_path, record, **EVALUATING)
    assert checkpoints(tmp_path / "storage")


def test_trials_that_are_paused_end_with_their_best_checkpoint(cluster, tiny_model, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": METRIC, "greater_is_better": False}
    saving = {"save_strategy": "steps", "save_steps": 2, **EVALUATING, **best}
    trainer = make_trainer(tiny_model, tmp_path / "out")
    for name, value in saving.items():
        setattr(trainer.args, name, value)
    scheduler = tune.schedulers.HyperBandScheduler(max_t=4, reduction_factor=2)
    result = search(trainer, n_trials=4, scheduler=scheduler, storage_path=str(tmp_path / "storage")).run_summary
    finished = [record for record in result.trials if record.state == COMPLETED]
    assert finished and FAILED not in [record.state for record in result.trials]
    for record in finished:
        assert record.objective == by_hand(tiny_model, tmp_path / "hand", record, **saving)


def test_median_stopping_by_its_name(cluster, tiny_model, tmp_path):
    trainer = evaluating(make_trainer(tiny_model, tmp_path))
    best = search(trainer, n_trials=2, scheduler="median_stopping_rule", storage_path=str(tmp_path / "storage"))
    result = best.run_summary
    assert {record.state for record in result.trials} <= {COMPLETED, PRUNED}
    assert result.best_trials


def test_population_based_training_goes_on_from_checkpoints_with_other_values(cluster, tiny_model, tmp_path, caplog):
    (tmp_path / "marks").mkdir()
    trainer = evaluating(make_trainer(tiny_model, tmp_path, callbacks=[Together(tmp_path / "marks", 2)]), steps=12)
    scheduler = tune.schedulers.PopulationBasedTraining(
        perturbation_interval=1,
        hyperparam_mutations={"learning_rate": tune.loguniform(1e-4, 1e-2)},
        quantile_fraction=0.5,
        resample_probability=1.0,
    )
    result = search(
        trainer,
        n_trials=2,
        hp_space=SearchSpace({"learning_rate": Float(1e-4, 1e-2, log=True)}),
        enqueue=WORSE_AND_BETTER,
        scheduler=scheduler,
        storage_path=str(tmp_path / "storage"),
    ).run_summary
    assert [record.state for record in result.trials] == [COMPLETED] * 2
    assert "in the middle of trainings" in caplog.text
    assert checkpoints(tmp_path / "storage")
    seen = {record.backend_id: record.hyperparameters["learning_rate"] for record in result.trials}
    configs = {trial.trial_id: trial.config["learning_rate"] for trial in result.native.trials}
    assert seen == configs
    exploited = [file for file in (tmp_path / "storage").rglob("pbt_policy_*.txt")]
    assert exploited, "no trial has taken over from another"


def test_a_population_cannot_change_what_has_no_effect_in_the_middle(cluster, tiny_model, tmp_path):
    (tmp_path / "marks").mkdir()
    trainer = evaluating(make_trainer(tiny_model, tmp_path, callbacks=[Together(tmp_path / "marks", 2)]), steps=12)
    scheduler = tune.schedulers.PopulationBasedTraining(
        perturbation_interval=1,
        hyperparam_mutations={"per_device_train_batch_size": [5, 6]},
        quantile_fraction=0.5,
        resample_probability=1.0,
    )
    with pytest.raises(ConfigurationError, match="per_device_train_batch_size"):
        search(
            trainer,
            n_trials=2,
            hp_space=SearchSpace({"learning_rate": Float(1e-4, 1e-2), "per_device_train_batch_size": Int(2, 4)}),
            enqueue=WORSE_AND_BETTER,
            scheduler=scheduler,
            storage_path=str(tmp_path / "storage"),
        )


def test_optuna_proposes_for_ray_and_learns_from_failures(cluster, tiny_model, tmp_path):

    result = search(
        make_trainer(tiny_model, tmp_path),
        hp_space=SPACE,
        search_alg=OptunaSearch(seed=0),
        max_concurrent_trials=2,
        storage_path=str(tmp_path / "storage"),
    ).run_summary
    assert [record.state for record in result.trials] == [COMPLETED] * 4
    assert len({record.hyperparameters["learning_rate"] for record in result.trials}) == 4
    for record in result.trials:
        assert record.objective == by_hand(tiny_model, tmp_path, record)


def test_grid_search_and_nested_names(cluster, tiny_model, tmp_path):
    space = {"learning_rate": tune.grid_search([1e-3, 1e-2]), "loss": {"scale": tune.grid_search([10.0, 20.0])}}
    result = search(
        make_trainer(tiny_model, tmp_path), hp_space=space, n_trials=1, storage_path=str(tmp_path / "storage")
    ).run_summary
    assert sorted(tuple(record.hyperparameters.items()) for record in result.trials) == [
        (("learning_rate", rate), ("loss.scale", scale)) for rate in (1e-3, 1e-2) for scale in (10.0, 20.0)
    ]


def test_ray_scope_chooses_the_best_run(cluster, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SCOPE", "all")
    trainer = evaluating(make_trainer(tiny_model, tmp_path))
    best = search(trainer, n_trials=4, storage_path=str(tmp_path / "storage"))
    analysis = best.run_summary.native
    assert best.run_id == analysis.get_best_trial("objective", "max", scope="all").trial_id


def test_an_unknown_scope_is_refused(cluster, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SCOPE", "first")
    with pytest.raises(ConfigurationError, match="RAY_SCOPE"):
        search(make_trainer(tiny_model, tmp_path))

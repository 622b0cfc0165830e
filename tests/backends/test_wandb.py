"""The W&B backend: real sweeps of the real client, on a server of our own."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
import wandb
from transformers.trainer_utils import default_hp_space_wandb

import st_hpo
from st_hpo import (
    Categorical,
    Float,
    Int,
    SearchSpace,
)

from fast_trainer import METRIC, RATES, fast_arguments, fast_trainer
from wandb_service import ENTITY
from wandb_setup import (
    EVERY_STEP,
    LOGGED,
    by_hand,
    grid,
    search,
    wandb_hp_space,
)

pytest_plugins = ["wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("no_wandb_of_before")
PAGE = Path(__file__).parents[2] / "docs" / "backends" / "wandb.md"


# ---- Sweeps ----


def test_the_guides_space_gives_the_numbers_of_the_plain_trainer(service):
    best = search(wandb_hp_space, n_trials=5, name="a name", entity=ENTITY)
    trials = best.run_summary.trials
    assert len({trial.hyperparameters["learning_rate"] for trial in trials}) == 5, "every trial seeds everything"
    for trial, run in zip(trials, service.runs_of(), strict=True):
        values = trial.hyperparameters
        assert (trial.state, trial.backend_id) == ("completed", run.id)
        assert values.keys() == {"learning_rate", "per_device_train_batch_size"} and run.values == values
        assert 1e-6 <= values["learning_rate"] <= 1e-4 and values["per_device_train_batch_size"] in (16, 32, 64, 128)
        assert (run.state, run.exit_code, run.inits, run.project) == ("finished", 0, 1, "tests")
        assert (run.sweep, run.name) == (service.sweep.id, f"trial-{trial.number}")
        assert run.summary["objective"] == run.summary[LOGGED] == trial.objective
        assert run.logged("objective") == run.logged(LOGGED) == [trial.objective]
        assert run.summary["trial_state"] == "completed"
    assert trials[0].objective == by_hand(trials[0].hyperparameters)
    assert best.run_id in service.runs and best.objective == max(trial.objective for trial in trials)
    assert service.sweep.config["metric"] == {"name": LOGGED, "goal": "maximize"}
    assert service.sweep.config["name"] == "a name"


def test_the_example_of_the_documentation_runs(service, capsys):
    scope: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(block, scope)
    assert "BestRun(run_id=" in capsys.readouterr().out
    assert scope["wandb_hp_space"](None) == wandb_hp_space(None)
    assert service.sweep.config["metric"]["name"] == LOGGED


def test_the_default_space_of_transformers_runs(service):
    result = search(default_hp_space_wandb, args=fast_arguments(max_steps=1)).run_summary
    for trial in result.trials:
        values = trial.hyperparameters
        assert {name: type(value) for name, value in values.items()} == {
            "learning_rate": float,
            "num_train_epochs": float,  # as the training argument declares it
            "seed": int,
            "per_device_train_batch_size": int,
        }


def test_the_default_space_is_searched_when_none_is_given(service):
    trial = search(None, n_trials=1, args=fast_arguments(max_steps=1)).run_summary.trials[0]
    assert trial.hyperparameters.keys() == st_hpo.default_search_space().keys()


def test_a_space_given_as_a_dict_is_not_changed(service):
    space = {**grid([1e-4]), "metric": {"name": "mine", "goal": "minimize"}, "project": "from-the-config"}
    given = copy.deepcopy(space)
    assert search(space, n_trials=1, project=None).run_summary.native.project == "from-the-config"
    assert space == given


def test_a_grid_ends_the_search_when_it_is_exhausted(service, caplog):
    space = SearchSpace({"learning_rate": Categorical([1e-4, 1e-3]), "per_device_train_batch_size": Int(4, 8, step=4)})
    result = search(space, n_trials=9, method="grid").run_summary
    tried = [tuple(trial.hyperparameters.values()) for trial in result.trials]
    assert sorted(tried) == [(1e-4, 4), (1e-4, 8), (1e-3, 4), (1e-3, 8)]
    assert "has ended after 4 of 9 trials" in caplog.text


def test_a_run_cap_ends_the_search(service, monkeypatch):
    make = service.on_UpsertSweep

    def with_cap(variables):  # the published schema has no run_cap, the service has
        made = make(variables)
        service.sweep.config["run_cap"] = 2
        return made

    monkeypatch.setattr(service, "on_UpsertSweep", with_cap)
    assert len(search(RATES, n_trials=5).run_summary.trials) == 2


def test_bayes_learns_from_the_objectives(service):
    space = SearchSpace({"learning_rate": Float(1e-6, 1e-3), "loss.scale": Float(5.0, 30.0)})
    result = search(space, n_trials=4, method="bayes", args=fast_arguments(max_steps=1)).run_summary
    assert service.sweep.config["method"] == "bayes"
    assert len({trial.hyperparameters["learning_rate"] for trial in result.trials}) == 4
    known = [run.for_search().summary_metric(LOGGED) for run in service.runs_of()]
    assert known == [trial.objective for trial in result.trials]


def test_the_metric_may_be_another_and_one_that_is_not_logged_is_said(service, caplog):
    search(RATES, n_trials=1, metric="eval/loss")
    assert service.sweep.config["metric"] == {"name": "eval/loss", "goal": "maximize"}
    assert "'eval/loss', which the trial has not logged" in caplog.text and LOGGED in caplog.text


def test_a_function_as_the_objective_is_the_metric_objective(service):
    best = search(RATES, n_trials=2, direction="minimize", metric_key=lambda metrics: 1 - metrics[METRIC])
    assert service.sweep.config["metric"] == {"name": "objective", "goal": "minimize"}
    assert [run.summary["objective"] for run in service.runs_of()] == [t.objective for t in best.run_summary.trials]


@pytest.mark.parametrize("method", ["random", "grid"])
def test_several_objectives_give_the_pareto_front(service, method):
    keys = [METRIC, "eval_sts-dev_pearson_cosine"]
    space = {"method": method, "parameters": {"learning_rate": {"values": [1e-5, 1e-3]}}}
    front = search(space, direction=["maximize", "minimize"], metric_key=keys)
    assert isinstance(front, list) and "metric" not in service.sweep.config
    for trial, run in zip(front[0].run_summary.trials, service.runs_of(), strict=True):
        assert [run.summary["objective_0"], run.summary["objective_1"]] == trial.objective
        assert run.summary[LOGGED] == trial.objective[0]


def test_the_sweep_can_be_fetched_with_wandbs_own_api(service):
    native = search(RATES, n_trials=1, entity=ENTITY).run_summary.native
    assert native.path == f"{ENTITY}/tests/{service.sweep.id}" and native.url.endswith(f"/sweeps/{service.sweep.id}")
    fetched = native.fetch()
    assert (fetched.id, fetched.state, fetched.config) == (service.sweep.id, "RUNNING", service.sweep.config)
    wandb.teardown()


def test_files_land_where_wandb_puts_them(service, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = set(os.listdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(elsewhere))
        search(RATES, n_trials=1)
    assert [path.name for path in elsewhere.iterdir()] == ["wandb"]
    assert "wandb" not in set(os.listdir()) - before


# ---- Runs ----


def test_transformers_callback_logs_into_the_same_run(service):
    args = fast_arguments(report_to="wandb", logging_strategy="steps", logging_steps=1, **EVERY_STEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_PROJECT", "kept")  # sentence-transformers sets one of its own otherwise
        check_one_run_a_trial(service, fast_trainer(args=args))
        assert os.environ["WANDB_PROJECT"] == "kept"


def check_one_run_a_trial(service, trainer):
    best = trainer.hyperparameter_search(
        wandb_hp_space, METRIC, n_trials=2, direction="maximize", backend="wandb", project="tests"
    )
    for trial, run in zip(best.run_summary.trials, service.runs_of(), strict=True):
        assert (run.inits, run.state, run.name) == (1, "finished", f"trial-{trial.number}")
        assert run.logged(LOGGED) == run.logged("objective") and len(run.logged(LOGGED)) == 2, "each once"
        assert len(run.logged("train/loss")) == 2 and "train_runtime" in run.summary
        assert run.values["learning_rate"] == trial.hyperparameters["learning_rate"]
        assert run.values["max_steps"] == 2 and run.summary["objective"] == trial.objective
    assert best.run_summary.baseline is not None and all(run.sweep is not None for run in service.runs.values())


def test_intermediate_objectives_are_logged(service):
    result = search(RATES, n_trials=1, args=fast_arguments(max_steps=3, **EVERY_STEP)).run_summary
    run = service.runs_of()[0]
    assert run.logged("train/global_step") == [1, 2, 3] and len(run.logged("objective")) == 3
    assert run.logged("objective")[-1] == result.trials[0].objective

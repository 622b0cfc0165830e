"""W&B: every trial is a run, on a server of our own that the real client talks to."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import wandb

from fast_trainer import METRIC, fast_arguments, fast_trainer, random_sampler
from wandb_setup import LOGGED

pytest_plugins = ["wandb_fixtures"]


@pytest.fixture(autouse=True)
def _project(no_wandb_of_before, monkeypatch):
    """Otherwise sentence-transformers sets one in the environment."""
    monkeypatch.setenv("WANDB_PROJECT", "tests")


@pytest.fixture(autouse=True)
def sent(service):
    """What the server is told of each run beyond what it keeps: its group and tags."""
    told: dict[str, dict[str, Any]] = defaultdict(dict)

    def note(operation: str, variables: dict[str, Any]) -> None:
        if operation == "UpsertBucket":
            known = {name: variables[name] for name in ("groupName", "tags") if variables.get(name)}
            told[variables.get("name") or variables.get("id")].update(known)

    service.before = note
    yield told
    assert wandb.run is None
    wandb.teardown()  # the client's own service stays until the script ends, or says this


def trials_of(service) -> list[Any]:
    return sorted((run for run in service.runs.values() if run.name != "mine"), key=lambda run: run.name)


def test_every_trial_is_a_run_that_is_closed(service, sent, three_trials):
    result = three_trials("wandb")
    runs = trials_of(service)
    assert [run.name for run in runs] == ["run-0", "run-1", "run-2"]
    assert [(run.state, run.exit_code) for run in runs] == [("finished", 0), ("finished", 0), ("failed", 1)]
    for trial, run in zip(result.trials, runs, strict=True):
        assert (run.inits, run.project) == (1, "tests")
        assert (sent[run.id]["groupName"], sent[run.id]["tags"]) == ("a study", [trial.state])
        assert {name: run.values[name] for name in trial.hyperparameters} == trial.hyperparameters
        assert run.values["max_steps"] == 2
        assert (run.summary["trial_state"], run.summary.get("trial_error")) == (trial.state, trial.error)
        assert run.summary.get("objective") == trial.objective
        assert run.summary.get(LOGGED) == trial.metrics.get(METRIC)
    assert len(runs[0].logged("train/loss")) == len(runs[0].logged(LOGGED)) == 2


def test_the_users_own_run_stays_open_and_untouched(service, sent, three_trials, monkeypatch):
    mine = wandb.init(project="mine", name="mine", config={"mine": 1})
    log, config = wandb.log, wandb.config
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_RUN_ID", mine.id)  # all trials would continue it
        three_trials("wandb")
    assert wandb.run is mine and wandb.log == log and wandb.config is config
    wandb.log({"after": 1})
    wandb.finish()
    run = service.runs[mine.id]
    assert (run.state, run.values, run.inits) == ("finished", {"mine": 1}, 1)
    assert [{name for name in line if not name.startswith("_")} for line in run.history] == [{"after"}]
    assert [item.name for item in trials_of(service)] == ["run-0", "run-1", "run-2"]


def test_a_server_that_is_not_there_ends_the_trial_and_leaves_no_run(service):
    service.keys.clear()  # it answers, and refuses
    trainer = fast_trainer(args=fast_arguments(report_to="wandb"))
    with pytest.raises(wandb.errors.Error):
        trainer.hyperparameter_search(n_trials=1, sampler=random_sampler())
    assert trainer.last_search.trials[0].state == "failed" and wandb.run is None


def test_without_a_server_the_same_runs_are_written_for_later(service, three_trials, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        three_trials("wandb")
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 3 and not service.runs

"""Trackio: every trial is a run in its local database."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from typing import Any

import pytest
import trackio
from trackio.utils import TRACKIO_DIR

from fast_trainer import METRIC, fast_arguments, fast_trainer, random_sampler

SCALAR = "eval/sts-dev_spearman_cosine"


@pytest.fixture
def project():
    return f"project-{uuid.uuid4().hex[:8]}"


def runs_of(project: str) -> dict[str, Any]:
    """The runs of a project by their ids, in the order of their configs."""
    with sqlite3.connect(TRACKIO_DIR / f"{project}.db") as database:
        configs = database.execute("SELECT run_id, run_name, config FROM configs ORDER BY id").fetchall()
        logs = database.execute("SELECT run_id, metrics FROM metrics ORDER BY id").fetchall()
    found = {run: {"name": name, "config": json.loads(config), "logs": []} for run, name, config in configs}
    for run, metrics in logs:
        found[run]["logs"].append(json.loads(metrics))
    return found


def logged(run: dict[str, Any], name: str) -> list[Any]:
    return [line[name] for line in run["logs"] if name in line]


def test_every_trial_is_a_run_that_is_closed(three_trials, project, capsys):
    threads = set(threading.enumerate())
    result = three_trials("trackio", project=project)
    runs = list(runs_of(project).values())
    assert [run["name"] for run in runs] == ["run-0", "run-1", "run-2"]
    for trial, run in zip(result.trials, runs, strict=True):
        assert run["config"]["_Group"] == "a study" and run["config"]["trial"] == str(trial.number)
        assert {name: run["config"][name] for name in trial.hyperparameters} == trial.hyperparameters
        assert run["config"]["max_steps"] == 2 and run["config"]["hidden_size"] == 128
        assert logged(run, "trial_state") == [trial.state]
        assert logged(run, "trial_error") == ([] if trial.error is None else [trial.error])
        assert logged(run, "objective") == ([] if trial.objective is None else [trial.objective])
        assert logged(run, SCALAR)[-1:] == ([trial.metrics[METRIC]] if trial.metrics else [])
    assert len(logged(runs[0], "train/loss")) == len(logged(runs[0], SCALAR)) == 2
    assert trackio.context_vars.current_run.get() is None
    assert {thread.name for thread in set(threading.enumerate()) - threads} <= {"tqdm_monitor"}
    assert "Trackio" not in capsys.readouterr().out


def test_a_second_search_has_runs_of_its_own_under_the_same_names(project):
    """Upstream's callback continues a run that has the same name, and draws the same names after the same seed."""
    trainer = fast_trainer(args=fast_arguments(report_to="trackio", project=project))
    for _ in range(2):
        trainer.hyperparameter_search(n_trials=1, sampler=random_sampler(), baseline=False)
    runs = list(runs_of(project).values())
    assert [run["name"] for run in runs] == ["run-0", "run-0"]
    assert [len(logged(run, SCALAR)) for run in runs] == [1, 1]
    assert len({run["config"]["_Group"] for run in runs}) == 2


def test_the_users_own_run_stays_open_and_untouched(three_trials, project):
    mine = trackio.init(project, name="mine", config={"mine": 1}, embed=False)
    variables = trackio.config
    three_trials("trackio", project=f"{project}-trials")
    assert trackio.context_vars.current_run.get() is mine and trackio.config is variables
    assert trackio.context_vars.current_project.get() == project
    trackio.log({"after": 1})
    trackio.finish()
    (run,) = runs_of(project).values()
    assert (run["name"], run["logs"]) == ("mine", [{"after": 1}])
    assert len(runs_of(f"{project}-trials")) == 3

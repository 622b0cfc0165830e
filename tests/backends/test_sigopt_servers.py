"""The SigOpt backend and its server: what it is told, when it goes away, and when there is none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import Any

import pytest
from transformers import TrainerCallback

from st_hpo import BackendNotInstalledError, BackendUnavailableError, ConfigurationError
from st_hpo.backends import get_backend
from st_hpo.backends.sigopt.backend import SigOptBackend

from fast_trainer import METRIC, fast_trainer, model_init
from sigopt_setup import NO_BASELINE, RATE, InTraining, refused, search, sigopt_hp_space

pytest_plugins = ["sigopt_fixtures"]


# ---- The server ----


def test_the_experiment_is_that_of_transformers_4(server):
    best = search(n_trials=2)
    experiment = server.experiment
    assert experiment["name"] == "huggingface-tune" and experiment["project"] == "huggingface"
    assert experiment["type"] == "offline" and experiment["budget"] == 2 and experiment["parallel_bandwidth"] == 1
    assert experiment["parameters"] == sigopt_hp_space(None)
    assert experiment["metrics"] == [{"name": "objective", "objective": "maximize", "strategy": "optimize"}]
    assert experiment["progress"]["remaining_budget"] == 0
    result = best.run_summary
    assert result.native.id == experiment["id"] and result.backend == "sigopt"
    for run, trial in zip(server.runs.values(), result.trials, strict=True):
        assert run["values"]["objective"]["value"] == trial.objective == run["values"][METRIC]["value"]
        assert run["state"] == "completed" and run["id"] == trial.backend_id
    (best_on_server,) = result.native.get_best_runs()
    assert best_on_server.id == best.run_id and best_on_server.values["objective"].value == best.objective


def test_the_trial_gives_access_to_the_run_of_the_client(server):
    def model(trial):
        if trial is not None:
            trial.log_metadata("note", "mine")
        return model_init()

    search([RATE], n_trials=1, model_init=model)
    (run,) = server.runs.values()
    assert run["metadata"] == {"note": "mine"}


def test_name_and_project_are_the_users(server, monkeypatch):
    server.projects |= {"mine", "from-the-environment"}
    search([RATE], n_trials=1, name="a name", project="mine")
    assert (server.experiment["name"], server.experiment["project"]) == ("a name", "mine")
    server.experiments.clear()
    monkeypatch.setenv("SIGOPT_PROJECT", "from-the-environment")
    search([RATE], n_trials=1)
    assert server.experiment["project"] == "from-the-environment"


def test_nothing_global_of_the_client_changes(server):
    import sigopt
    from sigopt import interface

    sigopt.set_project("the-users-own")
    before = (sigopt._global_factory.project, sigopt._global_factory._connection, interface._global_connection)
    search([RATE], n_trials=1)
    after = (sigopt._global_factory.project, sigopt._global_factory._connection, interface._global_connection)
    assert before == after and before[0] == "the-users-own"


def test_a_missing_project_is_an_error_with_the_command_that_helps(server):
    message = refused(ConfigurationError, [RATE], project="mine")
    command = re.search('`python -c "(.*)"`', message).group(1)
    subprocess.run([sys.executable, "-c", command], check=True, timeout=400, env={**os.environ, **server.env()})
    assert "mine" in server.projects
    assert search([RATE], n_trials=1, project="mine").run_id in server.runs


def test_a_refused_token_is_an_error_before_any_model(server, monkeypatch):
    monkeypatch.setenv("SIGOPT_API_TOKEN", "wrong")
    assert re.search("401.*SIGOPT_API_TOKEN", refused(BackendUnavailableError))


def test_a_server_that_is_not_there_is_an_error_at_once(server, monkeypatch):
    monkeypatch.setattr("st_hpo.backends.sigopt.client.CHECK_SECONDS", 60)
    server.stop()
    started = time.perf_counter()
    assert f"{server.url} (SIGOPT_API_URL) cannot be reached" in refused(BackendUnavailableError)
    assert time.perf_counter() - started < 30


def leaving(server: Any, number: int, status: Any = None, then: BaseException | None = None) -> InTraining:
    """The server goes away in a trial; or answers with an error from then on, or not at all."""

    def act(current: int) -> None:
        if current == number:
            server.failing = status
            if status is None:
                server.stop()
            if then is not None:
                raise then

    return InTraining(act)


@pytest.mark.parametrize("status", [None, 500, 429, "silent"])
def test_a_server_that_goes_away_leaves_the_finished_trials(server, monkeypatch, status):
    monkeypatch.setattr("st_hpo.backends.sigopt.client.REQUEST_SECONDS", 4)  # the client repeats after 429
    trainer = fast_trainer(callbacks=[leaving(server, 1, status)])
    started = time.perf_counter()
    said = f"answered {status}" if isinstance(status, int) else "cannot be reached"
    with pytest.raises(BackendUnavailableError, match=said):
        trainer.hyperparameter_search([RATE], METRIC, n_trials=4, backend="sigopt", **NO_BASELINE)
    assert time.perf_counter() - started < 300
    assert [trial.state for trial in trainer.last_search.trials] == ["completed", "completed"]
    assert trainer.last_search.best_trials


def test_a_trials_own_exception_is_raised_although_the_server_has_gone(server, caplog):
    error = RuntimeError("the trial's own")
    trainer = fast_trainer(callbacks=[leaving(server, 0, then=error)])
    with pytest.raises(RuntimeError) as caught:
        trainer.hyperparameter_search([RATE], METRIC, n_trials=2, backend="sigopt", **NO_BASELINE)
    assert caught.value is error
    assert "could not be marked as failed" in caplog.text


def test_a_budget_that_is_used_up_ends_the_search(server, caplog):
    class LowerBudget(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            server.experiment["budget"] = 1

    result = search([RATE], n_trials=3, callbacks=[LowerBudget]).run_summary
    assert len(result.trials) == 1 and "after 1 of 3 trials" in caplog.text


def test_a_seed_has_no_effect_on_a_server_and_that_is_said(server, caplog):
    search([RATE], n_trials=1, seed=1)
    assert "`seed` is for the local search" in caplog.text


# ---- Which of the two, and what it needs ----


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "No SigOpt server is configured"),
        ({"SIGOPT_API_TOKEN": "x"}, "which has closed, as long as SIGOPT_API_URL names no other server"),
        ({"SIGOPT_API_URL": "https://api.sigopt.com/", "SIGOPT_API_TOKEN": "x"}, "has closed"),
    ],
)
def test_a_local_search_says_so_once(local, monkeypatch, caplog, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "sigopt", None)  # as if it were not installed
    search([RATE], n_trials=3)
    lines = [record.getMessage() for record in caplog.records if "runs locally" in record.getMessage()]
    assert len(lines) == 1 and said in lines[0]


def test_a_server_says_nothing_of_a_local_search(server, caplog):
    search([RATE], n_trials=1)
    assert "locally" not in caplog.text


def test_a_url_without_a_token_is_an_error(server, monkeypatch):
    from sigopt.config import config

    monkeypatch.delenv("SIGOPT_API_TOKEN")
    monkeypatch.setattr(config, "_configuration", {})
    assert "Set SIGOPT_API_TOKEN" in refused(ConfigurationError)
    monkeypatch.setattr(config, "_configuration", {"api_token": "A-TOKEN-OF-THE-TESTS"})
    assert search([RATE], n_trials=1).run_id in server.runs


def test_the_package_is_needed_for_a_server_only(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "sigopt", None)
    with pytest.raises(BackendNotInstalledError, match="pip install sigopt"):
        get_backend("sigopt")
    monkeypatch.delenv("SIGOPT_API_URL")
    assert isinstance(get_backend("sigopt"), SigOptBackend)


def test_a_folder_that_is_no_project_name_does_not_break_the_import(server, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sigopt"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("SIGOPT_PROJECT", "Not A Project")
    assert "SIGOPT_PROJECT" in refused(ConfigurationError, project="huggingface")


def test_it_cannot_prune():
    assert SigOptBackend().pruned_exceptions == () and SigOptBackend().native is None

"""Sweeps of W&B that several agents share, and those that a search joins."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import wandb

from st_hpo import (
    ConfigurationError,
    Float,
    SearchSpace,
    SearchSpaceError,
)
from st_hpo.backends.wandb import agent as wandb_agent
from st_hpo.backends.wandb import space as wandb_space
from st_hpo.backends.wandb.backend import WandbBackend

from fast_trainer import RATES
from wandb_service import ENTITY
from wandb_setup import (
    LOGGED,
    TWO,
    grid,
    joinable,
    restore,
    search,
)

pytest_plugins = ["wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("no_wandb_of_before")


AGENT = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from fast_trainer import METRIC, fast_trainer
best = fast_trainer().hyperparameter_search(
    {space!r}, METRIC, n_trials=9, direction="maximize", backend="wandb", baseline=False, sweep_id=sys.argv[1]
)
print("TRIALS", len(best.run_summary.trials))
"""


@pytest.mark.slow
def test_two_agents_in_two_processes_share_a_sweep(service, tmp_path):
    rates = [1e-5, 2e-5, 1e-4, 2e-4, 1e-3, 2e-3]
    sweep_id = wandb.sweep(grid(rates), project="shared", entity=ENTITY)
    restore(service)
    service.sweep.state = "PAUSED"

    def when_both_are_there(operation, variables):
        if len(service.agents) == 2 and service.sweep.state == "PAUSED":
            service.sweep.state = "RUNNING"

    service.before = when_both_are_there
    code = AGENT.format(paths=[path for path in sys.path if path], space=grid(rates))
    command = [sys.executable, "-c", code, f"{ENTITY}/shared/{sweep_id}"]
    agents = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) for _ in range(2)]
    counts = [int(agent.communicate(timeout=300)[0].split("TRIALS")[1]) for agent in agents]
    assert sum(counts) == len(rates) and min(counts) >= 1
    assert sorted(run.values["learning_rate"] for run in service.runs_of()) == rates
    assert [run.state for run in service.runs_of()] == ["finished"] * len(rates)


def test_a_search_may_join_a_sweep_and_take_its_space(service):
    sweep_id = joinable(service, grid([1e-4, 1e-3]))
    result = search(None, n_trials=2, sweep_id=f"shared/{sweep_id}", project=None).run_summary
    assert [trial.hyperparameters for trial in result.trials] == [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}]
    assert len(service.sweeps) == 1 and result.native.path == f"{ENTITY}/shared/{sweep_id}"


def test_a_joined_sweep_without_a_hyperparameter_of_the_space_is_an_error(service):
    sweep_id = joinable(service, grid([1e-4, 1e-3]))
    with pytest.raises(SearchSpaceError, match=r"No value was proposed for \['loss.scale'\]"):
        search(SearchSpace({**RATES, "loss.scale": Float(1, 2)}), sweep_id=sweep_id, project="shared")
    assert [run.state for run in service.runs_of()] == ["failed"]


def test_a_paused_sweep_is_waited_for(service, caplog, monkeypatch):
    monkeypatch.setattr(wandb_agent, "HEARTBEAT_SECONDS", 0.3)
    sweep_id = joinable(service, grid([1e-4, 1e-3]))
    service.sweep.state = "PAUSED"

    def resume_at_last(operation, variables):
        if service.heartbeats == 3:
            service.sweep.state = "RUNNING"

    service.before = resume_at_last
    result = search(None, n_trials=2, sweep_id=sweep_id, project="shared").run_summary
    assert len(result.completed) == 2 and "has no run to give yet" in caplog.text


def test_a_timeout_ends_the_wait_for_a_paused_sweep(service, monkeypatch):
    monkeypatch.setattr(wandb_agent, "HEARTBEAT_SECONDS", 0.3)
    sweep_id = joinable(service, grid([1e-4, 1e-3]))

    waits = []

    def pause_after_the_first(operation, variables):
        if any(run.state == "finished" for run in service.runs_of()):
            service.sweep.state = "PAUSED"
            if operation == "Heartbeat" and variables["runState"] == "{}":
                waits.append(operation)

    service.before = pause_after_the_first
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * (len(waits) > 3), sleep=time.sleep)
    monkeypatch.setattr("st_hpo.faults.time", clock)
    result = search(None, n_trials=2, timeout=3600, sweep_id=sweep_id, project="shared").run_summary
    assert [trial.state for trial in result.trials] == ["completed"] and result.ended_early == "timeout of 3600 s"
    assert [run.state for run in service.runs_of()] == ["finished"]


def test_a_guided_sweep_in_the_other_direction_is_refused(service):
    space = {"method": "bayes", "parameters": {"learning_rate": {"min": 1e-5, "max": 1e-3}}}
    sweep_id = joinable(service, {**space, "metric": {"name": LOGGED, "goal": "minimize"}})
    with pytest.raises(ConfigurationError, match=f"will minimize '{LOGGED}', this search maximize"):
        search(RATES, sweep_id=sweep_id, project="shared")
    with pytest.raises(ConfigurationError, match="'bayes' optimizes one metric"):
        search(RATES, sweep_id=sweep_id, project="shared", **TWO)


def test_a_sweep_that_has_ended_is_refused(service):
    sweep_id = joinable(service, grid([1e-4]))
    service.sweep.state = "FINISHED"
    with pytest.raises(ConfigurationError, match=r"has ended.*FINISHED"):
        search(RATES, sweep_id=sweep_id, project="shared")


def test_the_sweep_and_the_backend_are_plain_objects(service):
    backend = WandbBackend()
    assert backend.native is None and backend.name == "wandb"
    native = search(RATES, n_trials=1).run_summary.native
    assert dataclasses.asdict(native)["project"] == "tests"


def test_a_function_that_fails_for_another_reason_keeps_its_error():
    def broken(trial):
        return {"method": "random"}.missing

    with pytest.raises(AttributeError, match="missing"):
        wandb_space.open_sweep(broken)
    with pytest.raises(SearchSpaceError, match="must be a SearchSpace"):
        wandb_space.open_sweep(7)

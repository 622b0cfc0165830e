"""The W&B backend when something goes wrong: no server or no key, failures in trials, runs that are stopped."""

from __future__ import annotations

import signal
import time

import pytest
import wandb
from transformers import TrainerCallback

from st_hpo import (
    BackendUnavailableError,
    ConfigurationError,
)
from st_hpo.backends.wandb import agent as wandb_agent

from fast_trainer import RATES, fast_arguments, fast_trainer
from wandb_server import running_server
from wandb_service import ENTITY
from wandb_setup import (
    EVERY_STEP,
    LOGGED,
    InTrial,
    Pause,
    grid,
    quick,
    search,
)

pytest_plugins = ["wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("no_wandb_of_before")


# ---- Server trouble ----


def test_no_key_is_an_error(service):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY")
        quick(RATES, ConfigurationError, "no API key that the server.*WANDB_API_KEY.*wandb login")


def test_a_key_that_is_refused_is_an_error(service):
    service.keys.clear()
    quick(RATES, ConfigurationError, "no API key that the server.*accepts")


def test_no_server_is_an_error(monkeypatch):
    with running_server() as gone:
        environment = gone.env()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    quick(RATES, BackendUnavailableError, f"{gone.url} does not answer.*WANDB_BASE_URL")


def test_settings_that_wandb_refuses_are_an_error(service):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", "no-address")
        quick(RATES, ConfigurationError, r"(?s)refuses its own settings.*base_url")


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_mode_without_a_server_is_an_error(service, mode):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", mode)
        quick(RATES, ConfigurationError, f"mode '{mode}'.*WANDB_MODE=online")


def test_an_open_run_and_another_agent_are_errors(service):
    run = wandb.init(project="mine", name="mine", settings=wandb.Settings(silent=True))
    with pytest.raises(ConfigurationError, match=r"run 'mine'.*wandb.finish\(\)"):
        search(RATES)
    assert wandb.run is run
    run.finish()
    wandb.teardown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SWEEP_ID", "abc")
        quick(RATES, ConfigurationError, "agent of the sweep 'abc'.*WANDB_SWEEP_ID")


def test_a_sweep_that_is_not_there_is_an_error(service):
    quick(RATES, ConfigurationError, f"no sweep '{ENTITY}/tests/gone'.*deleted", sweep_id="gone")


def test_a_sweep_that_the_server_refuses_is_an_error(service):
    space = {"method": "random", "parameters": {"seed": {"distribution": "unifrom", "min": 1, "max": 2}}}
    trainer = fast_trainer()
    with pytest.raises(BackendUnavailableError, match="did not create the sweep"):
        search(space, trainer=trainer)
    assert service.errors and not service.sweeps
    service.errors.clear()


@pytest.mark.slow
def test_a_server_that_goes_away_leaves_the_finished_trials(service, monkeypatch):
    monkeypatch.setattr(wandb_agent, "UPLOAD_SECONDS", 3.0)
    monkeypatch.setattr(wandb_agent, "PATIENCE_SECONDS", 1.0)
    trainer = fast_trainer(callbacks=[InTrial({2}, lambda: service.stop())])
    started = time.monotonic()
    with pytest.raises(BackendUnavailableError, match="does not answer"):
        search(RATES, n_trials=5, trainer=trainer)
    assert time.monotonic() - started < 400
    result = trainer.last_search
    assert [trial.state for trial in result.trials] == ["completed"] * 3
    assert [run.exit_code for run in service.runs_of()] == [0, 0, None]


def test_a_server_that_is_away_for_a_moment_is_waited_for(service, caplog, monkeypatch):
    reachable, away = wandb_agent.check_reachable, []

    def check(url):
        if not away and service.runs and service.runs_of()[0].exit_code == 0:
            away.append(url)
            raise BackendUnavailableError("The W&B server does not answer.")
        reachable(url)

    monkeypatch.setattr(wandb_agent, "check_reachable", check)
    result = search(RATES, n_trials=2).run_summary
    assert away and len(result.completed) == 2
    assert "Trying again for 10 seconds" in caplog.text


def test_a_sweep_that_is_deleted_during_the_search_is_an_error(service):
    trainer = fast_trainer(callbacks=[InTrial({1}, lambda: service.delete_sweep(service.sweep.id))])
    with pytest.raises(BackendUnavailableError, match=r"no longer on the W&B server.*deleted"):
        search(RATES, n_trials=5, trainer=trainer)
    assert [trial.state for trial in trainer.last_search.trials] == ["completed"] * 2
    assert [run.exit_code for run in service.runs.values()] == [0, 0]


# ---- Trials that end early ----


def test_an_exception_ends_the_search_and_is_raised_unchanged(service):
    error = RuntimeError("out of patience")
    trainer = fast_trainer(callbacks=[InTrial({1}, error)])
    with pytest.raises(RuntimeError) as caught:
        search(RATES, n_trials=4, trainer=trainer)
    assert caught.value is error
    assert [trial.state for trial in trainer.last_search.trials] == ["completed", "failed"]
    first, second = service.runs_of()
    assert (first.state, second.state, second.exit_code) == ("finished", "failed", 1)
    assert second.summary["trial_error"] == "RuntimeError: out of patience"


def test_with_catch_all_trials_run_also_after_four_failures_in_a_row(service):
    trainer = fast_trainer(callbacks=[InTrial({0, 1, 2, 3}, RuntimeError("again"))])
    result = search(RATES, n_trials=6, trainer=trainer, catch=RuntimeError).run_summary
    assert [trial.state for trial in result.trials] == ["failed"] * 4 + ["completed"] * 2
    assert [run.state for run in service.runs_of()] == ["failed"] * 4 + ["finished"] * 2


def test_an_exception_that_catch_does_not_name_is_raised(service):
    trainer = fast_trainer(callbacks=[InTrial({0}, RuntimeError("other"))])
    with pytest.raises(RuntimeError, match="other"):
        search(RATES, trainer=trainer, catch=(ValueError, KeyError))


def test_a_nan_objective_fails_its_trial_and_the_search_goes_on(service):
    values = iter([float("nan"), 1.0])
    result = search(RATES, n_trials=2, metric_key=lambda metrics: next(values)).run_summary
    assert [(trial.state, trial.objective) for trial in result.trials] == [("failed", None), ("completed", 1.0)]
    assert [run.state for run in service.runs_of()] == ["failed", "finished"]
    assert "NaN" in service.runs_of()[0].summary["trial_error"]


def test_ctrl_c_returns_the_best_so_far(service):
    trainer = fast_trainer(callbacks=[InTrial({2}, lambda: signal.raise_signal(signal.SIGINT))])
    best = search(RATES, n_trials=5, trainer=trainer)
    result = best.run_summary
    assert result.interrupted and [trial.state for trial in result.trials] == ["completed", "completed", "failed"]
    assert [run.state for run in service.runs_of()] == ["finished", "finished", "failed"]


def heard(service):
    """A callback that goes on when the server has what was logged, or after a minute."""

    class Heard(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            deadline = time.monotonic() + 60
            while len(service.runs_of()[-1].logged(LOGGED)) < state.global_step and time.monotonic() < deadline:
                time.sleep(0.05)

    return Heard


@pytest.mark.slow
def test_a_run_that_hyperband_stops_is_a_pruned_trial(service):
    space = {**grid([1e-3, 1e-9]), "early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 3}}
    args = fast_arguments(max_steps=6, **EVERY_STEP)
    result = search(space, args=args, callbacks=[heard(service)]).run_summary
    first, second = result.trials
    assert (first.state, second.state, second.objective) == ("completed", "pruned", None)
    good, stopped = service.runs_of()
    assert len(good.logged(LOGGED)) == 6 and 2 <= len(stopped.logged(LOGGED)) < 6
    assert (stopped.state, stopped.exit_code, stopped.summary["trial_state"]) == ("killed", 0, "pruned")
    assert service.sweep.config["early_terminate"]["min_iter"] == 1


def test_the_server_hears_of_a_run_that_takes_long(service, monkeypatch):
    monkeypatch.setattr(wandb_agent, "HEARTBEAT_SECONDS", 0.05)
    result = search(RATES, n_trials=1, callbacks=[Pause]).run_summary
    assert service.heartbeats >= 8 and len(result.completed) == 1


@pytest.mark.slow
def test_a_sweep_that_is_stopped_ends_the_trial_and_the_search(service):
    heartbeat = service.on_Heartbeat

    def stopped_in_the_second_run(variables):
        answer = heartbeat(variables)
        if len(service.runs) == 2 and variables["runState"] != "{}" and service.runs_of()[1].history:
            answer["agentHeartbeat"]["commands"] = '[{"type": "exit"}]'
        return answer

    service.on_Heartbeat = stopped_in_the_second_run
    trainer = fast_trainer(args=fast_arguments(max_steps=6, **EVERY_STEP), callbacks=[heard(service)])
    result = search(RATES, n_trials=5, trainer=trainer).run_summary
    assert [trial.state for trial in result.trials] == ["completed", "pruned"]

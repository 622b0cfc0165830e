"""MLflow: every trial is a run, read back with its own client."""

from __future__ import annotations

import logging
import os
import random
import tempfile
import threading

import mlflow
import pytest
from transformers import TrainerCallback

from st_hpo.trackers.mlflow import _alone

from fast_trainer import METRIC, fast_arguments, fast_trainer, random_sampler
from scenarios import pairs


def test_every_trial_is_a_run_that_is_closed(three_trials, mlflow_runs):
    result = three_trials("mlflow")
    runs = mlflow_runs()
    assert [run.info.run_name for run in runs] == ["run-0", "run-1", "run-2"]
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED", "FAILED"]
    assert all(run.info.end_time >= run.info.start_time for run in runs)
    for trial, run in zip(result.trials, runs, strict=True):
        tags, params = run.data.tags, run.data.params
        assert (tags["st_hpo.group"], tags["st_hpo.trial"]) == ("a study", str(trial.number))
        assert (tags["st_hpo.state"], tags.get("st_hpo.error")) == (trial.state, trial.error)
        assert {name: params[name] for name in trial.hyperparameters} == {
            name: str(value) for name, value in trial.hyperparameters.items()
        }
        assert params["max_steps"] == "2" and "mlflow.parentRunId" not in tags
        assert run.data.metrics.get("objective") == trial.objective
        assert run.data.metrics.get(METRIC) == trial.metrics.get(METRIC)
    assert runs[0].data.metrics["objective"] == runs[0].data.metrics[METRIC]


def test_an_evaluation_at_the_end_goes_to_the_same_run(three_trials, mlflow_runs, mlflow_client):
    """Upstream's callback has ended the run by then, and logging opens another one."""
    trainer = fast_trainer(args=fast_arguments(report_to="mlflow"))
    result = trainer.hyperparameter_search(n_trials=2, sampler=random_sampler()).run_summary
    runs = mlflow_runs()
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    for trial, run in zip(result.trials, runs, strict=True):
        history = mlflow_client.get_metric_history(run.info.run_id, METRIC)
        assert [metric.value for metric in history] == [trial.objective]


def test_the_users_own_run_stays_open_and_is_the_parent(three_trials, mlflow_runs, mlflow_client, monkeypatch):
    mine = mlflow.start_run(run_name="mine")
    monkeypatch.setenv("MLFLOW_RUN_ID", mine.info.run_id)  # upstream's callback would resume it in every trial
    monkeypatch.setenv("MLFLOW_NESTED_RUN", "true")  # ... and open a run inside of each trial's
    try:
        three_trials("mlflow")
        assert mlflow.active_run().info.run_id == mine.info.run_id
        assert os.environ["MLFLOW_RUN_ID"] == mine.info.run_id and os.environ["MLFLOW_NESTED_RUN"] == "true"
        untouched = mlflow_client.get_run(mine.info.run_id)
        assert (untouched.info.status, untouched.data.params, untouched.data.metrics) == ("RUNNING", {}, {})
    finally:
        mlflow.end_run()
    children = [run for run in mlflow_runs() if run.info.run_id != mine.info.run_id]
    assert [run.info.run_name for run in children] == ["run-0", "run-1", "run-2"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {mine.info.run_id}


def test_several_objectives_have_a_name_each(mlflow_runs):
    args = fast_arguments(report_to="mlflow")
    trainer = fast_trainer(args=args, eval_dataset=pairs("dev", 16))
    metrics = [METRIC, "eval_loss"]
    trainer.hyperparameter_search(
        compute_objective=metrics, direction=["maximize", "minimize"], n_trials=1, sampler=random_sampler()
    )
    (trial,), (run,) = trainer.last_search.trials, mlflow_runs()
    assert [run.data.metrics[f"objective/{name}"] for name in metrics] == trial.objective
    assert "objective" not in run.data.metrics
    assert run.data.tags["st_hpo.group"].startswith("output-"), "the folder's name, where there is no study's"


class BreakStore(TrainerCallback):
    """Lets MLflow's server go away when a training begins or ends."""

    def __init__(self, event: str) -> None:
        setattr(self, f"on_{event}", lambda *args, **kwargs: mlflow.set_tracking_uri("http://127.0.0.1:9"))

    def __deepcopy__(self, memo):
        return self


@pytest.fixture
def no_retries(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield
    mlflow.set_tracking_uri(None)
    while mlflow.active_run() is not None:
        mlflow.end_run()


def test_a_server_that_goes_away_at_the_end_changes_no_objective(mlflow_client, mlflow_store, no_retries, caplog):
    search = {"n_trials": 1, "baseline": False}
    plain = fast_trainer().hyperparameter_search(sampler=random_sampler(), **search)
    trainer = fast_trainer(args=fast_arguments(report_to="mlflow"), callbacks=[BreakStore("train_end")])
    with caplog.at_level(logging.WARNING, "st_hpo"):
        best = trainer.hyperparameter_search(sampler=random_sampler(), **search)
    assert best.objective == plain.objective
    assert "The run 'run-0' could not be closed in MLflow" in caplog.text
    mlflow.set_tracking_uri(mlflow_store)


def test_a_server_that_is_not_there_ends_the_trial_as_it_ends_a_training(no_retries, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    trainer = fast_trainer(args=fast_arguments(report_to="mlflow"))
    with pytest.raises(mlflow.MlflowException, match="Connection refused") as by_hand:
        trainer.train()
    with pytest.raises(mlflow.MlflowException, match="Connection refused"):
        trainer.hyperparameter_search(n_trials=1, sampler=random_sampler())
    (trial,) = trainer.last_search.trials
    assert trial.state == "failed" and trial.error.startswith(type(by_hand.value).__name__)


def test_what_a_tracker_draws_does_not_reach_the_training(mlflow_client, monkeypatch):
    start, states = mlflow.start_run, []

    def draws(*args, **kwargs):
        random.random()
        return start(*args, **kwargs)

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            states.append(random.getstate())

    monkeypatch.setattr(mlflow, "start_run", draws)
    for report_to in ("none", "mlflow"):
        trainer = fast_trainer(args=fast_arguments(report_to=report_to), callbacks=[Note])
        trainer.hyperparameter_search(n_trials=1, sampler=random_sampler(), baseline=False)
    assert states[0] == states[1]


def test_another_worker_creates_the_experiment_meanwhile(mlflow_runs, mlflow_client, monkeypatch, request):
    """Canary: between MLflow's look for the experiment and its creation, another process may create it."""
    find, lost = mlflow.MlflowClient.get_experiment_by_name, []

    def loses_the_race(self, name):
        found = find(self, name)
        if found is None:
            lost.append(self.create_experiment(name))
        return found

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", loses_the_race)
    with monkeypatch.context() as other:
        other.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name + "-canary")
        with pytest.raises(mlflow.MlflowException, match="already exists"):
            mlflow.start_run()
    trainer = fast_trainer(args=fast_arguments(report_to="mlflow"))
    trainer.hyperparameter_search(n_trials=1, sampler=random_sampler(), baseline=False)
    assert len(lost) == 2
    assert [(run.info.run_name, run.info.status) for run in mlflow_runs()] == [("run-0", "FINISHED")]


def entered(uri):
    """Returns an event that a thread sets when it is alone with a store."""
    event = threading.Event()

    def enter():
        with _alone(uri):
            event.set()

    threading.Thread(target=enter, daemon=True).start()
    return event


def test_one_worker_at_a_time_opens_a_store(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with _alone("sqlite:///mlflow.db"):
        second = entered("sqlite:///mlflow.db")
        assert entered("sqlite:///other.db").wait(60) and entered("http://localhost:5000").wait(60)
        assert not second.wait(0.5)
    assert second.wait(60)


def test_where_there_are_no_locks_runs_are_opened_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "is not there"))
    monkeypatch.setattr("filelock.BaseFileLock.acquire", refuse)
    with _alone("sqlite:///mlflow.db"), _alone("sqlite:///mlflow.db"):
        pass


def refuse(*args, **kwargs):
    raise OSError("no locks")


@pytest.mark.slow
def test_workers_close_their_runs(mlflow_client, monkeypatch, tmp_path, request):
    """In a store that is not there yet: they make its tables and the experiment together."""
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    trainer = fast_trainer(args=fast_arguments(report_to="mlflow"))
    result = trainer.hyperparameter_search(n_trials=2, n_jobs=2, sampler=random_sampler(), baseline=False).run_summary
    client = mlflow.MlflowClient(store)
    found = client.search_runs([client.get_experiment_by_name(request.node.name).experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert {name: run.info.status for name, run in runs.items()} == {"run-0": "FINISHED", "run-1": "FINISHED"}
    for trial in result.trials:
        assert runs[f"run-{trial.number}"].data.metrics["objective"] == trial.objective
    assert len({run.data.tags["st_hpo.group"] for run in runs.values()}) == 1

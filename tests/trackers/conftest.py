"""What the tests of the trackers share: a search with a completed, a pruned and a failed trial; a store of MLflow."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import optuna
import pytest

# Trackio reads it once, when it is imported
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="st_hpo-trackio-")

from st_hpo import Categorical, SearchResult, SearchSpace

from fast_trainer import METRIC, FailIn, fast_arguments, fast_trainer, random_sampler

SPACE = SearchSpace({"learning_rate": Categorical([1e-4, 2e-4, 5e-4]), "loss.scale": Categorical([10.0, 30.0])})


class PruneOne(optuna.pruners.BasePruner):
    """Prunes trial 1."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number == 1


@pytest.fixture
def three_trials():
    """Runs a search: trial 0 is completed, trial 1 pruned after a step, trial 2 fails in its first step."""

    def run(report_to: Any, callbacks: tuple[Any, ...] = (), **arguments: Any) -> SearchResult:
        arguments = {"eval_strategy": "steps", "eval_steps": 1, **arguments}
        trainer = fast_trainer(
            args=fast_arguments(report_to=report_to, logging_strategy="steps", logging_steps=1, **arguments),
            callbacks=[*callbacks, FailIn({2}, ValueError("broken"))],
        )
        found = trainer.hyperparameter_search(
            SPACE,
            METRIC,
            n_trials=3,
            sampler=random_sampler(),
            pruner=PruneOne(),
            catch=ValueError,
            study_name="a study",
        ).run_summary
        assert [trial.state for trial in found.trials] == ["completed", "pruned", "failed"]
        assert all(set(trial.hyperparameters) == {"learning_rate", "loss.scale"} for trial in found.trials)
        return found

    return run


@pytest.fixture
def space():
    return SPACE


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory):
    """The tables take seconds to make: once for all tests."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def mlflow_client(mlflow_store, monkeypatch, request):
    """A client of MLflow, with an experiment of the test's own as that of the environment."""
    import mlflow

    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    yield mlflow.MlflowClient()
    assert mlflow.active_run() is None


@pytest.fixture
def mlflow_runs(mlflow_client, request):
    """Returns the runs of the test, in the order of their start."""

    def runs() -> list[Any]:
        experiment = mlflow_client.get_experiment_by_name(request.node.name)
        if experiment is None:
            return []
        return mlflow_client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])

    return runs

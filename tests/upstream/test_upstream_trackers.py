"""Row 24 of the README's table of defects: what a tracker shows of the trials of a search."""

from __future__ import annotations

import mlflow
import pytest

from defect_setup import KEY, arguments, in_turn, our_search, our_trainer, upstream_search, upstream_trainer

RATES = [1e-3, 2e-3, 3e-3]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Returns MLflow's runs in the order of their start."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

    def found():
        return mlflow.MlflowClient().search_runs(["0"], order_by=["attributes.start_time ASC"])

    yield found
    while mlflow.active_run() is not None:
        mlflow.end_run()


def rates_of(trained) -> list[str | None]:
    return [run.data.params.get("learning_rate") for run in trained]


def test_upstream_logs_the_end_of_a_trial_into_the_run_of_the_next(runs):
    """The callback ends the run when a training ends. The evaluation after it opens another one, which nothing names
    or closes, and the next trial trains into that one. Only the first trial's hyperparameters are logged."""
    trainer = upstream_trainer(args=arguments(report_to="mlflow", logging_strategy="steps", logging_steps=2))
    _, objectives = upstream_search(trainer, in_turn(learning_rate=RATES), 3)
    mlflow.flush_async_logging()

    trained = runs()
    assert [run.info.status for run in trained] == ["FINISHED", "FINISHED", "FINISHED", "RUNNING"]
    assert [run.data.metrics.get(KEY) for run in trained] == [None, *objectives]
    assert ["loss" in run.data.metrics for run in trained] == [True, True, True, False]
    assert rates_of(trained) == [str(RATES[0]), None, None, None]
    assert len({run.info.run_name for run in trained}) < 4, "the names are drawn after the same seed"


def test_ours_logs_each_trial_into_a_run_of_its_own(runs):
    trainer = our_trainer(args=arguments(report_to="mlflow", logging_strategy="steps", logging_steps=2))
    _, objectives = our_search(trainer, in_turn(learning_rate=RATES), 3)

    trained = runs()
    assert [(run.info.run_name, run.info.status) for run in trained] == [
        (f"run-{number}", "FINISHED") for number in range(3)
    ]
    assert [run.data.metrics[KEY] for run in trained] == [run.data.metrics["objective"] for run in trained]
    assert [run.data.metrics["objective"] for run in trained] == objectives
    assert all("loss" in run.data.metrics for run in trained)
    assert rates_of(trained) == [str(rate) for rate in RATES]

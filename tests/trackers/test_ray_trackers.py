"""Trackers in Ray's worker processes: each closes the runs of its trials, also of those that a scheduler ends."""

from __future__ import annotations

import time

import pytest
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from st_hpo.records import COMPLETED, PRUNED
from st_hpo.testing import make_trainer

from ray_setup import evaluating, search

pytest_plugins = ["ray_fixtures"]
pytestmark = pytest.mark.slow
STATE = "trial_state/text_summary"


def closed(folder):
    """The events of a run, and the state in which it was closed: a worker may still write when the search is over."""
    deadline = time.monotonic() + 60
    while True:
        events = [EventAccumulator(str(file)).Reload() for file in folder.iterdir()]
        states = [item.Tensors(STATE)[0] for item in events if STATE in item.Tags()["tensors"]]
        if states or time.monotonic() > deadline:
            (state,) = states
            return events, state
        time.sleep(0.5)


def test_trials_in_workers_are_runs_that_are_closed(cluster, tiny_model, tmp_path):
    trainer = evaluating(make_trainer(tiny_model, tmp_path))
    trainer.args.report_to = ["tensorboard"]
    scheduler = tune.schedulers.ASHAScheduler(grace_period=1, reduction_factor=2, max_t=4)
    storage = str(tmp_path / "storage")
    result = search(
        trainer,
        n_trials=4,
        scheduler=scheduler,
        search_alg=OptunaSearch(seed=3),
        max_concurrent_trials=1,
        storage_path=storage,
        name="a study",
    ).run_summary
    assert {trial.state for trial in result.trials} == {COMPLETED, PRUNED}
    (group,) = tmp_path.rglob("runs/a study")
    assert {path.name for path in group.iterdir()} == {f"run-{trial.backend_id}" for trial in result.trials}
    for trial in result.trials:
        events, state = closed(group / f"run-{trial.backend_id}")
        assert tensor_util.make_ndarray(state.tensor_proto).item().decode() == trial.state
        objectives = [item.Scalars("objective")[0].value for item in events if "objective" in item.Tags()["scalars"]]
        assert objectives == [pytest.approx(value, rel=1e-6) for value in trial.values]

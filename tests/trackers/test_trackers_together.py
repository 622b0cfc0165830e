"""All trackers at once: the numbers are those of training by hand, and nothing stays open."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import torch
import trackio
import wandb
from transformers import TrainerCallback, TrainerState
from transformers.integrations import WandbCallback

from st_hpo.records import TrialRecord
from st_hpo.trackers import Tracking

from fast_trainer import fast_arguments, fast_trainer, random_sampler
from wandb_setup import by_hand

pytest_plugins = ["wandb_fixtures"]
ALL = ["wandb", "mlflow", "tensorboard", "trackio"]


class RandomStates(TrainerCallback):
    """Notes the random states at the start and the end of every training."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __deepcopy__(self, memo):
        return self

    def note(self, *args, **kwargs):
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        self.seen.append(str(states))

    on_train_begin = on_train_end = note


def test_objectives_and_random_states_are_those_without_trackers(mlflow_runs, no_wandb_of_before, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    found, states = {}, {}
    for name, report_to in (("without", "none"), ("with", ALL)):
        watch = RandomStates()
        args = fast_arguments(report_to=report_to, project="together", logging_strategy="steps", logging_steps=1)
        trainer = fast_trainer(args=args, callbacks=[watch])
        result = trainer.hyperparameter_search(n_trials=2, sampler=random_sampler(), study_name="one").run_summary
        found[name], states[name] = [trial.objective for trial in result.trials], watch.seen
    assert found["with"] == found["without"] and states["with"] == states["without"]
    values = result.trials[0].hyperparameters
    assert found["with"][0] == by_hand(values)

    assert wandb.run is None and mlflow.active_run() is None and trackio.context_vars.current_run.get() is None
    assert len(list(Path("wandb").glob("offline-run-*"))) == len(mlflow_runs()) == 2
    assert len(list(Path("output/runs/one").iterdir())) == 2
    left = [child.name() for child in psutil.Process().children(recursive=True) if child.pid not in children]
    assert [name for name in left if "wandb" not in name] == [], "W&B keeps its service until the script ends"


def broken_loss(model, scale=20.0):
    raise ValueError(f"no loss of scale {scale}")


def test_a_trial_that_ends_before_its_training_begins_is_a_run_as_well(
    mlflow_runs, space, no_wandb_of_before, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    project = f"unbegun-{uuid.uuid4().hex[:8]}"
    trainer = fast_trainer(args=fast_arguments(report_to=ALL, project=project))
    trainer.remove_callback(WandbCallback)
    trainer.loss = broken_loss
    with pytest.raises(ValueError, match="no loss of scale"):
        trainer.hyperparameter_search(space, n_trials=1, sampler=random_sampler(), baseline=False, study_name="one")
    (trial,), (run,) = trainer.last_search.trials, mlflow_runs()
    assert (run.info.run_name, run.info.status, run.data.tags["st_hpo.error"]) == ("run-0", "FAILED", trial.error)
    assert run.data.params == {name: str(value) for name, value in trial.hyperparameters.items()}
    (other,) = trackio.Api().runs(project)
    assert other.name == "run-0" and other.config["loss.scale"] == trial.hyperparameters["loss.scale"]
    assert [path.name for path in Path("output/runs/one").iterdir()] == ["run-0"]
    assert wandb.run is None and not Path("wandb").exists(), "the user has removed this tracker"
    assert mlflow.active_run() is None and trackio.context_vars.current_run.get() is None


@pytest.mark.parametrize("main", [True, False])
def test_only_the_main_rank_opens_runs(main, mlflow_runs):
    trainer = fast_trainer(args=fast_arguments(report_to="mlflow"))
    tracking = Tracking("group")
    record = TrialRecord(0, hyperparameters={"learning_rate": 0.1})
    tracking.attach(trainer, "run-0", record, ["objective"])
    first = trainer.callback_handler.callbacks[0]
    first.on_train_begin(trainer.args, TrainerState(is_world_process_zero=main), None)
    assert (mlflow.active_run() is not None) is main
    record.state = "failed"
    tracking.close(record)
    assert mlflow.active_run() is None and len(mlflow_runs()) == main

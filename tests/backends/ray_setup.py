"""What the tests of the Ray backend share: a space, searches of a tiny trainer, and trainings by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
from transformers import TrainerCallback

from st_hpo import Float, SearchSpace
from st_hpo.testing import METRIC, train_by_hand

RATES = SearchSpace({"learning_rate": Float(1e-4, 1e-2, log=True), "loss.scale": Float(5.0, 50.0)})
EVALUATING = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 8}


class Where(TrainerCallback):
    """Leaves a file a trial, named by its node, and takes its time."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"{node}-{state.trial_name}").touch()
        time.sleep(self.seconds)


def search(trainer, **changes):
    options = {"hp_space": RATES, "compute_objective": METRIC, "n_trials": 4, "backend": "ray", "baseline": False}
    return trainer.hyperparameter_search(**{**options, "direction": "maximize", **changes})


def evaluating(trainer, steps=8, every=2):
    """Lets a trainer evaluate during its training."""
    trainer.args.eval_strategy, trainer.args.eval_steps, trainer.args.max_steps = "steps", every, steps
    return trainer


def by_hand(path, folder, record, **arguments):
    return train_by_hand(path, folder, {**record.hyperparameters, **arguments})[METRIC]


def checkpoints(folder):
    return [path for path in Path(folder).rglob("*") if path.suffix in (".safetensors", ".pt", ".bin")]

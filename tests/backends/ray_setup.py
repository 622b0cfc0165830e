"""What the tests of the Ray backend share: a space, searches of a tiny trainer, and trainings by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from transformers import TrainerCallback

from st_hpo import Float, SearchSpace
from st_hpo.testing import METRIC, train_by_hand

RATES = SearchSpace({"learning_rate": Float(1e-4, 1e-2, log=True), "loss.scale": Float(5.0, 50.0)})
EVALUATING = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 8}


class Where(TrainerCallback):
    """Leaves a file a trial, named by its node, and takes its time.

    Args:
        folder: Where the files are.
        seconds: How long every step takes.
        nodes: Waits in the first step until there are files of as many nodes, for a minute at most.
    """

    def __init__(self, folder: Path, seconds: float, nodes: int = 1) -> None:
        self.folder, self.seconds, self.nodes = folder, seconds, nodes

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"{node}-{state.trial_name}").touch()
        time.sleep(self.seconds)
        deadline = time.monotonic() + 60
        while len({mark.name.partition("-")[0] for mark in self.folder.iterdir()}) < self.nodes:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)


class Together(TrainerCallback):
    """Lets trials go on from an evaluation only when as many have come as far, or after 20 seconds.

    Args:
        folder: Where they leave their marks.
        trials: How many trials.
    """

    def __init__(self, folder: Path, trials: int) -> None:
        self.folder, self.trials = folder, trials

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not the trial's name in the state: a trial that goes on from another one's checkpoint has that one's
        (self.folder / f"{tune.get_context().get_trial_id()}@{state.global_step}").touch()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            marks = [mark.name.split("@") for mark in self.folder.iterdir()]
            if len({name for name, step in marks if int(step) >= state.global_step}) >= self.trials:
                break
            time.sleep(0.1)


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

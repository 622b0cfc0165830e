"""What the tests of the W&B backend share: spaces, searches of a tiny trainer, callbacks, and sweeps to join."""

from __future__ import annotations

import os
import time
from typing import Any

import psutil
import pytest
import wandb
from sentence_transformers import SentenceTransformerTrainer
from transformers import TrainerCallback, set_seed

from fast_trainer import METRIC, fast_arguments, fast_trainer, loss_init, model_init
from scenarios import embedding_evaluator, pairs
from wandb_service import ENTITY

LOGGED = "eval/sts-dev_spearman_cosine"
EVERY_STEP: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1}
TWO: dict[str, Any] = {"direction": ["maximize", "minimize"], "metric_key": [METRIC, "eval_loss"]}


def wandb_hp_space(trial):
    return {
        "method": "random",
        "metric": {"name": "objective", "goal": "minimize"},
        "parameters": {
            "learning_rate": {"distribution": "uniform", "min": 1e-6, "max": 1e-4},
            "per_device_train_batch_size": {"values": [16, 32, 64, 128]},
        },
    }


def grid(rates: list[float]) -> dict[str, Any]:
    return {"method": "grid", "parameters": {"learning_rate": {"values": rates}}}


class InTrial(TrainerCallback):
    """Does something in the first step of some trials.

    Args:
        numbers: Their numbers.
        action: What to do; an exception is raised.
    """

    def __init__(self, numbers: set[int], action: Any) -> None:
        self.numbers, self.action, self.begun = numbers, action, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> InTrial:
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.begun - 1 in self.numbers and state.global_step == 1:
            if isinstance(self.action, BaseException):
                raise self.action
            self.action()


def variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def processes() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]


def search(space: Any, n_trials: int = 2, direction: Any = "maximize", metric_key: Any = METRIC, **kwargs: Any) -> Any:
    changes = {name: kwargs.pop(name) for name in ("args", "model_init", "loss_init", "callbacks") if name in kwargs}
    trainer = kwargs.pop("trainer", None) or fast_trainer(**changes)
    kwargs.setdefault("project", "tests")
    return trainer.hyperparameter_search(
        space, metric_key, n_trials=n_trials, direction=direction, backend="wandb", baseline=False, **kwargs
    )


def by_hand(values: dict[str, Any]) -> float:
    """Trains once with upstream's trainer, without any search."""
    args = fast_arguments(**values)
    set_seed(args.seed)
    model = model_init()
    trainer = SentenceTransformerTrainer(
        model, args, pairs("train", 32), loss=loss_init(model), evaluator=embedding_evaluator()
    )
    trainer.train()
    return trainer.evaluate()[METRIC]


class Pause(TrainerCallback):
    """Lets the client send what was logged, and the server compare."""

    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(0.6)


def quick(space: Any, error: type[Exception], said: str, **kwargs: Any) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=said):
        search(space, **kwargs)
    assert time.monotonic() - started < 60
    assert wandb.run is None and not processes()


def restore(service) -> None:
    """Takes back what `wandb.sweep` itself leaves in the environment and in the process."""
    for name in ("WANDB_ENTITY", "WANDB_PROJECT"):
        os.environ.pop(name, None)
    wandb.teardown()


def joinable(service, config: dict[str, Any]) -> str:
    sweep_id = wandb.sweep(config, project="shared", entity=ENTITY)
    restore(service)
    return sweep_id

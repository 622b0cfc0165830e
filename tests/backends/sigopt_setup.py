"""What the tests of the SigOpt backend share: spaces, and searches of a tiny trainer."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any

import pytest
from sentence_transformers import SentenceTransformerTrainer
from transformers import TrainerCallback, set_seed

from fast_trainer import METRIC, fast_arguments, fast_trainer, loss_init, model_init
from scenarios import embedding_evaluator, pairs

RATE = {"bounds": {"min": 1e-5, "max": 1e-3}, "name": "learning_rate", "type": "double", "transformation": "log"}


NO_BASELINE: dict[str, Any] = {"baseline": False, "direction": "maximize"}


def sigopt_hp_space(trial):
    return [
        {"bounds": {"min": 1e-6, "max": 1e-4}, "name": "learning_rate", "type": "double"},
        {
            "categorical_values": ["16", "32", "64", "128"],
            "name": "per_device_train_batch_size",
            "type": "categorical",
        },
    ]


def default_hp_space_of_transformers_4(trial):
    return [
        {"bounds": {"min": 1e-6, "max": 1e-4}, "name": "learning_rate", "type": "double", "transformamtion": "log"},
        {"bounds": {"min": 1, "max": 6}, "name": "num_train_epochs", "type": "int"},
        {"bounds": {"min": 1, "max": 40}, "name": "seed", "type": "int"},
        {
            "categorical_values": ["4", "8", "16", "32", "64"],
            "name": "per_device_train_batch_size",
            "type": "categorical",
        },
    ]


def search(hp_space: Any = sigopt_hp_space, objective: Any = METRIC, n_trials: int = 2, **kwargs: Any) -> Any:
    parts = {key: kwargs.pop(key) for key in ("model_init", "loss_init", "callbacks", "args") if key in kwargs}
    return fast_trainer(**parts).hyperparameter_search(
        hp_space, objective, n_trials=n_trials, **{"backend": "sigopt", **NO_BASELINE, **kwargs}
    )


class InTraining(TrainerCallback):
    """Calls a function with the number of a training, from 0, in its first step."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act, self.begun = act, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> InTraining:
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.act(self.begun - 1)


def failing(numbers: set[int], error: BaseException) -> InTraining:
    def act(number: int) -> None:
        if number in numbers:
            if isinstance(error, KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)  # what Ctrl-C does
            raise error

    return InTraining(act)


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


@functools.cache
def unsearched() -> tuple[Any, list[Any]]:
    """A trainer whose every search is refused, and a list that grows with every model it makes."""
    made: list[Any] = []

    def model(trial=None):
        made.append(trial)
        return model_init()

    return fast_trainer(model_init=model), made


def refused(error: type[Exception], hp_space: Any = sigopt_hp_space, objective: Any = METRIC, **kwargs: Any) -> str:
    """Returns what a search was refused with, which has built no model."""
    trainer, made = unsearched()
    before = len(made)
    with pytest.raises(error) as caught:
        trainer.hyperparameter_search(hp_space, objective, **{"backend": "sigopt", "direction": "maximize", **kwargs})
    assert len(made) == before and trainer.last_search is None
    return str(caught.value)

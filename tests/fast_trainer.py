"""A trainer of ours that is as small as a real one can be, for tests of what surrounds the training."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers import TrainerCallback

from st_hpo import Float, SearchSpace, SentenceTransformerHPOTrainer

from embedded import model_path
from scenarios import arguments, embedding_evaluator, pairs

METRIC = "eval_sts-dev_spearman_cosine"
RATES = SearchSpace({"learning_rate": Float(1e-5, 1e-3, log=True)})


def fast_arguments(**values: Any) -> SentenceTransformerTrainingArguments:
    fixed = {"max_steps": 2, "per_device_train_batch_size": 4}
    return arguments(SentenceTransformerTrainingArguments, **{**fixed, **values})


def model_init() -> SentenceTransformer:
    return SentenceTransformer(model_path(), device="cpu")


def loss_init(model: SentenceTransformer, scale: float = 20.0) -> CoSENTLoss:
    return CoSENTLoss(model, scale=scale)


def fast_trainer(trainer_class: type = SentenceTransformerHPOTrainer, **changes: Any) -> Any:
    """Two steps of four pairs, and an evaluation of 64."""
    parts = {
        "args": fast_arguments(),
        "train_dataset": pairs("train", 32),
        "evaluator": embedding_evaluator(),
        "model_init": model_init,
        "loss_init": loss_init,
    }
    return trainer_class(**{**parts, **changes})


def random_sampler() -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=0)


class CountTrainings(TrainerCallback):
    """Counts the trainings that begin, over all trials."""

    def __init__(self) -> None:
        self.begun = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> CountTrainings:
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun += 1


class FailIn(TrainerCallback):
    """Raises in the first step of some trials.

    Args:
        trials: Their numbers.
        error: What to raise.
    """

    def __init__(self, trials: set[int], error: BaseException) -> None:
        self.trials = trials
        self.error = error

    def __deepcopy__(self, memo: dict[int, Any]) -> FailIn:
        return self

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.trial_name in {f"run-{number}" for number in self.trials}:
            if isinstance(self.error, KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)  # what Ctrl-C does
            raise self.error


def fill(file: Path, left: int = 0) -> None:
    """Fills a disk with one file.

    Args:
        file: The file.
        left: How many bytes to leave.
    """
    disk = os.statvfs(file.parent)
    file.write_bytes(bytes(disk.f_bavail * disk.f_frsize - left))


class Ballast(TrainerCallback):
    """Fills the disk in one trial, with a checkpoint of that trial's, which goes when it has failed.

    Args:
        trial: The trial's name.
        left: How many bytes to leave.
        before: Called before the disk is full.
    """

    def __init__(self, trial: str, left: int = 0, before: Callable[[], None] = lambda: None) -> None:
        self.trial = trial
        self.left = left
        self.before = before

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.trial_name == self.trial:
            self.before()
            folder = Path(args.output_dir, "checkpoint-0")
            folder.mkdir()
            fill(folder / "ballast", self.left)

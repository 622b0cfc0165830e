"""What the tests of this folder share: one small set-up for upstream's trainer, for ours, and for training by hand.

Each test takes the same model, data, arguments and search to both trainers, so that the trainer's class is the only
difference between a canary (``test_upstream_...``) and the promise beside it (``test_ours_...``).
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import optuna
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from transformers import TrainerCallback, set_seed

from embedded import model_path, sts_benchmark

optuna.logging.set_verbosity(optuna.logging.ERROR)

# NOTE: A search collects garbage several times a trial, each time over all that the imports above have made, which
# takes longer than the training. What is frozen here is never garbage; what the tests make later still is collected.
gc.collect()
gc.freeze()

MAX_STEPS = 4
KEY = "eval_sts-dev_spearman_cosine"


@functools.cache
def train_pairs() -> Dataset:
    return sts_benchmark("train", 32)


@functools.cache
def dev_pairs() -> Dataset:
    return sts_benchmark("dev", 24)


def evaluator() -> EmbeddingSimilarityEvaluator:
    dev = dev_pairs()
    return EmbeddingSimilarityEvaluator(
        dev["sentence1"], dev["sentence2"], dev["score"], name="sts-dev", write_csv=False
    )


def arguments(**changes: Any) -> SentenceTransformerTrainingArguments:
    values: dict[str, Any] = {
        "output_dir": "out",
        "max_steps": MAX_STEPS,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 12,
    }
    return SentenceTransformerTrainingArguments(**{**values, **changes})


def fresh_model(path: str | None = None) -> SentenceTransformer:
    return SentenceTransformer(path or model_path(), device="cpu")


def the_model() -> SentenceTransformer:
    """A ``model_init`` without parameters."""
    return fresh_model()


class Recorder(TrainerCallback):
    """Notes facts of every trial's training; ours copies callbacks for each trial, this one stays itself.

    Args:
        notes: What to note, by name: a function of the arguments ``(args, state, **kwargs)`` of ``on_train_begin``.
    """

    def __init__(self, **notes: Callable[..., Any]) -> None:
        self.notes = notes
        self.begun: list[dict[str, Any]] = []
        self.steps_done: list[int] = []
        self.evaluations: list[dict[str, float]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        return self

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.begun.append({name: note(args, state, **kwargs) for name, note in self.notes.items()})

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        self.evaluations.append(dict(metrics))

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.steps_done.append(state.global_step)

    def seen(self, name: str) -> list[Any]:
        return [facts[name] for facts in self.begun]


def keywords(**changes: Any) -> dict[str, Any]:
    """The keyword arguments of either trainer's constructor."""
    values: dict[str, Any] = {
        "args": arguments(),
        "train_dataset": train_pairs(),
        "evaluator": evaluator(),
        "model_init": the_model,
        "loss": CosineSimilarityLoss,
    }
    return {**values, **changes}


def upstream_trainer(**changes: Any) -> SentenceTransformerTrainer:
    return SentenceTransformerTrainer(**keywords(**changes))


def our_trainer(**changes: Any) -> Any:
    from st_hpo import SentenceTransformerHPOTrainer

    return SentenceTransformerHPOTrainer(**keywords(**changes))


def upstream_search(
    trainer: SentenceTransformerTrainer, hp_space: Callable[..., Any], n_trials: int, key: str = KEY, **changes: Any
):
    """Runs upstream's search for the highest dev score.

    Returns:
        The best run, and every objective that the search computed, in order.
    """
    objectives: list[float] = []

    def compute_objective(metrics: dict[str, float]) -> float:
        objectives.append(metrics[key])
        return metrics[key]

    options = {"compute_objective": compute_objective, "direction": "maximize", "backend": "optuna", **changes}
    best = trainer.hyperparameter_search(hp_space=hp_space, n_trials=n_trials, **options)
    return best, objectives


def our_search(trainer: Any, hp_space: Callable[..., Any], n_trials: int, key: str = KEY, **changes: Any):
    """Runs our search for the highest dev score.

    Returns:
        The best run, and the objective of every trial, in order.
    """
    options = {"compute_objective": key, "backend": "optuna", **changes}
    # Several trials of the same values, on purpose
    options.setdefault("reuse_duplicates", False)
    best = trainer.hyperparameter_search(hp_space=hp_space, n_trials=n_trials, **options)
    return best, [trial.objective for trial in best.run_summary.trials]


def in_turn(**values: list[Any]) -> Callable[[optuna.Trial], dict[str, Any]]:
    """A search space that gives trial k the k-th of the values; None leaves the hyperparameter out of that trial."""

    def hp_space(trial: optuna.Trial) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        for name, options in values.items():
            value = options[trial.number]
            if value is not None:
                suggest = trial.suggest_int if isinstance(value, int) else trial.suggest_float
                chosen[name] = suggest(name, value, value)
        return chosen

    return hp_space


def by_hand(
    args: SentenceTransformerTrainingArguments,
    model_init: Callable[[], SentenceTransformer] = the_model,
    loss_init: Callable[[SentenceTransformer], torch.nn.Module] = CosineSimilarityLoss,
    **changes: Any,
) -> tuple[SentenceTransformerTrainer, dict[str, float]]:
    """Trains once, as a person would without any search.

    Returns:
        The plain trainer after its training, and the metrics of an evaluation at the end of it.
    """
    set_seed(args.seed)
    model = model_init()
    loss = loss_init(model)
    trainer = SentenceTransformerTrainer(
        **keywords(**{"model": model, "model_init": None, "args": args, "loss": loss, **changes})
    )
    trainer.train()
    return trainer, trainer.evaluate()


def untrained_score(path: str | None = None) -> float:
    """The dev score of a model that nothing has trained."""
    return evaluator()(fresh_model(path))["sts-dev_spearman_cosine"]

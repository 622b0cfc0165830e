"""Rungs: evaluations at the same points of every trial's own training, by which trials are compared and pruned.

Upstream compares trials at equal optimizer steps. As soon as the batch size or the number of epochs is searched, equal
steps are other amounts of data, and other shares of each trial's learning-rate schedule. Here the points are fractions
of a trial's own training, or numbers of examples, and a trial that is not pruned trains as if there were none.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from st_hpo.continuation import beside_weights
from st_hpo.errors import ConfigurationError, MetricNotFoundError
from st_hpo.evaluations import EvaluationRecorder, with_both_spellings
from st_hpo.loss_weights import loss_kept
from st_hpo.objective import Objective, direction_of_evaluator, primary_metric
from st_hpo.randomness import random_states_kept
from st_hpo.rung_points import RungPoints
from st_hpo.shared_trial import FencedEvaluator


@dataclass
class Rung:
    """One rung of one trial.

    Attributes:
        at: What the backend is told as its step: per cent of the training, or examples.
        step: The optimizer step after which it was evaluated.
        metrics: What the evaluation gave.
        seconds: How long it took; 0 where the training's own evaluation was taken.
    """

    at: int
    step: int
    metrics: dict[str, Any]
    seconds: float


class RungCallback(TrainerCallback):  # type: ignore[misc]
    """Evaluates a trial at its rungs.

    Args:
        points: Where the rungs are.
        evaluator: The evaluator of the rungs; None for the evaluation that gives the objective.
        trainer: The trial's trainer.
        evaluations: Its recorder.
        on_rung: Called with each rung; may raise to end the trial.
        reached: Up to which rung the trial need not be evaluated.
    """

    def __init__(
        self,
        points: RungPoints,
        evaluator: Any,
        trainer: Any,
        evaluations: EvaluationRecorder,
        on_rung: Callable[[Rung], None],
        reached: int = 0,
    ) -> None:
        self._points = points
        self._evaluator = evaluator
        self._trainer = trainer
        self._evaluations = evaluations
        self._on_rung = on_rung
        self._reached_before = reached
        self._due: dict[int, list[int]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        per_step = state.train_batch_size * args.gradient_accumulation_steps * args.world_size
        due = self._points.steps(state.max_steps, per_step)
        ahead = {step: [at for at in rungs if at > self._reached_before] for step, rungs in due.items()}
        # A training that is continued from a checkpoint has its first rungs behind it
        self._due = {step: rungs for step, rungs in ahead.items() if rungs and step > state.global_step}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self._due:
            return
        if control.should_evaluate and self._evaluator is None:
            return  # the training evaluates the same right now: see `evaluated`
        started = time.perf_counter()
        metrics = evaluate_apart(self._trainer, self._evaluations, self._evaluator)
        self._reached(state.global_step, metrics, time.perf_counter() - started)

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes an evaluation that the training has made for itself."""
        if self._evaluator is None and step in self._due:
            self._reached(step, metrics, 0.0)

    def _reached(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        for at in self._due.pop(step):
            self._on_rung(Rung(at, step, metrics, seconds))
            seconds = 0.0


def evaluate_apart(trainer: Any, evaluations: EvaluationRecorder, evaluator: Any = None) -> dict[str, Any]:
    """Evaluates a model in the middle of its training, which goes on as if nothing had been.

    No callback hears of it, nothing is logged, and the random states are given back: upstream's evaluation draws from
    torch's generator where it makes a data loader.

    Args:
        trainer: The trainer, in training.
        evaluations: Its recorder, which does not record this one.
        evaluator: What to evaluate with instead of the trainer's own evaluator and evaluation data.

    Returns:
        The metrics, with the names that they have in an evaluation of the trainer.
    """
    with random_states_kept(), _unheard(trainer), evaluations.apart():
        if evaluator is None:
            before = None if trainer.eval_dataset is None else beside_weights(trainer, of_losses=True)
            with loss_kept(trainer.loss, trainer.model):
                metrics = trainer.evaluate()
            if before is not None and beside_weights(trainer, of_losses=True) not in (before, None):
                raise ConfigurationError(
                    "The evaluation at a rung has changed what the loss keeps beside its weights, so the training "
                    "would not go on as it does without rungs. Pass a `trial_evaluator`, with which no loss is "
                    "computed there."
                )
        else:
            with _evaluating_with(trainer, evaluator):
                metrics = trainer.evaluate()
    return with_both_spellings(metrics, trainer, in_training=True)


@contextlib.contextmanager
def _unheard(trainer: Any) -> Iterator[None]:
    handler, card = trainer.callback_handler, trainer.model.model_card_data
    callbacks, control, logged = handler.callbacks, copy.copy(trainer.control), len(trainer.state.log_history)
    results, logs = dict(card.eval_results_dict or {}), [dict(line) for line in card.training_logs]
    loaders = dict(getattr(trainer, "_eval_dataloaders", {}))  # with workers that persist, which have begun
    handler.callbacks = []
    try:
        yield
    finally:
        handler.callbacks = callbacks
        vars(trainer.control).update(vars(control))
        del trainer.state.log_history[logged:]
        card.eval_results_dict, card.training_logs = results, logs
        if hasattr(trainer, "_eval_dataloaders"):
            trainer._eval_dataloaders = loaders


@contextlib.contextmanager
def _evaluating_with(trainer: Any, evaluator: Any) -> Iterator[None]:
    own, dataset = trainer.evaluator, trainer.eval_dataset
    trainer.evaluator = FencedEvaluator(evaluator, own.ranks) if isinstance(own, FencedEvaluator) else evaluator
    trainer.eval_dataset = None
    try:
        yield
    finally:
        trainer.evaluator, trainer.eval_dataset = own, dataset


def rung_value(objective: Objective, metrics: dict[str, Any], evaluator: Any) -> float:
    """Returns the number by which trials are compared at a rung.

    It is the objective. Where that is the primary metric of the trainer's evaluator, or a key that the evaluator of
    the rungs does not give, it is that one's own primary metric.

    Args:
        objective: What the search optimizes, a single one.
        metrics: What the evaluation gave.
        evaluator: The evaluator of the rungs; None for the trainer's own.

    Raises:
        MetricNotFoundError: There is neither.
        ConfigurationError: More of the one, and less of the other is better.
    """
    if evaluator is not None and objective.primary_of is not None:
        return _primary(evaluator, metrics, direction_of_evaluator(objective.primary_of))
    try:
        return objective.values(metrics)[0]
    except MetricNotFoundError:
        if objective.is_function or getattr(evaluator, "primary_metric", None) is None:
            raise
        return _primary(evaluator, metrics, objective.directions[0])


def _primary(evaluator: Any, metrics: dict[str, Any], direction: str) -> float:
    key, own = primary_metric(evaluator, metrics), direction_of_evaluator(evaluator)
    if direction and own != direction:
        raise ConfigurationError(
            f"The search would {direction} its objective, but {own} {key!r} of the `trial_evaluator`, which gives no "
            "such metric. Pass one that does, or whose `greater_is_better` is the same."
        )
    return float(metrics[key])

"""The evaluations of a trial: those during its training, and the one at its end that gives the objective."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from st_hpo.objective import PREFIX, metric_keys

HELD_OUT_PREFIX = "test_"


@dataclass
class Evaluation:
    """One evaluation during training.

    Attributes:
        step: The optimizer step after which it was made.
        metrics: What it gave, for all evaluation datasets together.
    """

    step: int
    metrics: dict[str, Any]


@dataclass
class EvaluationRecorder:
    """Keeps the evaluations of one trainer, and hands each one on as it comes.

    Attributes:
        on_evaluation: Called with the step and the metrics after each evaluation during training.
        during_training: The evaluations so far, without one before the first step (``eval_on_start``).
        seconds: How long those took.
    """

    on_evaluation: Callable[[int, dict[str, Any]], None] | None = None
    during_training: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0
    _depth: int = 0
    _apart: bool = False

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Evaluations in this block are not the training's own, and are not recorded."""
        self._apart = True
        try:
            yield
        finally:
            self._apart = False

    def evaluate(self, trainer: Any, evaluate: Callable[[], dict[str, float]], recorded: bool) -> dict[str, float]:
        """Runs an evaluation of the trainer and records it.

        Upstream evaluates a dict of datasets by calling ``evaluate`` once for each; only the outermost call, whose
        metrics are complete, is recorded.

        Args:
            trainer: The trainer.
            evaluate: Its own ``evaluate``, with all arguments.
            recorded: Whether it evaluates the trainer's own evaluation data; False for another dataset or prefix.
        """
        self._depth += 1
        started = time.perf_counter()
        try:
            metrics = evaluate()
        except Exception:
            _raise_error_of(trainer.evaluator)  # somebody has missed its metrics
            raise
        finally:
            self._depth -= 1
            if trainer.is_in_train and not self._apart and self._depth == 0:
                self.seconds += time.perf_counter() - started
        _raise_error_of(trainer.evaluator)
        if recorded and self._depth == 0 and trainer.is_in_train and not self._apart:
            step = trainer.state.global_step
            # `auto_find_batch_size` starts the training over; what came before belongs to no run
            self.during_training = [item for item in self.during_training if item.step < step]
            completed = with_both_spellings(metrics, trainer, in_training=True)
            if step > 0:
                self.during_training.append(Evaluation(step, completed))
            if self.on_evaluation is not None:
                self.on_evaluation(step, completed)
        return metrics


def _raise_error_of(evaluator: Any) -> None:
    error = getattr(evaluator, "error", None)
    if isinstance(error, BaseException):  # of a FencedEvaluator
        raise error from None


def final_evaluation(trainer: Any, evaluations: EvaluationRecorder) -> dict[str, Any]:
    """Returns the metrics of the model as the training has left it.

    An evaluation that the training itself made after its last step is that evaluation, and is not made again, unless
    what is evaluated differs afterwards: the best checkpoint is loaded, the model is cast to 16 bit, or the metrics of
    several evaluation datasets get other names.
    """
    args = trainer.args
    last = evaluations.during_training[-1] if evaluations.during_training else None
    is_final = (
        last is not None
        and last.step == trainer.state.global_step
        and not args.load_best_model_at_end
        and not args.fp16_full_eval
        and not args.bf16_full_eval
        and not isinstance(trainer.eval_dataset, dict)
    )
    if last is not None and is_final:
        return dict(last.metrics)
    return with_both_spellings(trainer.evaluate(), trainer, in_training=False)


def held_out_metrics(evaluator: Any, trainer: Any) -> dict[str, float]:
    """Returns what an evaluator gives that is not the trainer's own, as ``test_<metric>``; nothing without one."""
    if evaluator is None:
        return {}
    found = evaluator(trainer.model, epoch=trainer.state.epoch or -1, steps=trainer.state.global_step)
    found = found if isinstance(found, dict) else {"evaluator": found}
    return {HELD_OUT_PREFIX + name: value for name, value in found.items()}


def as_one_evaluator(evaluator: Any) -> Any:
    """Returns an evaluator, or several as one, as upstream's trainer does (BaseTrainer.__init__)."""
    if isinstance(evaluator, list | tuple):
        from sentence_transformers.sentence_transformer.evaluation import SequentialEvaluator

        return SequentialEvaluator(list(evaluator))
    return evaluator


def with_both_spellings(metrics: dict[str, Any], trainer: Any, in_training: bool) -> dict[str, Any]:
    """Returns the metrics with the evaluator's under both names that upstream gives them.

    With a dict of evaluation datasets, upstream names the evaluator's metrics ``eval_<metric>`` during training, and
    ``eval_<dataset>_<metric>`` for every dataset afterwards (BaseTrainer.evaluation_loop), though the evaluator is
    the same. A search must find its objective under either name, at any time.
    """
    datasets = trainer.eval_dataset
    if not isinstance(datasets, dict) or trainer.evaluator is None:
        return dict(metrics)
    prefixes = [f"{PREFIX}{name}_" for name in datasets]
    completed = dict(metrics)
    if in_training:
        for key in metric_keys(metrics):
            if not key.startswith(tuple(prefixes)):
                for prefix in prefixes:
                    completed.setdefault(prefix + key.removeprefix(PREFIX), metrics[key])
    else:
        for key in metric_keys(metrics):
            bare = key.removeprefix(prefixes[0])
            if bare != key and bare != "loss":
                completed.setdefault(PREFIX + bare, metrics[key])
    return completed

"""From the metrics of an evaluation to what a search optimizes, and in which direction. Pure Python."""

from __future__ import annotations

import contextlib
import logging
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from st_hpo.errors import DirectionError, MetricNotFoundError, ObjectiveError, did_you_mean

logger = logging.getLogger(__name__)

DIRECTIONS = ("minimize", "maximize")
PREFIX = "eval_"
_PRIMARY = "primary metric"
# What `Trainer.evaluate` adds of its own accord (transformers.trainer_utils.speed_metrics and TrainerMemoryTracker).
_BOOKKEEPING = ("_runtime", "_samples_per_second", "_steps_per_second", "_preparation_time")

Metrics = Mapping[str, Any]
ComputeObjective = str | Sequence[str] | Callable[[dict[str, Any]], Any] | None


def metric_keys(metrics: Metrics) -> list[str]:
    """Returns the keys that can be an objective: all but the speed, epoch and memory that the trainer adds."""
    return [key for key in metrics if key != "epoch" and not key.endswith(_BOOKKEEPING) and "_mem_" not in key]


def find_metric(metrics: Metrics, key: str) -> str:
    """Returns the name under which ``metrics`` holds ``key``, which may be written with or without ``eval_``.

    Raises:
        MetricNotFoundError: There is no such metric; the error names those that exist, the nearest first.
    """
    for name in (key, PREFIX + key):
        if name in metrics:
            return name
    raise MetricNotFoundError(key, metric_keys(metrics))


def primary_metric(evaluator: Any, metrics: Metrics) -> str:
    """Returns the key of an evaluator's primary metric in the metrics of an evaluation.

    Args:
        evaluator: A sentence-transformers evaluator that has run: many know the full name of their primary metric
            only after their first run.
        metrics: What the evaluation gave.

    Raises:
        ObjectiveError: The evaluator returns several metrics, and names none of them as primary.
        MetricNotFoundError: Its primary metric is not among the metrics.
    """
    primary = getattr(evaluator, "primary_metric", None)
    if primary is None:
        if PREFIX + "evaluator" in metrics:  # an evaluator that returns one number
            return PREFIX + "evaluator"
        raise ObjectiveError(
            f"{type(evaluator).__name__} names no `primary_metric`. Pass `compute_objective=` with one of: "
            f"{', '.join(sorted(metric_keys(metrics)))}."
        )
    return find_metric(metrics, primary)


def check_direction(direction: Any) -> str:
    """Returns ``direction`` as ``"minimize"`` or ``"maximize"``.

    Raises:
        DirectionError: It is neither.
    """
    value = getattr(direction, "value", direction)
    if value not in DIRECTIONS:
        hint = did_you_mean(value, DIRECTIONS) if isinstance(value, str) else ""
        raise DirectionError(
            f"`direction` must be 'minimize' or 'maximize' (or a list of these), but got {direction!r}.{hint}",
            direction,
        )
    return str(value)


@dataclass
class Objective:
    """What a search optimizes: one or several numbers from the metrics of an evaluation, each with a direction.

    Attributes:
        names: The metric keys, or ``"objective"`` (``"objective_0"``, ...) of a callable.
        directions: ``"minimize"`` or ``"maximize"``, one for each name; empty strings until :meth:`settle`.
    """

    names: list[str]
    directions: list[str]
    _function: Callable[[dict[str, Any]], Any] | None = None
    _evaluator: Any = field(default=None, repr=False)

    def settle(self, evaluator: Any, warn: bool = True) -> None:
        """Finds the directions that follow from the evaluator: many know their primary metric only after a first run.

        Args:
            evaluator: The trainer's evaluator, or None.
            warn: Whether to warn of directions that go against their metric.

        Raises:
            DirectionError: Nothing says in which direction a key is to be optimized.
        """
        known = list(zip(self.names, self.directions, strict=True))
        self.directions = [direction or _direction_of_key(name, evaluator) for name, direction in known]
        for name, direction in known if self._function is None and warn else []:
            natural = _natural(name, evaluator)
            if direction and natural and direction != natural:
                logger.warning(
                    f"The search will {direction} {name!r}, but the metric itself says {natural!r}: a loss is "
                    "minimized, an evaluator's primary metric follows `greater_is_better`. Leave `direction` out to "
                    "follow that."
                )

    @property
    def is_named(self) -> bool:
        """Whether the metric keys are known: an evaluator's primary metric is, once it has run."""
        return self.names != [_PRIMARY]

    @property
    def primary_of(self) -> Any:
        """The evaluator whose primary metric it is; None for a metric that was named, or a callable."""
        return self._evaluator

    @property
    def is_function(self) -> bool:
        """Whether it is a callable's."""
        return self._function is not None

    @property
    def is_multi(self) -> bool:
        """Whether there are several objectives."""
        return len(self.directions) > 1

    def values(self, metrics: Metrics) -> list[float]:
        """Returns the objectives, one number for each direction.

        Raises:
            MetricNotFoundError: A metric does not exist.
            ObjectiveError: The callable returned something that is no number.
            DirectionError: The callable returned more or fewer numbers than there are directions.
        """
        if self._function is not None:
            return self._from_function(self._function, metrics)
        if self._evaluator is not None:
            self.names = [primary_metric(self._evaluator, metrics)]
        self.names = [find_metric(metrics, name) for name in self.names]
        return [_as_number(metrics[name], name) for name in self.names]

    def _from_function(self, function: Callable[[dict[str, Any]], Any], metrics: Metrics) -> list[float]:
        try:
            returned = function(dict(metrics))
        except KeyError as exc:
            key = exc.args[0] if exc.args else None
            if isinstance(key, str) and key not in metrics:
                raise MetricNotFoundError(key, metric_keys(metrics)) from exc
            raise
        values = list(returned) if isinstance(returned, list | tuple) else [returned]
        if len(values) != len(self.directions):
            raise DirectionError(
                f"`compute_objective` returned {len(values)} value(s), but `direction` has {len(self.directions)}: "
                f"{self.directions!r}. Give one direction for each objective.",
                self.directions,
            )
        return [_as_number(value, name) for value, name in zip(values, self.names, strict=True)]

    def is_nan(self, values: Sequence[float]) -> bool:
        """Whether one of the objectives is not a number."""
        return any(math.isnan(value) for value in values)

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value of a single objective is better than another; NaN is never better."""
        if math.isnan(value):
            return False
        return math.isnan(than) or (value > than if self.directions[0] == "maximize" else value < than)


def _as_number(value: Any, name: str) -> float:
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        value = value.item()  # a scalar of NumPy or torch
    if isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    raise ObjectiveError(f"The objective {name!r} must be a number, but is {value!r} of type {type(value).__name__}.")


def resolve_objective(compute_objective: ComputeObjective, direction: Any, evaluator: Any) -> Objective:
    """Makes the objective of a search from what its caller gave.

    Args:
        compute_objective: A metric key (with or without ``eval_``), a list of keys, a callable of the metrics, or None
            for the evaluator's primary metric (``eval_loss`` where there is no evaluator).
        direction: ``"minimize"``, ``"maximize"``, a list of these, or None where the metric says: an evaluator's
            primary metric through ``greater_is_better``, a loss is minimized.
        evaluator: The trainer's evaluator, or None.

    Returns:
        The objective, with a direction for each of its values; those of metric keys may still be open, see
        :meth:`Objective.settle`.

    Raises:
        DirectionError: A direction is missing, misspelt, or one too many.
        ObjectiveError: ``compute_objective`` is none of the above.
    """
    several = isinstance(direction, list | tuple)
    given = [check_direction(item) for item in direction] if several else None
    if several and not given:
        raise DirectionError("`direction` is an empty list: give one direction for each objective.", direction)
    if direction is not None and not several:
        given = [check_direction(direction)]

    if callable(compute_objective):
        if given is None:
            raise DirectionError(
                "`direction` must be given with a callable `compute_objective`: 'minimize' or 'maximize', or a list "
                "with one for each value that it returns."
            )
        names = ["objective"] if len(given) == 1 else [f"objective_{index}" for index in range(len(given))]
        return Objective(names, given, _function=compute_objective)

    if compute_objective is None:
        if given is not None and len(given) > 1:
            raise DirectionError(
                f"Without `compute_objective` there is one objective, but `direction` has {len(given)}: {given!r}.",
                direction,
            )
        if evaluator is None:
            return Objective([PREFIX + "loss"], given or ["minimize"])
        return Objective([_PRIMARY], given or [direction_of_evaluator(evaluator)], _evaluator=evaluator)

    keys: Any = [compute_objective] if isinstance(compute_objective, str) else compute_objective
    if not isinstance(keys, list | tuple) or not keys or not all(isinstance(key, str) and key for key in keys):
        raise ObjectiveError(
            "`compute_objective` must be a metric key, a list of metric keys, a callable or None, but got "
            f"{compute_objective!r}."
        )
    if given is not None and len(given) != len(keys):
        raise DirectionError(
            f"There are {len(keys)} objective(s), {keys!r}, but {len(given)} direction(s), {given!r}. "
            "Give one direction for each objective.",
            direction,
        )
    return Objective(list(keys), given or [""] * len(keys))


def _evaluators(evaluator: Any) -> list[Any]:
    """The evaluator and, where it runs others (SequentialEvaluator, NanoBEIREvaluator), those, and theirs."""
    if evaluator is None:
        return []
    inner = getattr(evaluator, "evaluators", None)
    return [
        evaluator,
        *(deeper for item in (inner if isinstance(inner, list) else []) for deeper in _evaluators(item)),
    ]


def direction_of_evaluator(evaluator: Any) -> str:
    """The direction of the primary metric: its evaluator's ``greater_is_better``.

    A SequentialEvaluator's own flag is always True, so where it runs other evaluators, they decide.
    """
    leaves = [item for item in _evaluators(evaluator) if len(_evaluators(item)) == 1]
    flags = {bool(getattr(item, "greater_is_better", True)) for item in leaves}
    if len(flags) > 1:
        raise DirectionError(
            f"The evaluators inside {type(evaluator).__name__} disagree on `greater_is_better`, so `direction` must "
            "be given: 'minimize' or 'maximize'."
        )
    return "maximize" if flags.pop() else "minimize"


def _direction_of_key(key: str, evaluator: Any) -> str:
    bare = key.removeprefix(PREFIX)
    if bare == "loss" or bare.endswith("_loss"):
        return "minimize"
    for item in reversed(_evaluators(evaluator)):
        primary = getattr(item, "primary_metric", None)
        if primary is not None and (bare == primary or bare.endswith("_" + primary)):
            is_outer = item is evaluator
            return direction_of_evaluator(item) if is_outer else _flag_to_direction(item)
    raise DirectionError(
        f"`direction` must be given for the objective {key!r}: it is neither a loss nor the primary metric of the "
        "evaluator, so nothing says whether more or less of it is better. Pass 'minimize' or 'maximize'. (Many "
        "evaluators know their primary metric only after a first run, which `baseline=True` makes.)"
    )


def _natural(key: str, evaluator: Any) -> str | None:
    """The direction that follows from the metric itself, None where nothing says it."""
    try:
        return _direction_of_key(key, evaluator)
    except DirectionError:
        return None


def _flag_to_direction(evaluator: Any) -> str:
    return "maximize" if getattr(evaluator, "greater_is_better", True) else "minimize"

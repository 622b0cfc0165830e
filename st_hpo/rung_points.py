"""Where the rungs of a search are: fractions of every trial's own training, or numbers of examples. Pure Python."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from st_hpo.errors import ConfigurationError, did_you_mean

FRACTION, EXAMPLES = SCALES = ("fraction", "examples")
EVALUATIONS = "evaluations"  # instead of rungs: whenever the training evaluates, as upstream
DEFAULT_RUNGS = (0.26,)
REDUCTION_FACTOR = 3
PAUSING_FACTOR = 4  # of "asha" where trials that pause at a rung may be taken up again
PAUSED_CHECKPOINTS = 3  # how many of those that wait at a rung keep one to go on from
_PERCENT = 100


@dataclass(frozen=True)
class RungPoints:
    """The rungs of every trial.

    Attributes:
        points: Fractions of a training between 0 and 1, or numbers of examples, in ascending order.
        scale: ``"fraction"`` or ``"examples"``.
    """

    points: tuple[float, ...] = DEFAULT_RUNGS
    scale: str = FRACTION

    @property
    def resources(self) -> list[int]:
        """What a pruner knows the rungs by, as its steps: per cent of the training, or examples."""
        return [self._resource(point) for point in self.points]

    def steps(self, max_steps: int, examples_per_step: int) -> dict[int, list[int]]:
        """Returns the optimizer steps of one trial after which it is evaluated, and the rungs that are reached then.

        A rung is reached by the first step that completes it. One at the end of the training or beyond it is none:
        the evaluation there is that of the objective.

        Args:
            max_steps: The number of steps of the training.
            examples_per_step: How many examples a step trains on, those of all ranks and accumulated batches together.
        """
        due: dict[int, list[int]] = {}
        for point in self.points:
            exact = point * max_steps if self.scale == FRACTION else point / examples_per_step
            step = max(1, math.ceil(round(exact, 9)))
            if step < max_steps:
                due.setdefault(step, []).append(self._resource(point))
        return due

    def _resource(self, point: float) -> int:
        return round(point * _PERCENT) if self.scale == FRACTION else int(point)

    def describe(self, resource: int) -> str:
        """Returns the rung in words: ``"13 % of its training"``, ``"384 examples"``."""
        return f"{resource} % of its training" if self.scale == FRACTION else f"{resource} examples"

    def __str__(self) -> str:
        named = ", ".join(map(str, self.resources))
        return f"{named} % of each trial's training" if self.scale == FRACTION else f"{named} examples"


@dataclass(frozen=True)
class RungRequest:
    """What a search was asked for.

    Attributes:
        points: Its rungs, None for the default.
        at_evaluations: Whether trials are to be compared whenever their training evaluates.
        evaluator: The evaluator of the rungs; None for the evaluation that gives the objective.
    """

    points: RungPoints | None = None
    at_evaluations: bool = False
    evaluator: Any = None

    @classmethod
    def of(cls, rungs: Any, scale: Any, evaluator: Any) -> RungRequest:
        """Checks the arguments of a search.

        Raises:
            ConfigurationError: See :func:`check_rungs`; or the evaluator cannot be called.
        """
        if evaluator is not None and not callable(evaluator):
            raise ConfigurationError(
                f"`trial_evaluator` must be an evaluator, or a list of them, but got {evaluator!r}."
            )
        return cls(check_rungs(rungs, scale), isinstance(rungs, str) and rungs == EVALUATIONS, evaluator)


def check_rungs(rungs: Any, scale: Any) -> RungPoints | None:
    """Returns the rungs that a search was given.

    Args:
        rungs: A fraction or a list of them; numbers of examples, if the scale says so; ``"evaluations"`` or None.
        scale: ``"fraction"`` or ``"examples"``.

    Returns:
        The rungs; None, where none were given.

    Raises:
        ConfigurationError: Naming what was wrong, the choices and the fix.
    """
    if scale not in SCALES:
        hint = did_you_mean(scale, SCALES) if isinstance(scale, str) else ""
        raise ConfigurationError(f"`rung_scale` must be 'fraction' or 'examples', but got {scale!r}.{hint}")
    if rungs is None or (isinstance(rungs, str) and rungs == EVALUATIONS):
        if scale == EXAMPLES:
            raise ConfigurationError(
                "`rung_scale='examples'` counts examples, which depend on the data, so there is no default: pass "
                "`rungs`, for example rungs=[1000, 4000]."
            )
        return None
    points = [rungs] if isinstance(rungs, numbers.Real) and not isinstance(rungs, bool) else rungs
    if not isinstance(points, Sequence) or isinstance(points, str) or not points:
        raise ConfigurationError(
            f"`rungs` must be a list such as [0.2, 0.6], a single fraction, or 'evaluations', but got {rungs!r}."
        )
    for point in points:
        _check_point(point, scale)
    found = RungPoints(tuple(sorted(float(point) for point in points)), scale)
    if len(set(found.resources)) < len(points):
        apart = "at least 0.01 apart" if scale == FRACTION else "different"
        raise ConfigurationError(f"`rungs` must be {apart}, but got {list(points)!r}.")
    return found


def _check_point(point: Any, scale: str) -> None:
    is_number = isinstance(point, numbers.Real) and not isinstance(point, bool)
    if scale == FRACTION and not (is_number and 0.01 <= point <= 0.99):
        hint = " For numbers of examples, pass rung_scale='examples'." if is_number and point > 1 else ""
        raise ConfigurationError(
            f"`rungs` must be fractions of a training, from 0.01 to 0.99, but there is {point!r}.{hint}"
        )
    if scale == EXAMPLES and not (is_number and point >= 1 and point == int(point)):
        raise ConfigurationError(f"`rungs` must be numbers of examples of at least 1, but there is {point!r}.")


# What a search may name as its pruner, and where its rungs are then
PRUNERS = {"asha": DEFAULT_RUNGS, "hyperband": (0.26, 0.78), "median": (0.26, 0.52)}


def check_pruner_name(name: str) -> str:
    """Returns the name of a pruner.

    Raises:
        ConfigurationError: There is none of that name.
    """
    if name not in PRUNERS:
        raise ConfigurationError(
            f"There is no pruner {name!r}.{did_you_mean(name, list(PRUNERS))} `pruner` must be "
            f"{', '.join(map(repr, PRUNERS))}, or a pruner of Optuna's with backend='optuna'."
        )
    return name

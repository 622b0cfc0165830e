"""Points of a search space: whether the space has them, in which types, and how backends call them.

Pure Python: no torch, no transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from st_hpo.conversion import convert, plain
from st_hpo.errors import ConfigurationError, HyperparameterValueError, SearchSpaceError, did_you_mean
from st_hpo.space import Categorical, Dimension, Float, SearchSpace

_STEP_TOLERANCE = 1e-8  # a share of a step; Optuna's (optuna.distributions.FloatDistribution._contains)


def check_names(point: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuses a point with names that the space does not have.

    Args:
        point: The point.
        names: The names in the space.
        where: Which point it is, for the message: ``"enqueue[0]"``.

    Raises:
        ConfigurationError: Naming all of them, and what may have been meant.
    """
    names = sorted(names)
    if unknown := [name for name in point if name not in names]:
        hints = " ".join(f"{name!r} is none.{did_you_mean(str(name), names)}" for name in unknown)
        raise ConfigurationError(
            f"`{where}` may have the hyperparameters of the search space: {', '.join(names)}. {hints}"
        )


def checked_point(space: SearchSpace, point: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns a point in the types that its dimensions declare.

    Args:
        space: The space.
        point: Some of its hyperparameters, or all.
        where: Which point it is, for messages.

    Raises:
        ConfigurationError: A name that the space does not have.
        HyperparameterValueError: A value that its dimension does not have.
    """
    check_names(point, space, where)
    return {name: _value(name, space[name], point[name], where) for name in space if name in point}


def fitting_point(space: SearchSpace, point: Mapping[str, Any]) -> dict[str, Any]:
    """Returns as much of a point as the space has, in the types that its dimensions declare."""
    found = {}
    for name in space:
        if name in point:
            try:
                found[name] = _value(name, space[name], point[name], "")
            except (HyperparameterValueError, SearchSpaceError):
                continue
    return found


def labelled(space: SearchSpace, point: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checked point as backends propose it: choices by their labels (:meth:`Categorical.labels`)."""
    found = dict(point)
    for name, value in point.items():
        dimension = space[name]
        if isinstance(dimension, Categorical):
            found[name] = next(label for label, choice in dimension.labels().items() if _same(choice, value))
    return found


def _value(name: str, dimension: Dimension, given: Any, where: str) -> Any:
    if isinstance(dimension, Categorical):
        value = plain(name, given)
        for choice in dimension.choices:
            if _same(choice, value):
                return choice
        equal = [choice for choice in dimension.choices if choice == value and not isinstance(value, bool)]
        if len(equal) == 1 and type(equal[0]) in (int, float):  # 0 for 0.0
            return equal[0]
        raise HyperparameterValueError(name, given, f"one of {list(dimension.choices)}", f"See `{where}`.")
    value = convert(name, plain(name, given), float if isinstance(dimension, Float) else int)
    if not dimension.low <= value <= dimension.high:
        expected = f"a number from {dimension.low!r} to {dimension.high!r}"
        raise HyperparameterValueError(name, given, expected, f"See `{where}`; or widen the search space.")
    if dimension.step is not None:
        steps = (value - dimension.low) / dimension.step
        if abs(steps - round(steps)) > _STEP_TOLERANCE:
            expected = f"{dimension.low!r} plus a multiple of {dimension.step!r}"
            raise HyperparameterValueError(name, given, expected, f"See `{where}`.")
    return value


def _same(one: Any, other: Any) -> bool:
    """Equal and of the same type, inside of lists and dicts as well: 1, 1.0 and True are three choices."""
    if type(one) is not type(other) or one != other:
        return False
    if isinstance(one, list):
        return all(map(_same, one, other))
    return not isinstance(one, dict) or all(_same(value, other[key]) for key, value in one.items())

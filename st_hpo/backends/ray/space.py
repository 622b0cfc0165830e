"""Search spaces in Ray Tune's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st_hpo.errors import HyperparameterValueError, SearchSpaceError
from st_hpo.space import Categorical, Float, Int, SearchSpace

# A grid of more points is meant as a range
MAX_GRID = 4096


def open_tune_space(space: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a space in Ray Tune's format with full names: ``{"loss": {"scale": d}}`` means ``loss.scale``.

    Raises:
        SearchSpaceError: A name is no string, or is given twice.
    """
    opened: dict[str, Any] = {}
    for name, domain in space.items():
        if not isinstance(name, str):
            raise SearchSpaceError(f"A hyperparameter's name must be a string such as 'loss.scale', got {name!r}.")
        nested = name in ("loss", "model") and isinstance(domain, Mapping) and "grid_search" not in domain
        parts = {f"{name}.{part}": item for part, item in domain.items()} if nested else {name: domain}
        if twice := [part for part in parts if part in opened or (part in space and part != name)]:
            raise SearchSpaceError(f"The hyperparameter {twice[0]!r} is given twice.")
        opened.update(parts)
    return opened


def tune_space(space: SearchSpace) -> dict[str, Any]:
    """Returns a SearchSpace in Ray Tune's format; :meth:`SearchSpace.decode` turns its values back.

    Raises:
        SearchSpaceError: A dimension with a step has too many points.
    """
    return {name: _domain(name, dimension) for name, dimension in space.items()}


def _domain(name: str, dimension: Float | Int | Categorical) -> Any:
    from ray import tune

    if isinstance(dimension, Categorical):
        return tune.choice(list(dimension.labels()))
    if dimension.low == dimension.high:
        return tune.choice([dimension.low])
    if dimension.step not in (None, 1):
        return tune.choice(_grid(name, dimension))
    if isinstance(dimension, Float):
        if dimension.step is not None:
            return tune.choice(_grid(name, dimension))
        return (tune.loguniform if dimension.log else tune.uniform)(dimension.low, dimension.high)
    # The upper bound of Ray Tune's integers is excluded
    return (tune.lograndint if dimension.log else tune.randint)(dimension.low, dimension.high + 1)


def _grid(name: str, dimension: Float | Int) -> list[float]:
    """All points: Ray Tune's own quantized domains round to multiples of the step, not to ``low + n * step``."""
    step = dimension.step or 1
    count = int((dimension.high - dimension.low) / step + 1e-9) + 1
    if count > MAX_GRID:
        raise SearchSpaceError(
            f"Ray Tune cannot express {name!r} = {dimension!r}: its {count} points are more than {MAX_GRID}. Leave "
            "out `step`, or make it larger."
        )
    return [dimension.low + index * step for index in range(count)]


def check_tune_point(space: Mapping[str, Any], point: Mapping[str, Any], where: str) -> None:
    """Refuses a point with values that a space in Ray Tune's format does not have, as far as its domains tell.

    Args:
        space: The opened space.
        point: Some of its hyperparameters, or all.
        where: Which point it is, for messages.

    Raises:
        HyperparameterValueError: Such a value.
    """
    from ray.tune.search import sample

    for name, value in point.items():
        domain = space[name]
        if isinstance(domain, Mapping) and "grid_search" in domain:
            valid = value in domain["grid_search"]
        elif isinstance(domain, sample.Integer):  # its upper bound is excluded
            valid = isinstance(value, int) and domain.is_valid(value) and value != domain.upper
        elif isinstance(domain, sample.Domain):
            valid = domain.is_valid(value)
        else:
            valid = value == domain
        if not valid:
            expected = domain.domain_str if isinstance(domain, sample.Domain) else domain
            raise HyperparameterValueError(name, value, f"one of {expected}", f"See `{where}`.")

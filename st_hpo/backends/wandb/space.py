"""Search spaces in the format of W&B sweeps: both ways, and what sweeps cannot express. Imports no wandb."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from st_hpo.backends.base import called_space
from st_hpo.errors import ConfigurationError, SearchSpaceError, did_you_mean
from st_hpo.space import Categorical, Dimension, Float, Int, SearchSpace

METHODS = ("random", "grid", "bayes")
# A sweep lists every value of an explicit grid in its config and on its page
MAX_VALUES = 1000
EXAMPLE = 'a W&B sweep config ({"method": "random", "parameters": {...}})'
# What `sweeps`, the search engine that W&B publishes, can enumerate (sweeps/grid_search.py of 0.2.0)
_ENUMERABLE = ("categorical", "constant", "int_uniform", "q_uniform")
_MISSING = object()
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # `propertyNames` in sweeps/config/schema.json


def open_sweep(hp_space: Any) -> Any:
    """Returns a :class:`SearchSpace` as it is, and a sweep config as a copy of its own.

    Args:
        hp_space: One of the two, or a function that returns one of them for ``None``.

    Raises:
        SearchSpaceError: It is something else, or a sweep config that makes no sense.
    """
    space = called_space(hp_space, dict, EXAMPLE)
    if isinstance(space, SearchSpace):
        return space
    config: dict[str, Any] = copy.deepcopy(dict(space))
    _check_config(config)
    return config


def _check_config(config: Mapping[str, Any]) -> None:
    parameters = config.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        given = f"{parameters!r}" if "parameters" in config else f"only {sorted(map(str, config))}"
        raise SearchSpaceError(
            f"A W&B sweep config needs a dict of 'parameters', but got {given}. For example: {{'method': 'random', "
            "'parameters': {'learning_rate': {'min': 1e-6, 'max': 1e-4}}}."
        )
    check_method(config.get("method"))
    for name, parameter in leaves(parameters):
        _check_parameter(name, parameter)


def check_method(method: Any) -> str:
    """Returns the method of a sweep.

    Raises:
        ConfigurationError: There is no such method.
    """
    if not isinstance(method, str) or method not in METHODS:
        hint = did_you_mean(method, METHODS) if isinstance(method, str) else ""
        raise ConfigurationError(
            f"The method of a W&B sweep must be one of {list(METHODS)}, but got {method!r}.{hint}"
        )
    return method


def leaves(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the hyperparameters of a sweep config: those of nested ``parameters`` under their dotted names."""
    for name, parameter in parameters.items():
        if isinstance(parameter, Mapping) and isinstance(parameter.get("parameters"), Mapping):
            yield from leaves(parameter["parameters"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", parameter


def _check_parameter(name: str, parameter: Any) -> None:
    def refuse(why: str) -> SearchSpaceError:
        return SearchSpaceError(f"The parameter {name!r} of the W&B sweep config {why}, but got {parameter!r}.")

    if not isinstance(parameter, Mapping) or not parameter.keys() & {"value", "values", "min", "max", "distribution"}:
        raise refuse("must be a dict with 'value', 'values', 'min' and 'max', or a 'distribution'")
    if not _NAME.fullmatch(name):
        raise refuse("must have a name of letters, digits, '_', '.' and '-' that begins with a letter or '_'")
    if "values" in parameter and (not isinstance(parameter["values"], list | tuple) or not parameter["values"]):
        raise refuse("must have a list of at least one value as 'values'")
    if parameter.keys() & {"min", "max"}:
        low, high = parameter.get("min"), parameter.get("max")
        if isinstance(low, bool | str | None) or isinstance(high, bool | str | None):
            raise refuse("must have a number both as 'min' and as 'max'")
        if not low < high:
            raise refuse("must have a 'min' below its 'max'")
        if "distribution" not in parameter and type(low) is not type(high):
            raise refuse("must have two ints (for integers) or two floats as 'min' and 'max', or a 'distribution'")


def space_names(space: Any) -> list[str]:
    """Returns the names of the hyperparameters in an opened space."""
    return list(space) if isinstance(space, SearchSpace) else [name for name, _ in leaves(space["parameters"])]


def check_grid(space: Any) -> None:
    """Refuses what a grid search cannot enumerate.

    Raises:
        SearchSpaceError: Naming every such hyperparameter.
    """
    if isinstance(space, SearchSpace):
        to_parameters(space, "grid")
        return
    endless = [name for name, parameter in leaves(space["parameters"]) if _distribution(parameter) not in _ENUMERABLE]
    if endless:
        raise _endless(endless)


def _distribution(parameter: Mapping[str, Any]) -> str:
    if "distribution" in parameter:
        return str(parameter["distribution"])
    if "probabilities" in parameter:
        return "categorical_w_probabilities"
    if "values" in parameter:
        return "categorical"
    if "value" in parameter:
        return "constant"
    return "int_uniform" if isinstance(parameter["min"], int) else "uniform"


def _endless(names: list[str]) -> SearchSpaceError:
    return SearchSpaceError(
        f"A grid search tries every combination, but {', '.join(map(repr, names))} cannot be enumerated. Give "
        "explicit values (Categorical, 'values'), a Float with a `step`, or choose method='random' or 'bayes'."
    )


def to_parameters(space: SearchSpace, method: str) -> dict[str, Any]:
    """Returns a search space as the ``parameters`` of a sweep config.

    Every value that W&B may propose is one that the dimension allows: steps become explicit values wherever
    ``q_uniform``, which proposes multiples of its ``q``, would give others.

    Args:
        space: The space.
        method: The sweep's method.

    Raises:
        SearchSpaceError: Naming what a sweep cannot express.
    """
    if bad := [name for name in space if not _NAME.fullmatch(name)]:
        raise SearchSpaceError(
            f"W&B takes names of letters, digits, '_', '.' and '-' that begin with a letter or '_', but got {bad}."
        )
    if method == "grid" and (
        endless := [name for name, item in space.items() if isinstance(item, Float) and _count(item) == 0]
    ):
        raise _endless(endless)
    return {name: _to_parameter(name, dimension, method) for name, dimension in space.items()}


def _to_parameter(name: str, item: Dimension, method: str) -> dict[str, Any]:
    if isinstance(item, Categorical):
        return {"values": list(item.labels())}
    if item.low == item.high:
        return {"value": item.low}
    bounds = {"min": item.low, "max": item.high}
    if method == "grid":
        return {"values": _values(name, item)}
    if item.log:
        if isinstance(item, Float):
            return {"distribution": "log_uniform_values", **bounds}
        return {"distribution": "q_log_uniform_values", **bounds, "q": 1}
    if isinstance(item, Float) and item.step is None:
        return {"distribution": "uniform", **bounds}
    if isinstance(item, Int) and item.step == 1:
        return {"distribution": "int_uniform", **bounds}
    low, high, step = (Fraction(number) for number in (item.low, item.high, item.step or 1))
    # Multiples of 0.5 are exact, while 3 * 0.1 is not 0.3
    exact = step == Fraction(str(item.step)) and low % step == 0 and high % step == 0
    if exact:
        return {"distribution": "q_uniform", **bounds, "q": item.step}
    return {"values": _values(name, item)}


def _count(item: Float | Int) -> int:
    """How many values there are; 0 for a continuum."""
    if item.low == item.high:
        return 1
    if item.step is None:
        return 0
    # As Optuna counts: 0.3 is the third step of 0.1, although 3 * 0.1 is more than 0.3
    return int((Fraction(str(item.high)) - Fraction(str(item.low))) // Fraction(str(item.step))) + 1


def _values(name: str, item: Float | Int) -> list[Any]:
    count = _count(item)
    if count > MAX_VALUES:
        raise SearchSpaceError(
            f"W&B cannot express {name!r}, {item!r}, other than as {count} explicit values, and more than "
            f"{MAX_VALUES} are refused. Choose a larger `step`, bounds that are multiples of it, or leave it out."
        )
    low, step = Fraction(str(item.low)), Fraction(str(item.step or 1))
    kind = float if isinstance(item, Float) else int
    return [kind(low + index * step) for index in range(count)]


def to_config(space: Any, method: str | None, early_terminate: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the config of a new sweep, without name and metric.

    Args:
        space: The opened space.
        method: For a :class:`SearchSpace`; None for a random search.
        early_terminate: W&B's early termination, in place of that of a sweep config.
    """
    if isinstance(space, SearchSpace):
        method = method or "random"
        config: dict[str, Any] = {"method": method, "parameters": to_parameters(space, method)}
    else:
        config = copy.deepcopy(space)
    if early_terminate is not None:
        config["early_terminate"] = copy.deepcopy(dict(early_terminate))
    return config


def proposed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the server proposed as the config of the run, nested as the server has it.

    Args:
        arguments: What it sent: ``{"learning_rate": {"value": 1e-5}, "loss": {"value": {"scale": 20}}}``.
    """
    return {
        name: item["value"] if isinstance(item, Mapping) and "value" in item else item
        for name, item in arguments.items()
    }


def arrived(arguments: Mapping[str, Any], names: list[str] | None) -> dict[str, Any]:
    """Returns the values that the server proposed, each under its dotted name.

    Args:
        arguments: What the server sent; see :func:`proposed`.
        names: The names in the space; None where only the server knows them.
    """
    values = proposed(arguments)
    if names is None:
        return dict(_flat(values))
    found = {}
    for name in names:
        if name in values:
            found[name] = values[name]
            continue
        inner: Any = values
        for part in name.split("."):
            inner = inner.get(part, _MISSING) if isinstance(inner, Mapping) else _MISSING
        if inner is not _MISSING:
            found[name] = inner
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check_early_terminate(value: Any) -> None:
    """Refuses an early termination that W&B does not have.

    Raises:
        ConfigurationError: It is no Hyperband with a first band.
    """
    if value is None:
        return
    known = isinstance(value, Mapping) and value.get("type") == "hyperband"
    if not known or not ("min_iter" in value or {"max_iter", "s"} <= value.keys()):
        raise ConfigurationError(
            "`early_terminate` must be W&B's Hyperband, {'type': 'hyperband', 'min_iter': 3} or {'type': "
            f"'hyperband', 'max_iter': 27, 's': 2}}, but got {value!r}."
        )

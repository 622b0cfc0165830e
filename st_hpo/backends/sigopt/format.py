"""Search spaces in SigOpt's format: a list of parameters, checked by the rules of sigopt-server.

Pure Python. What is refused here is refused alike for a server and for the local engine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from st_hpo.conversion import convert
from st_hpo.errors import NotSupportedError, SearchSpaceError, did_you_mean

# The limits of sigopt-server for names and for categorical values
NAME_LENGTH, VALUE_LENGTH = 100, 50

_TYPES = ("double", "int", "categorical")
_KEYS = (
    *("name", "type", "bounds", "transformation", "grid", "categorical_values"),
    *("prior", "conditions", "default_value", "tunable", "precision", "object"),
)
# What transformers 4 wrote in its own default space for SigOpt. The server takes no notice of unknown keys.
_MISSPELT = {"transformamtion": "transformation"}


def read_parameters(given: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns a copy of parameters in SigOpt's format, checked.

    Args:
        given: The list that a guide's ``hp_space`` returns.

    Raises:
        SearchSpaceError: A parameter is not in SigOpt's format; naming it.
    """
    parameters: list[dict[str, Any]] = []
    for item in given:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise SearchSpaceError(
                "A parameter of SigOpt is a dict with a `name`, such as {'name': 'learning_rate', 'type': 'double', "
                f"'bounds': {{'min': 1e-6, 'max': 1e-4}}}}, but got {item!r}."
            )
        parameter: dict[str, Any] = {_MISSPELT.get(key, str(key)): copy.deepcopy(item[key]) for key in item}
        check_name(parameter["name"])
        if parameter["name"] in [other["name"] for other in parameters]:
            raise SearchSpaceError(f"Hyperparameter {parameter['name']!r} is given twice.")
        _check_parameter(parameter)
        parameters.append(parameter)
    return parameters


def check_name(name: str, what: str = "Hyperparameter") -> None:
    """Refuses a name that SigOpt would refuse or change.

    Raises:
        SearchSpaceError: It is empty or too long, has control characters, or spaces around it.
    """
    if not 0 < len(name) <= NAME_LENGTH or not _is_clean(name):
        raise SearchSpaceError(
            f"{what} {name!r}: a name in SigOpt has 1 to {NAME_LENGTH} characters, no line breaks, and no spaces "
            "around it."
        )


def _is_clean(text: str) -> bool:
    return text == text.strip() and all(ord(character) >= 32 for character in text)


def is_value(value: Any) -> bool:
    """Whether SigOpt takes it as a categorical value, and gives it back unchanged."""
    return isinstance(value, str) and 0 < len(value) <= VALUE_LENGTH and _is_clean(value)


def _is_number(value: Any, kind: str) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (kind == "double" or value == int(value))
    )


def _check_parameter(parameter: Mapping[str, Any]) -> None:
    def refuse(problem: str) -> NoReturn:
        raise SearchSpaceError(f"Hyperparameter {parameter['name']!r}: {problem}")

    kind = parameter.get("type")
    if kind not in _TYPES:
        refuse(f"`type` must be one of {list(_TYPES)}, but got {kind!r}.")
    if unknown := [key for key in parameter if key not in _KEYS]:
        refuse(
            f"SigOpt's parameters have no {unknown[0]!r}.{did_you_mean(unknown[0], _KEYS)} They have "
            f"{', '.join(_KEYS)}."
        )
    given = {key for key, value in parameter.items() if value is not None}
    if kind == "categorical":
        if wrong := given & {"bounds", "grid", "transformation", "prior"}:
            refuse(f"a categorical parameter has no {sorted(wrong)[0]!r}, only `categorical_values`.")
        values = category_names(parameter)
        if bad := [value for value in values if not is_value(value)]:
            refuse(
                f"`categorical_values` must be strings of 1 to {VALUE_LENGTH} characters without line breaks, but got "
                f"{bad[0]!r}." + (f" Write {str(bad[0])!r}." if isinstance(bad[0], int | float) else "")
            )
        if len(values) < 2 or len(set(values)) < len(values):
            refuse(f"`categorical_values` must have at least two different values, but got {values!r}.")
        return
    if "categorical_values" in given:
        refuse(f"`categorical_values` belong to the type 'categorical', not to {kind!r}.")
    if parameter.get("transformation") not in (None, "none", "log"):
        refuse(f"`transformation` must be 'log' or 'none', but got {parameter['transformation']!r}.")
    if "transformation" in given and kind == "int":
        refuse(
            f"SigOpt has no logarithmic integers: `transformation` is for the type 'double', but got "
            f"{parameter['transformation']!r}. Leave it out, or give the values themselves as a `grid`."
        )
    numbers = _numbers(parameter, refuse)
    if parameter.get("transformation") == "log" and min(numbers) <= 0:
        refuse(f"`transformation` 'log' needs values above 0, but got {min(numbers)!r}.")
    if "prior" in given and (kind != "double" or "grid" in given or parameter.get("transformation") == "log"):
        refuse("a `prior` is for the type 'double' with `bounds` and without `transformation`.")


def _numbers(parameter: Mapping[str, Any], refuse: Callable[[str], NoReturn]) -> list[Any]:
    """The grid, or the two bounds."""
    kind, grid, bounds = parameter["type"], parameter.get("grid"), parameter.get("bounds")
    expected = "numbers" if kind == "double" else "integers"
    if (grid is None) == (bounds is None):
        refuse("give either `bounds`, {'min': ..., 'max': ...}, or a `grid`, a list of values.")
    if grid is not None:
        if not isinstance(grid, list | tuple) or not all(_is_number(value, kind) for value in grid):
            refuse(f"`grid` must be a list of {expected}, but got {grid!r}.")
        if len(grid) < 2 or len(set(grid)) < len(grid):
            refuse(f"`grid` must have at least two different values, but got {grid!r}.")
        return list(grid)
    if not isinstance(bounds, Mapping) or not all(_is_number(bounds.get(key), kind) for key in ("min", "max")):
        refuse(f"`bounds` must be two {expected}, {{'min': ..., 'max': ...}}, but got {bounds!r}.")
    if not bounds["min"] < bounds["max"]:
        refuse(f"`bounds` must have a `min` below the `max`, but got {bounds!r}.")
    return [bounds["min"], bounds["max"]]


def category_names(parameter: Mapping[str, Any]) -> list[Any]:
    """Returns the categorical values of a parameter, which may be written ``"a"`` or ``{"name": "a"}``."""
    values = parameter.get("categorical_values")
    if not isinstance(values, list | tuple):
        return []
    return [value.get("name") if isinstance(value, Mapping) else value for value in values]


def read_conditionals(given: Any, parameters: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a copy of an experiment's conditionals, checked together with the conditions of the parameters.

    Args:
        given: ``[{"name": "kind", "values": ["a", "b"]}]``, or None.
        parameters: The parameters, whose ``conditions`` name conditionals and some of their values.

    Raises:
        SearchSpaceError: One is not in SigOpt's format, or a condition names what does not exist.
    """
    conditionals: dict[str, list[str]] = {}
    parameters = list(parameters)
    for item in given if isinstance(given, list | tuple) else [] if given is None else [given]:
        values = item.get("values") if isinstance(item, Mapping) else None
        name = item.get("name") if isinstance(item, Mapping) else None
        if not isinstance(name, str) or not isinstance(values, list | tuple) or not all(map(is_value, values)):
            raise SearchSpaceError(
                "`conditionals` must be a list of dicts such as {'name': 'kind', 'values': ['a', 'b']}, but got "
                f"{item!r}."
            )
        check_name(name, "Conditional")
        if name in conditionals or name in [parameter["name"] for parameter in parameters]:
            raise SearchSpaceError(f"Conditional {name!r} is given twice, or is a hyperparameter as well.")
        if len(values) < 2 or len(set(values)) < len(values):
            raise SearchSpaceError(
                f"Conditional {name!r} must have at least two different values, but got {values!r}."
            )
        conditionals[name] = list(values)
    for parameter in parameters:
        for name, wanted in conditions_of(parameter).items():
            if name not in conditionals or not wanted or not set(wanted) <= set(conditionals[name]):
                raise SearchSpaceError(
                    f"Hyperparameter {parameter['name']!r}: the condition {name!r} with {wanted!r} is none of "
                    f"`conditionals`, which are {conditionals!r}."
                )
    return [{"name": name, "values": values} for name, values in conditionals.items()]


def conditions_of(parameter: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the values of each conditional for which a parameter exists.

    Raises:
        SearchSpaceError: They are not in SigOpt's format.
    """
    conditions = parameter.get("conditions") or {}
    if isinstance(conditions, Mapping):
        wanted = {name: [values] if isinstance(values, str) else values for name, values in conditions.items()}
        if all(isinstance(values, list | tuple) and all(map(is_value, values)) for values in wanted.values()):
            return {name: list(values) for name, values in wanted.items()}
    raise SearchSpaceError(
        f"Hyperparameter {parameter['name']!r}: `conditions` must be a dict such as {{'kind': ['a']}}, but got "
        f"{conditions!r}."
    )


def decode_parameters(parameters: Iterable[Mapping[str, Any]], assignments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the assignments of a run with numbers in the types of their parameters: JSON knows one kind of number.

    Raises:
        SearchSpaceError: A parameter without conditions has no assignment.
        HyperparameterValueError: A value would lose a part of itself.
    """
    values = dict(assignments)
    for parameter in parameters:
        name = parameter["name"]
        if name in values:
            if parameter["type"] != "categorical":
                values[name] = convert(name, values[name], float if parameter["type"] == "double" else int)
        elif not parameter.get("conditions"):
            raise SearchSpaceError(f"No value was proposed for {name!r}; there are values for {sorted(values)}.")
    return values


def check_local(parameters: Iterable[Mapping[str, Any]]) -> None:
    """Refuses what the local engine cannot do, although a server can.

    Raises:
        NotSupportedError: Naming the hyperparameter.
    """
    for parameter in parameters:
        name = parameter["name"]
        if parameter.get("prior") is not None:
            raise NotSupportedError(
                f"Hyperparameter {name!r} has a `prior`, which only a SigOpt server knows. Leave it out and narrow "
                "the `bounds`, or set SIGOPT_API_URL and SIGOPT_API_TOKEN."
            )
        if parameter.get("tunable") is False:
            raise NotSupportedError(
                f"Hyperparameter {name!r} has `tunable` False, which the local engine does not know. Leave the "
                "parameter out, and set its value in the training arguments."
            )

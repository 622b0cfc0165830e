"""What sigopt-server allows of a parameter, and how the stand-in for it draws one."""

from __future__ import annotations

from typing import Any

import optuna


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check_parameter(parameter: dict[str, Any], conditionals: dict[str, list[str]]) -> None:
    """The rules of sigopt-server that a wrong translation of a space would break."""
    name, kind, grid = parameter["name"], parameter["type"], parameter.get("grid")
    problems = {
        "name": not 0 < len(name) <= 100 or name != name.strip(),
        "type": kind not in ("double", "int", "categorical"),
        "bounds and grid": grid is not None and "bounds" in parameter,
        "bounds": kind != "categorical" and grid is None and not _in_order(parameter.get("bounds")),
        "grid": grid is not None and (kind == "categorical" or len(set(grid)) < 2 or len(set(grid)) != len(grid)),
        "transformation": kind != "double" and parameter.get("transformation") is not None,
        "prior": parameter.get("prior") is not None and (kind != "double" or parameter.get("transformation") == "log"),
        "categorical_values": (kind == "categorical") != ("categorical_values" in parameter),
        "conditions": not set(parameter.get("conditions") or {}) <= set(conditionals),
    }
    if kind == "categorical":
        values = _categories(parameter)
        problems["values"] = len(set(values)) < 2 or not all(
            isinstance(value, str) and 0 < len(value) <= 50 and value == value.strip() and value.isprintable()
            for value in values
        )
    if wrong := [key for key, is_wrong in problems.items() if is_wrong]:
        raise Refused(400, f"Parameter {name!r}: wrong {', '.join(wrong)}")


def _in_order(bounds: Any) -> bool:
    return isinstance(bounds, dict) and bounds["min"] < bounds["max"]


def _categories(parameter: dict[str, Any]) -> list[str]:
    return [value["name"] if isinstance(value, dict) else value for value in parameter["categorical_values"]]


def draw_assignments(trial: optuna.Trial, experiment: dict[str, Any]) -> dict[str, Any]:
    """Draws the parameters of an experiment, as a run gets them."""
    drawn = {
        item["name"]: trial.suggest_categorical(item["name"], item["values"])
        for item in experiment.get("conditionals") or []
    }
    for parameter in experiment["parameters"]:
        conditions = parameter.get("conditions") or {}
        if not all(
            drawn[name] in ([wanted] if isinstance(wanted, str) else wanted) for name, wanted in conditions.items()
        ):
            continue
        name, bounds = parameter["name"], parameter.get("bounds")
        if parameter["type"] == "categorical":
            drawn[name] = trial.suggest_categorical(name, _categories(parameter))
        elif bounds is None:
            drawn[name] = trial.suggest_categorical(name, parameter["grid"])
        elif parameter["type"] == "int":
            drawn[name] = trial.suggest_int(name, bounds["min"], bounds["max"])
        else:
            log = parameter.get("transformation") == "log"
            drawn[name] = trial.suggest_float(name, bounds["min"], bounds["max"], log=log)
    # A whole number comes back as an integer, also that of a double: sigopt-server's way of writing JSON
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in drawn.items()
    }

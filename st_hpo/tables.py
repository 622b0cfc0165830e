"""The trials of a result as rows, and values of several types as one column. Pure Python."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from st_hpo.jsonable import to_jsonable

if TYPE_CHECKING:
    from st_hpo.results import SearchResult


def union(dicts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the keys of all ``dicts``, each once, in the order in which they appear."""
    return list(dict.fromkeys(name for item in dicts for name in item))


def rows(result: SearchResult) -> list[dict[str, Any]]:
    """Returns a flat row a trial, every row with the same columns: see :meth:`SearchResult.to_rows`."""
    hyperparameters = union(trial.hyperparameters for trial in result.trials)
    metrics = union(trial.metrics for trial in result.trials)
    found = []
    for trial in result.trials:
        row: dict[str, Any] = {"number": trial.number, "state": trial.state}
        if len(result.directions) == 1:
            row["objective"] = trial.objective
        else:
            values: Sequence[float | None] = trial.values or [None] * len(result.objective_names)
            row.update({f"objective.{name}": v for name, v in zip(result.objective_names, values, strict=True)})
        row.update({f"hyperparameters.{name}": trial.hyperparameters.get(name) for name in hyperparameters})
        row.update({f"metrics.{name}": trial.metrics.get(name) for name in metrics})
        row.update(seconds=trial.seconds, error=trial.error)
        found.append(row)
    return found


def one_type(values: list[Any]) -> list[Any]:
    """Returns a column with values of one type: the values themselves where that is so, else the JSON of each."""
    kinds = {type(value) for value in values if value is not None}
    if any(type(value) is int and not -(2**63) <= value < 2**63 for value in values):
        kinds = {dict}  # more digits than a column of integers holds
    if kinds <= {int, float} and kinds:
        fits = all(abs(v) <= 2**53 for v in values if type(v) is int)
        if kinds == {int} or fits:
            return [float(v) if float in kinds and v is not None else v for v in values]
    elif len(kinds) <= 1 and not kinds & {dict, list}:
        return values
    return [None if value is None else json.dumps(to_jsonable(value), sort_keys=True) for value in values]

"""The trials of a search as a table, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from st_hpo.cli.group import UsageProblem
from st_hpo.errors import did_you_mean
from st_hpo.jsonable import to_jsonable
from st_hpo.records import TrialRecord
from st_hpo.results import SearchResult

_OWN_COLUMNS = ("objective", "number", "seconds")
_MISSING = object()


def selected(
    result: SearchResult, states: Sequence[str], sort: str, reverse: bool, limit: int | None
) -> list[TrialRecord]:
    """Returns trials in an order; those that have no value of the sorted kind come last.

    Args:
        result: The search.
        states: The states to keep; all if there is none.
        sort: ``"objective"`` (the best first, by the first one), ``"number"``, ``"seconds"``, or the name of an
            objective, a hyperparameter or a metric.
        reverse: Whether to turn the order round.
        limit: How many to return at most.

    Raises:
        UsageProblem: There is no such name.
    """
    trials = [trial for trial in result.trials if not states or trial.state in states]
    values, descending = _sort_values(result, trials, sort)
    with_value = [k for k, value in enumerate(values) if value is not None and value == value]
    ordered = sorted(with_value, key=lambda k: _comparable(values[k]), reverse=descending != reverse)
    rest = [k for k in range(len(trials)) if k not in set(with_value)]
    return [trials[k] for k in [*ordered, *rest]][:limit]


def _sort_values(result: SearchResult, trials: list[TrialRecord], sort: str) -> tuple[list[Any], bool]:
    """The values to sort by, and whether the greatest comes first."""
    if sort == "number":
        return [trial.number for trial in trials], False
    if sort == "seconds":
        return [trial.seconds for trial in trials], False
    if sort == "objective" or sort in result.objective_names:
        index = 0 if sort == "objective" else result.objective_names.index(sort)
        values = [trial.values[index] if len(trial.values) > index else None for trial in trials]
        return values, result.directions[index] == "maximize"
    for columns in ([trial.hyperparameters for trial in trials], [trial.metrics for trial in trials]):
        if any(sort in column for column in columns):
            return [column.get(sort) for column in columns], False
    names = [*_OWN_COLUMNS, *result.objective_names]
    for trial in result.trials:
        names += [*trial.hyperparameters, *trial.metrics]
    if sort in names:  # known, but not of the trials that are left
        return [None] * len(trials), False
    names = list(dict.fromkeys(names))
    raise UsageProblem(f"--sort: there is no {sort!r}.{did_you_mean(sort, names)} Choose one of {', '.join(names)}.")


def _comparable(value: Any) -> tuple[int, Any]:
    if isinstance(value, int | float):
        return 0, value
    return (1, value) if isinstance(value, str) else (2, json.dumps(to_jsonable(value), sort_keys=True))


def as_csv(trials: list[TrialRecord], result: SearchResult) -> str:
    """Returns CSV with the columns of :meth:`SearchResult.to_rows`; lists and dicts are JSON."""
    rows = {row["number"]: row for row in result.to_rows()}
    text = io.StringIO()
    columns = list(next(iter(rows.values()), {"number": None, "state": None}))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for trial in trials:
        writer.writerow([_cell(value) for value in rows[trial.number].values()])
    return text.getvalue().rstrip("\n")


def _cell(value: Any) -> Any:
    return json.dumps(to_jsonable(value), sort_keys=True) if isinstance(value, list | dict) else value


def records_as_json(trials: list[TrialRecord]) -> str:
    """Returns a list of whole records, as :meth:`SearchResult.save` writes them."""
    return json.dumps([trial.to_dict() for trial in trials], indent=2, allow_nan=False)


def print_table(trials: list[TrialRecord], result: SearchResult, best: set[int]) -> None:
    """Prints a table: with rich in a terminal, otherwise aligned columns of plain text, however wide.

    Args:
        trials: The trials to show.
        result: The search.
        best: The numbers of the best trials, which are marked.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.hyperparameters))
    header = ["trial", "state", *result.objective_names, *names, "seconds"]
    rows = []
    for trial in trials:
        values: list[Any] = trial.values or [_MISSING] * len(result.objective_names)
        seconds = _MISSING if trial.seconds is None else f"{trial.seconds:.1f}"
        own = [f"{trial.number}{' *' if trial.number in best else ''}", trial.state]
        cells = [*values, *(trial.hyperparameters.get(name, _MISSING) for name in names)]
        rows.append([*own, *map(_shown, cells), _shown(seconds)])
    if any(trial.error for trial in trials):
        header.append("error")
        rows = [[*row, _printable(trial.error or "")] for row, trial in zip(rows, trials, strict=True)]
    header = [_printable(name) for name in header]
    right = {k for k in range(len(header)) if k >= 2 and all(_is_number(row[k]) for row in rows)}
    if sys.stdout.isatty():
        _print_rich(header, rows, right)
    else:
        print(aligned(header, rows, right))


def _shown(value: Any) -> str:
    return "-" if value is _MISSING else _printable(_cell(value))


def _printable(value: Any) -> str:
    """Text without line breaks and without what would move the cursor of a terminal or colour it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))


def _is_number(text: str) -> bool:
    try:
        return text == "-" or not math.isnan(float(text))
    except ValueError:
        return False


def aligned(header: list[str], rows: list[list[str]], right: set[int]) -> str:
    """Returns columns of plain text, two spaces apart.

    Args:
        header: The names of the columns.
        rows: The cells.
        right: The columns that are aligned to the right.
    """
    table = [header, *rows]
    widths = [max(len(row[k]) for row in table) for k in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if k in right else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def _print_rich(header: list[str], rows: list[list[str]], right: set[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for k, name in enumerate(header):
        table.add_column(Text(name), justify="right" if k in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row), style="bold" if "*" in row[0] else None)
    Console().print(table)

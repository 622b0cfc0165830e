"""A result in a terminal: aligned lines, never wider than 110 columns. Pure Python."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from st_hpo.duplicates import taken_over
from st_hpo.report.facts import Fact, facts, failures, spent_on, state_counts, total_time
from st_hpo.report.words import NONE, count, duration, line, shown
from st_hpo.tables import union

if TYPE_CHECKING:
    from st_hpo.records import TrialRecord
    from st_hpo.results import SearchResult

WIDTH = 110
TOP = 5
FRONT = 10  # more of a Pareto front is said, not shown
REASONS = 5
_COLUMN = 24


def text(result: SearchResult) -> str:
    """Returns a result in short: counts, headline, the best trials, the reasons of failures, the time it took."""
    states = ", ".join(f"{n} {state}" for state, n in state_counts(result).items())
    names = line(", ".join(result.objective_names), WIDTH)
    lines = [f"{count(len(result.trials), 'trial')} ({states or 'none'}) of {names}"]
    if result.interrupted:
        lines.append("interrupted: the search was ended before its time")
    if result.ended_early:
        lines.append(f"ended early: {line(result.ended_early, WIDTH)}")
    if (copies := taken_over(result.trials)) is not None:
        lines.append(copies)
    lines += _headline(result)
    if len(result.completed) > 1:
        lines += ["", *_top(result)]
    if reasons := failures(result):
        lines += ["", "failed:"]
        for reason, numbers in list(reasons.items())[:REASONS]:
            lines.append(f"  {_numbers(numbers)}: {line(reason, WIDTH)}")
        if len(reasons) > REASONS:
            lines.append(f"  and {count(len(reasons) - REASONS, 'other reason')}")
    if took := total_time(result):
        spent = spent_on(result)
        lines += ["", f"time: {took}" + (f": {spent}" if spent else "")]
    return "\n".join(cut(item, WIDTH) for item in lines)


def _headline(result: SearchResult) -> list[str]:
    known = facts(result)
    best = [fact for fact in known if fact.record is not None]
    dropped = {id(fact) for fact in best[FRONT:]}
    rows = []
    for fact in known:
        if id(fact) not in dropped:
            trial = "" if fact.trial is None else f"trial {fact.trial}"
            rows.append([fact.name.lower(), _values(fact), trial, _note(fact)])
    if not best:
        rows.append(["best", "none: no trial was completed", "", ""])
    lines = aligned(rows)
    return [*lines, f"and {len(best) - FRONT} more on the Pareto front"] if dropped else lines


def _values(fact: Fact) -> str:
    stds = fact.stds or [None] * len(fact.values)
    pairs = zip(fact.values, stds, strict=True)
    texts = [NONE if v is None else f"{v!r}" if s is None else f"{v:.5g} ± {s:.2g}" for v, s in pairs]
    return ", ".join(texts) or NONE


def _note(fact: Fact) -> str:
    if fact.record is not None:
        return line(", ".join(f"{key}={shown(value)}" for key, value in fact.record.hyperparameters.items()), WIDTH)
    return fact.note if fact.name == "Confirmed" or not fact.values else ""


def _top(result: SearchResult) -> list[str]:
    """The best trials: by the objective, or for several objectives the first ones of the Pareto front."""
    if len(result.directions) == 1:
        sign = -1.0 if result.directions[0] == "maximize" else 1.0
        best = sorted(result.completed, key=lambda trial: (sign * trial.values[0], trial.number))[:TOP]
        title = f"best {len(best)} of {len(result.completed)} completed"
    else:
        best = result.best_trials[:TOP]
        title = f"{len(best)} of {len(result.best_trials)} on the Pareto front"
    names = union(trial.hyperparameters for trial in best)
    objectives = ["objective"] if len(result.directions) == 1 else result.objective_names
    rows = [["trial", *(line(name, _COLUMN) for name in objectives), "time", *(line(n, _COLUMN) for n in names)]]
    rows += [_row(trial, names, len(objectives)) for trial in best]
    fitting = len(rows[0])
    while fitting > 2 and any(columns(item) > WIDTH - 10 for item in aligned([row[:fitting] for row in rows])):
        fitting -= 1
    lines = aligned([row[:fitting] for row in rows])
    if left := len(rows[0]) - fitting:
        lines[0] += f"  (+{left} more)"
    return [f"{title}:", *lines]


def _row(trial: TrialRecord, names: Sequence[str], n: int) -> list[str]:
    values = [shown(value) for value in trial.values[:n]]
    values += [NONE] * (n - len(values))
    given: dict[str, Any] = trial.hyperparameters
    return [
        str(trial.number),
        *values,
        duration(trial.seconds),
        *(shown(given[name], _COLUMN) if name in given else NONE for name in names),
    ]


def _numbers(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"trial {listed}" if len(numbers) == 1 else f"{len(numbers)} trials ({listed})"


def columns(item: str) -> int:
    """Returns how many columns of a terminal a text takes: two for each wide character, none for combining ones."""
    if item.isascii():
        return len(item)
    return sum(_column(char) for char in item)


def _column(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(item: str, limit: int) -> str:
    """Returns a text that takes no more than ``limit`` columns; one that was cut ends in an ellipsis."""
    if columns(item) <= limit:
        return item
    kept, used = [], 0
    for char in item:
        used += _column(char)
        if used > limit - 1:
            break
        kept.append(char)
    return "".join(kept) + "…"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows of cells as lines in which the columns stand below each other, two spaces apart."""
    widths = [max(columns(row[k]) for row in rows) for k in range(len(rows[0]))] if rows else []
    padded = [[cell + " " * (w - columns(cell)) for cell, w in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join(cells).rstrip() for cells in padded]

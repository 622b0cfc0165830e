"""What a reader wants to know first: untrained, default, best and confirmed; counts, time, failures. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from st_hpo.report.words import count, duration, is_number, line

if TYPE_CHECKING:
    from st_hpo.records import TrialRecord
    from st_hpo.results import SearchResult

# The marks tell the states apart without colour: for text, for plotly's points, for its lines and bars
MARKS = {"completed": "●", "pruned": "▽", "failed": "✕", "running": "◌", "waiting": "○"}
SYMBOLS = {"completed": "circle", "pruned": "triangle-down-open", "failed": "x-thin-open", "running": "square-open"}
COLOURS = {"completed": "#3b7dd8", "pruned": "#c77d0a", "failed": "#d1495b", "running": "#7b8794"}
DASHES = {"completed": "solid", "pruned": "dash", "failed": "dot", "running": "dashdot"}
PATTERNS = {"completed": "", "pruned": "/", "failed": "x", "running": "."}


@dataclass
class Fact:
    """One line of the headline.

    Attributes:
        name: ``"Untrained"``, ``"Your arguments"``, ``"Best"`` or ``"Confirmed"``.
        values: One for each objective; None where there is none.
        stds: The standard deviation over the seeds, one for each objective; None where there is none.
        trial: The number of the trial, None for the first two.
        note: What more there is to say.
        record: The trial itself, for the best ones.
    """

    name: str
    values: list[float | None]
    stds: list[float | None] = field(default_factory=list)
    trial: int | None = None
    note: str = ""
    record: TrialRecord | None = None


def facts(result: SearchResult) -> list[Fact]:
    """Returns the headline; all of a Pareto front, one fact a trial."""
    found = []
    if result.baseline is not None:
        found.append(Fact("Untrained", _values(result.baseline.objective), note="the model before any training"))
    if result.default is not None:
        why = "trained with your arguments, unchanged"
        if result.default.objective is None:
            why = f"{result.default.state}: {line(result.default.error or 'no objective', 200)}"
        found.append(Fact("Your arguments", _values(result.default.objective), note=why))
    front = len(result.directions) > 1
    for best in result.best_trials:
        note = "on the Pareto front" if front else "the best of the search"
        found.append(Fact("Best", list(best.values), trial=best.number, note=note, record=best))
    confirmation = result.confirmation
    for place, trial in enumerate(confirmation.trials if confirmation is not None else []):
        if confirmation is not None and (front or place == 0):
            indices = range(len(confirmation.objective_names))
            data = "data that the search has not seen" if confirmation.held_out else "the data of the search"
            seeds = len(trial.of()) if confirmation.objective_names else 0
            note = f"mean over {count(seeds, 'seed')}, on {data}"
            means, stds = [trial.mean(k) for k in indices], [trial.std(k) for k in indices]
            found.append(Fact("Confirmed", means, stds, trial.number, note))
    return found


def _values(objective: float | Sequence[float] | None) -> list[float | None]:
    if objective is None:
        return []
    return list(objective) if isinstance(objective, Sequence) else [objective]


def gain(result: SearchResult, fact: Fact, index: int) -> tuple[str, float] | None:
    """How much better a fact's value is than that of the user's own arguments or, without these, of no training.

    Args:
        result: The search.
        fact: One of :func:`facts`, the best or the confirmed one.
        index: Which objective.

    Returns:
        What it is compared with and the difference, positive where it is better; None where nothing can be compared,
        as on other data.
    """
    if fact.trial is None or on_other_data(result, fact):
        return None
    for name, words in (("Your arguments", "with your arguments"), ("Untrained", "untrained")):
        for other in facts(result):
            if other.name == name and index < min(len(other.values), len(fact.values), len(result.directions)):
                a, b = fact.values[index], other.values[index]
                if a is not None and b is not None and is_number(a) and is_number(b):
                    return words, a - b if result.directions[index] == "maximize" else b - a
    return None


def on_other_data(result: SearchResult, fact: Fact) -> bool:
    """Whether a fact's values come from data that the search has not seen, so that they compare with no other."""
    return fact.name == "Confirmed" and result.confirmation is not None and result.confirmation.held_out


def state_counts(result: SearchResult) -> dict[str, int]:
    """Returns how many trials there are of each state; no state with none."""
    counts = {state: sum(trial.state == state for trial in result.trials) for state in MARKS}
    return {state: n for state, n in counts.items() if n}


def failures(result: SearchResult) -> dict[str, list[int]]:
    """Returns the numbers of the failed trials by their reasons, the most frequent reason first."""
    found: dict[str, list[int]] = {}
    for trial in result.trials:
        if trial.state == "failed":
            found.setdefault(trial.error or "no reason is known", []).append(trial.number)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def span(result: SearchResult) -> tuple[float, float] | None:
    """Returns when the first trial began and the last one ended, in seconds since 1970; None where that is unknown."""
    known = [
        (float(trial.started), float(trial.seconds or 0.0))
        for trial in result.trials
        if is_number(trial.started) and is_number(trial.seconds or 0.0)
    ]
    return (min(begin for begin, _ in known), max(begin + took for begin, took in known)) if known else None


def spent_on(result: SearchResult) -> str:
    """Returns what the time of the search was spent on, in per cent; ``""`` where the trials do not say."""
    spent = {what: seconds for what, seconds in result.time_spent.items() if is_number(seconds)}
    whole = sum(spent.values())
    if not whole > 0 or not any(trial.phases for trial in result.trials):
        return ""
    return ", ".join(f"{what} {seconds / whole:.0%}" for what, seconds in spent.items() if seconds / whole >= 0.005)


def total_time(result: SearchResult) -> str:
    """Returns how long the search took, and where trials ran beside each other, the time of all trials; or ``""``."""
    took = [trial.seconds for trial in result.trials if is_number(trial.seconds)]
    trials = sum(seconds for seconds in took if seconds is not None)
    around = span(result)
    if around is None:
        return f"{duration(trials)} in trials" if took else ""
    wall = around[1] - around[0]
    return duration(wall) + (f" ({duration(trials)} in trials)" if abs(trials - wall) > 0.1 * wall else "")

"""What a search is going to do, in words, and how much time it may still take. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from st_hpo.records import COMPLETED, TrialRecord
from st_hpo.report.words import count, duration
from st_hpo.rung_points import RungPoints
from st_hpo.stopping import Limits, trainings, trainings_done, trials_done


@dataclass
class Plan:
    """What a search is going to do.

    Attributes:
        n_trials: How many trials it runs at most.
        backend: The backend's name.
        limits: Its patience and its budget.
        timeout: Its timeout in seconds, None without one.
        concurrency: How many trials run at a time; None where only the backend knows.
        rungs: Where trials are compared during their training; None for nowhere.
        rung_evaluator: The evaluator of the rungs; None for the evaluation that gives the objective.
        in_total: Whether ``n_trials`` counts the trials of earlier searches and of other processes too.
    """

    n_trials: int
    backend: str
    limits: Limits
    timeout: float | None = None
    concurrency: int | None = 1
    rungs: RungPoints | None = None
    rung_evaluator: Any = None
    in_total: bool = False

    def lines(self, names: Sequence[str], directions: Sequence[str]) -> list[str]:
        """Returns what will be done.

        Args:
            names: Those of the objectives.
            directions: Theirs.
        """
        ends = []
        if self.limits.budget is not None:
            ends.append(f"after {trainings(self.limits.budget)}")
        if self.limits.patience is not None:
            ends.append(f"after {count(self.limits.patience, 'trial')} without a better objective")
        if self.timeout is not None:
            ends.append(f"after {duration(self.timeout)}")
        trials = ("at most " if ends or self.rungs else "") + count(self.n_trials, "trial")
        trials += f"{' in total' if self.in_total else ''} by {self.backend!r}"
        if self.concurrency is not None and self.concurrency > 1:
            trials += f", {self.concurrency} at a time"
        goals = ", ".join(f"{name} ({direction})" for name, direction in zip(names, directions, strict=True))
        lines = [f"Plan: {trials}; objective: {goals}"]
        if self.rungs is not None:
            evaluator = "the evaluator of the objective" if self.rung_evaluator is None else named(self.rung_evaluator)
            rungs = "one rung" if len(self.rungs.points) == 1 else f"{len(self.rungs.points)} rungs"
            lines.append(f"      {rungs} at {self.rungs}, with {evaluator}")
        if ends:
            lines.append(f"      ends before, {', or '.join(ends)}")
        return lines

    @property
    def counts_others(self) -> bool:
        """Whether what earlier searches and other processes have trained is a part of what this search is to train."""
        return self.in_total or self.limits.budget is not None

    def estimate(self, records: Sequence[TrialRecord], others: Sequence[TrialRecord] = ()) -> str | None:
        """Returns how much time the search may still take, None where nothing can be said.

        It is the mean time of a full training, measured on the completed trials of this search, times what is left.

        Args:
            records: The trials that this search has run.
            others: Those of earlier searches and of other processes, where they count.
        """
        completed = [record for record in records if record.state == COMPLETED and record.fraction]
        # One that has gone on from where another had paused has trained the rest only
        seconds = [item.seconds / item.fraction for item in completed if item.seconds and item.fraction]
        left = self.n_trials - trials_done([*others, *records] if self.in_total else records)
        if self.concurrency is None or not seconds or left <= 0 or self.limits.reason is not None:
            return None
        what, amount = count(left, "more trial"), float(left)
        if self.limits.budget is not None:
            unspent = max(0.0, self.limits.budget - trainings_done([*others, *records]))
            if unspent < amount:
                what, amount = f"the {unspent:.2g} full trainings that are left of the budget", unspent
        took = sum(seconds) / len(seconds) * amount / min(self.concurrency, max(1.0, amount))
        if self.timeout is not None:
            spent = sum(record.seconds or 0.0 for record in records) / self.concurrency
            took = min(took, max(0.0, self.timeout - spent))
        return f"About {duration(took)} for {what}, at most."


def named(evaluator: Any) -> str:
    """Returns an evaluator's class, and its name where it has one."""
    name = getattr(evaluator, "name", None)
    return type(evaluator).__name__ + (f" {name!r}" if isinstance(name, str) and name else "")

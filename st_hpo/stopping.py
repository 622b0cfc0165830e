"""When a search has enough, so that no new trial is begun: patience, a budget, a terminator. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from st_hpo.errors import ConfigurationError
from st_hpo.objective import Objective
from st_hpo.records import COMPLETED, FAILED, PRUNED, TrialRecord

DEFAULT_TRIALS = 20
# Where only a budget is given: more trials than it pays for, unless most of them fail or have been trained before
TRIALS_PER_TRAINING = 10


class Limits:
    """What ends a search between two trials. The trials that run then are trained to their end.

    Args:
        patience: So many trials in a row without a better objective end the search; None for no limit.
        budget: So many full trainings end the search; None for no limit.

    Attributes:
        reason: Why no new trial is to begin; None while the search goes on.

    Raises:
        ConfigurationError: One of them is no number that it can be.
    """

    def __init__(self, patience: Any = None, budget: Any = None) -> None:
        if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 1):
            raise ConfigurationError(
                f"`patience` must be a number of trials, an integer of at least 1, or None, but got {patience!r}."
            )
        is_number = isinstance(budget, int | float) and not isinstance(budget, bool)
        if budget is not None and not (is_number and math.isfinite(budget) and budget > 0):
            raise ConfigurationError(
                "`budget` must be a number of full trainings above 0, such as 6 or 2.5, or None for no limit, but "
                f"got {budget!r}."
            )
        self.patience: int | None = patience
        self.budget: float | None = budget
        self.reason: str | None = None

    def check(self, objective: Objective) -> None:
        """Refuses a patience for several objectives.

        Raises:
            ConfigurationError: There are several.
        """
        if self.patience is not None and objective.is_multi:
            raise ConfigurationError(
                f"`patience` waits for a better objective, but there are {len(objective.directions)} of them: one may "
                "be better and another worse. Leave it out; `budget`, `timeout` and `n_trials` work with any."
            )

    def trials(self, n_trials: Any) -> Any:
        """Returns how many trials there are at most.

        Args:
            n_trials: What the search was given. None means 20, or with a budget ten for each of its full trainings.
        """
        if n_trials is not None:
            return n_trials
        return DEFAULT_TRIALS if self.budget is None else max(1, math.ceil(TRIALS_PER_TRAINING * self.budget))

    def look(self, records: Callable[[], Sequence[TrialRecord]], objective: Objective) -> None:
        """Finds out whether it is enough; never before a trial is completed, for there would be no result.

        Args:
            records: Gives all trials of the search; of the whole study, where the backend knows of more.
            objective: What is optimized.
        """
        if self.reason is not None or (self.patience is None and self.budget is None):
            return
        known = records()
        if not any(record.state == COMPLETED for record in known):
            return  # the search would end without a result
        if self.budget is not None and trainings_done(known) >= self.budget - 1e-9:
            self.enough(f"the budget of {trainings(self.budget)} is used up")
        elif self.patience is not None and trials_since_better(known, objective) >= self.patience:
            count = "trial" if self.patience == 1 else f"{self.patience} trials in a row"
            self.enough(f"no better objective in {count} (patience)")

    def enough(self, reason: str) -> None:
        """Has no new trial begin; the first reason stays."""
        self.reason = self.reason or reason


def trainings(count: float) -> str:
    """Returns ``"1 full training"``, ``"2.5 full trainings"``."""
    return f"{count:g} full training" + ("" if count == 1 else "s")


def training_done(record: TrialRecord) -> float:
    """Returns the part of its training that a trial has done, from 0 to 1.

    Args:
        record: A trial; one of another program, whose fraction is not known, counts whole if it is completed.
    """
    if record.fraction is None:
        return 1.0 if record.state == COMPLETED else 0.0
    return record.fraction


def trainings_done(records: Sequence[TrialRecord]) -> float:
    """Returns how much the trials have trained, in full trainings."""
    return math.fsum(training_done(record) for record in records)


def trials_done(records: Sequence[TrialRecord]) -> int:
    """Returns how many trials have ended of those that ``n_trials`` counts.

    It counts neither a trial that takes up a paused one, nor one that was stopped with its search or has lost its
    process: that one is run again.

    Args:
        records: The trials.
    """
    own_end = [
        record.state in (COMPLETED, PRUNED)
        or (record.state == FAILED and not str(record.error).startswith(("lost:", "stopped:")))
        for record in records
        if record.continues is None
    ]
    return sum(own_end)


def trials_since_better(records: Sequence[TrialRecord], objective: Objective) -> int:
    """Returns how many trials have been completed or pruned since the one with the best objective.

    Trials count in the order in which they ended. Failed ones do not count.

    Args:
        records: The trials.
        objective: What is optimized, a single one.
    """
    ended = [record for record in records if record.state in (COMPLETED, PRUNED)]
    if all(record.started is not None and record.seconds is not None for record in ended):
        ended.sort(key=lambda record: (record.started or 0.0) + (record.seconds or 0.0))
    best, since = math.nan, 0
    for record in ended:
        since += 1
        if record.values and objective.is_better(record.values[0], best):
            best, since = record.values[0], 0
    return since

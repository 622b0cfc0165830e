"""Pruners by name, for the rungs of a search."""

from __future__ import annotations

import math
from typing import Any

from optuna.pruners import BasePruner

from st_hpo.rung_points import REDUCTION_FACTOR


class AshaPruner(BasePruner):
    """Asynchronous successive halving at the rungs of a search.

    A trial goes on if it is among the best ``1 / reduction_factor`` of all trials that have reached the same rung so
    far (L. Li et al.: *A System for Massively Parallel Hyperparameter Tuning*, MLSys 2020, algorithm 2). While fewer
    than ``reduction_factor`` trials have reached it, the best of them goes on, as in Optuna's
    ``SuccessiveHalvingPruner``. That one has rungs of its own, each ``reduction_factor`` times as far as the one
    before; this one takes those of the search as they are.

    Args:
        reduction_factor: One of how many trials goes on, at least 2.
        n_startup_trials: So many trials that have reached a rung go on in any case.

    Raises:
        ValueError: One of them is less than it can be.
    """

    def __init__(self, reduction_factor: int = REDUCTION_FACTOR, n_startup_trials: int = 0) -> None:
        if reduction_factor < 2:
            raise ValueError(f"`reduction_factor` must be at least 2, but got {reduction_factor!r}.")
        if n_startup_trials < 0:
            raise ValueError(f"`n_startup_trials` must be at least 0, but got {n_startup_trials!r}.")
        self._reduction_factor = reduction_factor
        self._n_startup_trials = n_startup_trials

    def prune(self, study: Any, trial: Any) -> bool:
        """Whether the trial ends at the rung that it has reached last."""
        rung = trial.last_step
        if rung is None:
            return False
        value = trial.intermediate_values[rung]
        if math.isnan(value):
            return True
        others = [
            other.intermediate_values[rung]
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and rung in other.intermediate_values
        ]
        reached = [other for other in others if not math.isnan(other)]
        if len(reached) < self._n_startup_trials:
            return False
        maximize = study.direction.name == "MAXIMIZE"
        better = sum(other > value if maximize else other < value for other in reached)
        return bool(better >= max(1, (len(reached) + 1) // self._reduction_factor))


def make_pruner(given: Any, rungs: list[int]) -> BasePruner:
    """Returns the pruner of a search.

    Args:
        given: A name, an Optuna pruner, or None for a search that prunes nothing.
        rungs: What trials report as their steps; empty where they report whenever they evaluate.
    """
    import optuna

    if given is None:
        return optuna.pruners.NopPruner()
    if not isinstance(given, str):
        return given  # type: ignore[no-any-return]
    if given == "asha":
        return AshaPruner()
    if given == "median":
        return optuna.pruners.MedianPruner()
    first = rungs[0] if rungs else 1
    # In examples there is no end that all trials have in common, so the last rung is that of the longest trials
    last = 100 if not rungs or rungs[-1] < 100 else rungs[-1]
    return optuna.pruners.HyperbandPruner(first, last, REDUCTION_FACTOR)

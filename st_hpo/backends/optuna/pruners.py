"""Pruners by name, for the rungs of a search."""

from __future__ import annotations

import math
from typing import Any

from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from st_hpo.backends.optuna.promotion import ended_in_vain, loss_at, promoted_numbers
from st_hpo.errors import ConfigurationError
from st_hpo.rung_points import PAUSED_CHECKPOINTS, PAUSING_FACTOR, REDUCTION_FACTOR


class AshaPruner(BasePruner):
    """Asynchronous successive halving at the rungs of a search.

    L. Li et al.: *A System for Massively Parallel Hyperparameter Tuning*, MLSys 2020, algorithm 2. A trial goes on
    from a rung if it is among the best ``1 / reduction_factor`` of all trials that have reached the same rung.
    Optuna's ``SuccessiveHalvingPruner`` has rungs of its own, each ``reduction_factor`` times as far as the one
    before, and what it has ended does not come back; this one takes the rungs of the search as they are.

    Args:
        reduction_factor: One of how many trials goes on, at least 2.
        pauses: Whether the search takes up a trial again that was not among the best when it reached the rung, and is
            later. Then every trial pauses while fewer than ``reduction_factor`` have reached its rung. Otherwise the
            best of these goes on, as with Optuna's pruner: the first trial in any case.
        keep: How many of the trials that wait at a rung, the best of them, keep a checkpoint to go on from: the
            model's weights, and what the optimizer has of each of them. 0 for none: what is taken up again is trained
            from its beginning.

    Raises:
        ValueError: ``reduction_factor`` is not an integer of at least 2, or ``keep`` not one of at least 0.
    """

    def __init__(
        self, reduction_factor: int = REDUCTION_FACTOR, pauses: bool = False, keep: int = PAUSED_CHECKPOINTS
    ) -> None:
        for name, number, least in (("reduction_factor", reduction_factor, 2), ("keep", keep, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"`{name}` must be an integer of at least {least}, but got {number!r}.")
        self._reduction_factor = reduction_factor
        self.pauses = pauses
        self.keep = keep

    def prune(self, study: Any, trial: FrozenTrial) -> bool:
        """Whether the trial ends, or pauses, at the rung that it has reached last."""
        rung = trial.last_step
        if rung is None:
            return False
        value = trial.intermediate_values[rung]
        if math.isnan(value):
            return True
        others = [other for other in _reached(study, rung) if other.number != trial.number]
        better = sum(loss_at(study, other, rung) < loss_at(study, trial, rung) for other in others)
        return better >= self._places(len(others) + 1, not self.pauses)

    def promotable(self, study: Any, last: bool) -> FrozenTrial | None:
        """Returns a paused trial that is to go on now, the best of the highest rung; None if there is none.

        Args:
            study: The study.
            last: Whether no other trial will come, so that the best one of each rung goes on in any case: of those
                that can still come to their end.
        """
        trials = study.get_trials(deepcopy=False)
        promoted = promoted_numbers(trials)
        gone = ended_in_vain(trials) if last else set()
        rungs = {rung for trial in trials for rung in trial.intermediate_values}
        for rung in sorted(rungs, reverse=True):
            there = [trial for trial in _reached(study, rung) if trial.number not in gone]
            reached = sorted(there, key=lambda trial: (loss_at(study, trial, rung), trial.number))
            for trial in reached[: self._places(len(reached), last)]:
                paused = trial.state == TrialState.PRUNED and trial.last_step == rung
                if paused and trial.number not in promoted:
                    return trial  # type: ignore[no-any-return]
        return None

    def _places(self, reached: int, at_least_one: bool) -> int:
        return max(int(at_least_one), reached // self._reduction_factor)


def _reached(study: Any, rung: int) -> list[Any]:
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if not math.isnan(trial.intermediate_values.get(rung, math.nan))
    ]


def make_pruner(given: Any, rungs: list[int], pauses: bool) -> BasePruner:
    """Returns the pruner of a search.

    Args:
        given: A name, an Optuna pruner, or None for a search that prunes nothing.
        rungs: What trials report as their steps; empty where they report whenever they evaluate.
        pauses: Whether the search can take up trials again.

    Raises:
        ConfigurationError: The pruner pauses trials, but there are no rungs.
    """
    import optuna

    if given is None:
        return optuna.pruners.NopPruner()
    if not isinstance(given, str):
        if isinstance(given, AshaPruner) and given.pauses and not rungs:
            raise ConfigurationError(
                "AshaPruner(pauses=True) takes trials up again at rungs, but there are none: rungs='evaluations' are "
                "the training's own. Leave `rungs` out, or `pauses`."
            )
        return given  # type: ignore[no-any-return]
    if given == "asha":
        return AshaPruner(PAUSING_FACTOR if pauses else REDUCTION_FACTOR, pauses)
    if given == "median":
        return optuna.pruners.MedianPruner()
    first = rungs[0] if rungs else 1
    # In examples there is no end that all trials have in common, so the last rung is that of the longest trials
    last = 100 if not rungs or rungs[-1] < 100 else rungs[-1]
    return optuna.pruners.HyperbandPruner(first, last, REDUCTION_FACTOR)

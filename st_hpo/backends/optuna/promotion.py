"""Trials that a pruner has paused at a rung, and that are taken up again when they are among the best of it later.

Imports optuna: for the use of the backend's own functions only.
"""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial, TrialState

PROMOTED_ATTRIBUTE = "st_hpo:promoted"  # which trial this one takes up again, and the rung that that one has reached


def is_promoted(trial: Any) -> bool:
    """Whether a trial takes up an earlier one; such a trial is none of the ``n_trials``."""
    return PROMOTED_ATTRIBUTE in trial.user_attrs


def continued_number(trial: Any) -> int | None:
    """Returns the number of the trial that this one takes up; None if it takes up none."""
    number: int | None = trial.user_attrs.get(PROMOTED_ATTRIBUTE, {}).get("of")
    return number


def promoted_numbers(trials: list[FrozenTrial]) -> set[int]:
    """Returns the numbers of the trials that were taken up again."""
    return {trial.user_attrs[PROMOTED_ATTRIBUTE]["of"] for trial in trials if is_promoted(trial)}


def ended_in_vain(trials: list[FrozenTrial]) -> set[int]:
    """Returns the numbers of the trials that have failed, or all of which was in vain that has taken them up."""
    taken_up: dict[int, list[int]] = {}
    found: set[int] = set()
    for trial in reversed(trials):  # what takes up a trial comes after it
        failed = trial.state == TrialState.FAIL
        pruned_at_no_rung = trial.state == TrialState.PRUNED and not trial.intermediate_values
        later = taken_up.get(trial.number, [])
        if failed or pruned_at_no_rung or (later and found.issuperset(later)):
            found.add(trial.number)
        if is_promoted(trial):
            taken_up.setdefault(trial.user_attrs[PROMOTED_ATTRIBUTE]["of"], []).append(trial.number)
    return found


def promotion_of(trial: FrozenTrial) -> dict[str, Any]:
    """Returns the user attribute of the trial that takes up this one."""
    return {PROMOTED_ATTRIBUTE: {"of": trial.number, "rung": trial.last_step}}


def loss_at(study: Any, trial: FrozenTrial, rung: int) -> float:
    """Returns a trial's value at a rung, less being better."""
    value = trial.intermediate_values[rung]
    return -value if study.direction.name == "MAXIMIZE" else value


class Reporter:
    """Reports a trial's intermediate objectives to its study.

    Args:
        trial: Optuna's trial.

    Attributes:
        reached: The rung up to which an earlier trial of the same values has come, 0 for none. It need not be
            evaluated again: the same training gives the same number.
    """

    def __init__(self, trial: Any) -> None:
        self._trial = trial
        self.reached: int = trial.user_attrs.get(PROMOTED_ATTRIBUTE, {}).get("rung", 0)

    def __call__(self, value: float, step: int) -> bool:
        """Reports a value, and says whether the trial is to be pruned."""
        self._trial.report(value, step)
        return bool(self._trial.should_prune())

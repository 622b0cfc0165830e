"""What st_hpo keeps with a study and its trials, and how it is read back. All of it is JSON; nothing is unpickled.

Imports optuna: for the use of the backend's own functions only.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from st_hpo.errors import ConfigurationError
from st_hpo.records import COMPLETED, FAILED, PRUNED, RUNNING, WAITING, TrialRecord
from st_hpo.space import SearchSpace

OBJECTIVE_ATTRIBUTE = "st_hpo:objective"
RECORD_ATTRIBUTE = "st_hpo:record"
WORKER_ATTRIBUTE = "st_hpo:worker"  # which process runs the trial, and its last sign of life
ENDED_ATTRIBUTE = "st_hpo:ended"  # how a failed trial ended that says nothing of its hyperparameters
RETRY_ATTRIBUTE = "st_hpo:retry"  # of which trial this one is a retry, and how often it has been tried
# MySQL keeps no more than 65,535 bytes in one attribute, where quotation marks and backslashes take two
_PIECE = 30_000
LOST, STOPPED, SURPLUS = "lost", "stopped", "surplus"
_STATES = {
    TrialState.COMPLETE: COMPLETED,
    TrialState.PRUNED: PRUNED,
    TrialState.FAIL: FAILED,
    TrialState.RUNNING: RUNNING,
    TrialState.WAITING: WAITING,
}


def ended(trial: FrozenTrial) -> dict[str, Any]:
    """Returns what a failed trial's attribute says of its end; nothing for one that ended by itself."""
    found: dict[str, Any] = trial.user_attrs.get(ENDED_ATTRIBUTE, {}) if trial.state == TrialState.FAIL else {}
    return found


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the finished ones that ``n_trials`` counts."""
    return trial.state.is_finished() and bool(ended(trial).get("counts", True))


def retried_numbers(trials: list[FrozenTrial]) -> set[int]:
    """Returns the numbers of the trials that others are retries of."""
    return {trial.user_attrs[RETRY_ATTRIBUTE]["of"] for trial in trials if RETRY_ATTRIBUTE in trial.user_attrs}


def record_attributes(record: TrialRecord) -> dict[str, str]:
    """Returns the user attributes that keep a record: text, in several pieces where it is long.

    A thousand nested dicts would be walked by every garbage collection.
    """
    text = json.dumps(record.to_dict())
    pieces = [text[begin : begin + _PIECE] for begin in range(0, len(text), _PIECE)]
    return {f"{RECORD_ATTRIBUTE}:{index}" if index else RECORD_ATTRIBUTE: piece for index, piece in enumerate(pieces)}


def _stored_record(attributes: dict[str, Any]) -> TrialRecord | None:
    if (text := attributes.get(RECORD_ATTRIBUTE)) is None:
        return None
    count = 1
    while (piece := attributes.get(f"{RECORD_ATTRIBUTE}:{count}")) is not None:
        text, count = text + piece, count + 1
    # Whatever comes after it is left of a longer one that was there before
    return TrialRecord.from_dict(json.JSONDecoder().raw_decode(text)[0])


def record_from(trial: FrozenTrial, space: Any) -> TrialRecord | None:
    """Returns the record that a process left with its trial; as much as the trial says, if there is none.

    Args:
        trial: Optuna's trial.
        space: The search space.

    Returns:
        The record; None for a trial that was one too many and has not run.
    """
    end = ended(trial)
    if end.get("why") == SURPLUS:
        return None
    if trial.state.is_finished() and (stored := _stored_record(trial.user_attrs)) is not None:
        return stored
    state = _STATES[trial.state]
    values = trial.values if state == COMPLETED else None
    hyperparameters = dict(trial.params)
    if isinstance(space, SearchSpace):
        with contextlib.suppress(Exception):  # a trial of another program, with another space
            hyperparameters.update(space.decode({name: trial.params[name] for name in space}))
    return TrialRecord(
        number=trial.number,
        state=state,
        objective=None if values is None else (values[0] if len(values) == 1 else list(values)),
        hyperparameters=hyperparameters,
        seconds=trial.duration.total_seconds() if trial.duration is not None else None,
        error=end.get("error"),
    )


def check_continued(study: Any, directions: list[str], names: list[str]) -> None:
    """Refuses to continue a study that optimizes something else: its values would be mixed with others.

    Optuna itself takes no notice of the directions when it loads a study.

    Args:
        study: The study.
        directions: Those of the search.
        names: The metric keys that it optimizes; empty where they are not known yet.

    Raises:
        ConfigurationError: It is another objective, or another direction.
    """
    earlier = [direction.name.lower() for direction in study.directions]
    if earlier != directions:
        raise ConfigurationError(
            f"The study {study.study_name!r} exists and optimizes in the direction(s) {earlier}, this search in "
            f"{directions}. Choose another `study_name`, or the same direction."
        )
    stored = study.user_attrs.get(OBJECTIVE_ATTRIBUTE)
    if not names:
        return
    if stored is not None and stored != names:
        raise ConfigurationError(
            f"The study {study.study_name!r} exists and optimizes {stored}, this search {names}. Choose another "
            "`study_name`, or the same objective."
        )
    if stored is None:
        study.set_user_attr(OBJECTIVE_ATTRIBUTE, names)

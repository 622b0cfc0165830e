"""The points that a study begins with: tried out beforehand, enqueued once, and given to one trial each.

Imports optuna: for the use of the backend's own functions only.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial

from st_hpo.backends.optuna.records import ENDED_ATTRIBUTE, SURPLUS, WORKER_ATTRIBUTE
from st_hpo.errors import ConfigurationError, HyperparameterValueError
from st_hpo.points import labelled
from st_hpo.space import SearchSpace

POINT_ATTRIBUTE = "st_hpo:point"  # which point of `enqueue` the trial is of


def names_never_asked(hp_space: Callable[[Any], Any], point: Mapping[str, Any], where: str) -> list[str]:
    """Calls a function of the trial once with a point, in a study of its own; what the point leaves open is random.

    Args:
        hp_space: The function.
        point: The point.
        where: Which point it is, for messages.

    Returns:
        The names in the point that the function has not asked for.

    Raises:
        ConfigurationError: A value that the function does not allow.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(dict(point))
    trial = study.ask()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "out of range": an error below
            hp_space(trial)
    except optuna.TrialPruned:
        return []
    except ValueError as exc:  # what Optuna says of a choice that there is not, before the trial has its choices
        _check_values(trial, point, where)
        raise ConfigurationError(f"`hp_space` fails with `{where}` = {dict(point)!r}: {exc}") from exc
    _check_values(trial, point, where)
    return [name for name in point if name not in trial.params]


def _check_values(trial: Any, point: Mapping[str, Any], where: str) -> None:
    for name, distribution in trial.distributions.items():
        if name in point:
            try:
                create_trial(params={name: point[name]}, distributions={name: distribution}, value=0.0)
            except ValueError:
                why = f"See `{where}`."
                raise HyperparameterValueError(name, point[name], f"one of {distribution}", why) from None


def enqueue(study: Any, points: list[dict[str, Any]], space: Any, interval: float) -> None:
    """Has the next trials of a study begin with points, except those that it has had, or is about to have.

    Args:
        study: The study.
        points: The points.
        space: The search space.
        interval: Seconds between two signs of life of whoever takes one.
    """
    there = {trial.user_attrs.get(POINT_ATTRIBUTE) for trial in study.get_trials(deepcopy=False)}
    for point in points:
        if (text := json.dumps(point, sort_keys=True)) not in there:
            attributes = {POINT_ATTRIBUTE: text, WORKER_ATTRIBUTE: {"id": uuid.uuid4().hex, "interval": interval}}
            values = labelled(space, point) if isinstance(space, SearchSpace) else point
            study.enqueue_trial(values, user_attrs=attributes)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if _is_repeated(study, trial):
            _end(study, trial)


def pop_waiting_trial_id(study: Any) -> Any:
    """Makes a waiting trial this process's own, unless it is of a point that an earlier one is of.

    Several processes that begin at the same time may all have enqueued their points. Which trial of a point is the
    earliest is the same for all of them, since the storage numbers trials in the order in which they are made.

    Returns:
        Its id; None where none is waiting.
    """
    while (trial_id := study._pop_waiting_trial_id()) is not None:
        trial = study._storage.get_trial(trial_id)
        if not _is_repeated(study, trial):
            return trial_id
        _end(study, trial)
    return None


def _is_repeated(study: Any, trial: Any) -> bool:
    text = trial.user_attrs.get(POINT_ATTRIBUTE)
    return text is not None and any(
        other.number < trial.number and other.user_attrs.get(POINT_ATTRIBUTE) == text
        for other in study.get_trials(deepcopy=False)
    )


def _end(study: Any, trial: Any) -> None:
    try:
        end = {"why": SURPLUS, "counts": False, "retried": False}
        study._storage.set_trial_user_attr(trial._trial_id, ENDED_ATTRIBUTE, end)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        pass  # by another process, for the same reason

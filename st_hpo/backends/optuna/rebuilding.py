"""A saved result as a study in memory, for programs that show studies.

Imports optuna: for the use of whoever shows studies only.
"""

from __future__ import annotations

import datetime
import json
import math
import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from st_hpo.backends.optuna.records import OBJECTIVE_ATTRIBUTE, record_attributes
from st_hpo.records import COMPLETED, FAILED, PRUNED, RUNNING, WAITING, TrialRecord
from st_hpo.results import SearchResult
from st_hpo.space import Categorical

_STATES = {
    COMPLETED: TrialState.COMPLETE,
    PRUNED: TrialState.PRUNED,
    FAILED: TrialState.FAIL,
    RUNNING: TrialState.RUNNING,
    WAITING: TrialState.WAITING,
}


def rebuilt_study(result: SearchResult, name: str) -> optuna.Study:
    """Returns a study with the trials of a result: their values, metrics, learning curves and times.

    Args:
        result: The result of a search with any backend.
        name: The name of the study.

    Returns:
        A study in memory. Its trials are numbered anew where the search has left out a number.
    """
    storage = InMemoryStorage()
    study_id = storage.create_new_study([_direction(text) for text in result.directions], name)
    storage.set_study_user_attr(study_id, OBJECTIVE_ATTRIBUTE, list(result.objective_names))
    study = optuna.load_study(study_name=name, storage=storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(result.objective_names))
    names = dict.fromkeys(name for trial in result.trials for name in trial.hyperparameters)
    columns = {name: _Column(name, result) for name in names}
    study.add_trials([_trial(record, result, columns) for record in result.trials])
    return study


class _Column:
    """The values of one hyperparameter as Optuna knows them: Optuna has no lists and dicts, and one type a name."""

    def __init__(self, name: str, result: SearchResult) -> None:
        values = [trial.hyperparameters[name] for trial in result.trials if name in trial.hyperparameters]
        self.distribution: BaseDistribution
        self._labels: dict[str, Any] | None = None
        kinds = {type(value) for value in values}
        if kinds <= {int, float} and all(math.isfinite(value) and abs(value) < 2**53 for value in values):
            kind = IntDistribution if kinds == {int} else FloatDistribution
            log = "log=True" in result.space.get(name, "") and min(values) > 0
            self.distribution = kind(min(values), max(values), log=log)
        else:
            distinct = {_text(value): value for value in values}
            self._labels = dict(zip(distinct, _labels(list(distinct.values())), strict=True))
            self.distribution = CategoricalDistribution(list(self._labels.values()))

    def label(self, value: Any) -> Any:
        return value if self._labels is None else self._labels[_text(value)]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _labels(values: list[Any]) -> list[Any]:
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        return [_text(value) for value in values]  # NaN is not equal to itself
    return list(Categorical(values).labels())


def _trial(record: TrialRecord, result: SearchResult, columns: dict[str, _Column]) -> FrozenTrial:
    state = _STATES[record.state]
    values = record.values if state == TrialState.COMPLETE else []
    if state == TrialState.COMPLETE and (len(values) != len(result.directions) or any(map(math.isnan, values))):
        state, values = TrialState.FAIL, []
    trial = create_trial(
        state=state,
        values=values or None,
        params={name: columns[name].label(value) for name, value in record.hyperparameters.items()},
        distributions={name: columns[name].distribution for name in record.hyperparameters},
        user_attrs=dict(record_attributes(record)),
        intermediate_values=_curve(record, result.objective_names),
    )
    start = datetime.datetime.fromtimestamp(record.started) if record.started is not None else None
    trial.datetime_start = start or (trial.datetime_start if state != TrialState.WAITING else None)
    if state.is_finished() and trial.datetime_start is not None:
        trial.datetime_complete = trial.datetime_start + datetime.timedelta(seconds=record.seconds or 0.0)
    return trial


def _curve(record: TrialRecord, names: list[str]) -> dict[int, float]:
    """The learning curve of the only objective: Optuna has none for several."""
    if len(names) != 1:
        return {}
    found = {item["step"]: item["metrics"].get(names[0]) for item in record.evaluations}
    return {step: value for step, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}


def _direction(text: str) -> optuna.study.StudyDirection:
    return optuna.study.StudyDirection[text.upper()]

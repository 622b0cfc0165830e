"""A result as an Optuna study in memory, of whatever backend it comes, for Optuna's plots and importances."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from st_hpo.jsonable import to_jsonable
from st_hpo.report.words import is_number, label, shown
from st_hpo.tables import union

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

    from st_hpo.records import TrialRecord
    from st_hpo.results import SearchResult

LOG_DECADES = 2.0
_CHOICE = 20  # characters of a choice's label


@dataclass
class Parameter:
    """One hyperparameter as plots show it.

    Attributes:
        name: Its name.
        label: The name as plotly may show it: short, without mark-up, unlike every other label.
        numeric: Whether its values are numbers on an axis, not choices.
        log: Whether the axis is logarithmic.
        values: The values of each trial that has it, by the trial's number: numbers, or the labels of choices.
        choices: The labels of all choices, in their order; empty for numbers.
    """

    name: str
    label: str
    numeric: bool
    log: bool
    values: dict[int, Any] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)

    @property
    def varies(self) -> bool:
        """Whether there are two different values."""
        return len(set(self.values.values())) > 1


def drawable(result: SearchResult) -> list[TrialRecord]:
    """Returns the completed trials whose objectives are all there, finite, and of a size that can be drawn."""
    n = len(result.directions)
    return [t for t in result.completed if len(t.values) == n and all(_fits(value) for value in t.values)]


def _fits(value: Any) -> bool:
    return is_number(value) and abs(value) < 1e150


def parameters(result: SearchResult, trials: Sequence[TrialRecord] | None = None) -> list[Parameter]:
    """Returns the hyperparameters of the trials, with their kinds inferred from the values.

    Args:
        result: The search. Where its ``space`` says that a hyperparameter is a choice, numbers are choices too.
        trials: Which trials; all where none are given.
    """
    trials = result.trials if trials is None else trials
    names = union(trial.hyperparameters for trial in trials)
    labels = unique([label(name) for name in names])
    return [_parameter(name, text, result, trials) for name, text in zip(names, labels, strict=True)]


def _parameter(name: str, text: str, result: SearchResult, trials: Sequence[TrialRecord]) -> Parameter:
    given = {t.number: t.hyperparameters[name] for t in trials if name in t.hyperparameters}
    values = list(given.values())
    domain = result.space.get(name, "")
    if not domain.startswith("Categorical") and values and all(_on_an_axis(value) for value in values):
        low, high = float(min(values)), float(max(values))
        if math.isfinite(high - low):
            floats = any(type(value) is float for value in values)
            wide = floats and low > 0 and math.log10(high) - math.log10(low) > LOG_DECADES
            log = low > 0 and (wide or "log=True" in domain)
            return Parameter(name, text, True, log, given)
    keys = {number: _key(value) for number, value in given.items()}
    first = {key: given[number] for number, key in reversed(keys.items())}
    ordered = sorted(first, key=lambda key: _order(first[key]))
    shorts = unique([label(shown(first[key]), _CHOICE) for key in ordered])
    names_of = dict(zip(ordered, shorts, strict=True))
    return Parameter(name, text, False, False, {number: names_of[key] for number, key in keys.items()}, shorts)


def _on_an_axis(value: Any) -> bool:
    return is_number(value) and abs(value) <= 2**53


def _key(value: Any) -> str:
    return f"{type(value).__name__} {json.dumps(to_jsonable(value), sort_keys=True, default=str)}"[:10_000]


def _order(value: Any) -> tuple[int, float, str]:
    if type(value) in (bool, int, float) and abs(value) <= 2**53:
        return 0, float(value), ""
    return 1, 0.0, shown(value)


def unique(labels: Sequence[str]) -> list[str]:
    """Returns labels that all differ: equal ones get a number."""
    seen: set[str] = set()
    found = []
    for item in labels:
        text, n = item or "(empty)", 2
        while text in seen:
            text, n = f"{item} #{n}", n + 1
        seen.add(text)
        found.append(text)
    return found


def distribution(parameter: Parameter) -> BaseDistribution:
    """Returns Optuna's distribution that holds all values of a hyperparameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values = list(parameter.values.values())
    if not parameter.numeric:
        return CategoricalDistribution(tuple(parameter.choices))
    if all(type(value) is int for value in values):
        return IntDistribution(min(values), max(values), log=parameter.log)
    return FloatDistribution(float(min(values)), float(max(values)), log=parameter.log)


def to_study(result: SearchResult, trials: Sequence[TrialRecord] | None = None) -> Study:
    """Returns completed trials as a study.

    A study numbers its trials from 0 without a gap, so its numbers may differ from those of the result. Its
    hyperparameters have the labels of :func:`parameters`, so that no name or value can be taken for mark-up.

    Args:
        result: The search.
        trials: Which of its :func:`drawable` trials; all of them where none are given.
    """
    import optuna
    from optuna.study import StudyDirection
    from optuna.trial import create_trial

    chosen = drawable(result) if trials is None else trials
    known = parameters(result, chosen)
    domains = {item.label: distribution(item) for item in known}
    with quiet():
        study = optuna.create_study(directions=[StudyDirection[way.upper()] for way in result.directions])
        for trial in chosen:
            values = {item.label: item.values[trial.number] for item in known if trial.number in item.values}
            used = {text: domains[text] for text in values}
            study.add_trial(create_trial(values=trial.values, params=values, distributions=used))
    return study


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna says nothing meanwhile."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)

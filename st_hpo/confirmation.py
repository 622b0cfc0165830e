"""The best trials of a search, trained again with several seeds: means, their uncertainty, and the ranking by them.

A search takes the highest of many numbers, each of which holds some luck: of the seed, and of the evaluation data. So
the best trial's objective overstates what its hyperparameters give. Training the best few again over several seeds,
and evaluating them on data that the search has not seen, gives a number to report. Pure Python and SciPy.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from st_hpo.jsonable import from_jsonable, to_jsonable


@dataclass
class ConfirmedTrial:
    """One configuration, trained with several seeds.

    Attributes:
        number: The number of the search's trial.
        searched: The objectives that the search reported for it, one for each name.
        hyperparameters: Its values.
        seeds: The seeds it was trained with.
        values: The objectives of each seed's training, one list a seed in the order of ``seeds``; None where that
            training failed.
        metrics: All metrics of each seed's training, in the same order.
        errors: What ended the training of a seed, None where nothing did.
    """

    number: int
    searched: list[float]
    hyperparameters: dict[str, Any]
    seeds: list[int] = field(default_factory=list)
    values: list[list[float] | None] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)

    def of(self, index: int = 0) -> list[float]:
        """The values of one objective over the seeds that gave one."""
        return [values[index] for values in self.values if values is not None]

    def mean(self, index: int = 0) -> float | None:
        """The mean of an objective over the seeds; None where no training gave one."""
        found = self.of(index)
        return statistics.fmean(found) if found else None

    def std(self, index: int = 0) -> float | None:
        """The sample standard deviation (n - 1) of an objective over the seeds; None for fewer than two values."""
        found = self.of(index)
        return statistics.stdev(found) if len(found) > 1 else None

    def interval(self, index: int = 0, confidence: float = 0.95) -> tuple[float, float] | None:
        """Student's confidence interval of the mean; None for fewer than two values."""
        return student_interval(self.of(index), confidence)


@dataclass
class Confirmation:
    """The best trials over several seeds, best mean first.

    Attributes:
        objective_names: The metric keys.
        directions: ``"minimize"`` or ``"maximize"``, one for each.
        held_out: Whether they were evaluated with a ``test_evaluator`` of their own.
        trials: One for each configuration; for one objective in the order of their means, otherwise in that of the
            search.
    """

    objective_names: list[str]
    directions: list[str]
    held_out: bool
    trials: list[ConfirmedTrial]

    @classmethod
    def ranked(
        cls, objective_names: list[str], directions: list[str], held_out: bool, trials: list[ConfirmedTrial]
    ) -> Confirmation:
        """Returns a confirmation with its trials in order: those without any value last."""
        if len(directions) == 1:
            sign = -1.0 if directions[0] == "maximize" else 1.0
            means = {id(trial): trial.mean() for trial in trials}

            def rank(trial: ConfirmedTrial) -> tuple[bool, float]:
                mean = means[id(trial)]
                return mean is None, sign * (mean or 0.0)

            trials = sorted(trials, key=rank)
        return cls(objective_names, directions, held_out, trials)

    def difference(self, trial: ConfirmedTrial, confidence: float = 0.95) -> tuple[float, float] | None:
        """How far the first configuration is ahead of ``trial``, seed by seed: a paired Student's interval.

        Args:
            trial: One of :attr:`trials`.
            confidence: The confidence of the interval.

        Returns:
            Its ends, positive where the first one is better; None for fewer than two seeds in common.
        """
        sign = 1.0 if self.directions[0] == "maximize" else -1.0
        first = dict(zip(self.trials[0].seeds, self.trials[0].values, strict=True))
        pairs = [(first.get(seed), values) for seed, values in zip(trial.seeds, trial.values, strict=True)]
        return student_interval(
            [sign * (a[0] - b[0]) for a, b in pairs if a is not None and b is not None], confidence
        )

    def is_separated(self, trial: ConfirmedTrial, confidence: float = 0.95) -> bool:
        """Whether the seeds tell ``trial`` from the first configuration: zero is outside of :meth:`difference`."""
        found = self.difference(trial, confidence)
        return found is not None and (found[0] > 0 or found[1] < 0)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that JSON can hold."""
        return {key: to_jsonable(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Confirmation:
        """Returns what :meth:`to_dict` was made from."""
        known = {
            key: from_jsonable(value) for key, value in data.items() if key in {item.name for item in fields(cls)}
        }
        return cls(**{**known, "trials": [ConfirmedTrial(**trial) for trial in known["trials"]]})

    def __str__(self) -> str:
        lines = []
        for index, name in enumerate(self.objective_names):
            lines.append(f"{name} over {len(self.trials[0].seeds) if self.trials else 0} seeds:")
            for trial in self.trials:
                mean, std = trial.mean(index), trial.std(index)
                text = "no value" if mean is None else f"{mean:.4f}" + ("" if std is None else f" ± {std:.4f}")
                tie = index == 0 and trial is not self.trials[0] and not self.is_separated(trial)
                lines.append(
                    f"  trial {trial.number}: {text} (searched: {trial.searched[index]:.4f})"
                    + (" not told from the first" if tie else "")
                )
        return "\n".join(lines)


def student_interval(values: list[float], confidence: float) -> tuple[float, float] | None:
    """Student's confidence interval of a mean (Student, "The probable error of a mean", Biometrika 1908).

    Args:
        values: The sample.
        confidence: Between 0 and 1.

    Returns:
        Its ends; None for fewer than two values.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return mean - half, mean + half

"""What a search leaves: records, baseline, best; as a table, and as JSON without loss. Pure Python."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from st_hpo.confirmation import Confirmation
from st_hpo.errors import ConfigurationError
from st_hpo.files import write_whole
from st_hpo.jsonable import from_jsonable, to_jsonable
from st_hpo.records import COMPLETED, Baseline, TrialRecord, time_spent
from st_hpo.tables import one_type, rows

FORMAT_VERSION = 1


@dataclass
class SearchResult:
    """Everything that a search found, also where it ended early.

    Attributes:
        trials: One record a trial, in the order of their numbers.
        objective_names: The metric keys that were optimized.
        directions: ``"minimize"`` or ``"maximize"``, one for each objective.
        backend: The backend's name.
        baseline: The untrained model's evaluation, None where it was switched off.
        default: The training with the user's own arguments, unchanged (``default_trial=True``); not one of ``trials``.
        confirmation: The best trials over several seeds, None until ``confirm`` has run.
        space: What was searched: the text of each hyperparameter's domain; empty where the backend's own format has
            no names for them.
        interrupted: Whether the search was ended by Ctrl-C.
        ended_early: Why the search has ended before all of its trials were run, in words: its timeout, a signal, its
            budget, its patience, a terminator. None where none of them has ended it.
        st_hpo_version: The version that ran the search.
        native: The backend's own object (Optuna's study); not saved.
    """

    trials: list[TrialRecord]
    objective_names: list[str]
    directions: list[str]
    backend: str = "optuna"
    baseline: Baseline | None = None
    default: TrialRecord | None = None
    confirmation: Confirmation | None = None
    space: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    ended_early: str | None = None
    st_hpo_version: str = ""
    native: Any = field(default=None, repr=False, compare=False)

    @property
    def completed(self) -> list[TrialRecord]:
        """The trials that gave an objective."""
        return [trial for trial in self.trials if trial.state == COMPLETED and trial.values]

    @property
    def best_trials(self) -> list[TrialRecord]:
        """The best trial, for several objectives the Pareto front, which no other trial beats in all of them.

        Among equals the first trial comes first. Empty when no trial was completed.
        """
        completed = self.completed
        if len(self.directions) == 1:
            return [min(completed, key=lambda trial: (self._losses(trial), trial.number))] if completed else []
        return [trial for trial in completed if not any(self._dominates(other, trial) for other in completed)]

    def ranked(self) -> list[TrialRecord]:
        """Returns the completed trials, the best first.

        For several objectives, a trial that no other beats in all of them comes first, then one that one other beats,
        and so on; among equals the first trial.
        """
        completed = self.completed
        if len(self.directions) == 1:
            return sorted(completed, key=lambda trial: (self._losses(trial), trial.number))
        beaten = {trial.number: sum(self._dominates(other, trial) for other in completed) for trial in completed}
        return sorted(completed, key=lambda trial: (beaten[trial.number], trial.number))

    def _losses(self, trial: TrialRecord) -> list[float]:
        """The objectives turned so that less is better."""
        return [
            -value if direction == "maximize" else value
            for value, direction in zip(trial.values, self.directions, strict=True)
        ]

    def _dominates(self, a: TrialRecord, b: TrialRecord) -> bool:
        a_losses, b_losses = self._losses(a), self._losses(b)
        return all(x <= y for x, y in zip(a_losses, b_losses, strict=True)) and a_losses != b_losses

    @property
    def time_spent(self) -> dict[str, float]:
        """The seconds that the search has spent, by what on.

        They are those of all trials, that with the user's own arguments included, added up where trials ran at the
        same time: ``"training"``; ``"evaluation"``, at rungs and otherwise; ``"loading"``, the making of model, loss
        and trainer; and ``"other"``, the rest of their time. ``"baseline"`` is the whole of the untrained model's.
        """
        return time_spent([*self.trials, *([self.default] if self.default else [])], self.baseline)

    def to_rows(self) -> list[dict[str, Any]]:
        """Returns a flat row a trial, every row with the same columns.

        The columns are number, state, the objective (several: one for each name), ``hyperparameters.<name>``,
        ``metrics.<name>``, seconds and error.
        """
        return rows(self)

    def to_pandas(self) -> Any:
        """Returns the trials as a :class:`pandas.DataFrame` with the columns of :meth:`to_rows`.

        Raises:
            ImportError: pandas is not installed (``pip install pandas``).
        """
        import pandas as pd

        return pd.DataFrame(self.to_rows())

    def to_dataset(self) -> Any:
        """Returns the trials as a :class:`datasets.Dataset` with the columns of :meth:`to_rows`.

        A hyperparameter with values of several types (numbers and strings, dicts) becomes a column of JSON strings:
        a dataset's column has one type.
        """
        from datasets import Dataset

        columns: dict[str, list[Any]] = {}
        for row in self.to_rows():
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
        return Dataset.from_dict({name: one_type(values) for name, values in columns.items()})

    def to_json(self) -> str:
        """Returns the result as JSON, without loss; ``native`` is left out."""
        data = {
            "format_version": FORMAT_VERSION,
            "st_hpo_version": self.st_hpo_version,
            "backend": self.backend,
            "objective_names": self.objective_names,
            "directions": self.directions,
            "interrupted": self.interrupted,
            "ended_early": self.ended_early,
            "space": dict(self.space),
            "baseline": to_jsonable(asdict(self.baseline)) if self.baseline else None,
            "default": self.default.to_dict() if self.default else None,
            "confirmation": self.confirmation.to_dict() if self.confirmation else None,
            "trials": [trial.to_dict() for trial in self.trials],
        }
        return json.dumps(data, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> SearchResult:
        """Returns the result that :meth:`to_json` was made from.

        Raises:
            ConfigurationError: The text is no search result, or of a later format.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as exc:
            raise ConfigurationError(f"This is no saved SearchResult: it is no JSON ({exc}).") from exc
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise ConfigurationError(
                f"This is no SearchResult that this version of st_hpo reads: its format_version is {version!r}, "
                f"expected {FORMAT_VERSION}. A later one needs `pip install -U st-hpo`."
            )
        try:
            return cls._from_data(data)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ConfigurationError(
                f"This SearchResult is damaged: {type(exc).__name__} {exc}. Was the file cut off or edited?"
            ) from exc

    @classmethod
    def _from_data(cls, data: dict[str, Any]) -> SearchResult:
        baseline, default, confirmation = data["baseline"], data.get("default"), data.get("confirmation")
        return cls(
            trials=[TrialRecord.from_dict(trial) for trial in data["trials"]],
            objective_names=data["objective_names"],
            directions=data["directions"],
            backend=data["backend"],
            baseline=Baseline(**from_jsonable(baseline)) if baseline else None,
            default=TrialRecord.from_dict(default) if default else None,
            confirmation=Confirmation.from_dict(confirmation) if confirmation else None,
            space=data.get("space") or {},
            interrupted=data["interrupted"],
            ended_early=data.get("ended_early"),
            st_hpo_version=data["st_hpo_version"],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the result as a JSON file; an existing file is replaced in one step, never left half written."""
        write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SearchResult:
        """Reads a result that :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ConfigurationError: The file is no search result.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError as exc:
            raise ConfigurationError(f"{str(path)!r} is no saved SearchResult: it is no text ({exc}).") from exc

    def plot(self, kind: str, objective: str | int | None = None, **options: Any) -> Any:
        """Returns a plot of the trials for a notebook; of whatever backend they come.

        Args:
            kind: ``"history"``, ``"importances"``, ``"parallel_coordinates"``, ``"slice"``, ``"contour"``,
                ``"timeline"``, ``"learning_curves"``, ``"pareto_front"`` or ``"edf"``.
            objective: Which objective it is about, by its name or index; the first one where none is given.
            **options: Of ``"slice"`` and ``"parallel_coordinates"``: ``params``, a list of hyperparameters. Of
                ``"contour"``: ``params``, two of them. Of ``"learning_curves"``: ``metric``, a name. Of
                ``"pareto_front"``: ``against``, the other objective.

        Returns:
            A :class:`plotly.graph_objects.Figure`. Where there is nothing to draw, it is empty and says why.

        Raises:
            ConfigurationError: There is no such kind, objective, hyperparameter, metric or option.
            BackendNotInstalledError: plotly is missing (``pip install 'st-hpo[report]'``).
        """
        from st_hpo.report.figures import plot

        return plot(self, kind, objective, options)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Writes everything about the search as one HTML file that needs no network (about 5 MB, plotly included).

        Args:
            path: The file to write; one that exists is replaced in one step.

        Returns:
            The path.

        Raises:
            BackendNotInstalledError: plotly is missing (``pip install 'st-hpo[report]'``).
        """
        from st_hpo.report.page import page

        return write_whole(path, page(self))

    def write_card(self, folder: str | os.PathLike[str]) -> Path:
        """Writes a section on the search into the README.md of a saved model; one that is there is replaced.

        Args:
            folder: The folder of the model, as its ``save_pretrained`` has made it.

        Returns:
            The path of the card.

        Raises:
            ConfigurationError: There is no such folder.
        """
        from st_hpo.report.card import write_card

        return write_card(self, folder)

    def _repr_html_(self) -> str:
        from st_hpo.report.notebook import html

        return html(self)

    def __str__(self) -> str:
        from st_hpo.report.text import text

        return text(self)

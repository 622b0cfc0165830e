"""What a tracker is told of a trial, and what each of them must be able to do."""

from __future__ import annotations

import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from st_hpo.records import TrialRecord


@dataclass
class TrialFacts:
    """One trial, as a tracker shows it.

    Attributes:
        name: The name of its run.
        group: What the runs of one search have in common.
        number: The trial's number; what the backend calls it where that is its only name.
        hyperparameters: Every value that the trial set.
        folder: The folder of the search, for trackers that write files.
        objective_names: The metric keys that are optimized.
        verbose: Whether the tracker may print.
    """

    name: str
    group: str
    number: str
    hyperparameters: dict[str, Any]
    folder: str
    objective_names: list[str]
    verbose: bool

    def objectives(self, record: TrialRecord) -> dict[str, float]:
        """Returns the trial's objective under ``objective``; several under ``objective/<metric>``."""
        if len(record.values) == 1:
            return {"objective": record.values[0]}
        return {f"objective/{name}": value for name, value in zip(self.objective_names, record.values, strict=False)}

    def final(self, record: TrialRecord) -> dict[str, float]:
        """Returns the objectives, and those metrics of the trial's end that no callback has seen: held-out ones."""
        held_out = {name: value for name, value in record.metrics.items() if name.startswith("test_")}
        numbers = {name: value for name, value in held_out.items() if isinstance(value, int | float)}
        return {**numbers, **self.objectives(record)}


class TrialRun(ABC):
    """One trial as a run of one tracker.

    Args:
        callback: The trainer's callback of this tracker.
        facts: The trial.
    """

    tracker: str

    def __init__(self, callback: Any, facts: TrialFacts) -> None:
        self.callback = callback
        self.facts = facts

    @abstractmethod
    def open(self, args: Any, model: Any) -> None:
        """Opens the run, before the tracker's own callback is told that the training begins.

        Args:
            args: The trial's training arguments.
            model: The model.

        Raises:
            Exception: Whatever the tracker raises: it ends the trial, as it would end a training by hand.
        """

    def begun(self) -> None:  # noqa: B027
        """Does what must come after the tracker's own callback has been told that the training begins."""

    @abstractmethod
    def close(self, record: TrialRecord) -> None:
        """Tells the tracker what became of the trial, and closes the run. The trainer is gone by then.

        Args:
            record: The trial's record, with its state.
        """


def search_group(args: Any, backend_arguments: Mapping[str, Any]) -> str:
    """Returns what the runs of one search have in common: the study's name, or one that no other search has.

    Args:
        args: The user's training arguments.
        backend_arguments: The backend's own arguments.
    """
    for key in ("study_name", "name"):
        if backend_arguments.get(key):
            return str(backend_arguments[key])
    own = args.run_name if args.run_name and args.run_name != args.output_dir else None
    stem = own or os.path.basename(os.path.abspath(args.output_dir))
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def with_model_config(args: Any, model: Any) -> dict[str, Any]:
    """Returns the training arguments and the model's config as one dict, as upstream's callbacks log them."""
    config = getattr(model, "config", None)
    if config is not None and not isinstance(config, dict):
        config = config.to_dict()
    return {**(config or {}), **args.to_dict()}

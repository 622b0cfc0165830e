"""What is kept of one trial, and of the untrained model. Pure Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from st_hpo.jsonable import from_jsonable, to_jsonable

COMPLETED, PRUNED, FAILED, RUNNING, WAITING = STATES = ("completed", "pruned", "failed", "running", "waiting")


@dataclass
class TrialRecord:
    """One trial.

    Attributes:
        number: The trial's number, from 0, in the order in which the trials were proposed.
        state: ``"completed"``, ``"pruned"``, ``"failed"``; in a shared study also ``"running"`` or ``"waiting"``.
        objective: The objective (a list of them for several), None unless completed.
        hyperparameters: Every value that the trial set, and what was suggested on the way to them.
        metrics: All metrics of the evaluation that gave the objective; of the last one for a pruned trial, which may
            be that of a ``trial_evaluator``.
        seconds: How long the trial took, from its proposal to its release.
        phases: The seconds of each phase: ``propose``, ``arguments``, ``seed``, ``model``, ``loss``, ``trainer``,
            ``train`` (without evaluations), ``rungs`` (evaluations at rungs), ``pause`` (writing a checkpoint),
            ``evaluate`` (all other evaluations) and ``release``.
        error: The type and message of the exception that ended a failed trial; the step at which a trial was pruned.
        backend_id: What the backend calls the trial (Ray's trial id, the id of a W&B or SigOpt run); None where its
            number is its name.
        started: When the trial began, in seconds since 1970 (``time.time()``).
        evaluations: All evaluations in their order, each ``{"step": ..., "epoch": ..., "metrics": {...}}`` with the
            optimizer step and the epoch (a float) after which it was made: the learning curves. Those of a
            ``trial_evaluator`` are not among them.
        rungs: Where the trial was compared with others, in their order, each ``{"at": ..., "step": ..., "value": ...,
            "fraction": ...}``: per cent of the training (or examples), the optimizer step, the value, and the part of
            the training that was done.
        continues: The number of the trial that this one takes up again after that one had paused at a rung; None for
            any other. The learning curve begins with that one's, if this one has gone on from its checkpoint.
        fraction: The part of its training that the trial has done itself: less than 1 where something has ended it
            early, or where it has gone on from the checkpoint of the trial that it continues. None if it has not
            begun.
        copied_from: The number of the trial with the same hyperparameters whose objective, metrics and evaluations
            were taken over instead of training them again (then ``fraction`` is 0); None for a trial of its own.
    """

    number: int
    state: str = RUNNING
    objective: float | list[float] | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    backend_id: str | None = None
    started: float | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    rungs: list[dict[str, Any]] = field(default_factory=list)
    continues: int | None = None
    fraction: float | None = None
    copied_from: int | None = None

    @property
    def values(self) -> list[float]:
        """The objectives as a list; empty unless the trial is completed."""
        if self.objective is None:
            return []
        return list(self.objective) if isinstance(self.objective, list) else [self.objective]

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain values that JSON can hold (see :func:`st_hpo.jsonable.to_jsonable`)."""
        return {key: to_jsonable(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialRecord:
        """Returns the record that :meth:`to_dict` was made from."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: from_jsonable(value) for key, value in data.items() if key in known})


@dataclass
class Baseline:
    """The untrained model, evaluated once before the first trial.

    Attributes:
        objective: What the search would call the untrained model's objective.
        metrics: All metrics of that evaluation.
        seconds: How long building and evaluating it took.
    """

    objective: float | list[float]
    metrics: dict[str, Any]
    seconds: float


# What the phases of a trial are summed up as; whatever else is in its time is "other"
_SPENT_ON = {
    "train": "training",
    "rungs": "evaluation",
    "evaluate": "evaluation",
    "model": "loading",
    "loss": "loading",
    "trainer": "loading",
}


def time_spent(records: Sequence[TrialRecord], baseline: Baseline | None = None) -> dict[str, float]:
    """Returns the seconds of trials, and of the baseline, by what they were spent on.

    Args:
        records: The trials.
        baseline: The untrained model's evaluation, if there was one.
    """
    spent = dict.fromkeys(("training", "evaluation", "loading", "baseline", "other"), 0.0)
    spent["baseline"] = 0.0 if baseline is None else baseline.seconds
    for record in records:
        known = 0.0
        for phase, seconds in record.phases.items():
            if (what := _SPENT_ON.get(phase)) is not None:
                spent[what] += seconds
                known += seconds
        spent["other"] += max(0.0, (record.seconds or 0.0) - known)
    return spent

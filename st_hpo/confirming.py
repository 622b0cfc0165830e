"""Training the best trials of a search again with several seeds, each as the search itself runs a trial."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from st_hpo.confirmation import Confirmation, ConfirmedTrial
from st_hpo.errors import ConfigurationError
from st_hpo.evaluations import HELD_OUT_PREFIX
from st_hpo.faults import describe
from st_hpo.files import write_whole
from st_hpo.jsonable import from_jsonable, to_jsonable
from st_hpo.objective import Metrics, Objective, check_direction, direction_of_evaluator
from st_hpo.records import COMPLETED, TrialRecord
from st_hpo.results import SearchResult
from st_hpo.trial import TrialRunner

FILE = "confirmation.json"  # in `output_dir`, with `resume=True`


def check_confirmation(result: SearchResult | None, k: Any, seeds: Any) -> list[TrialRecord]:
    """Returns the best ``k`` trials of a result.

    Raises:
        ConfigurationError: There are none, or an argument makes no sense.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigurationError(f"`k` must be an integer of at least 1, but got {k!r}.")
    if seeds is not None:
        found = list(seeds) if isinstance(seeds, Sequence) and not isinstance(seeds, str) else None
        if not found or len(set(found)) < len(found) or any(type(seed) is not int or seed < 0 for seed in found):
            raise ConfigurationError(
                f"`seeds` must be different integers of at least 0, such as [1, 2, 3], but got {seeds!r}."
            )
    ranked = result.ranked() if result is not None else []
    if not ranked:
        raise ConfigurationError(
            "`confirm` trains the best trials of a search again, but there is no finished trial: run "
            "`hyperparameter_search` first, or pass `result=SearchResult.load(...)`."
        )
    return ranked[:k]


class HeldOutObjective(Objective):
    """The primary metric of an evaluator that no trial is chosen by.

    Args:
        evaluator: The evaluator; many know the full name of their primary metric only after a first run.
        direction: ``"minimize"`` or ``"maximize"``; None as the evaluator says.
    """

    def __init__(self, evaluator: Any, direction: Any) -> None:
        super().__init__(
            [HELD_OUT_PREFIX + "objective"],
            [direction_of_evaluator(evaluator) if direction is None else check_direction(direction)],
        )
        self._held_out = evaluator

    def values(self, metrics: Metrics) -> list[float]:
        """See :meth:`Objective.values`."""
        primary = getattr(self._held_out, "primary_metric", None)
        self.names = [HELD_OUT_PREFIX + (primary or "evaluator")]
        return super().values(metrics)


class Confirming:
    """Several seeds for each of several trials, one training after the other.

    Args:
        runner: Runs the trainings.
        trials: The trials of the search, the best first.
        seeds: The seeds, the same for all.
        held_out: Whether they are evaluated on data of their own.
        resume: Whether to keep what is done in a file, and to take over what is there.
    """

    def __init__(
        self, runner: TrialRunner, trials: list[TrialRecord], seeds: list[int], held_out: bool, resume: bool
    ) -> None:
        self._runner = runner
        self._trials = trials
        self._seeds = seeds
        self._held_out = held_out
        self._file = Path(runner.snapshot.output_dir, FILE) if resume else None
        self._jobs = [(trial, seed) for trial in trials for seed in seeds]
        runner.strict = False  # a record also has suggestions that no one reads again
        runner.run_name = self._name

    def _name(self, record: TrialRecord, native: Any) -> str:
        trial, seed = self._jobs[record.number]
        return f"confirm-{trial.number}-seed-{seed}"

    def run(self) -> Confirmation:
        """Runs what is missing, and returns all of it on every rank."""
        ranks = self._runner.ranks
        done: list[dict[str, Any]] = self._earlier() if ranks is None else ranks.share(self._earlier)
        for index, (trial, seed) in enumerate(self._jobs):
            if done[index]:
                continue
            outcome = self._outcome(index, trial, seed)
            done[index] = outcome if ranks is None else ranks.share(functools.partial(dict, outcome))
            if self._runner.decides:
                self._keep(done)
        return self._confirmation(done)

    def _outcome(self, index: int, trial: TrialRecord, seed: int) -> dict[str, Any]:
        record = TrialRecord(index)
        try:
            self._runner.run(record, lambda: {**trial.hyperparameters, "seed": seed})
        except Exception as exc:
            record.error = describe(exc)
        values = record.values if record.state == COMPLETED else None
        return {"values": values, "metrics": to_jsonable(record.metrics), "error": record.error}

    def _confirmation(self, done: list[dict[str, Any]]) -> Confirmation:
        objective, count = self._runner.objective, len(self._seeds)
        confirmed = []
        for position, trial in enumerate(self._trials):
            outcomes = done[position * count : (position + 1) * count]
            confirmed.append(
                ConfirmedTrial(
                    trial.number,
                    list(trial.values),
                    dict(trial.hyperparameters),
                    list(self._seeds),
                    [outcome["values"] for outcome in outcomes],
                    [from_jsonable(outcome["metrics"]) for outcome in outcomes],
                    [outcome["error"] for outcome in outcomes],
                )
            )
        if self._runner.ranks is not None:
            objective.names = self._runner.ranks.share(lambda: objective.names)
        return Confirmation.ranked(list(objective.names), list(objective.directions), self._held_out, confirmed)

    # ---- What is done already ----

    def _key(self, trial: TrialRecord, seed: int) -> dict[str, Any]:
        held_out = self._held_out
        return {"hyperparameters": to_jsonable(trial.hyperparameters), "seed": seed, "held_out": held_out}

    def _stored(self) -> list[dict[str, Any]]:
        if self._file is None or not self._file.is_file():
            return []
        try:
            stored = json.loads(self._file.read_text(encoding="utf-8"))
            return [entry for entry in stored if {"key", "outcome"} <= set(entry)]
        except (ValueError, TypeError) as exc:
            raise ConfigurationError(
                f"{str(self._file)!r} is no file of an earlier `confirm` ({exc}). Remove it, or pass resume=False."
            ) from exc

    def _earlier(self) -> list[dict[str, Any]]:
        stored = self._stored()

        def find(key: dict[str, Any]) -> dict[str, Any]:
            found = [entry["outcome"] for entry in stored if entry["key"] == key and entry["outcome"]["values"]]
            return dict(found[-1]) if found else {}

        return [find(self._key(trial, seed)) for trial, seed in self._jobs]

    def _keep(self, done: list[dict[str, Any]]) -> None:
        if self._file is None:
            return
        jobs = [(self._key(*job), outcome) for job, outcome in zip(self._jobs, done, strict=True)]
        others = [entry for entry in self._stored() if entry["key"] not in [key for key, _ in jobs]]
        entries = [*others, *({"key": key, "outcome": outcome} for key, outcome in jobs if outcome)]
        write_whole(self._file, json.dumps(entries, indent=1))

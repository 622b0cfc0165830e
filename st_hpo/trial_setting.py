"""What all trials of a search have in common: the parts of a trainer, the objective, the folder, the console."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from st_hpo.arguments import ArgumentSnapshot
from st_hpo.best_model import BestModelKeeper
from st_hpo.console import drop_output_callbacks, log_level_kept, quiet
from st_hpo.conversion import plain
from st_hpo.distributed import Ranks
from st_hpo.evaluations import EvaluationRecorder, final_evaluation
from st_hpo.factories import Factories, TrialView, make_model_and_loss
from st_hpo.folders import Saving, default_run_name
from st_hpo.jsonable import recordable
from st_hpo.objective import Objective
from st_hpo.recipe import TrainerRecipe
from st_hpo.records import Baseline, TrialRecord
from st_hpo.release import forget_frames, release_memory, take_apart
from st_hpo.routing import Routed, Router
from st_hpo.rung_points import RungPoints
from st_hpo.rungs import evaluate_apart, rung_value
from st_hpo.shared_trial import FencedEvaluator, SharedTrial
from st_hpo.sharing import SharedWork
from st_hpo.trackers import Tracking, drop_trackers


@dataclass
class TrialSetting:
    """What all trials of a search have in common, and the model that none of them has trained.

    Attributes:
        recipe: How to build a trainer.
        snapshot: How to build its arguments.
        router: Where each hyperparameter goes.
        factories: How to make the model and the loss.
        objective: What to optimize.
        best_evaluation: Take the objective from the best evaluation during training instead of one at its end.
        applied: Hyperparameters of an earlier search that ``apply_best_run`` has set.
        verbose: Show the inner bars and log lines.
        run_name: Names a trial from its number and the backend's trial.
        pruned_exceptions: Exceptions by which user code prunes its own trial.
        ranks: The ranks that train together, None for one process.
        saving: What a trial leaves on disk; None to leave that to the training arguments.
        best_model: Keeps the best trial's weights; None to keep none.
        strict: Whether names that nothing uses are refused.
        held_out: An evaluator that no trial is chosen by. Its metrics are added to those at a trial's end, as
            ``test_<metric>``.
        tracking: The trackers of ``report_to``.
        shared: The work that trials share; nothing by default.
        rungs: Where trials are compared with each other during their training; None for whenever they evaluate.
        reuses: Whether a trial takes over the value of an earlier one with the same hyperparameters.
        rung_evaluator: The evaluator of the rungs, None for the evaluation that gives the objective.
    """

    recipe: TrainerRecipe
    snapshot: ArgumentSnapshot
    router: Router
    factories: Factories
    objective: Objective
    best_evaluation: bool = False
    applied: Routed = field(default_factory=Routed)
    verbose: bool = False
    run_name: Callable[[TrialRecord, Any], str] = default_run_name
    pruned_exceptions: tuple[type[BaseException], ...] = ()
    ranks: Ranks | None = None
    saving: Saving | None = None
    best_model: BestModelKeeper | None = None
    held_out: Any = None
    strict: bool = True
    tracking: Tracking = field(default_factory=Tracking)
    shared: SharedWork = field(default_factory=lambda: SharedWork(0))
    rungs: RungPoints | None = None
    rung_evaluator: Any = None
    reuses: bool = False
    _trials_begun: int = 0

    def baseline(self) -> Baseline:
        """Builds the model that no trial has trained, evaluates it, and releases it."""
        started = time.perf_counter()
        args = self.snapshot.build()
        try:
            view = TrialView(self.applied.all()) if self.applied.all() else None
            with self._console(), self.shared.trial(), self._folder(args, "baseline", TrialRecord(-1)):
                metrics = self._evaluate_untrained(args, view)
        except BaseException as exc:
            forget_frames(exc)
            raise
        finally:
            release_memory(args)
        values = self.objective.values(metrics) if self.decides else [math.nan]
        return Baseline(single(values), recordable(metrics), time.perf_counter() - started)

    @property
    def decides(self) -> bool:
        """Whether this process computes the objectives: the only one, or rank 0."""
        return self.ranks is None or self.ranks.is_main

    @property
    def objective_names(self) -> list[str]:
        """The metric keys that are optimized; placeholders until an evaluation tells."""
        return list(self.objective.names)

    def settled_baseline(self) -> tuple[Baseline, list[str], list[str]]:
        """Evaluates the untrained model, and finds what only a first evaluation can tell of the objective.

        Returns:
            The baseline, the names of the objectives and their directions.
        """
        baseline = self.baseline()
        if not self.decides:
            return baseline, [], []
        self.objective.settle(self.recipe.parts["evaluator"], warn=False)
        return baseline, list(self.objective.names), list(self.objective.directions)

    def _evaluate_untrained(self, args: Any, view: TrialView | None) -> dict[str, Any]:
        model, loss = make_model_and_loss(args, self.factories, self.applied, view)
        evaluations = EvaluationRecorder()
        trainer = self._build(args, model, loss, evaluations)
        drop_trackers(trainer)
        try:
            metrics = final_evaluation(trainer, evaluations)
            if self.rungs is not None and self.rung_evaluator is not None:
                found = evaluate_apart(trainer, evaluations, self.rung_evaluator)
                if self.decides:
                    self.objective.values(metrics)
                    rung_value(self.objective, found, self.rung_evaluator)
            return metrics
        finally:
            take_apart(trainer)

    @contextlib.contextmanager
    def _folder(self, args: Any, name: str, record: TrialRecord, moved: bool = False) -> Iterator[None]:
        """The folder of one trial below that of the search; one rank looks after it."""
        if self.saving is None or moved:
            yield
            return
        self.saving.prepare(args)
        if self.ranks is not None and not self.decides:
            args.output_dir = os.path.join(args.output_dir, self.ranks.share())
            yield
            return
        with self.saving.folder(args, name, record, self.objective):
            if self.ranks is not None:
                self.ranks.share(lambda: os.path.basename(args.output_dir))
            yield

    def _proposal(
        self, record: TrialRecord, propose: Callable[[], Mapping[str, Any]], native: Any
    ) -> tuple[Mapping[str, Any], Any, str | None]:
        """The proposed values, the trial for the user's functions and, with several ranks, the name of its run."""
        if self.ranks is None:
            return propose(), native, None

        def decide() -> dict[str, Any]:
            values = {name: plain(name, value) for name, value in propose().items()}
            params = {name: plain(name, value) for name, value in (getattr(native, "params", None) or {}).items()}
            names = {"number": record.number, **({"id": native.id} if hasattr(native, "id") else {})}
            name = self.run_name(record, native)
            return {"values": values, "params": params, "names": names, "name": name, "plain": type(native) is dict}

        found = self.ranks.share(decide)
        if found["plain"]:
            return found["values"], dict(found["values"]), found["name"]
        return found["values"], SharedTrial(self.ranks, native, found["names"], found["params"]), found["name"]

    @contextlib.contextmanager
    def _console(self) -> Iterator[None]:
        """Warnings are seen once: in the baseline and the first trial."""
        level = logging.ERROR if self._trials_begun > 1 else logging.WARNING
        self._trials_begun += 1
        with contextlib.nullcontext() if self.verbose else quiet(level):
            yield

    def _build(self, args: Any, model: Any, loss: Any, evaluations: EvaluationRecorder) -> Any:
        with contextlib.nullcontext() if self.verbose else log_level_kept():
            trainer = self.recipe.build(args, model, loss, evaluations)
        if not self.verbose:
            drop_output_callbacks(trainer)
        if self.ranks is not None:
            trainer._of_trial.ranks = self.ranks
            if trainer.evaluator is not None:
                trainer.evaluator = FencedEvaluator(trainer.evaluator, self.ranks)
        return trainer


def single(values: list[float]) -> float | list[float]:
    """Returns the value of one objective as a number, those of several as a list."""
    return values[0] if len(values) == 1 else values

"""One trial from start to end: values, arguments, seeds, model, loss, trainer, training, evaluation, release."""

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
from st_hpo.best_model import BestModelKeeper, Candidate
from st_hpo.checkpoints import TrialCheckpoints
from st_hpo.console import drop_output_callbacks, log_level_kept, quiet
from st_hpo.conversion import plain
from st_hpo.distributed import FencedEvaluator, Pruned, Ranks, SharedTrial
from st_hpo.errors import SearchSpaceError
from st_hpo.evaluations import EvaluationRecorder, final_evaluation, held_out_metrics
from st_hpo.factories import Factories, TrialView, make_model_and_loss
from st_hpo.faults import StopSignal, describe
from st_hpo.folders import Saving, check_run_name, default_run_name
from st_hpo.jsonable import recordable
from st_hpo.objective import Objective
from st_hpo.recipe import TrainerRecipe
from st_hpo.records import COMPLETED, FAILED, PRUNED, Baseline, TrialRecord
from st_hpo.release import forget_frames, release_memory, take_apart
from st_hpo.routing import Routed, Router
from st_hpo.sharing import SharedWork
from st_hpo.trackers import Tracking, drop_trackers
from st_hpo.trial_callback import AsTrial

Report = Callable[[float, int], bool]
DEFAULT = -1  # the number of the training with the user's own arguments


@dataclass
class TrialRunner:
    """Runs trials, one after the other, each as if it were the only one.

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
        shared: The work that trials of one process share; nothing by default.
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
        return Baseline(_single(values), recordable(metrics), time.perf_counter() - started)

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
            return final_evaluation(trainer, evaluations)
        finally:
            take_apart(trainer)

    def run(
        self,
        record: TrialRecord,
        propose: Callable[[], Mapping[str, Any]],
        native: Any = None,
        report: Report | None = None,
        checkpoints: TrialCheckpoints | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        """Runs one trial and fills its record; whatever ends it, it holds nothing afterwards.

        Args:
            record: The record to fill.
            propose: Gives the hyperparameters.
            native: The backend's trial.
            report: Takes an intermediate objective and its step, and says whether to prune.
            checkpoints: Hands the trial's checkpoints to the backend, and continues from one.
            stop: Asked before the trial and between its steps whether the search is to end.

        Raises:
            SearchStopped: The search is to end.
            BaseException: What ended the trial, unless the backend pruned it; recorded before.
        """
        started, record.started = time.perf_counter(), time.time()
        args: list[Any] = []
        try:
            with self._console(), self.shared.trial():
                if self.ranks is None:
                    self._run(record, propose, native, report, checkpoints, stop, args)
                else:
                    self.ranks.together(
                        f"trial {record.number}",
                        lambda: self._run(record, propose, native, report, checkpoints, stop, args),
                        agreed=self.pruned_exceptions,
                    )
        except Pruned as exc:
            record.state, record.error = PRUNED, str(exc)
            forget_frames(exc)
        except BaseException as exc:
            record.state = PRUNED if isinstance(exc, self.pruned_exceptions) else FAILED
            record.error = describe(exc)
            forget_frames(exc)
            self.tracking.close(record, exc)
            raise
        finally:
            self.tracking.close(record)
            with _phase(record, "release"):
                release_memory(*args)
            record.seconds = time.perf_counter() - started

    def _run(
        self,
        record: TrialRecord,
        propose: Callable[[], Mapping[str, Any]],
        native: Any,
        report: Report | None,
        checkpoints: TrialCheckpoints | None,
        stop: StopSignal | None,
        held: Any,
    ) -> None:
        with _phase(record, "propose"):
            proposed, native, name = self._proposal(record, propose, native)
        with _phase(record, "arguments"):
            routed = self.router.route(proposed, self.strict)
            record.hyperparameters = routed.all()
            args = self.snapshot.build(routed.arguments)
            if record.number == DEFAULT:
                name = "default"
            name = check_run_name(self.run_name(record, native) if name is None else name)
            if checkpoints is not None:
                checkpoints.prepare(args)
            held.append(args)
        if self.decides:
            self.tracking.announce(args, name, self.recipe.callbacks.removed)
        with self._folder(args, name, record, moved=checkpoints is not None and checkpoints.writes_own):
            self._train(record, routed, args, name, native, report, checkpoints, stop)

    def _train(
        self,
        record: TrialRecord,
        routed: Routed,
        args: Any,
        name: str,
        native: Any,
        report: Report | None,
        checkpoints: TrialCheckpoints | None,
        stop: StopSignal | None,
    ) -> None:
        effective = Routed(
            model={**self.applied.model, **routed.model},
            loss={**self.applied.loss, **routed.loss},
            free={**self.applied.free, **routed.free},
        )
        values = {**effective.all(), **routed.all()}
        view = TrialView(values, native) if values or record.number != DEFAULT else None
        try:
            model, loss = make_model_and_loss(args, self.factories, effective, view, lambda key: _phase(record, key))
            if view is not None and self.strict:
                self.router.check_read(routed, view)
        finally:
            # Suggestions made inside `model_init` and `loss_init`, or on the way to the values that were set
            suggested = dict(getattr(native, "params", None) or {})
            record.hyperparameters = {k: plain(k, v) for k, v in {**suggested, **routed.all()}.items()}
        if not record.hyperparameters and record.number != DEFAULT:
            raise SearchSpaceError("The search space is empty: `hp_space` returned {} and nothing was suggested.")

        def on_evaluation(step: int, metrics: dict[str, Any]) -> None:
            record.metrics = recordable(metrics)
            record.evaluations = [item for item in record.evaluations if item["step"] < step]
            record.evaluations.append(_curve_point(trainer, record.metrics))
            if report is not None and step > 0 and self._is_pruned(report, metrics, step):
                raise Pruned(f"pruned at step {step}")
            if self.best_evaluation and step > 0:
                candidate.offer(trainer.model, metrics)

        keeper = self.best_model if self.decides and record.number != DEFAULT else None
        candidate = Candidate(keeper, self.objective, record)
        evaluations = EvaluationRecorder(on_evaluation)
        with _phase(record, "trainer"):
            trainer = self._build(args, model, loss, evaluations)
            if self.ranks is not None:
                self.ranks.fence()
            self.tracking.attach(trainer, name, record, self.objective_names)
            trainer.callback_handler.callbacks.insert(0, AsTrial(name, dict(record.hyperparameters), stop, self.ranks))
        del model, loss
        try:
            resume_from = None if checkpoints is None else checkpoints.attach(trainer, evaluations)
            with _phase(record, "train"):
                # A subclass may have a `train` of its own without arguments
                _ = trainer.train() if resume_from is None else trainer.train(resume_from_checkpoint=resume_from)
            with _phase(record, "evaluate"):
                metrics = final_evaluation(trainer, evaluations)
                metrics.update(held_out_metrics(self.held_out, trainer))
            candidate.offer(trainer.model, metrics, final=True)
            if not record.evaluations or record.evaluations[-1]["step"] < trainer.state.global_step:
                record.evaluations.append(_curve_point(trainer, recordable(metrics)))
            self._conclude(record, metrics, evaluations)
            candidate.keep()
        finally:
            candidate.drop()
            with _phase(record, "release"):
                take_apart(trainer)

    def run_default(self, record: TrialRecord, stop: StopSignal | None = None) -> None:
        """Trains with the user's own arguments, unchanged; otherwise as :meth:`run`.

        Args:
            record: The record to fill, with the number :data:`DEFAULT`.
            stop: See :meth:`run`.
        """
        self.run(record, dict, stop=stop)

    @contextlib.contextmanager
    def _folder(self, args: Any, name: str, record: TrialRecord, moved: bool = False) -> Iterator[None]:
        """The folder of one trial below that of the search; one rank looks after it."""
        if self.saving is None or moved:
            yield
            return
        self.saving.prepare(args)
        if not self.decides:
            args.output_dir = os.path.join(args.output_dir, name)
            yield
            return
        with self.saving.folder(args, name, record, self.objective):
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
            is_mapping = isinstance(native, Mapping)
            return {"values": values, "params": params, "map": is_mapping, "name": self.run_name(record, native)}

        found = self.ranks.share(decide)
        if found["map"]:
            return found["values"], dict(found["values"]), found["name"]
        return found["values"], SharedTrial(self.ranks, native, record.number, found["params"]), found["name"]

    def _is_pruned(self, report: Report, metrics: dict[str, Any], step: int) -> bool:
        def decide() -> bool:
            return report(self.objective.values(metrics)[0], step)

        return bool(decide() if self.ranks is None else self.ranks.share(decide))

    @contextlib.contextmanager
    def _console(self) -> Iterator[None]:
        """Warnings are seen once: in the baseline and the first trial."""
        level = logging.ERROR if self._trials_begun > 1 else logging.WARNING
        self._trials_begun += 1
        with contextlib.nullcontext() if self.verbose else quiet(level):
            yield

    def _conclude(self, record: TrialRecord, metrics: dict[str, Any], evaluations: EvaluationRecorder) -> None:
        record.metrics = recordable(metrics)
        if not self.decides:
            return
        values = self.objective.values(metrics)
        if self.best_evaluation:
            for evaluation in evaluations.during_training:
                candidate = self.objective.values(evaluation.metrics)
                if self.objective.is_better(candidate[0], values[0]):
                    values, record.metrics = candidate, recordable(evaluation.metrics)
        if self.objective.is_nan(values):
            record.state = FAILED
            record.error = f"The objective is NaN: {dict(zip(self.objective.names, values, strict=True))}"
        else:
            record.state, record.objective = COMPLETED, _single(values)

    def _build(self, args: Any, model: Any, loss: Any, evaluations: EvaluationRecorder) -> Any:
        with contextlib.nullcontext() if self.verbose else log_level_kept():
            trainer = self.recipe.build(args, model, loss, evaluations)
        if not self.verbose:
            drop_output_callbacks(trainer)
        if self.ranks is not None:
            trainer._of_trial.ranks = self.ranks
            if trainer.evaluator is not None:
                trainer.evaluator = FencedEvaluator(trainer.evaluator)
        return trainer


def _curve_point(trainer: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    epoch = trainer.state.epoch
    return {"step": trainer.state.global_step, "epoch": None if epoch is None else float(epoch), "metrics": metrics}


def _single(values: list[float]) -> float | list[float]:
    return values[0] if len(values) == 1 else values


@contextlib.contextmanager
def _phase(record: TrialRecord, name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        record.phases[name] = record.phases.get(name, 0.0) + time.perf_counter() - started

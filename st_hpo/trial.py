"""One trial from start to end: values, arguments, seeds, model, loss, trainer, training, evaluation, release."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from st_hpo.accounting import account, curve_point, phase
from st_hpo.best_model import Candidate
from st_hpo.checkpoints import TrialCheckpoints
from st_hpo.conversion import plain
from st_hpo.distributed import Pruned
from st_hpo.duplicates import is_determined, take_over
from st_hpo.errors import HPOError, SearchSpaceError
from st_hpo.evaluations import EvaluationRecorder, final_evaluation, held_out_metrics
from st_hpo.factories import TrialView, make_model_and_loss
from st_hpo.faults import SIGTERM, SearchStopped, StopSignal, describe
from st_hpo.folders import check_run_name
from st_hpo.jsonable import recordable
from st_hpo.pausing import CannotContinue, PausingCheckpoints
from st_hpo.records import COMPLETED, FAILED, PRUNED, TrialRecord
from st_hpo.release import forget_frames, release_memory, take_apart
from st_hpo.routing import Routed
from st_hpo.rungs import Rung, RungCallback, rung_value
from st_hpo.trial_callback import AsTrial
from st_hpo.trial_setting import TrialSetting, single

Report = Callable[[float, int], bool]
Trained = Callable[[Mapping[str, Any]], TrialRecord | None]
DEFAULT = -1  # the number of the training with the user's own arguments


class TrialRunner(TrialSetting):
    """Runs trials, one after the other, each as if it were the only one.

    Its attributes are those of :class:`~st_hpo.trial_setting.TrialSetting`.
    """

    def run(
        self,
        record: TrialRecord,
        propose: Callable[[], Mapping[str, Any]],
        native: Any = None,
        report: Report | None = None,
        checkpoints: TrialCheckpoints | None = None,
        stop: StopSignal | None = None,
        trained: Trained | None = None,
    ) -> None:
        """Runs one trial and fills its record; whatever ends it, it holds nothing afterwards.

        Args:
            record: The record to fill.
            propose: Gives the hyperparameters.
            native: The backend's trial.
            report: Takes an intermediate objective and its step, and says whether to prune.
            checkpoints: Hands the trial's checkpoints to the backend, and continues from one.
            stop: Asked before the trial and between its steps whether the search is to end.
            trained: Gives the earlier trial with the same hyperparameters, whose value is taken over.

        Raises:
            SearchStopped: The search is to end.
            BaseException: What ended the trial, unless the backend pruned it; recorded before.
        """
        started, record.started = time.perf_counter(), time.time()
        if isinstance(checkpoints, PausingCheckpoints) and not self._may_pause:
            checkpoints = None
        args: list[Any] = []

        def run() -> None:
            try:
                self._run(record, propose, native, report, checkpoints, stop, trained, args)
            except RuntimeError as exc:
                if stop is not None and stop.explains(exc):
                    raise SearchStopped(SIGTERM) from None
                raise

        try:
            with self._console(), self.shared.trial():
                if self.ranks is None:
                    run()
                else:
                    self.ranks.together(f"trial {record.number}", run, agreed=self.pruned_exceptions)
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
            with phase(record, "release"):
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
        trained: Trained | None,
        held: Any,
    ) -> None:
        with phase(record, "propose"):
            proposed, native, name = self._proposal(record, propose, native)
        with phase(record, "arguments"):
            routed = self.router.route(proposed, self.strict)
            record.hyperparameters = routed.all()
            if self._copied(record, routed, native, trained):
                return
            if record.number == DEFAULT:
                name = "default"
            name = check_run_name(self.run_name(record, native) if name is None else name)
            args = self.snapshot.build(routed.arguments)
            if checkpoints is not None:
                checkpoints.prepare(args)
            held.append(args)
        if self.decides:
            self.tracking.announce(args, name, self.recipe.callbacks.removed)
        with self._folder(args, name, record, moved=checkpoints is not None and checkpoints.writes_own):
            try:
                self._train(record, routed, args, name, native, report, checkpoints, stop)
            except CannotContinue as exc:
                assert isinstance(checkpoints, PausingCheckpoints)
                checkpoints.from_the_beginning(exc)
                forget_frames(exc)
                release_memory(args)
                self._train(record, routed, args, name, native, report, checkpoints, stop)

    @property
    def _may_pause(self) -> bool:
        """Not with ranks, each of which would need the files; nor where what comes before a pause is asked for."""
        return self.ranks is None and not self.best_evaluation and (self.saving is None or not self.saving.keeps)

    def take_over(self, record: TrialRecord, values: Mapping[str, Any], native: Any, trained: Trained) -> bool:
        """Completes a trial with the value of an earlier one, where there is one with the same hyperparameters.

        Args:
            record: The trial's record, not run yet.
            values: Its hyperparameters, as proposed.
            native: The backend's trial.
            trained: Gives the earlier trial.

        Returns:
            Whether there is one.
        """
        started, record.started = time.perf_counter(), time.time()
        try:
            routed = self.router.route(values, self.strict)
        except HPOError:  # which the trial itself will raise, and record
            return False
        found = self._copied(record, routed, native, trained)
        record.seconds = time.perf_counter() - started if found else None
        return found

    def _copied(self, record: TrialRecord, routed: Routed, native: Any, trained: Trained | None) -> bool:
        """Takes over the value of an earlier trial; rank 0 knows them all, and decides for the others."""
        if not self.reuses or record.number == DEFAULT or not is_determined(self.factories, self._effective(routed)):
            return False
        earlier: list[TrialRecord] = []

        def decide() -> bool:
            if trained is not None and (found := trained(_all_values(routed, native))) is not None:
                earlier.append(found)
            return bool(earlier)

        found = decide() if self.ranks is None else bool(self.ranks.share(decide))
        if earlier:
            take_over(record, earlier[0])
        elif found:
            record.state = COMPLETED
        return found

    def _effective(self, routed: Routed) -> Routed:
        return Routed(
            model={**self.applied.model, **routed.model},
            loss={**self.applied.loss, **routed.loss},
            free={**self.applied.free, **routed.free},
        )

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
        effective = self._effective(routed)
        values = {**effective.all(), **routed.all()}
        view = TrialView(values, native) if values or record.number != DEFAULT else None
        try:
            model, loss = make_model_and_loss(args, self.factories, effective, view, lambda key: phase(record, key))
            if view is not None and self.strict:
                self.router.check_read(routed, view)
        finally:
            record.hyperparameters = _all_values(routed, native)
        if not record.hyperparameters and record.number != DEFAULT:
            raise SearchSpaceError("The search space is empty: `hp_space` returned {} and nothing was suggested.")

        def on_evaluation(step: int, metrics: dict[str, Any]) -> None:
            record.metrics = recordable(metrics)
            record.evaluations = [item for item in record.evaluations if item["step"] < step]
            record.evaluations.append(curve_point(trainer, record.metrics))
            if rungs is not None:
                rungs.evaluated(step, metrics)
            elif report is not None and step > 0 and self._is_pruned(report, metrics, step):
                raise Pruned(f"pruned at step {step}")
            if self.best_evaluation and step > 0:
                candidate.offer(trainer.model, metrics)

        def on_rung(rung: Rung) -> None:
            assert report is not None and self.rungs is not None
            if checkpoints is not None and checkpoints.is_pausing:
                return  # at an earlier rung of the same step
            record.phases["rungs"] = record.phases.get("rungs", 0.0) + rung.seconds
            record.metrics = recordable(rung.metrics)
            if self.rung_evaluator is None and rung.step not in [item["step"] for item in record.evaluations]:
                record.evaluations.append(curve_point(trainer, record.metrics))
            fraction = rung.step / trainer.state.max_steps
            record.rungs.append({"at": rung.at, "step": rung.step, "value": math.nan, "fraction": fraction})
            if self._is_pruned(report, rung.metrics, rung.at, record):
                reason = f"pruned at step {rung.step}, {self.rungs.describe(rung.at)}"
                if checkpoints is None or not checkpoints.pause(record, reason):
                    raise Pruned(reason)

        keeper = self.best_model if self.decides and record.number != DEFAULT else None
        candidate = Candidate(keeper, self.objective, record)
        rungs: RungCallback | None = None
        evaluations = EvaluationRecorder(on_evaluation)
        with phase(record, "trainer"):
            trainer = self._build(args, model, loss, evaluations)
            if self.ranks is not None:
                self.ranks.fence()
            self.tracking.attach(trainer, name, record, self.objective_names)
            if report is not None and self.rungs is not None:
                reached = getattr(report, "reached", 0)
                rungs = RungCallback(self.rungs, self.rung_evaluator, trainer, evaluations, on_rung, reached)
                trainer.add_callback(rungs)
            trainer.callback_handler.callbacks.insert(0, AsTrial(name, dict(record.hyperparameters), stop, self.ranks))
        del model, loss
        try:
            with phase(record, "train"):
                try:
                    resume_from = None if checkpoints is None else checkpoints.attach(trainer, evaluations)
                    record.evaluations = [] if checkpoints is None else list(checkpoints.curve)
                    # A subclass may have a `train` of its own without arguments
                    _ = trainer.train() if resume_from is None else trainer.train(resume_from_checkpoint=resume_from)
                except Exception as exc:
                    if checkpoints is not None:
                        checkpoints.failed(exc)
                    raise
            with phase(record, "evaluate"):
                metrics = final_evaluation(trainer, evaluations)
                metrics.update(held_out_metrics(self.held_out, trainer))
            candidate.offer(trainer.model, metrics, final=True)
            if not record.evaluations or record.evaluations[-1]["step"] < trainer.state.global_step:
                record.evaluations.append(curve_point(trainer, recordable(metrics)))
            self._conclude(record, metrics, evaluations)
            candidate.keep()
        finally:
            candidate.drop()
            account(record, trainer, evaluations, 0 if checkpoints is None else checkpoints.began_at)
            with phase(record, "release"):
                take_apart(trainer)

    def run_default(self, record: TrialRecord, stop: StopSignal | None = None) -> None:
        """Trains with the user's own arguments, unchanged; otherwise as :meth:`run`.

        Args:
            record: The record to fill, with the number :data:`DEFAULT`.
            stop: See :meth:`run`.
        """
        self.run(record, dict, stop=stop)

    def _is_pruned(
        self, report: Report, metrics: dict[str, Any], step: int, record: TrialRecord | None = None
    ) -> bool:
        def decide() -> bool:
            if record is None:
                return report(self.objective.values(metrics)[0], step)
            value = record.rungs[-1]["value"] = rung_value(self.objective, metrics, self.rung_evaluator)
            return report(value, step)

        return bool(decide() if self.ranks is None else self.ranks.share(decide))

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
            record.state, record.objective = COMPLETED, single(values)


def _all_values(routed: Routed, native: Any) -> dict[str, Any]:
    """The values that were set, and suggestions inside `model_init` and `loss_init` or on the way to those values."""
    suggested = dict(getattr(native, "params", None) or {})
    return {name: plain(name, value) for name, value in {**suggested, **routed.all()}.items()}

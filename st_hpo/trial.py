"""One trial from start to end: values, arguments, seeds, model, loss, trainer, training, evaluation, release."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, enable_full_determinism, set_seed

from st_hpo.arguments import ArgumentSnapshot
from st_hpo.console import drop_output_callbacks, log_level_kept
from st_hpo.conversion import plain
from st_hpo.errors import ConfigurationError, SearchSpaceError
from st_hpo.evaluations import EvaluationRecorder, final_evaluation
from st_hpo.factories import Factory, TrialView, make_loss, make_model
from st_hpo.jsonable import recordable
from st_hpo.objective import Objective
from st_hpo.recipe import TrainerRecipe
from st_hpo.release import forget_frames, release_memory, take_apart
from st_hpo.results import COMPLETED, FAILED, PRUNED, Baseline, TrialRecord
from st_hpo.routing import Routed, Router

Report = Callable[[float, int], bool]


def seed_everything(args: Any) -> None:
    """Seeds as upstream's trainer does at its construction (transformers.Trainer.__init__)."""
    if args.full_determinism:
        enable_full_determinism(args.seed)
    else:
        set_seed(args.seed)


def make_model_and_loss(
    args: Any,
    factories: Factories,
    routed: Routed,
    trial: TrialView | None,
    phase: Callable[[str], contextlib.AbstractContextManager[None]] = lambda name: contextlib.nullcontext(),
    must_be_new: bool = True,
) -> tuple[Any, Any]:
    """Seeds, then calls ``model_init`` and ``loss_init``: the first line of training by hand.

    Args:
        args: The training arguments, for the seed.
        factories: The two functions.
        routed: The hyperparameters that go to them.
        trial: What their trial parameter gets.
        phase: Times what runs inside of it.
        must_be_new: Whether to refuse a model or a loss that was trained before.

    Returns:
        The model, and the loss (None for the trainer's default).
    """
    with phase("seed"):
        seed_everything(args)
    with phase("model"):
        model = make_model(factories.model_init, routed.model, trial, factories.model_class, must_be_new)
    with phase("loss"):
        loss = None
        if factories.loss_init is not None:
            loss = make_loss(factories.loss_init, model, routed.loss, trial, must_be_new)
    return model, loss


@dataclass
class Factories:
    """The user's functions that make what a trial trains.

    Attributes:
        model_init: Makes the model.
        loss_init: Makes the loss; several by dataset name; None for the trainer's default loss.
        model_class: What ``model_init`` must return.
    """

    model_init: Factory
    loss_init: Factory | Mapping[str, Factory] | None
    model_class: type


class _Pruned(Exception):
    """The backend has pruned the trial."""


class _AsTrial(TrainerCallback):  # type: ignore[misc]
    """Tells upstream's tracker callbacks that this training is a trial, as transformers' own search does."""

    def __init__(self, name: str, hyperparameters: dict[str, Any]) -> None:
        self._name = name
        self._hyperparameters = hyperparameters

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.is_hyper_param_search = True
        state.trial_name = self._name
        state.trial_params = self._hyperparameters


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
    """

    recipe: TrainerRecipe
    snapshot: ArgumentSnapshot
    router: Router
    factories: Factories
    objective: Objective
    best_evaluation: bool = False
    applied: Routed = field(default_factory=Routed)
    verbose: bool = False
    run_name: Callable[[int, Any], str] = lambda number, trial: f"run-{number}"
    pruned_exceptions: tuple[type[BaseException], ...] = ()

    def baseline(self) -> Baseline:
        """Builds the model that no trial has trained, evaluates it, and releases it."""
        started = time.perf_counter()
        args = self.snapshot.build()
        try:
            view = TrialView(self.applied.all()) if self.applied.all() else None
            metrics = self._evaluate_untrained(args, view)
        except BaseException as exc:
            forget_frames(exc)
            raise
        finally:
            release_memory(args)
        values = self.objective.values(metrics)
        return Baseline(_single(values), recordable(metrics), time.perf_counter() - started)

    def _evaluate_untrained(self, args: Any, view: TrialView | None) -> dict[str, Any]:
        model, loss = make_model_and_loss(args, self.factories, self.applied, view)
        evaluations = EvaluationRecorder()
        trainer = self._build(args, model, loss, evaluations)
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
    ) -> None:
        """Runs one trial and fills its record; whatever ends it, it holds nothing afterwards.

        Args:
            record: The record to fill.
            propose: Gives the hyperparameters.
            native: The backend's trial.
            report: Takes an intermediate objective and its step, and says whether to prune.

        Raises:
            BaseException: What ended the trial, unless the backend pruned it; recorded before.
        """
        started = time.perf_counter()
        args: list[Any] = []
        try:
            self._run(record, propose, native, report, args)
        except _Pruned as exc:
            record.state, record.error = PRUNED, str(exc)
            forget_frames(exc)
        except BaseException as exc:
            record.state = PRUNED if isinstance(exc, self.pruned_exceptions) else FAILED
            record.error = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
            forget_frames(exc)
            raise
        finally:
            with _phase(record, "release"):
                release_memory(*args)
            record.seconds = time.perf_counter() - started

    def _run(
        self,
        record: TrialRecord,
        propose: Callable[[], Mapping[str, Any]],
        native: Any,
        report: Report | None,
        held: Any,
    ) -> None:
        with _phase(record, "propose"):
            proposed = propose()
        with _phase(record, "arguments"):
            routed = self.router.route(proposed)
            record.hyperparameters = routed.all()
            args = self.snapshot.build(routed.arguments)
            name = check_run_name(self.run_name(record.number, native))
            if args.save_strategy != "no":
                args.output_dir = os.path.join(args.output_dir, name)
            held.append(args)
        effective = Routed(
            model={**self.applied.model, **routed.model},
            loss={**self.applied.loss, **routed.loss},
            free={**self.applied.free, **routed.free},
        )
        view = TrialView({**effective.all(), **routed.all()}, native)
        try:
            model, loss = make_model_and_loss(args, self.factories, effective, view, lambda key: _phase(record, key))
            self.router.check_read(routed, view)
        finally:
            # Suggestions made inside `model_init` and `loss_init`, or on the way to the values that were set
            suggested = dict(getattr(native, "params", None) or {})
            record.hyperparameters = {k: plain(k, v) for k, v in {**suggested, **routed.all()}.items()}
        if not record.hyperparameters:
            raise SearchSpaceError("The search space is empty: `hp_space` returned {} and nothing was suggested.")

        def on_evaluation(step: int, metrics: dict[str, Any]) -> None:
            record.metrics = recordable(metrics)
            if report is not None and step > 0 and report(self.objective.values(metrics)[0], step):
                raise _Pruned(f"pruned at step {step}")

        evaluations = EvaluationRecorder(on_evaluation)
        with _phase(record, "trainer"):
            trainer = self._build(args, model, loss, evaluations)
            trainer.callback_handler.callbacks.insert(0, _AsTrial(name, dict(record.hyperparameters)))
        del model, loss
        try:
            with _phase(record, "train"):
                trainer.train()
            with _phase(record, "evaluate"):
                metrics = final_evaluation(trainer, evaluations)
            self._conclude(record, metrics, evaluations)
        finally:
            with _phase(record, "release"):
                take_apart(trainer)

    def _conclude(self, record: TrialRecord, metrics: dict[str, Any], evaluations: EvaluationRecorder) -> None:
        record.metrics = recordable(metrics)
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
        return trainer


def check_run_name(name: Any) -> str:
    """Returns the name of a run, which is also its folder below ``output_dir``.

    Raises:
        ConfigurationError: It is no string, or would lead out of that folder.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or any(mark in name for mark in ("/", "\\", "\0")):
        raise ConfigurationError(
            f"`hp_name` must return the name of a folder, without '/', but returned {name!r}. For example: "
            "hp_name=lambda trial: f'trial-{trial.number}'."
        )
    return name


def _single(values: list[float]) -> float | list[float]:
    return values[0] if len(values) == 1 else values


@contextlib.contextmanager
def _phase(record: TrialRecord, name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        record.phases[name] = record.phases.get(name, 0.0) + time.perf_counter() - started

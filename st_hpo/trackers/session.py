"""The runs of one trial in all of its trackers: opened when its training begins, closed whatever ends it."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from st_hpo.records import PRUNED, TrialRecord
from st_hpo.trackers.mlflow import MlflowTrialRun
from st_hpo.trackers.tensorboard import TensorBoardTrialRun
from st_hpo.trackers.trackio import TrackioTrialRun
from st_hpo.trackers.trial_run import TrialFacts, TrialRun
from st_hpo.trackers.wandb import WandbTrialRun, is_run_of

logger = logging.getLogger(__name__)

_KINDS: dict[str, type[TrialRun]] = {
    "wandb": WandbTrialRun,
    "mlflow": MlflowTrialRun,
    "tensorboard": TensorBoardTrialRun,
    "trackio": TrackioTrialRun,
}


@dataclass
class Tracking:
    """The trackers of a search, for one trial after the other.

    Between two trials it holds nothing, so that it can go to other processes.

    Attributes:
        group: What the runs of the search have in common.
        folder: The folder of the search.
        verbose: Whether trackers may print.
    """

    group: str = "search"
    folder: str = "."
    verbose: bool = False
    _runs: list[TrialRun] = field(default_factory=list)
    _unbegun: tuple[Any, str, list[type]] | None = None

    def announce(self, args: Any, name: str, removed: list[type]) -> None:
        """Says that a trial begins, so that it has a run even if it ends before its training begins.

        Args:
            args: Its training arguments.
            name: The name of its run.
            removed: Types of callbacks that the user has taken away from the trainer.
        """
        self._unbegun = args, name, removed

    def attach(self, trainer: Any, name: str, record: TrialRecord, objective_names: list[str]) -> None:
        """Gives a trial's trainer, whose training has not begun, callbacks that open its runs.

        Args:
            trainer: The trainer.
            name: The name of the trial's run.
            record: The trial's record, with its hyperparameters.
            objective_names: The metric keys that are optimized.
        """
        self._unbegun = None
        runs = list(_runs_of(trainer, self._facts(name, record, objective_names), record))
        if runs:
            trainer.callback_handler.callbacks.insert(0, _Open(runs, self._runs))
            trainer.add_callback(_Begun(self._runs))

    def _facts(self, name: str, record: TrialRecord, objective_names: list[str]) -> TrialFacts:
        number = str(record.number if record.backend_id is None else record.backend_id) if record.number >= 0 else name
        values = dict(record.hyperparameters)
        return TrialFacts(name, self.group, number, values, self.folder, objective_names, self.verbose)

    def close(self, record: TrialRecord, exc: BaseException | None = None) -> None:
        """Closes the runs of a trial. What goes wrong here is no matter of the trial, and only warned of.

        Args:
            record: Its record, with its state.
            exc: What has ended the trial. ``SystemExit`` is how Ray Tune ends or pauses one inside of a report.
        """
        unbegun, self._unbegun = self._unbegun, None
        if unbegun is not None and isinstance(exc, Exception):
            self._open_late(*unbegun, record)
        ended = record
        if isinstance(exc, SystemExit) and record.backend_id is not None:
            ended = TrialRecord(**{**vars(record), "state": PRUNED, "error": "ended or paused by the search"})
        while self._runs:
            run = self._runs.pop()
            try:
                with random_state_kept():
                    run.close(ended)
            except Exception as exc:  # the trial has ended, and what it found must not depend on a server
                logger.warning(
                    f"The run {run.facts.name!r} could not be closed in {run.tracker} ({type(exc).__name__}: {exc})."
                )

    def _open_late(self, args: Any, name: str, removed: list[type], record: TrialRecord) -> None:
        """Opens the runs of a trial that has ended before it had a trainer."""
        from transformers.integrations import INTEGRATION_TO_CALLBACK

        kept = [kind for kind in args.report_to if kind in _KINDS and INTEGRATION_TO_CALLBACK[kind] not in removed]
        for kind in kept:
            if kind == "wandb" and is_run_of(record.backend_id):
                continue
            run = _KINDS[kind](SimpleNamespace(tb_writer=None), self._facts(name, record, []))
            try:
                with random_state_kept():
                    run.open(args, None)
            except Exception as exc:
                logger.warning(f"The run {name!r} could not be opened in {run.tracker} ({type(exc).__name__}: {exc}).")
            else:
                self._runs.append(run)


def _runs_of(trainer: Any, facts: TrialFacts, record: TrialRecord) -> Iterator[TrialRun]:
    from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback

    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, WandbCallback):
            if not is_run_of(record.backend_id):
                yield WandbTrialRun(callback, facts)
        elif isinstance(callback, MLflowCallback):
            yield MlflowTrialRun(callback, facts)
        elif isinstance(callback, TensorBoardCallback):
            yield TensorBoardTrialRun(callback, facts)
        elif type(callback) is TrackioCallback:
            run = TrackioTrialRun(callback, facts)
            trainer.callback_handler.callbacks = [
                run.reporter if item is callback else item for item in trainer.callback_handler.callbacks
            ]
            yield run


class _Open(TrainerCallback):  # type: ignore[misc]
    """Before all others: opens the runs. Only rank 0 has any."""

    def __init__(self, runs: list[TrialRun], opened: list[TrialRun]) -> None:
        self._runs = runs
        self._opened = opened

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        for run in self._runs:
            with random_state_kept():
                run.open(args, model)
            self._opened.append(run)


class _Begun(TrainerCallback):  # type: ignore[misc]
    """After all others."""

    def __init__(self, opened: list[TrialRun]) -> None:
        self._opened = opened

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for run in self._opened:
            with random_state_kept():
                run.begun()


def drop_trackers(trainer: Any) -> None:
    """Takes the trackers away from a trainer that is no trial: an evaluation alone would open a run."""
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    for callback in [item for item in trainer.callback_handler.callbacks if isinstance(item, kinds)]:
        trainer.remove_callback(callback)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Keeps the random states: a tracker that draws a name or an id must not change the training."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)

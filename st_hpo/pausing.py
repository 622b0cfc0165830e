"""Trials that pause at a rung, and go on from there later: to the last bit as if they had not paused.

Where a checkpoint would not hold all that the training depends on (:mod:`st_hpo.continuation`), none is written, and
the trial is trained from its beginning when it is taken up again. So it is, too, where what has been loaded is not,
bit for bit, what was there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from st_hpo.checkpoints import TrialCheckpoints, evaluations_before
from st_hpo.continuation import arguments_allow, beside_weights, step_allows, trainer_allows, weights
from st_hpo.distributed import Pruned
from st_hpo.errors import HPOError
from st_hpo.evaluations import EvaluationRecorder
from st_hpo.faults import describe
from st_hpo.jsonable import from_jsonable, to_jsonable
from st_hpo.loss_weights import LOSS_FILE, load_loss, own_state, save_loss
from st_hpo.randomness import random_states_kept
from st_hpo.records import TrialRecord

logger = logging.getLogger(__name__)

NOTE = "paused.json"  # in a trial's folder, written last: without it the checkpoint is not whole
_RANDOM_STATES = "rng_state.pth"  # upstream goes on without it, from other random states
# Weights, and what Adam keeps of each; and the same once more, that others find room as well
_SPACE = 2 * 3


class CannotContinue(Exception):
    """A trial cannot go on from where another has paused, and is to be trained from its beginning."""


class PausingCheckpoints(TrialCheckpoints):
    """Writes the checkpoint of a trial that pauses, and continues one that has.

    Args:
        folder: Where the checkpoint goes, if the trial pauses.
        paused: The folder of the trial that this one takes up; None if it takes up none. What is not there, or not
            whole, is not used.
        is_kept: Says whether a checkpoint that is written now would be kept.
    """

    def __init__(self, folder: str, paused: str | None = None, is_kept: Callable[[], bool] = lambda: True) -> None:
        super().__init__(lambda folder: None)
        self._is_kept = is_kept
        self.folder = Path(folder)
        self._paused = None if paused is None else Path(paused)
        self._possible = True
        self._begun = False
        self._reason: str | None = None
        self._record: TrialRecord | None = None
        self._note: dict[str, Any] = {}
        self._beside: str | None = None
        self._since: float | None = None
        self._output_dir = ""

    def prepare(self, args: Any) -> None:
        """Sets the arguments by which upstream continues a training; see :meth:`TrialCheckpoints.prepare`."""
        self._possible = arguments_allow(args)
        self._resume_from = self._whole_checkpoint() if self._possible else None
        if self._resume_from is not None:
            args.restore_callback_states_from_checkpoint = True

    def _whole_checkpoint(self) -> str | None:
        if self._paused is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            self._note = json.loads((self._paused / NOTE).read_text(encoding="utf-8"))
            checkpoint = self._paused / self._note["checkpoint"]
            if (checkpoint / _RANDOM_STATES).is_file():
                return str(checkpoint)
        return None

    def attach(self, trainer: Any, evaluations: EvaluationRecorder) -> str | None:
        """Ties these checkpoints to the trial's trainer; see :meth:`TrialCheckpoints.attach`."""
        self._trainer = trainer
        self._evaluations = evaluations
        if self._possible and not trainer_allows(trainer):
            self._possible, self._resume_from = False, None
        if self._resume_from is not None:
            load_loss(trainer.loss, trainer.model, Path(self._resume_from) / LOSS_FILE)
            evaluations.during_training = list(evaluations_before(self._resume_from))
            self.curve = tuple(from_jsonable(item) for item in self._note["evaluations"])
        trainer.callback_handler.callbacks.insert(0, _PausingHook(self))  # the first: no other hears of the checkpoint
        return self._resume_from

    def begun(self) -> None:
        """Is called when the training begins, with all that has been loaded.

        Raises:
            CannotContinue: That is not what was saved.
        """
        self._beside = beside_weights(self._trainer)  # now: upstream has marked the modules that it has prepared
        if self._resume_from is not None:
            if weights(self._trainer) != self._note["weights"]:
                raise CannotContinue("what was loaded is not what was saved")
            self.began_at = self._trainer.state.global_step
        self._begun = True

    def pause(self, record: TrialRecord, reason: str) -> bool:
        """See :meth:`TrialCheckpoints.pause`; the trial ends with :class:`~st_hpo.distributed.Pruned`."""
        trainer = self._trainer
        if not (self._possible and step_allows(trainer) and self._is_kept() and self._has_room()):
            return False
        if self._beside is None or beside_weights(trainer) != self._beside:
            return False
        args = trainer.args
        self._output_dir, args.output_dir = args.output_dir, str(self.folder)
        args.save_only_model = args.push_to_hub = False
        args.save_total_limit = None
        trainer.save_model = self._save_model
        trainer.control.should_save = True
        self._reason, self._record = reason, record
        return True

    @property
    def is_pausing(self) -> bool:
        """See :attr:`TrialCheckpoints.is_pausing`."""
        return self._reason is not None

    def _has_room(self) -> bool:
        tensors = [*self._trainer.model.state_dict().values()]
        tensors += [tensor for _, tensor in own_state(self._trainer.loss, self._trainer.model)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return bool(shutil.disk_usage(self.folder).free > _SPACE * size)
        except OSError:
            return False

    def _save_model(self, output_dir: str, **kwargs: Any) -> None:
        """Stands in for upstream's: without a model card, for which the model would encode and draw at random."""
        self._since = time.perf_counter()
        with random_states_kept():
            self._trainer.model.save_pretrained(output_dir, create_model_card=False)

    def saved(self, step: int) -> None:
        """Is called when upstream has written its checkpoint, and completes it."""
        assert self._record is not None and self._since is not None
        control = self._trainer.control
        if not (control.should_training_stop or control.should_epoch_stop):
            checkpoint = self.folder / f"checkpoint-{step}"
            save_loss(self._trainer.loss, self._trainer.model, checkpoint / LOSS_FILE)
            curve = [to_jsonable(item) for item in self._record.evaluations]
            note = {"checkpoint": checkpoint.name, "weights": weights(self._trainer), "evaluations": curve}
            (self.folder / NOTE).write_text(json.dumps(note), encoding="utf-8")
        self._record.phases["pause"] = time.perf_counter() - self._since

    def end(self) -> None:
        """Ends the trial if it is to pause.

        Raises:
            Pruned: It is.
        """
        if self._reason is not None:
            self._trainer.args.output_dir = self._output_dir  # where trackers look for what they upload
            raise Pruned(self._reason)

    def failed(self, exc: Exception) -> None:
        """Is told what has ended the training.

        Raises:
            Pruned: The checkpoint could not be written; the trial pauses without one.
            CannotContinue: The checkpoint could not be read.
        """
        if isinstance(exc, Pruned | CannotContinue | HPOError):
            return
        if self._reason is not None and self._since is not None:  # not what the step's own evaluation has raised
            self._trainer.args.output_dir = self._output_dir
            logger.warning(f"A trial pauses without a checkpoint, which could not be written: {describe(exc)}")
            shutil.rmtree(self.folder, ignore_errors=True)
            raise Pruned(self._reason) from None
        if self._resume_from is not None and not self._begun:
            raise CannotContinue(describe(exc)) from None

    def from_the_beginning(self, reason: Exception) -> None:
        """Gives up continuing the other trial.

        Args:
            reason: Why.
        """
        logger.warning(f"A trial that has paused is trained from its beginning: {reason}.")
        self._paused, self._resume_from, self.curve, self.began_at = None, None, (), 0


class _PausingHook(TrainerCallback):  # type: ignore[misc]
    def __init__(self, checkpoints: PausingCheckpoints) -> None:
        self._checkpoints = checkpoints

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._checkpoints.begun()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.output_dir == str(self._checkpoints.folder):
            self._checkpoints.saved(state.global_step)
            self._checkpoints.end()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._checkpoints.end()  # something has kept the checkpoint from being written

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._checkpoints.end()

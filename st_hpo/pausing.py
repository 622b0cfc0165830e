"""Trials that pause at a rung, and go on from there later: to the last bit as if they had not paused.

A checkpoint of upstream's does not hold everything that a training depends on: not the state of a user's callbacks or
of a trainer class of the user's own, nor what a loss counts. Where there is any of it, no checkpoint is written, and
the trial is trained from its beginning when it is taken up again. So it is, too, where the weights that have been
loaded are not, bit for bit, those that were there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import TrainerCallback

from st_hpo.checkpoints import LOSS_FILE, TrialCheckpoints, evaluations_before, load_loss, own_state, save_loss
from st_hpo.distributed import Pruned
from st_hpo.errors import HPOError
from st_hpo.evaluations import EvaluationRecorder
from st_hpo.faults import describe
from st_hpo.jsonable import from_jsonable, to_jsonable
from st_hpo.records import TrialRecord

logger = logging.getLogger(__name__)

NOTE = "paused.json"  # in a trial's folder, written last: without it the checkpoint is not whole
# Weights, and what Adam keeps of each; and the same once more, that others find room as well
_SPACE = 2 * 3
_KNOWN = ("transformers.", "sentence_transformers.", "st_hpo.")
# Known, but they hold something that they set anew at every beginning
_STATEFUL = {"SpladeRegularizerWeightSchedulerCallback"}
_MODULES_OWN = {*vars(nn.Module())}


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
        self._beside: dict[str, Any] | None = None
        self._since = 0.0

    def prepare(self, args: Any) -> None:
        """Sets the arguments by which upstream continues a training; see :meth:`TrialCheckpoints.prepare`."""
        self._possible = not (
            args.load_best_model_at_end
            or args.ignore_data_skip
            or args.auto_find_batch_size
            or args.deepspeed
            or args.fsdp
            or "schedule_free" in str(args.optim)
        )
        self._resume_from = self._whole_checkpoint() if self._possible else None
        if self._resume_from is not None:
            args.restore_callback_states_from_checkpoint = True

    def _whole_checkpoint(self) -> str | None:
        if self._paused is None or not (self._paused / NOTE).is_file():
            return None
        self._note = json.loads((self._paused / NOTE).read_text(encoding="utf-8"))
        checkpoint = self._paused / self._note["checkpoint"]
        return str(checkpoint) if checkpoint.is_dir() else None

    def attach(self, trainer: Any, evaluations: EvaluationRecorder) -> str | None:
        """Ties these checkpoints to the trial's trainer; see :meth:`TrialCheckpoints.attach`."""
        self._trainer = trainer
        self._evaluations = evaluations
        if not is_whole_in_a_checkpoint(trainer):
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
        self._begun = True
        self._beside = _beside_tensors(self._trainer)  # now, because upstream marks the modules that it has prepared
        if self._resume_from is None:
            return
        if _digest(self._trainer) != self._note["weights"]:
            raise CannotContinue("the weights that were loaded are not those that were saved")
        self.began_at = self._trainer.state.global_step

    def pause(self, record: TrialRecord, reason: str) -> bool:
        """See :meth:`TrialCheckpoints.pause`; the trial ends with :class:`~st_hpo.distributed.Pruned`."""
        trainer, epoch = self._trainer, self._trainer.state.epoch
        # What upstream does at the end of an epoch would be missing from a training that begins with the next one
        at_an_end = epoch is None or abs(epoch - round(epoch)) < 1e-6
        changed = self._beside is None or _beside_tensors(trainer) != self._beside
        if not self._possible or at_an_end or changed or not self._is_kept() or not self._has_room():
            return False
        args = trainer.args
        args.output_dir = str(self.folder)
        args.save_only_model = args.push_to_hub = False
        args.save_total_limit = None
        trainer.control.should_save = True
        self._reason, self._record = reason, record
        self._since = time.perf_counter() - self._evaluations.seconds
        return True

    def _has_room(self) -> bool:
        size = sum(tensor.numel() * tensor.element_size() for tensor in self._trainer.model.state_dict().values())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return bool(shutil.disk_usage(self.folder).free > _SPACE * size)
        except OSError:
            return False

    def saved(self, step: int) -> None:
        """Is called when upstream has written its checkpoint, and completes it."""
        assert self._record is not None
        checkpoint = self.folder / f"checkpoint-{step}"
        save_loss(self._trainer.loss, self._trainer.model, checkpoint / LOSS_FILE)
        curve = [to_jsonable(item) for item in self._record.evaluations]
        note = {"checkpoint": checkpoint.name, "weights": _digest(self._trainer), "evaluations": curve}
        (self.folder / NOTE).write_text(json.dumps(note), encoding="utf-8")
        self._record.phases["pause"] = time.perf_counter() - self._evaluations.seconds - self._since

    def end(self) -> None:
        """Ends the trial if it is to pause.

        Raises:
            Pruned: It is.
        """
        if self._reason is not None:
            raise Pruned(self._reason)

    def failed(self, exc: Exception) -> None:
        """Is told what has ended the training.

        Raises:
            Pruned: The checkpoint could not be written; the trial pauses without one.
            CannotContinue: The checkpoint could not be read.
        """
        if isinstance(exc, Pruned | CannotContinue | HPOError):
            return
        if self._reason is not None:
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
        self._resume_from, self.curve, self.began_at = None, (), 0


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


def is_whole_in_a_checkpoint(trainer: Any) -> bool:
    """Whether a checkpoint of upstream's, and the weights of the loss, are all that a training goes on from.

    Args:
        trainer: The trainer of a trial, not trained yet.
    """
    dataset = trainer._of_trial.parts["train_dataset"]
    datasets = list(dataset.values()) if isinstance(dataset, dict) else [dataset]
    args = trainer.args
    own = [type(trainer), type(trainer.data_collator), *map(type, trainer.callback_handler.callbacks)]
    return (
        all(f"{kind.__module__}.".startswith(_KNOWN) and kind.__name__ not in _STATEFUL for kind in own)
        and isinstance(dataset, Dataset | DatasetDict | dict)
        and all(isinstance(item, Dataset) and not _is_transformed(item) for item in datasets)
        and isinstance(args.batch_sampler, str)
        and isinstance(args.multi_dataset_batch_sampler, str)
        and trainer.optimizer is None
        and trainer.lr_scheduler is None
        and getattr(trainer, "optimizer_cls_and_kwargs", None) is None
    )


def _is_transformed(dataset: Dataset) -> bool:
    """Whether a function of the user's makes the rows, which may draw at random, or count."""
    transform = dataset.format["format_kwargs"].get("transform")
    if isinstance(transform, partial):  # upstream's, which adds the dataset's name, and calls the one that was there
        return not transform.func.__module__.startswith(_KNOWN) or transform.keywords.get("transform") is not None
    return transform is not None


def _beside_tensors(trainer: Any) -> dict[str, Any] | None:
    """What a model and its loss hold beside their tensors; None where that cannot be told.

    Of known classes, whose caches would be in the way, it is numbers and words. Of others it is everything.
    """
    losses = trainer.loss if isinstance(trainer.loss, dict) else {"": trainer.loss}
    found: dict[str, Any] = {}
    for root, item in {"model": trainer.model, **{f"loss {name}": loss for name, loss in losses.items()}}.items():
        for name, module in item.named_modules() if isinstance(item, nn.Module) else ():
            own = {key: value for key, value in vars(module).items() if key not in _MODULES_OWN}
            if f"{type(module).__module__}.".startswith((*_KNOWN, "torch.", "peft.")):
                own = {key: value for key, value in own.items() if isinstance(value, bool | int | float | str)}
            try:
                found[f"{root}.{name}"] = cloudpickle.dumps(own)
            except Exception:
                return None
    return found


def _digest(trainer: Any) -> str:
    """A digest of all weights."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in [*trainer.model.state_dict().items(), *own_state(trainer.loss, trainer.model)]:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()

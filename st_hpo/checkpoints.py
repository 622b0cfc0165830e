"""Checkpoints of a trial that its backend pauses, moves to another process, or continues with other values."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from st_hpo.continuation import left_out
from st_hpo.errors import ConfigurationError
from st_hpo.evaluations import Evaluation, EvaluationRecorder
from st_hpo.loss_weights import LOSS_FILE, load_loss, save_loss
from st_hpo.objective import PREFIX
from st_hpo.records import TrialRecord

BEST_FOLDER = "best"  # inside of a checkpoint: the weights of an earlier one


class TrialCheckpoints:
    """Hands a trial's checkpoints on as they are written, and continues the trial from one.

    A checkpoint of upstream's holds the model, the optimizer, the schedule and the random states. Weights of the loss
    are not in it, nor those of the best checkpoint so far (``load_best_model_at_end``); they are added here.

    Args:
        on_save: Called with the folder of every checkpoint, once it is written.
        folder: Write one checkpoint after every evaluation in this folder, and keep the last; None writes none beyond
            those that the training arguments ask for.
        resume_from: The folder of the checkpoint to continue from, None to start from the beginning.
    """

    # After which step of its training the trial began: what came before is another trial's, which has paused
    began_at = 0
    # The evaluations of that other trial
    curve: tuple[dict[str, Any], ...] = ()

    def __init__(
        self, on_save: Callable[[str], None], folder: str | None = None, resume_from: str | None = None
    ) -> None:
        self._on_save = on_save
        self._folder = folder
        self._resume_from = resume_from
        self._trainer: Any = None

    @property
    def writes_own(self) -> bool:
        """Whether the checkpoints are the backend's, in a folder of its own."""
        return self._folder is not None

    @property
    def save_follows(self) -> bool:
        """Whether a checkpoint is written right after the evaluation that is being reported."""
        return bool(self._trainer.control.should_save)

    @property
    def at_end(self) -> bool:
        """Whether the training has made its last step, or a callback has ended it."""
        state, control = self._trainer.state, self._trainer.control
        return bool(state.global_step >= state.max_steps or control.should_training_stop)

    def prepare(self, args: Any) -> None:
        """Sets the arguments by which upstream writes the checkpoints that the backend needs, and can continue.

        Raises:
            ConfigurationError: The best checkpoint would be another one than without those of the backend, or a
                training could not go on from one as it was.
        """
        if self._folder is None:
            # From these, the training would not go on as it was: another model would be its best, its optimizer or
            # its data would begin anew
            if args.load_best_model_at_end or args.save_only_model or args.ignore_data_skip or left_out(args):
                self._resume_from = None
        else:
            if (name := left_out(args)) is not None:
                raise ConfigurationError(
                    f"The scheduler pauses trials, and with {name} they could not go on as if they had not paused. "
                    "Leave it out or update it, or choose a scheduler that pauses nothing, such as "
                    "AsyncHyperBandScheduler."
                )
            needed = args.eval_strategy, args.eval_steps
            fewer = args.save_strategy == args.eval_strategy == "steps" and args.save_steps != args.eval_steps
            if args.load_best_model_at_end and fewer:
                raise ConfigurationError(
                    f"The scheduler needs a checkpoint at every evaluation, so `load_best_model_at_end` would find "
                    f"others than with save_steps={args.save_steps}. Set save_steps={args.eval_steps}, as eval_steps."
                )
            args.output_dir = self._folder
            args.save_strategy, args.save_steps = needed
            # With 1, upstream deletes the last checkpoint at the end, if it is not the best
            args.save_total_limit = 2 if args.load_best_model_at_end else 1
            args.save_only_model = args.ignore_data_skip = False
        if self._resume_from is not None:
            args.restore_callback_states_from_checkpoint = True  # EarlyStoppingCallback counts

    def attach(self, trainer: Any, evaluations: EvaluationRecorder) -> str | None:
        """Ties these checkpoints to the trial's trainer.

        Args:
            trainer: The trainer, not trained yet.
            evaluations: Its recorder, which gets the evaluations made before the checkpoint.

        Returns:
            What to pass to ``train(resume_from_checkpoint=...)``.
        """
        self._trainer = trainer
        options: list[dict[str, Any]] = []
        if self._resume_from is not None:
            load_loss(trainer.loss, trainer.model, Path(self._resume_from) / LOSS_FILE)
            _find_best(self._resume_from)
            evaluations.during_training = list(evaluations_before(self._resume_from))
            # The optimizer as these arguments make it: the checkpoint brings the options of the old ones
            options = [_options(group) for group in trainer.create_optimizer().param_groups]
        trainer.add_callback(_CheckpointHook(trainer, self._on_save, options, keep_best=self._folder is not None))
        return self._resume_from

    def pause(self, record: TrialRecord, reason: str) -> bool:
        """Has the checkpoint written of a trial that pauses; see :class:`~st_hpo.pausing.PausingCheckpoints`.

        Returns:
            Whether one is written, after which the trial ends by itself. False: it is to be ended now.
        """
        return False

    @property
    def is_pausing(self) -> bool:
        """Whether the trial ends as soon as its checkpoint is written."""
        return False

    def failed(self, exc: Exception) -> None:
        """Is told what has ended the training; may raise what that means."""


class _CheckpointHook(TrainerCallback):  # type: ignore[misc]
    def __init__(
        self, trainer: Any, on_save: Callable[[str], None], options: list[dict[str, Any]], keep_best: bool
    ) -> None:
        self._trainer = trainer
        self._keep_best = keep_best
        self._on_save = on_save
        self._options = options

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._options:
            _set_options(self._trainer.optimizer, self._trainer.lr_scheduler, self._options)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if os.path.isdir(folder):
            save_loss(self._trainer.loss, self._trainer.model, Path(folder) / LOSS_FILE)
            if self._keep_best and args.load_best_model_at_end:
                _add_best(folder, state.best_model_checkpoint)
            self._on_save(folder)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "initial_lr")}


def _set_options(optimizer: Any, scheduler: Any, options: list[dict[str, Any]]) -> None:
    """Gives a restored optimizer the options of the present arguments; equal ones are not touched, to the last bit.

    torch restores the options together with the state (Optimizer.load_state_dict), and a schedule its base rates
    (LRScheduler.load_state_dict), so a changed learning rate would have no effect.
    """
    base_rates = list(scheduler.base_lrs) if hasattr(scheduler, "base_lrs") else None
    for index, (group, wanted) in enumerate(zip(optimizer.param_groups, options, strict=True)):
        base = group.get("initial_lr", group["lr"])
        group.update({name: value for name, value in wanted.items() if name != "lr"})
        if base != wanted["lr"]:
            group["lr"] = wanted["lr"] * (group["lr"] / base) if base else wanted["lr"]
            group["initial_lr"] = wanted["lr"]
            if base_rates is not None:
                base_rates[index] = wanted["lr"]
    if base_rates is not None:
        scheduler.base_lrs = base_rates


def _add_best(checkpoint: str, best: str | None) -> None:
    """Adds the weights of the best checkpoint to another one: where that goes, its folder is not."""
    if best is not None and os.path.isdir(best) and not os.path.samefile(best, checkpoint):
        left_out = shutil.ignore_patterns("optimizer.*", "scheduler.*", "rng_state*", BEST_FOLDER)
        shutil.copytree(best, os.path.join(checkpoint, BEST_FOLDER), ignore=left_out, dirs_exist_ok=True)


def _find_best(checkpoint: str) -> None:
    """Tells a checkpoint's state where the best one is now."""
    file = Path(checkpoint, TRAINER_STATE_NAME)
    state = json.loads(file.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint") is not None:
        inner = os.path.join(checkpoint, BEST_FOLDER)
        state["best_model_checkpoint"] = inner if os.path.isdir(inner) else checkpoint
        file.write_text(json.dumps(state, indent=2), encoding="utf-8")


def evaluations_before(checkpoint: str) -> Iterator[Evaluation]:
    """Gives the evaluations that upstream has logged before a checkpoint, those of several datasets together."""
    state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
    found: dict[int, dict[str, Any]] = {}
    for entry in state.log_history:
        metrics = {key: value for key, value in entry.items() if key.startswith(PREFIX)}
        if metrics and entry["step"] > 0:
            found.setdefault(entry["step"], {}).update(metrics)
    for step, metrics in found.items():
        yield Evaluation(step, metrics)

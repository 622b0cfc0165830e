"""Letting go of a trial: whatever ended it, nothing may keep its model alive."""

from __future__ import annotations

import contextlib
import gc
import traceback
from typing import Any

import torch


def release_memory(*args: Any) -> None:
    """Collects what the trial has left in reference cycles, and empties the caches that hold on to it."""
    if any(item.torch_compile for item in args):
        torch.compiler.reset()  # compiled code, and its count of recompilations, belong to one trial
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def take_apart(trainer: Any) -> None:
    """Ends a trial's trainer: trackers are closed, and nothing that refers to it keeps its model alive."""
    handler = vars(trainer).get("callback_handler")
    if handler is not None and vars(trainer).get("is_in_train"):  # pruned or failed: as transformers does on pruning
        with contextlib.suppress(Exception):
            handler.on_train_end(trainer.args, trainer.state, trainer.control)
    if vars(trainer).get("is_deepspeed_enabled"):
        trainer.accelerator.free_memory()  # an engine holds memory beyond its references
    vars(trainer).clear()


def forget_frames(exc: BaseException) -> None:
    """Clears the local variables in the tracebacks of an exception: whoever keeps it would keep the model with it.

    A notebook keeps the last exception (``sys.last_exc``), a log record keeps the one it shows.
    """
    seen: set[int] = set()
    current: BaseException | None = exc
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__


class KeptOutOfCollections:
    """What exists before a search, kept out of every garbage collection during it.

    A trial's own cycles are all that a collection has to find then. Measured: 6 ms a collection, most of it freeing
    the model, instead of 250.
    """

    def __init__(self) -> None:
        self._may: bool | None = None

    def freeze(self) -> None:
        """Keeps out what exists now; called before the first trial, and after it for what that has imported."""
        gc.collect()
        if self._may is None:
            self._may = gc.get_freeze_count() == 0  # otherwise the user has frozen, and unfreezing would undo it
        if self._may:
            gc.freeze()

    def unfreeze(self) -> None:
        """Lets collections look at everything again."""
        if self._may:
            gc.unfreeze()

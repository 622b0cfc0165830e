"""What a search shows: one progress bar over the trials. The bars and log lines inside the trials stay quiet."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm

_LOGGERS = ("sentence_transformers", "datasets", "accelerate")


def drop_output_callbacks(trainer: Any) -> None:
    """Takes the callbacks away that print the trainer's inner progress bar and log lines."""
    from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for kind in {DEFAULT_PROGRESS_CALLBACK, PrinterCallback, ProgressCallback}:
        for callback in [item for item in trainer.callback_handler.callbacks if isinstance(item, kind)]:
            trainer.remove_callback(callback)


@contextlib.contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Holds back progress bars and log lines below ``level`` of the libraries underneath, and restores both.

    Args:
        level: ``logging.WARNING`` where warnings should still be seen, ``logging.ERROR`` where they have been.
    """
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_level = transformers_logging.get_verbosity()
    transformers_bars = transformers_logging.is_progress_bar_enabled()
    datasets_bars = not datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    transformers_logging.set_verbosity(max(level, transformers_level))
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(max(level, logger.level))
    try:
        yield
    finally:
        for logger, previous in zip(loggers, levels, strict=True):
            logger.setLevel(previous)
        if datasets_bars:
            datasets.enable_progress_bars()
        if transformers_bars:
            transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(transformers_level)


@contextlib.contextmanager
def log_level_kept() -> Iterator[None]:
    """Keeps transformers' log level: every trainer's constructor sets it from its own arguments."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextlib.contextmanager
def no_bars_on_stderr() -> Iterator[None]:
    """Swallows a bar that cannot be switched off otherwise (sentence-transformers' "Computing widget examples")."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


class SearchProgress:
    """The one progress bar of a search.

    Args:
        total: The number of trials, None if only a timeout ends the search.
        disable: Show nothing.
    """

    def __init__(self, total: int | None, disable: bool) -> None:
        self._bar = tqdm(total=total, desc="Hyperparameter search", unit="trial", disable=disable)

    def trial_ended(self, best: Any) -> None:
        """Moves on by one trial and shows the best objective so far."""
        if best is not None:
            values = best if isinstance(best, list) else [best]
            self._bar.set_postfix_str("best " + ", ".join(f"{value:.5g}" for value in values), refresh=False)
        if self._bar.total is not None and self._bar.n >= self._bar.total:
            self._bar.total = self._bar.n + 1  # trials that are taken up again come beside those that were asked for
        self._bar.update(1)

    def say(self, message: str) -> None:
        """Writes a line above the bar."""
        if not self._bar.disable:
            self._bar.write(message)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

"""What a search shows: one progress bar over the trials. The bars and log lines inside the trials stay quiet."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm

from st_hpo.duplicates import taken_over
from st_hpo.plan import Plan
from st_hpo.records import FAILED, TrialRecord
from st_hpo.stopping import trials_done

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
    """What one search says: its plan, its progress bar, and a line for what should be known at once.

    Args:
        total: The number of trials, None if only a timeout ends the search.
        disable: Show nothing.
        plan: What the search is going to do; None to say nothing of it.
    """

    def __init__(self, total: int | None, disable: bool, plan: Plan | None = None) -> None:
        self._bar = tqdm(total=total, desc="Hyperparameter search", unit="trial", disable=disable)
        self._plan = plan
        self._estimated = False
        self._others: list[TrialRecord] | None = None

    def begin(self, names: Sequence[str], directions: Sequence[str]) -> None:
        """Says what is planned.

        Args:
            names: Those of the objectives.
            directions: Theirs.
        """
        if self._plan is not None:
            self._say("\n".join(self._plan.lines(names, directions)))

    def trial_ended(
        self,
        record: TrialRecord,
        best: Any,
        records: Sequence[TrialRecord],
        known: Callable[[], Sequence[TrialRecord]] = tuple,
    ) -> None:
        """Moves on by one trial, shows the best objective so far, and says once how long the rest may take.

        Args:
            record: The trial.
            best: The best objective so far, None if there is none.
            records: The trials that this search has run.
            known: Gives all trials of its study, also those of earlier searches and of other processes. It may ask a
                database, so it is called once: for the first trial, and only where those count.
        """
        if record.state == FAILED:
            self._say(f"Trial {record.number} failed: {record.error}")
        if best is not None:
            values = best if isinstance(best, list) else [best]
            self._bar.set_postfix_str("best " + ", ".join(f"{value:.5g}" for value in values), refresh=False)
        self._look_at_others(records, known)
        if self._bar.total is not None and self._bar.n >= self._bar.total:
            self._bar.total = self._bar.n + 1  # trials that are taken up again come beside those that were asked for
        self._bar.update(1)
        if self._plan is None or self._estimated:
            return
        if (estimate := self._plan.estimate(records, self._others or ())) is not None:
            self._estimated = True
            self._say(estimate)

    def _look_at_others(self, records: Sequence[TrialRecord], known: Callable[[], Sequence[TrialRecord]]) -> None:
        """Takes note of what others have trained before, and begins the bar there if its total counts them."""
        if self._others is not None or self._bar.disable or self._plan is None or not self._plan.counts_others:
            return
        own = {record.number for record in records}
        self._others = [record for record in known() if record.number not in own]
        if self._plan.in_total:
            self._bar.initial = self._bar.n = self._bar.last_print_n = trials_done(self._others)

    def end(self, records: Sequence[TrialRecord]) -> None:
        """Says which trials were not trained, and leaves the bar as it is."""
        if (copies := taken_over(records)) is not None:
            self._say(copies)
        self._bar.close()

    def _say(self, message: str) -> None:
        if not self._bar.disable:
            self._bar.write(message)

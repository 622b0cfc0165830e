"""The folder of the checkpoints from which paused trials go on.

Imports optuna: for the use of the backend's own functions only.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from st_hpo.backends.optuna.promotion import PROMOTED_ATTRIBUTE, loss_at, promoted_numbers
from st_hpo.backends.optuna.records import RETRY_ATTRIBUTE
from st_hpo.scratch import scratch_folder

if TYPE_CHECKING:
    from st_hpo.pausing import PausingCheckpoints

_PREFIX = ".st_hpo-paused-"  # of a folder below the search's `output_dir`


class PausedTrials:
    """The checkpoints of the trials that have paused: of the few that may be taken up again soon.

    Args:
        study: The study, whose pruner pauses trials.
        keep: How many trials keep their checkpoint at each rung.
        output_dir: The folder of the search.
    """

    def __init__(self, study: Any, keep: int, output_dir: str) -> None:
        self._study = study
        self._keep = keep
        self._parent = Path(output_dir)
        self.folder: str | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[PausedTrials]:
        """Has a folder for them in this block, and removes those of searches that were killed."""
        if not self._keep:
            yield self
            return
        there_before = next(path for path in (self._parent, *self._parent.parents) if path.is_dir())
        with contextlib.ExitStack() as stack:
            stack.callback(self._remove_empty, there_before)
            try:
                self._parent.mkdir(parents=True, exist_ok=True)
                self.folder = stack.enter_context(scratch_folder(_PREFIX, self._parent))
            except OSError:  # nothing can be written there: trials are trained from their beginning
                pass
            try:
                yield self
            finally:
                self.folder = None

    def _remove_empty(self, there_before: Path) -> None:
        with contextlib.suppress(OSError):  # only what is empty, and was not there
            for path in (self._parent, *self._parent.parents):
                if path == there_before:
                    break
                path.rmdir()

    def tidy(self) -> None:
        """Removes the checkpoints that will hardly be needed: call it when a trial has ended."""
        if self.folder is None:
            return
        trials = self._study.get_trials(deepcopy=False)
        unfinished = [trial for trial in trials if not trial.state.is_finished()]
        wanted = {trial.number for trial in unfinished} | promoted_numbers(unfinished)
        wanted.update(trial.number for trial in best_paused(self._study, trials, self._keep))
        with contextlib.suppress(OSError):  # the folder is in reach of others
            for path in Path(self.folder).iterdir():
                if path.name.isdigit() and int(path.name) not in wanted:
                    shutil.rmtree(path, ignore_errors=True)


def best_paused(study: Any, trials: list[FrozenTrial], count: int, pausing: int | None = None) -> list[FrozenTrial]:
    """Returns those trials that wait at their rungs, at most so many at each: the best.

    Args:
        study: Their study.
        trials: All its trials.
        count: How many.
        pausing: The number of a trial that is about to pause, and counts as one that does.
    """
    promoted, found = promoted_numbers(trials), []
    waiting = [
        trial
        for trial in trials
        if (trial.state == TrialState.PRUNED and trial.number not in promoted) or trial.number == pausing
    ]
    for rung in {trial.last_step for trial in waiting if trial.last_step is not None}:
        at_rung = [trial for trial in waiting if trial.last_step == rung]
        here = [trial for trial in at_rung if not math.isnan(trial.intermediate_values[rung])]
        found += sorted(here, key=lambda trial: (loss_at(study, trial, rung), trial.number))[:count]
    return found


def checkpoints_of(trial: Any, folder: str | None) -> PausingCheckpoints | None:
    """Returns the checkpoints of a trial that may pause, or has been taken up again.

    Args:
        trial: Optuna's trial.
        folder: That of :class:`PausedTrials`; None where no checkpoints are kept.
    """
    from st_hpo.pausing import PausingCheckpoints

    if folder is None:
        return None

    def is_kept() -> bool:
        trials, number = trial.study.get_trials(deepcopy=False), trial.number
        best = best_paused(trial.study, trials, trial.study.pruner.keep, pausing=number)
        return number in [other.number for other in best]

    before = trial.user_attrs.get(PROMOTED_ATTRIBUTE)
    tried = RETRY_ATTRIBUTE in trial.user_attrs  # its process has died, maybe of what it loaded
    paused = None if before is None or tried else os.path.join(folder, str(before["of"]))
    return PausingCheckpoints(os.path.join(folder, str(trial.number)), paused, is_kept)

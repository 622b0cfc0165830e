"""The trials of a study that several processes may run: who runs which, which count, which died and are retried.

Imports optuna: for the use of the backend's own functions only.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from st_hpo.backends.optuna.liveness import OwnTrials, Watch
from st_hpo.backends.optuna.points import pop_waiting_trial_id
from st_hpo.backends.optuna.promotion import PROMOTED_ATTRIBUTE, is_promoted, promotion_of
from st_hpo.backends.optuna.records import (
    ENDED_ATTRIBUTE,
    LOST,
    RETRY_ATTRIBUTE,
    STOPPED,
    SURPLUS,
    WORKER_ATTRIBUTE,
    counts,
    ended,
    record_attributes,
    retried_numbers,
)
from st_hpo.backends.optuna.steady import back_at
from st_hpo.records import COMPLETED, PRUNED, TrialRecord

logger = logging.getLogger(__name__)
_optuna_logger = optuna.logging.get_logger("optuna.study")

# How often a trial is tried again whose process has died: it may be what kills its process
MAX_RETRIES = 3
_POLL_SECONDS = 0.5


class SharedStudy:
    """Gives out the trials of a study, and takes what became of them.

    Args:
        study: The study.
        n_trials: How many trials to run here, or in total.
        in_total: Whether ``n_trials`` counts those of all processes, now and before.
        interval: Seconds between two signs of life.
        shared: Whether other processes may take part, now or later.
    """

    def __init__(self, study: Any, n_trials: int, in_total: bool, interval: float, shared: bool) -> None:
        self.study = study
        self.disowned: set[int] = set()
        self._n_trials = n_trials
        self._in_total = in_total
        self._interval = interval
        self._shared = shared
        self._own = OwnTrials(interval, self._sign)
        self._watch = Watch(interval, mute_until=lambda: back_at(study))
        self._begun = self._ended = self._out = 0
        self._finished_in_study = -1
        self._look_again_at = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Gives signs of life for the trials that run here, and lets callbacks use ``study.stop()``."""
        with self._own.alive(signs=self._shared):
            self.study._stop_flag = False
            self.study._thread_local.in_optimize_loop = True
            try:
                yield
            finally:
                self.study._thread_local.in_optimize_loop = False

    @property
    def is_done(self) -> bool:
        """Whether no trial is left to be given out, unless one that runs is lost."""
        if self.study._stop_flag:
            return True
        if self._out or self._promotable(last=True) is not None:
            return False
        return (self._finished_in_study if self._in_total else self._ended) >= self._n_trials

    def next(self) -> Any | None:
        """Returns a trial to run; None while there is none, because all that are left are being run."""
        if self.study._stop_flag:
            return None
        if not self._in_total:
            return self._next_of_mine()
        if time.monotonic() < self._look_again_at:
            return None
        trial = self._next_of_total()
        if trial is None:
            self._look_again_at = time.monotonic() + _POLL_SECONDS
        return trial

    def _next_of_mine(self) -> Any | None:
        all_begun = self._begun >= self._n_trials
        trial = self._next_promoted(last=all_begun and not self._out)
        if trial is None:
            if all_begun:
                return None
            self._begun += 1
            trial = self._opened(self._take(create=True)[0]) if self._shared else self.study.ask()
        self._out += 1
        return trial

    def _next_promoted(self, last: bool) -> Any | None:
        """Takes up a trial that has paused; no other process is there to take it."""
        paused = self._promotable(last)
        if paused is not None:
            self._enqueue(paused, promotion_of(paused))
        elif not self.pauses:
            return None
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if is_promoted(trial):
                self.study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
                return self._opened(trial._trial_id)
        return None

    def _promotable(self, last: bool) -> FrozenTrial | None:
        found: FrozenTrial | None = self.study.pruner.promotable(self.study, last) if self.pauses else None
        return found

    @property
    def pauses(self) -> bool:
        """Whether trials pause, and are taken up again."""
        return not self._shared and not self._in_total and getattr(self.study.pruner, "pauses", False)

    def _next_of_total(self) -> Any | None:
        self._fail_dead_trials()
        trials = self.study.get_trials(deepcopy=False)
        self._finished_in_study = sum(map(counts, trials))
        if self._finished_in_study >= self._n_trials:
            return None
        retried = retried_numbers(trials)
        pending = sum(self._is_pending(trial, retried) for trial in trials)
        waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        if self._finished_in_study + pending - waiting >= self._n_trials:
            return None
        trial_id, was_waiting = self._take(create=self._finished_in_study + pending < self._n_trials)
        if trial_id is None:
            return None
        if self._rank(self.study._storage.get_trial_number_from_id(trial_id)) < self._n_trials:
            return self._opened(trial_id)
        # Others have asked at the same time: of those, the later ones step back, before their samplers know of it
        trial = self.study._storage.get_trial(trial_id)
        if self._end(trial_id, {"why": SURPLUS, "counts": False, "retried": was_waiting}) and was_waiting:
            self._retry(trial, trial.user_attrs.get(RETRY_ATTRIBUTE, {}).get("count", 0))
        return None

    def is_surplus(self, trial: FrozenTrial) -> bool:
        """Whether a process of ours has made this trial as the last one of the total ended, and now steps back."""
        made = trial.state == TrialState.RUNNING and WORKER_ATTRIBUTE in trial.user_attrs and not trial.params
        return self._in_total and made and self._rank(trial.number) >= self._n_trials

    def _rank(self, number: int) -> int:
        """How many trials before this one count, or may yet."""
        trials = self.study.get_trials(deepcopy=False)
        retried = retried_numbers(trials)
        before = [trial for trial in trials if trial.number < number]
        return sum(counts(trial) or self._is_pending(trial, retried) for trial in before)

    def _is_pending(self, trial: FrozenTrial, retried: set[int]) -> bool:
        if trial.state == TrialState.WAITING:
            return True
        if trial.state == TrialState.RUNNING:
            # One that is of no process of ours counts as long as it may be about to say so
            known = WORKER_ATTRIBUTE in trial.user_attrs
            return known or not self._watch.is_late(trial._trial_id, None)
        lost = ended(trial).get("retried", False) and trial.number not in retried
        return lost and not self._watch.is_late(trial._trial_id, trial.state)

    def _take(self, create: bool) -> tuple[int | None, bool]:
        """Makes a trial this process's own.

        Args:
            create: Whether to create one where none is waiting.

        Returns:
            Its id, None where there is none; and whether it was waiting.
        """
        study = self.study
        owner = self._own.owner()
        study._thread_local.cached_all_trials = None
        trial_id = pop_waiting_trial_id(study)
        was_waiting = trial_id is not None
        if was_waiting:
            study._storage.set_trial_user_attr(trial_id, WORKER_ATTRIBUTE, owner)
        elif create:
            # Not `ask`: a trial must not exist for a moment without saying whose it is
            template = create_trial(state=TrialState.RUNNING, user_attrs={WORKER_ATTRIBUTE: owner})
            trial_id = study._storage.create_new_trial(study._study_id, template_trial=template)
        else:
            return None, False
        self._own.add(trial_id, owner)
        return trial_id, was_waiting

    def _opened(self, trial_id: Any) -> Any:
        return optuna.trial.Trial(self.study, trial_id)

    def _sign(self, trial_id: int, owner: dict[str, Any]) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            self.study._storage.set_trial_user_attr(trial_id, WORKER_ATTRIBUTE, owner)

    def tell(self, trial: Any, record: TrialRecord | None, stopped: bool = False, tried: bool = False) -> FrozenTrial:
        """Tells the study what became of a trial.

        Args:
            trial: Optuna's trial.
            record: Its record; None if it did not come to one.
            stopped: Whether it was stopped together with the search, and says nothing of its hyperparameters.
            tried: Whether it may have been the trial that has ended the search, so that it is not retried for ever.
        """
        self._look_again_at = 0.0
        self._ended += not is_promoted(trial)
        self._out -= not self._in_total
        states = {COMPLETED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED}
        state = TrialState.FAIL if record is None else states.get(record.state, TrialState.FAIL)
        values = record.values if record is not None and state == TrialState.COMPLETE else None
        stopped = stopped and state == TrialState.FAIL  # the end of the search may come when the trial is through
        tries = trial.user_attrs.get(RETRY_ATTRIBUTE, {}).get("count", 0) + tried
        again = tries <= MAX_RETRIES
        retried = stopped and again and self._in_total
        try:
            for name, piece in ({} if record is None else record_attributes(record)).items():
                trial.set_user_attr(name, piece)
            if stopped:
                trial.set_user_attr(ENDED_ATTRIBUTE, {"why": STOPPED, "counts": not again, "retried": retried})
            asked_to_stop = self.study._stop_flag
            told: FrozenTrial = self.study.tell(trial, values, state, skip_if_finished=True)
            if self.pauses and self.study._stop_flag and not asked_to_stop:
                # By the sampler, which has no more values (GridSampler): the best that has paused still goes on
                self.study._stop_flag, self._n_trials = False, min(self._n_trials, self._begun)
        except UpdateFinishedTrialError:
            told = self.study._storage.get_trial(trial._trial_id)
        finally:
            self._own.remove(trial._trial_id)
        if ended(told).get("why") == LOST or told.state != state:
            self.disowned.add(trial.number)
            logger.warning(
                f"Trial {trial.number} was taken for dead by another process, which retries it: its result here does "
                "not count. Were there no signs of life for a minute? See heartbeat_interval."
            )
        else:
            _log(told)
            if retried:
                self._retry(told, tries)
        return told

    def lost(self, trial: Any, record: TrialRecord) -> None:
        """Fails a trial whose process has died, and has it tried again, up to three times.

        Args:
            trial: Optuna's trial.
            record: Its record, with the reason as its error.
        """
        self._own.remove(trial._trial_id)
        self._look_again_at = 0.0
        with contextlib.suppress(UpdateFinishedTrialError):
            for name, piece in record_attributes(record).items():
                trial.set_user_attr(name, piece)
        self._out -= not self._in_total
        if self._fail_dead(self.study._storage.get_trial(trial._trial_id), str(record.error)):
            self._begun -= not is_promoted(trial)
        else:
            self._ended += not is_promoted(trial)

    def _fail_dead_trials(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get(WORKER_ATTRIBUTE)
            if worker is None or trial._trial_id in self._own:
                continue
            death = self._watch.death_of(trial._trial_id, worker)
            if death is not None and self._fail_dead(trial, f"lost: {death}"):
                logger.warning(f"Trial {trial.number} is retried: {death}.")

    def _fail_dead(self, trial: FrozenTrial, reason: str) -> bool:
        """Returns whether the trial is tried again, and this process was the one to see to it."""
        tries = trial.user_attrs.get(RETRY_ATTRIBUTE, {}).get("count", 0)
        again = tries < MAX_RETRIES
        end = {"why": LOST, "error": reason, "counts": not again, "retried": again}
        if not self._end(trial._trial_id, end) or not again:
            return False
        self._retry(trial, tries + 1)
        return True

    def _end(self, trial_id: int, end: dict[str, Any]) -> bool:
        """Fails a trial; returns whether this process did, and no other one before."""
        self._own.remove(trial_id)
        storage = self.study._storage
        try:
            storage.set_trial_user_attr(trial_id, ENDED_ATTRIBUTE, end)
            return bool(storage.set_trial_state_values(trial_id, TrialState.FAIL))
        except UpdateFinishedTrialError:
            return False

    def _retry(self, trial: FrozenTrial, count: int) -> None:
        promotion = {name: trial.user_attrs[name] for name in (PROMOTED_ATTRIBUTE,) if is_promoted(trial)}
        self._enqueue(trial, {RETRY_ATTRIBUTE: {"of": trial.number, "count": count}, **promotion})

    def _enqueue(self, trial: FrozenTrial, attributes: dict[str, Any]) -> None:
        """Has a trial run again, with the same values, also those that a sampler keeps for itself."""
        attributes[WORKER_ATTRIBUTE] = {"id": uuid.uuid4().hex, "interval": self._interval}
        again = create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes,
            system_attrs=trial.system_attrs,
        )
        self.study.add_trial(again)


def _log(trial: FrozenTrial) -> None:
    outcome = f"finished with value(s) {trial.values}" if trial.values else trial.state.name.lower()
    _optuna_logger.info(f"Trial {trial.number} {outcome}; parameters: {trial.params}.")

"""The trials of a search in several processes of one machine: the parent asks and tells, the workers train."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cloudpickle

from st_hpo.backends.optuna.endings import only_logged, says_nothing
from st_hpo.backends.optuna.promotion import continued_number
from st_hpo.backends.optuna.remote import Outcome, Shipment, torch_settings
from st_hpo.backends.optuna.settings import Settings
from st_hpo.backends.optuna.shared import SharedStudy
from st_hpo.backends.optuna.steady import impatient
from st_hpo.backends.optuna.workers import Died, Workers, gpus_of_workers, threads_of_workers
from st_hpo.backends.target import SearchTarget
from st_hpo.errors import HPOError
from st_hpo.faults import SearchStopped, describe
from st_hpo.records import FAILED, PRUNED, TrialRecord
from st_hpo.scratch import WORKERS, scratch_folder
from st_hpo.shipping import unpack_exception

logger = logging.getLogger(__name__)

# How often the parent looks whether the search is to end
_POLL_SECONDS = 0.2
# How long the trials that run have to end between two steps before their workers are killed
STOP_SECONDS = 20.0


@dataclass
class _Running:
    trial: Any
    record: TrialRecord
    began: float


class ParallelTrials:
    """Runs the trials of a search in worker processes.

    Args:
        trainer: The search.
        source: Gives out the trials.
        settings: The backend's arguments.
        propose: Gives the hyperparameters of an Optuna trial.
        after: Called after every trial with what the study was told.
        pruned: Exceptions by which user code prunes its own trial.
        paused: The folder of the checkpoints of trials that pause, None for none.
    """

    def __init__(
        self,
        trainer: SearchTarget,
        source: SharedStudy,
        settings: Settings,
        propose: Callable[[Any], Mapping[str, Any]],
        after: Callable[[Any], None],
        pruned: tuple[type[BaseException], ...],
        paused: str | None = None,
    ) -> None:
        self._trainer = trainer
        self._source = source
        self._settings = settings
        self._propose = propose
        self._after = after
        self._pruned = pruned
        self._paused = paused
        self._running: dict[int, _Running] = {}

    def run(self, n_trials: int) -> None:
        """Runs them all; no process is left, whatever ends the search.

        Args:
            n_trials: How many there are at most.

        Raises:
            Exception: What ends the search.
        """
        with scratch_folder(WORKERS) as folder:
            count = min(self._settings.n_jobs, n_trials)
            gpus = gpus_of_workers(count, self._settings.workers_per_gpu)
            workers = Workers(folder, self._shipment(count), count, gpus)
            try:
                self._run(workers)
            except BaseException as exc:
                self._stop(workers, _reason(exc))
                raise
            finally:
                workers.close()

    def _shipment(self, count: int) -> Shipment:
        study = self._source.study
        return Shipment(
            self._trainer.portable,
            cloudpickle.dumps(study._storage),
            self._settings.storage_patience,
            getattr(getattr(getattr(study._storage, "inner", None), "_backend", None), "url", None),
            study.study_name,
            study.sampler,
            study.pruner,
            len(self._trainer.directions) > 1,
            threads_of_workers(count, self._settings.threads_per_worker),
            torch_settings(),
            self._paused,
        )

    def _run(self, workers: Workers) -> None:
        while True:
            if (ending := self._trainer.ending) is not None:
                raise ending
            for index in workers.free:
                if not self._begin(workers, index):
                    break
            if not self._running:
                if self._source.is_done:
                    return
                if (no_more := self._trainer.no_more) is not None:
                    raise no_more
            for index, outcome in workers.wait(_POLL_SECONDS):
                self._ended(index, outcome)

    def _begin(self, workers: Workers, index: int) -> bool:
        """Returns whether the worker has got a trial; it has none where the proposal itself has failed."""
        while self._trainer.no_more is None and (trial := self._source.next()) is not None:
            record = TrialRecord(trial.number, continues=continued_number(trial))
            began = time.perf_counter()
            try:
                values = self._propose(trial)
            except BaseException as exc:
                record.seconds = time.perf_counter() - began
                record.state = PRUNED if isinstance(exc, self._pruned) else FAILED
                record.error = describe(exc)
                self._conclude(trial, record, exc)
                if (ending := self._trainer.ending) is not None:
                    raise ending from None
                continue
            record.hyperparameters = dict(values)
            record.phases["propose"] = time.perf_counter() - began
            if self._trainer.take_over(record, values, trial):
                self._conclude(trial, record, None)
                continue
            self._running[index] = _Running(trial, record, began)
            # None where the sampler was not asked: all was fixed, or stored by whoever has begun the trial before
            relative = None if (space := trial.relative_search_space) is None else (space, trial.relative_params)
            workers.begin(index, trial._trial_id, trial.number, values, relative)
            return True
        return False

    def _ended(self, index: int, outcome: Outcome | Died) -> None:
        running = self._running.pop(index)
        if isinstance(outcome, Died):
            self._lost(running, outcome.reason)
            return
        record = outcome.record
        record.continues = running.record.continues
        record.phases["propose"] = record.phases.get("propose", 0.0) + running.record.phases["propose"]
        error = _error(outcome)
        self._conclude(running.trial, record, error, outcome.names)

    def _conclude(
        self, trial: Any, record: TrialRecord, error: BaseException | None, names: list[str] | None = None
    ) -> None:
        self._trainer.add_record(record, names)
        if error is not None and not isinstance(error, self._pruned):
            if not self._trainer.survives(error, self._settings.catch):
                with only_logged(record.number):
                    self._source.tell(trial, record, says_nothing(error))
                raise error
            logger.warning(f"Trial {record.number} failed, and the search goes on: {record.error}")
        self._after(self._source.tell(trial, record, error is not None and says_nothing(error)))

    def _lost(self, running: _Running, reason: str) -> None:
        time.sleep(_POLL_SECONDS)  # a signal to the whole process group may have ended the worker before this process
        if (ending := self._trainer.ending) is not None:
            self._record_end(running, f"stopped: {_reason(ending)}", stopped=True)
            raise ending
        self._record_end(running, f"lost: {reason}", stopped=False)
        logger.warning(f"Trial {running.trial.number}: {reason}.")

    def _record_end(self, running: _Running, error: str, stopped: bool) -> None:
        record = running.record
        record.state, record.error = FAILED, error
        record.seconds = time.perf_counter() - running.began
        self._trainer.add_record(record)
        if stopped:
            self._source.tell(running.trial, record, stopped)
        else:
            self._source.lost(running.trial, record)

    def _stop(self, workers: Workers, reason: str) -> None:
        """Ends the trials that run, between two steps if they come to one in time, and records them."""
        with contextlib.suppress(OSError):  # the disk is full: they are ended by force then
            workers.ask_to_stop(reason)
        impatient(self._source.study, STOP_SECONDS)
        deadline = time.monotonic() + STOP_SECONDS
        try:
            while workers.busy and time.monotonic() < deadline:
                for index, outcome in workers.wait(_POLL_SECONDS):
                    running = self._running.pop(index)
                    with only_logged(running.trial.number):
                        if isinstance(outcome, Died):
                            self._record_end(running, f"stopped: {reason}", stopped=True)
                        else:
                            error = _error(outcome)
                            outcome.record.continues = running.record.continues
                            self._trainer.add_record(outcome.record, outcome.names)
                            self._source.tell(running.trial, outcome.record, error is not None and says_nothing(error))
        finally:  # also after a second Ctrl-C
            for running in self._running.values():
                with only_logged(running.trial.number):
                    self._record_end(running, f"stopped: {reason}", stopped=True)
            self._running.clear()


def _error(outcome: Outcome) -> BaseException | None:
    if not outcome.raised:
        return None
    if outcome.error is not None:
        with contextlib.suppress(Exception):  # what it takes to make one is only there where it was raised
            return unpack_exception(outcome.error)
    return HPOError(str(outcome.record.error))


def _reason(exc: BaseException) -> str:
    if isinstance(exc, SearchStopped):
        return exc.reason
    return "Ctrl-C" if isinstance(exc, KeyboardInterrupt) else f"the search has ended with {type(exc).__name__}"

"""What the driver does while Ray Tune runs: records, failures, the end of the search."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cloudpickle

from st_hpo.backends.ray.worker import HAS_FAILED, NAMES, OBJECTIVE, RECORD, TrialFailed
from st_hpo.backends.target import SearchTarget
from st_hpo.errors import BackendUnavailableError, ConfigurationError
from st_hpo.faults import SearchStopped, describe
from st_hpo.records import COMPLETED, FAILED, PRUNED, TrialRecord

logger = logging.getLogger(__name__)

SCOPES = ("last", "all", "avg", "last-5-avg", "last-10-avg")


def scope_of_best() -> str:
    """Returns the environment variable ``RAY_SCOPE``, as transformers reads it.

    Raises:
        ConfigurationError: It is none of Ray's scopes.
    """
    scope = os.environ.get("RAY_SCOPE", "last")
    if scope not in SCOPES:
        raise ConfigurationError(f"The environment variable RAY_SCOPE must be one of {SCOPES}, but is {scope!r}.")
    return scope


class Monitor:
    """Follows the trials of one ``tune.run``.

    Args:
        trainer: The search.
        mode: ``"min"`` or ``"max"``; None for several objectives.
        catch: Exceptions that fail a trial, but not the search.
        retries_all: Whether the user has asked for retries; otherwise only a trial is retried whose worker has died.
    """

    def __init__(
        self, trainer: SearchTarget, mode: str | None, catch: tuple[type[BaseException], ...], retries_all: bool
    ) -> None:
        self._trainer = trainer
        self._mode = mode
        self._catch = catch
        self._retries_all = retries_all
        self._trials: dict[str, Any] = {}
        self._failures: dict[str, BaseException] = {}
        self._recorded: set[str] = set()
        self._error: BaseException | None = None
        self._interrupted = False

    @property
    def ends(self) -> bool:
        """Whether the search is to end now."""
        return self._interrupted or self._error is not None or self._trainer.no_more is not None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Ends the search in good order at Ctrl-C; at a second one, at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = [signal.SIGINT] + ([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])
        before = {number: signal.getsignal(number) for number in signals}  # Ray Tune leaves a SIGUSR1 handler behind

        def interrupt(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
            self._interrupted = True

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def callback(self) -> Any:
        """Returns the callback that tells this monitor of every trial."""
        from ray import tune

        monitor = self

        class Callback(tune.Callback):  # type: ignore[misc]
            def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
                monitor.see(trials)

            def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                monitor.see(trials)
                monitor.ended(trial)

            def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                monitor.see(trials)
                monitor.recovers(trial)

            def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                monitor.see(trials)
                monitor.failed(trial)

        return Callback()

    def stopper(self, given: Any) -> Any:
        """Returns a stopper that ends the search when this monitor says so, beside the user's own."""
        from ray.tune import stopper

        monitor = self

        class Ending(stopper.Stopper):  # type: ignore[misc]
            def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
                return False

            def stop_all(self) -> bool:
                return monitor.ends

        own = Ending()
        if given is None:
            return own
        if isinstance(given, Mapping):
            limits = dict(given)
            given = stopper.FunctionStopper(lambda trial_id, result: any(result[k] >= v for k, v in limits.items()))
        elif not isinstance(given, stopper.Stopper | list):
            given = stopper.FunctionStopper(given)
        return stopper.CombinedStopper(own, *(given if isinstance(given, list) else [given]))

    def see(self, trials: Sequence[Any]) -> None:
        """Takes note of new trials: their order gives them their numbers. One that is retried moves to the end."""
        for trial in trials:
            self._trials.setdefault(trial.trial_id, trial)

    def ended(self, trial: Any) -> None:
        """Records a trial that has finished, or that the scheduler or a stopper has ended."""
        record, names = self._reported(trial)
        if record is None:
            self._record(trial, self._new(trial, FAILED, "The trial ended without a result."))
            return
        if record.state != COMPLETED:
            record.state = PRUNED
            record.error = f"stopped at step {trial.last_result.get('step')}"
        self._record(trial, record, names)

    def recovers(self, trial: Any) -> None:
        """Keeps Ray Tune from retrying a trial that has failed by itself: it would fail again."""
        cause = _failure(trial)
        if isinstance(cause, TrialFailed) and not self._retries_all:
            self._failures[trial.trial_id] = cause
            trial.max_failures = 0
            trial.config[HAS_FAILED] = True
            self.failed(trial)  # now: what comes of the trial later says no more

    def failed(self, trial: Any) -> None:
        """Records a trial that has failed for good."""
        from ray.exceptions import RayError, RayTaskError

        cause = self._failures.get(trial.trial_id) or _failure(trial)
        if isinstance(cause, TrialFailed):
            record = TrialRecord.from_dict(cause.record)
            record.state = FAILED
        else:
            if isinstance(cause, RayTaskError):
                cause = cause.cause
            elif isinstance(cause, RayError):
                lost = worker_lost(f"trial {trial.trial_id}", trial.run_metadata.num_failures, cause)
                lost.__cause__ = cause
                cause = lost
            record = self._new(trial, FAILED, f"{type(cause).__name__}: {cause}".partition("\n")[0])
        self._note_error(cause)
        self._record(trial, record)

    def finish(self, trials: Sequence[Any] = ()) -> None:
        """Records what is left: trials that were running when the search ended."""
        self.see(trials)
        for trial in list(self._trials.values()):
            if trial.trial_id in self._recorded:
                continue
            if trial.trial_id in self._failures:
                self.failed(trial)
            elif trial.status == "TERMINATED" and RECORD in (trial.last_result or {}) and not self.ends:
                self.ended(trial)
            elif RECORD in (trial.last_result or {}) or trial.run_metadata.start_time is not None:
                why = "KeyboardInterrupt" if self._interrupted else "The search ended before the trial did."
                if isinstance(self._trainer.no_more, SearchStopped):
                    why = describe(self._trainer.no_more)
                self._record(trial, self._new(trial, FAILED, why))

    def crashed(self, exc: BaseException) -> None:
        """Takes note of what Ray Tune itself has raised: with ``fail_fast="raise"``, a trial's error, wrapped."""
        cause = _unwrapped(exc)
        if isinstance(cause, TrialFailed):
            self._failures[str(cause.record.get("backend_id"))] = cause
            self._note_error(cause)
        self.finish()

    def raise_error(self) -> None:
        """Raises what ended the search, if anything did.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            Exception: What a trial has raised.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        if (ending := self._trainer.no_more) is not None:
            raise ending
        if self._error is not None:
            raise self._error

    def best(self, records: list[TrialRecord]) -> TrialRecord | None:
        """Returns the best of the completed trials by ``RAY_SCOPE``, None where that is the objective itself."""
        scope = scope_of_best()
        if scope == "last" or self._mode is None or not records:
            return None
        sign = 1 if self._mode == "max" else -1

        def score(record: TrialRecord) -> float:
            known = self._trials[str(record.backend_id)].metric_analysis[OBJECTIVE]
            value: float = known[self._mode if scope == "all" else scope]
            return sign * value

        return max(records, key=score)

    def _note_error(self, cause: BaseException) -> None:
        error = cause.error() if isinstance(cause, TrialFailed) else cause
        by_nan = isinstance(cause, TrialFailed) and not cause.raised
        if not by_nan and self._error is None and not self._trainer.survives(error, self._catch):
            self._error = error

    def _new(self, trial: Any, state: str, error: str) -> TrialRecord:
        record = self._reported(trial)[0] or TrialRecord(0)
        record.state, record.error, record.objective = state, error, None
        return record

    def _reported(self, trial: Any) -> tuple[TrialRecord | None, list[str] | None]:
        result = trial.last_result or {}
        if RECORD not in result:
            return None, None
        return TrialRecord.from_dict(json.loads(result[RECORD])), json.loads(result.get(NAMES, "null"))

    def _record(self, trial: Any, record: TrialRecord, names: list[str] | None = None) -> None:
        if trial.trial_id in self._recorded:
            return
        self._recorded.add(trial.trial_id)
        record.number = list(self._trials).index(trial.trial_id)
        record.backend_id = trial.trial_id
        self._trainer.add_record(record, names)


def worker_lost(what: str, times: int, cause: BaseException) -> BackendUnavailableError:
    """Returns an error that says what may be the matter with a worker process that has died again and again."""
    return BackendUnavailableError(
        f"The worker process of {what} has died {times} times. Out of memory? Give each more of it, with "
        "resources_per_trial={'cpu': 1, 'memory': ...}, or let fewer trials run at once, with "
        f"max_concurrent_trials=... Ray says: {cause}"
    )


def _failure(trial: Any) -> BaseException:
    """What has ended a trial: the worker's own error out of what Ray has wrapped around it."""
    error: Any = None
    file = trial.pickled_error_file  # the driver's own copy: the one in Ray Tune's storage comes later
    if file is not None and os.path.exists(file):
        with open(file, "rb") as opened, contextlib.suppress(Exception):
            error = cloudpickle.load(opened)
    if isinstance(error, BaseException):
        return _unwrapped(error)
    return RuntimeError(f"Ray Tune lost the trial {trial.trial_id}: see {trial.error_file or 'its log'}.")


def _unwrapped(error: BaseException) -> BaseException:
    """The worker's own error out of what Ray has wrapped around it; any other as it is."""
    seen: set[int] = set()
    current: Any = error
    while isinstance(current, BaseException) and id(current) not in seen:
        seen.add(id(current))
        if type(current) is TrialFailed:  # Ray makes subclasses of it, which lack its data
            return current
        current = getattr(current, "cause", None) or current.__cause__
    return error

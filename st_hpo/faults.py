"""What ends a trial, what ends a search, and what ends neither. Pure Python."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from st_hpo.errors import BackendUnavailableError, ConfigurationError, HPOError, RankError, TooManyFailuresError
from st_hpo.records import COMPLETED, FAILED, PRUNED, TrialRecord

ON_ERROR = ("raise", "continue")
# What torch and its libraries say where they raise a plain RuntimeError
_MEMORY_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
_MEMORY, _DISK = "Out of memory: ", "Disk full: "
SQLITE_FULL = "database or disk is full"
_DISK_MESSAGES = (
    SQLITE_FULL,
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed writing file",
    "unexpected pos ",  # torch.save: "[enforce fail at inline_container.cc:672] . unexpected pos 15636224 vs 15636112"
)


SIGTERM, SIGINT = "SIGTERM", "KeyboardInterrupt"
# A signal to the whole process group reaches its processes one after the other
_MEANWHILE_SECONDS = 0.2
_SAME_SIGNAL_SECONDS = 5.0


class SearchStopped(BaseException):
    """The search is to end, and the trial that runs with it. No error of the trial: nothing should catch it.

    Attributes:
        reason: ``"SIGTERM"``, ``"timeout"``.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an exception says that memory is used up, the host's or an accelerator's."""
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":  # of torch, and of torch.cuda
        return True
    if isinstance(exc, HPOError):  # which may speak of memory
        return False
    return isinstance(exc, RuntimeError) and any(text in str(exc).lower() for text in _MEMORY_MESSAGES)


def is_disk_full(exc: BaseException) -> bool:
    """Whether an exception says that a disk is full."""
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if isinstance(exc, BackendUnavailableError):  # the study's disk: that is no matter of the trial
        return False
    return isinstance(exc, Exception) and any(text in str(exc) for text in _DISK_MESSAGES)


def describe(exc: BaseException) -> str:
    """Returns an exception as a record's ``error``: what it means, its type and its message."""
    if isinstance(exc, SearchStopped):
        return f"stopped: {exc.reason}"
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    if is_out_of_memory(exc):
        return _MEMORY + text
    return _DISK + text if is_disk_full(exc) else text


class StopSignal:
    """Whether a search is to end, and why: a timeout, or SIGTERM. Asked between the steps of a training.

    Args:
        timeout: Seconds from :meth:`watching` on, None for no limit.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._deadline: float | None = None
        self._terminated = False
        self._interrupted = False

    @property
    def reason(self) -> str | None:
        """Why the search is to end now; None if it is to go on."""
        if self._terminated:
            return SIGTERM
        if self._interrupted:
            return SIGINT
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return f"timeout of {self._timeout:g} s"
        return None

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM has come."""
        return self._terminated

    def terminate(self) -> None:
        """Takes it that SIGTERM has come."""
        self._terminated = True

    def explains(self, exc: BaseException) -> bool:
        """Whether an exception only says that the signal for this process has ended its data loader's workers too."""
        if not (isinstance(exc, RuntimeError) and "DataLoader worker" in str(exc)):
            return False
        time.sleep(_MEANWHILE_SECONDS)  # one may hear of the workers before the signal comes
        return self._terminated

    def check(self) -> None:
        """Raises if the search is to end.

        Raises:
            SearchStopped: It is.
        """
        if (reason := self.reason) is not None:
            raise SearchStopped(reason)

    @contextlib.contextmanager
    def watching(self, interrupts: bool = False) -> Iterator[None]:
        """Starts the clock, and takes SIGTERM as a request to end in good order; a second one is taken as before.

        Args:
            interrupts: Take Ctrl-C in the same way, instead of as a KeyboardInterrupt wherever the process is. Take
                a SIGTERM within five seconds of the first for the same.
        """
        if self._timeout is not None:
            self._deadline = time.monotonic() + self._timeout
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        first: list[float] = []

        def terminate(number: int, frame: Any) -> None:
            self._terminated = True
            first.append(time.monotonic())
            # Under a launcher it may come from whoever ends the job, and once more from the launcher
            if not interrupts:
                signal.signal(signal.SIGTERM, before[signal.SIGTERM])
            elif first[-1] - first[0] > _SAME_SIGNAL_SECONDS:
                signal.signal(signal.SIGTERM, before[signal.SIGTERM])
                os.kill(os.getpid(), signal.SIGTERM)

        def interrupt(number: int, frame: Any) -> None:
            self._interrupted = True
            signal.signal(signal.SIGINT, before[signal.SIGINT])

        signal.signal(signal.SIGTERM, terminate)
        if interrupts:
            signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class FaultPolicy:
    """Which failures of a trial end the search.

    Attributes:
        on_error: ``"raise"``: an exception ends the search; ``"continue"``: it fails its trial.
        max_consecutive_failures: So many failed trials in a row end the search; None for no limit.
    """

    on_error: str = "raise"
    max_consecutive_failures: int | None = 5
    _in_a_row: list[TrialRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise ConfigurationError(f"`on_error` must be one of {ON_ERROR}, but got {self.on_error!r}.")
        limit = self.max_consecutive_failures
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ConfigurationError(
                "`max_consecutive_failures` must be an integer of at least 1, or None for no limit, but got "
                f"{limit!r}."
            )

    def survives(self, exc: BaseException, catch: tuple[type[BaseException], ...] = ()) -> bool:
        """Whether the search goes on after a trial that has raised this.

        A trial that needs too much memory or disk says something of its hyperparameters, not of the script.
        """
        if isinstance(exc, RankError):
            if exc.fatal:
                return False
            if any(kind.__name__ in exc.kinds for kind in catch) or _DISK in str(exc) or _MEMORY in str(exc):
                return True
        if isinstance(exc, catch):
            return True
        if not isinstance(exc, Exception):
            return False
        return self.on_error == "continue" or is_out_of_memory(exc) or is_disk_full(exc)

    def note(self, record: TrialRecord) -> None:
        """Counts failures in a row."""
        if record.state in (COMPLETED, PRUNED):
            self._in_a_row.clear()
        elif record.state == FAILED and not str(record.error).startswith("stopped:"):
            self._in_a_row.append(record)

    @property
    def too_many(self) -> TooManyFailuresError | None:
        """The error that ends the search, None while there is none."""
        limit = self.max_consecutive_failures
        if limit is None or len(self._in_a_row) < limit:
            return None
        causes = dict.fromkeys(str(record.error) for record in self._in_a_row)
        return TooManyFailuresError(
            f"{len(self._in_a_row)} trials in a row have failed, so the search has ended. The causes:\n"
            + "\n".join(f"- {cause}" for cause in list(causes)[:5])
            + "\nChange what makes them fail, or pass max_consecutive_failures=None to go on regardless."
        )

"""Waiting for a storage whose server is away, or its disk full. Pure Python, but for the exceptions of drivers."""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from st_hpo.backends.optuna.urls import redacted
from st_hpo.errors import BackendUnavailableError
from st_hpo.faults import SQLITE_FULL, is_disk_full

_LONGEST_PAUSE = 5.0
_in_trial: ContextVar[bool] = ContextVar("_in_trial", default=False)


@contextlib.contextmanager
def in_trial() -> Iterator[None]:
    """While a trial runs, its thread waits for no disk: it may be full of the trial's files, which go if it fails."""
    token = _in_trial.set(True)
    try:
        yield
    finally:
        _in_trial.reset(token)


def full_disk(exc: BaseException) -> str | None:
    """Returns what an exception says of a full disk, on which a journal or a SQLite file is; None if it is another."""
    cause = exc.__cause__ if type(exc).__name__ == "StorageInternalError" else exc
    original = getattr(cause, "orig", None) or cause
    if isinstance(original, OSError) and is_disk_full(original):
        return original.strerror or str(original)
    return str(original) if SQLITE_FULL in str(original) else None


def is_away(exc: BaseException) -> bool:
    """Whether an exception says that the storage's server or file could not be used just now."""
    if full_disk(exc) is not None:
        return True
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError, TimeoutError

    cause = exc.__cause__ if isinstance(exc, StorageInternalError) else exc
    # The third: Optuna's second attempt within a transaction that the lost connection has spoilt
    if isinstance(cause, OperationalError | InterfaceError | PendingRollbackError | TimeoutError):
        return True
    if getattr(cause, "connection_invalidated", False):
        return True
    code = getattr(exc, "code", None)
    if type(exc).__module__.startswith("grpc") and callable(code):
        details = str(getattr(exc, "details", lambda: "")())
        return code().name == "UNAVAILABLE" or "during the commit" in details  # there, of the server's own storage
    return False


class Patience:
    """Waits for a storage that is away: all who use it together, from the first call that has failed.

    Args:
        seconds: For how many seconds.
        url: The storage's URL, whose password no message may show.

    Attributes:
        ending: Returns what ends the search, and is raised instead of waiting; None while nothing does.
        back_at: When the storage was back, and other processes have had the time to notice: until then, they could
            not give signs of life.
    """

    def __init__(self, seconds: float, url: Any = None) -> None:
        self.seconds = seconds
        self.ending: Callable[[], BaseException | None] = lambda: None
        self.back_at = -math.inf
        self._url = url
        self._away_since: float | None = None

    def call(self, function: Callable[[], Any]) -> Any:
        """Calls a function again and again while the storage is away.

        Args:
            function: It must be harmless to call it again after an answer was lost.

        Raises:
            BackendUnavailableError: The storage has been away for too long.
            OSError: Its disk is full while a trial runs: see :func:`in_trial`.
        """
        began, pause = math.inf, 0.1
        while True:
            try:
                answer = function()
            except Exception as exc:
                if _in_trial.get() and (reason := full_disk(exc)) is not None:
                    raise OSError(errno.ENOSPC, f"The study cannot be written to: {reason}") from None
                if not is_away(exc):
                    self._is_back()
                    raise
                began = min(began, time.monotonic())
                if self._away_since is None:
                    self._away_since = began
                self._may_wait(time.monotonic() - min(began, self._away_since), pause, exc)
            else:
                self._is_back()
                return answer
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _is_back(self) -> None:
        if self._away_since is not None:
            self._away_since = None
            self.back_at = time.monotonic() + _LONGEST_PAUSE

    def _may_wait(self, waited: float, pause: float, exc: Exception) -> None:
        if (ending := self.ending()) is not None:
            raise ending from None
        if waited + pause > self.seconds:
            cause = redacted(str(exc.__cause__ or exc), self._url).strip()
            raise BackendUnavailableError(
                f"The storage of the study could not be used for {waited:.0f} s: {cause}\nThe trials that were "
                "finished are in it. When it is back, run the search again with resume=True; storage_patience= "
                "says for how many seconds to wait."
            ) from None

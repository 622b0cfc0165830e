"""Waiting for a storage whose server is away. Pure Python, but for the exceptions of drivers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from st_hpo.backends.optuna.urls import redacted
from st_hpo.errors import BackendUnavailableError

_LONGEST_PAUSE = 5.0


def is_away(exc: BaseException) -> bool:
    """Whether an exception says that the storage's server or file could not be used just now."""
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
        """
        began, pause = math.inf, 0.1
        while True:
            try:
                answer = function()
            except Exception as exc:
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

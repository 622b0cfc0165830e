"""How a trial's end is told where the end itself may fail, or says nothing of the trial."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from st_hpo.errors import BackendUnavailableError

logger = logging.getLogger(__name__)


def says_nothing(exc: BaseException) -> bool:
    """Whether what ended a trial says nothing of its hyperparameters: the end of the search, or of its storage."""
    return not isinstance(exc, Exception) or isinstance(exc, BackendUnavailableError)


@contextlib.contextmanager
def only_logged(number: int) -> Iterator[None]:
    """What ends the search is what is raised, not that the end of a trial could not be stored."""
    try:
        yield
    except Exception as exc:
        logger.warning(f"How trial {number} ended could not be stored: {type(exc).__name__}: {exc}")

"""How a trial's end is told where the end itself may fail, or says nothing of the trial."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from st_hpo.errors import BackendUnavailableError, RankError

logger = logging.getLogger(__name__)


def says_nothing(exc: BaseException) -> bool:
    """Whether what ended a trial says nothing of its hyperparameters: the end of the search, its storage, a rank."""
    return not isinstance(exc, Exception) or isinstance(exc, BackendUnavailableError) or is_lost(exc)


def is_lost(exc: BaseException) -> bool:
    """Whether a rank died or hung and none has said why. It may be the trial that does that to its processes."""
    return isinstance(exc, RankError) and exc.fatal and not exc.kinds


@contextlib.contextmanager
def only_logged(number: int) -> Iterator[None]:
    """What ends the search is what is raised, not that the end of a trial could not be stored."""
    try:
        yield
    except Exception as exc:
        logger.warning(f"How trial {number} ended could not be stored: {type(exc).__name__}: {exc}")

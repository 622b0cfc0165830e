"""Optuna's terminators: whether a study can be expected to find anything better. Imports optuna inside functions.

Optuna 4.9 has deprecated its module ``optuna.terminator``, to be removed in 6.0. Any object with a method
``should_terminate(study)`` will do, so terminators of one's own stay.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

logger = logging.getLogger(__name__)


def default_terminator() -> Any:
    """Returns Optuna's terminator that needs no scale and no cross-validation scores; it owns its random generator.

    It is that of Ishibashi et al. (2023), https://proceedings.mlr.press/v206/ishibashi23a.html, with Optuna's default
    values: it bounds by how much one more trial lets the expected minimum regret of a Gaussian process fall, and the
    search ends when that is below 1 % of its median over the completed trials 11 to 30. So no search ends before its
    30th. ``Terminator``'s own default needs the scores of a cross-validation, which these trials have not.
    """
    from optuna.terminator import EMMREvaluator, MedianErrorEvaluator, Terminator

    with _quietly():
        improvement = EMMREvaluator(seed=0)
        return Terminator(improvement, MedianErrorEvaluator(improvement))


def asked(terminator: Any) -> Callable[[Any], bool]:
    """Returns a function that asks a terminator whether a study has enough.

    One that raises is asked no more, with a warning: it must not cost a search its result.

    Args:
        terminator: An object with a method ``should_terminate(study)``; True for :func:`default_terminator`.
    """
    if terminator is None or terminator is False:
        return lambda study: False
    working: list[Any] = [default_terminator() if terminator is True else terminator]

    def terminates(study: Any) -> bool:
        if not working:
            return False
        try:
            with _quietly():
                return bool(working[0].should_terminate(study))
        except Exception as exc:
            working.clear()
            logger.warning(
                f"The terminator cannot tell whether the search has enough, and is asked no more: "
                f"{type(exc).__name__}: {exc}"
            )
            return False

    return terminates


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings that the module is deprecated, and that a Gaussian process has not converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

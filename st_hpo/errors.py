"""All errors that st_hpo raises itself. Each carries the data of its message, so that code can act on it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


def nearest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Returns up to ``n`` of ``choices`` that a person may have meant by ``name``, the nearest first.

    Args:
        name: What was written.
        choices: What could have been written.
        n: How many to return at most.

    Returns:
        The nearest choices; empty when nothing is near.
    """
    choices = list(dict.fromkeys(choices))
    last_part = name.rpartition(".")[2]
    by_last_part = [choice for choice in choices if choice.rpartition(".")[2] == last_part]
    by_spelling = difflib.get_close_matches(name, choices, n=n, cutoff=0.6)
    return list(dict.fromkeys(by_last_part + by_spelling))[:n]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns ``" Did you mean 'a' or 'b'?"``, or an empty string when nothing is near."""
    near = nearest(name, choices)
    return f" Did you mean {' or '.join(repr(choice) for choice in near)}?" if near else ""


class HPOError(Exception):
    """The root of st_hpo's errors."""


class ConfigurationError(HPOError, ValueError):
    """Something that the caller gave is wrong. Raised before any training wherever that can be known."""


class SearchSpaceError(ConfigurationError):
    """A search space, or one dimension of it, makes no sense."""


class UnknownHyperparameterError(ConfigurationError):
    """Names in the search space that nothing would use.

    Attributes:
        names: The names that nothing uses.
        choices: All names that would be used.
    """

    def __init__(self, names: Sequence[str], choices: Iterable[str], hint: str = "") -> None:
        self.names = list(names)
        self.choices = sorted(choices)
        lines = [
            f"Unknown hyperparameter {name!r}: it is no training argument, and neither `model_init` nor `loss_init` "
            f"takes it or reads it from its trial.{did_you_mean(name, self.choices)}"
            for name in self.names
        ]
        super().__init__("\n".join([*lines, hint] if hint else lines))


class HyperparameterValueError(ConfigurationError):
    """A value that its hyperparameter cannot take, or only by losing a part of it.

    Attributes:
        name: The hyperparameter.
        value: The value received.
        expected: The declared type or the valid choices, in words.
    """

    def __init__(self, name: str, value: Any, expected: str, why: str = "") -> None:
        self.name = name
        self.value = value
        self.expected = expected
        super().__init__(
            f"Hyperparameter {name!r} got {value!r} of type {type(value).__name__}, expected {expected}."
            + (f" {why}" if why else "")
        )


class FactoryError(ConfigurationError):
    """``model_init`` or ``loss_init`` cannot be called, or returned something that is no model or loss."""


class DirectionError(ConfigurationError):
    """``direction`` is missing, misspelt, or there are more or fewer directions than objectives.

    Attributes:
        direction: What was received.
    """

    def __init__(self, message: str, direction: Any = None) -> None:
        self.direction = direction
        super().__init__(message)


class ObjectiveError(ConfigurationError):
    """``compute_objective`` cannot be used, or returned something that is not a number."""


class MetricNotFoundError(ObjectiveError, KeyError):
    """A metric that ``compute_objective`` asks for is not among those that an evaluation gives.

    Attributes:
        key: The key asked for.
        available: The keys that exist, the nearest first.
    """

    def __init__(self, key: str, available: Iterable[str]) -> None:
        self.key = key
        available = list(available)
        near = nearest(key, available, n=5)
        self.available = near + sorted(set(available) - set(near))
        super().__init__(
            f"The objective asks for the metric {key!r}, which the evaluation does not give."
            f"{did_you_mean(key, available)} It gives: {', '.join(self.available) or 'no metrics'}."
        )

    def __str__(self) -> str:  # KeyError shows the repr of its argument, which hides line breaks and quotes
        return str(self.args[0])


class NotSupportedError(ConfigurationError):
    """Something that st_hpo knows of but does not do; it is refused rather than done wrongly."""


class BackendNotInstalledError(HPOError, RuntimeError):
    """The package of a search backend is missing; the message has the pip command."""


class BackendUnavailableError(HPOError, RuntimeError):
    """The server of a search backend cannot be reached, or refuses to serve."""


class RankError(HPOError, RuntimeError):
    """Another process of the same training (another rank under torchrun) has failed, or is gone.

    Attributes:
        fatal: Whether the search cannot go on.
        kinds: The names of the class of the error there, and of its base classes.
    """

    def __init__(self, message: str, fatal: bool = False, kinds: Sequence[str] = ()) -> None:
        self.fatal = fatal
        self.kinds = list(kinds)
        super().__init__(message)


class TooManyFailuresError(HPOError, RuntimeError):
    """So many trials have failed in a row that the search was ended; the message has the causes."""


class NoFinishedTrialError(HPOError, RuntimeError):
    """A search ended without a single finished trial, so there is no best run.

    Attributes:
        result: The :class:`~st_hpo.results.SearchResult` with every trial and its error.
    """

    def __init__(self, message: str, result: Any) -> None:
        self.result = result
        super().__init__(message)

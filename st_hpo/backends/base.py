"""What a search must know of a backend, and what backends share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.hyperparameter_search import HyperParamSearchBackendBase

from st_hpo.backends.target import SearchTarget
from st_hpo.errors import (
    BackendNotInstalledError,
    ConfigurationError,
    NotSupportedError,
    SearchSpaceError,
    did_you_mean,
)
from st_hpo.records import Baseline, TrialRecord
from st_hpo.space import SearchSpace, default_search_space


class SearchBackend(HyperParamSearchBackendBase):  # type: ignore[misc]
    """A search backend: transformers' own interface, and what a search asks beyond it.

    A backend proposes hyperparameters and is told objectives; it knows no model and no trainer. It must own its
    random generator: ``set_seed`` runs in every trial, so one that draws from ``random`` or ``numpy.random`` would
    propose the same values again and again.
    """

    name: str
    pip_package: str | None = None
    # Whether trials run in the process of the search, which under torchrun is rank 0
    in_process: bool = True

    def open_space(self, hp_space: Any) -> Any:
        """Returns the space as this backend searches it.

        Args:
            hp_space: What the user gave: a :class:`~st_hpo.SearchSpace`, a function, or a space in the backend's own
                format.

        Raises:
            SearchSpaceError: It is none of these.
        """
        return hp_space

    def space_names(self, space: Any) -> list[str] | None:
        """Returns the names in an opened space, None where only a trial can tell."""
        return list(space) if isinstance(space, Mapping) else None

    @abstractmethod
    def check(self, space: Any, n_trials: int, directions: list[str], kwargs: Mapping[str, Any]) -> None:
        """Refuses what the backend cannot do, before any model is loaded.

        Args:
            space: What :meth:`open_space` returned.
            n_trials: How many trials to run.
            directions: One for each objective; ``""`` where only the first evaluation can tell.
            kwargs: The backend's own arguments.

        Raises:
            ConfigurationError: Naming what was wrong and the choices.
        """

    def enqueue(self, points: list[dict[str, Any]], space: Any, kwargs: Mapping[str, Any]) -> list[str]:
        """Takes the points that the first trials of the next :meth:`run` are to have, in this order.

        Called after :meth:`check`, before any model is loaded. A hyperparameter that a point does not give is
        proposed as in any other trial.

        Args:
            points: The points, no two the same. Those of a :class:`~st_hpo.SearchSpace` are checked, and have the
                types of its dimensions. Of a space in a format of its own, the backend checks names and values.
            space: What :meth:`open_space` returned.
            kwargs: The backend's own arguments.

        Returns:
            The names in the points that the space does not have, as far as only the backend could tell.

        Raises:
            NotSupportedError: The backend cannot do it, which is what this method of the base class says.
            ConfigurationError: A name or a value is none that the space has.
        """
        raise NotSupportedError(
            f"The backend {self.name!r} cannot begin with given points: all proposals are made elsewhere. Leave out "
            "`enqueue`, or choose backend='optuna' or 'ray', or 'sigopt' without a server. To compare with your own "
            "arguments, pass default_trial=True, which every backend does."
        )

    def run_baseline(self, trainer: SearchTarget) -> tuple[Baseline, list[str], list[str]]:
        """Evaluates the untrained model where the trials will run: by default, in this process.

        Returns:
            See :meth:`~st_hpo.backends.target.PortableTrials.settled_baseline`.
        """
        return trainer.portable.settled_baseline()

    def run_default(self, trainer: SearchTarget, record: TrialRecord) -> None:
        """Trains with the user's own arguments where the trials will run: by default, in this process.

        Args:
            trainer: The search.
            record: The record to fill.

        Raises:
            Exception: What that training raised; recorded before.
        """
        trainer.run_default(record)

    def study_id(self, kwargs: Mapping[str, Any]) -> str | None:
        """Returns what names the study that a search with these arguments takes part in or continues.

        None, where every search is one of its own.
        """
        return None

    def needs_evaluations(self, kwargs: Mapping[str, Any]) -> str | None:
        """Returns the argument that makes no sense without evaluations during the training, None if there is none."""
        return None

    def default_rungs(self, kwargs: Mapping[str, Any]) -> tuple[float, ...] | None:
        """Returns the fractions of their trainings at which trials are compared, where the user gave none.

        None, where the backend prunes nothing, or on the evaluations that the training makes anyway.
        """
        return None

    def check_rungs(self, kwargs: Mapping[str, Any]) -> None:
        """Refuses rungs that would have no effect.

        Raises:
            ConfigurationError: Nothing in these arguments compares trials during their training.
        """

    def concurrency(self, kwargs: Mapping[str, Any]) -> int | None:
        """Returns how many trials run at a time with these arguments; None, where that is not known beforehand."""
        return 1 if self.in_process else None

    def n_trials_is_total(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether ``n_trials`` counts the trials of earlier searches and of other processes with these arguments."""
        return False

    def best(self, records: list[TrialRecord]) -> TrialRecord | None:
        """Returns the best of the completed trials, where the backend chooses it in a way of its own."""
        return None

    def close(self) -> None:
        """Ends what the backend has started for a search; called once, whatever ended the search."""

    @abstractmethod
    def run(self, trainer: SearchTarget, n_trials: int, direction: str | list[str], **kwargs: Any) -> None:
        """Runs the search: proposes, calls ``trainer.run_trial``, and is told the objectives.

        Args:
            trainer: The search.
            n_trials: How many trials to run.
            direction: ``"minimize"`` or ``"maximize"``; a list for several objectives.
            kwargs: The backend's own arguments, as transformers documents them.
        """

    @property
    @abstractmethod
    def native(self) -> Any:
        """The backend's own object of the search (Optuna's study), None before :meth:`run`."""

    def records(self, trainer: SearchTarget) -> list[TrialRecord] | None:
        """Returns the records of all trials that the backend knows, also of those run earlier or elsewhere.

        None, where it knows of no others than those that this search has run.
        """
        return None

    @property
    def pruned_exceptions(self) -> tuple[type[BaseException], ...]:
        """Exceptions by which user code may prune its own trial."""
        return ()

    def default_hp_space(self, trial: Any) -> SearchSpace:
        """The space that is searched when none is given."""
        return default_search_space()

    def ensure_available(self) -> None:
        """Checks that the backend's package is installed.

        Raises:
            BackendNotInstalledError: It is not; the message has the pip command.
        """
        if not self.is_available():
            raise BackendNotInstalledError(
                f"The backend {self.name!r} needs a package that is not installed. Run {self.pip_install()}."
            )


def called_space(hp_space: Any, kind: type, example: str) -> Any:
    """Opens a space that is a SearchSpace, one in a backend's own format, or a function that returns either.

    The function is called with None, as transformers does.

    Args:
        hp_space: What the user gave.
        kind: The type of the backend's own format.
        example: What that looks like, for the message.

    Raises:
        SearchSpaceError: It is something else, or empty.
    """
    space = hp_space
    if callable(hp_space) and not isinstance(hp_space, kind | SearchSpace):
        try:
            space = hp_space(None)
        except AttributeError as exc:
            if getattr(exc, "obj", exc) is not None:
                raise
            raise SearchSpaceError(
                f"`hp_space` asks its trial for values ({exc}), but this backend wants the whole space beforehand, so "
                f"it calls the function with None. Return a SearchSpace or {example}, or use backend='optuna', which "
                "alone can search a space that depends on its own values."
            ) from exc
    if not isinstance(space, kind | SearchSpace):
        where = "returned" if space is not hp_space else "is"
        raise SearchSpaceError(
            f"`hp_space` must be a SearchSpace, {example}, or a function that returns one of them, but it {where} "
            f"{space!r}."
        )
    if not space:
        raise SearchSpaceError("The search space is empty: give at least one hyperparameter.")
    return space


def check_known(backend: str, kwargs: Iterable[str], known: Iterable[str], source: str) -> None:
    """Refuses arguments that a backend does not take.

    Args:
        backend: Its name.
        kwargs: The names given.
        known: The names that it takes.
        source: Where those come from, for the message: "those of tune.run".

    Raises:
        ConfigurationError: Naming all unknown ones, and what may have been meant.
    """
    known = sorted(known)
    if unknown := [name for name in kwargs if name not in known]:
        hints = " ".join(f"{name!r}:{did_you_mean(name, known) or ' unknown.'}" for name in unknown)
        raise ConfigurationError(
            f"Unknown argument(s) for the backend {backend!r}: {', '.join(map(repr, unknown))}. {hints} It takes "
            f"{source}: {', '.join(known)}."
        )


def caught_exceptions(catch: Any) -> tuple[type[BaseException], ...]:
    """Returns the argument ``catch``, a class of exceptions or several, as a tuple.

    Raises:
        ConfigurationError: It is something else.
    """
    classes = tuple(catch) if isinstance(catch, Iterable) and not isinstance(catch, type | str) else (catch,)
    if not all(isinstance(item, type) and issubclass(item, BaseException) for item in classes):
        raise ConfigurationError(f"`catch` must be a class of exceptions, or a tuple of them, but got {catch!r}.")
    return classes

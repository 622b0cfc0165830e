"""What a search and a backend must know of each other, and nothing more."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from transformers.hyperparameter_search import HyperParamSearchBackendBase

from st_hpo.errors import BackendNotInstalledError
from st_hpo.results import TrialRecord
from st_hpo.space import SearchSpace, default_search_space

Report = Callable[[float, int], bool]


class SearchTarget(Protocol):
    """A search, as a backend sees it (the ``trainer`` of transformers' ``run``)."""

    hp_space: Any
    verbose: bool

    @property
    def objective_names(self) -> list[str]:
        """The metric keys that are optimized; empty while only an evaluator's first run can tell."""

    def run_trial(
        self, number: int, propose: Callable[[], Mapping[str, Any]], native: Any = None, report: Report | None = None
    ) -> TrialRecord:
        """Runs one trial from start to end.

        Args:
            number: The trial's number, from 0.
            propose: Gives the hyperparameters.
            native: The backend's own trial, for ``model_init(trial)`` and ``loss_init(model, trial)``.
            report: Takes an intermediate objective and its step, and says whether the trial is to be pruned. None
                for several objectives, where nothing can be pruned.

        Returns:
            The record of a completed trial, of one that ``report`` pruned, or of one whose objective is NaN (failed).

        Raises:
            Exception: What a trial raised, recorded as failed; as pruned, if it is one of ``pruned_exceptions``.
        """

    def record_of(self, number: int) -> TrialRecord | None:
        """Returns the record of a trial that this search has run, None for any other."""


class SearchBackend(HyperParamSearchBackendBase):  # type: ignore[misc]
    """A search backend: transformers' own interface, and what a search asks beyond it.

    A backend proposes hyperparameters and is told objectives; it knows no model and no trainer. It must own its
    random generator: ``set_seed`` runs in every trial, so one that draws from ``random`` or ``numpy.random`` would
    propose the same values again and again.
    """

    name: str
    pip_package: str | None = None

    @abstractmethod
    def check(self, hp_space: Any, n_trials: int, directions: list[str], kwargs: Mapping[str, Any]) -> None:
        """Refuses what the backend cannot do, before any model is loaded.

        Raises:
            ConfigurationError: Naming what was wrong and the choices.
        """

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

    @abstractmethod
    def records(self, trainer: SearchTarget) -> list[TrialRecord]:
        """Returns the records of all trials that the backend knows, also of those run earlier or elsewhere."""

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

"""What a search and a backend must know of each other, and nothing more."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from transformers.hyperparameter_search import HyperParamSearchBackendBase

from st_hpo.errors import (
    BackendNotInstalledError,
    ConfigurationError,
    NotSupportedError,
    SearchSpaceError,
    did_you_mean,
)
from st_hpo.records import Baseline, TrialRecord
from st_hpo.space import SearchSpace, default_search_space

Report = Callable[[float, int], bool]
Propose = Callable[[], Mapping[str, Any]]


class PortableTrials(Protocol):
    """What runs the trials of a search in another process, once cloudpickle has taken it there. It holds no model."""

    def run(
        self,
        record: TrialRecord,
        propose: Propose,
        native: Any = None,
        report: Report | None = None,
        checkpoints: Any = None,
    ) -> None:
        """Runs a trial and fills its record; see :meth:`SearchTarget.run_trial`.

        Args:
            record: The record to fill.
            propose: Gives the hyperparameters.
            native: The backend's own trial.
            report: Takes an intermediate objective and its step.
            checkpoints: A :class:`~st_hpo.checkpoints.TrialCheckpoints` where the backend pauses or moves trials.

        Raises:
            Exception: What the trial raised; recorded before.
        """

    def run_default(self, record: TrialRecord) -> None:
        """Trains with the user's own arguments, and fills the record; see :meth:`SearchTarget.run_default`."""

    @property
    def objective_names(self) -> list[str]:
        """The metric keys that are optimized, known for certain after an evaluation."""

    def settled_baseline(self) -> tuple[Baseline, list[str], list[str]]:
        """Evaluates the untrained model.

        Returns:
            The baseline, and the names and directions of the objectives: an evaluator may know them only now.
        """


class SearchTarget(Protocol):
    """A search, as a backend sees it (the ``trainer`` of transformers' ``run``)."""

    hp_space: Any
    verbose: bool

    @property
    def objective_names(self) -> list[str]:
        """The metric keys that are optimized; empty while only an evaluator's first run can tell."""

    @property
    def directions(self) -> list[str]:
        """``"minimize"`` or ``"maximize"`` for each objective."""

    @property
    def rungs(self) -> list[int]:
        """The steps that ``report`` is called with: per cent of the training, or examples.

        Empty where the training's own evaluations are reported, with their optimizer steps.
        """

    @property
    def portable(self) -> PortableTrials:
        """What runs the same trials in other processes."""

    def run_trial(
        self,
        number: int,
        propose: Propose,
        native: Any = None,
        report: Report | None = None,
        *,
        checkpoints: Any = None,
        backend_id: str | None = None,
        catch: tuple[type[BaseException], ...] = (),
    ) -> TrialRecord:
        """Runs one trial from start to end, in this process.

        Args:
            number: The trial's number, from 0.
            propose: Gives the hyperparameters.
            native: The backend's own trial, or a dict of the values, for ``model_init(trial)``,
                ``loss_init(model, trial)`` and ``hp_name(trial)``.
            report: Takes an intermediate objective and its step, and says whether the trial is to be pruned. None
                for several objectives, where nothing can be pruned. Where it has an attribute ``reached``, the rungs
                up to that one are not evaluated: an earlier trial of the same values has done so.
            checkpoints: The :class:`~st_hpo.pausing.PausingCheckpoints` of a trial that may pause and be taken up
                again.
            backend_id: What the backend calls the trial, if not by its number.
            catch: Exceptions that fail the trial, but not the search.

        Returns:
            The record of a completed trial; of one that ``report`` pruned; or of a failed one, whose objective is NaN
            or which raised what does not end the search.

        Raises:
            SearchStopped: A timeout or SIGTERM; the trial is recorded as failed.
            TooManyFailuresError: This trial was one failure in a row too many.
            Exception: What a trial raised, recorded as failed; as pruned, if it is one of ``pruned_exceptions``.
        """

    def run_default(self, record: TrialRecord) -> None:
        """Trains with the user's own arguments, in this process, and fills the record."""

    def take_over(self, record: TrialRecord, values: Mapping[str, Any], native: Any = None) -> bool:
        """Completes a trial that equals an earlier one with that one's value, instead of training it again.

        Only a backend whose trials run in other processes has to ask: :meth:`run_trial` does it by itself.

        Args:
            record: Its record, with its number.
            values: Its hyperparameters, as proposed.
            native: The backend's own trial.

        Returns:
            Whether it is completed now. If so, :meth:`add_record` takes the record as that of any other trial.
        """

    def add_record(self, record: TrialRecord, objective_names: list[str] | None = None) -> None:
        """Takes the record of a trial that has ended in another process.

        Args:
            record: Its record.
            objective_names: The metric keys that were optimized there, where they are known now.
        """

    def survives(self, exc: BaseException, catch: tuple[type[BaseException], ...] = ()) -> bool:
        """Whether the search goes on after a trial that has raised this in another process.

        Args:
            exc: What it raised.
            catch: Exceptions that fail a trial, but not the search.
        """

    @property
    def ending(self) -> BaseException | None:
        """What ends the search now and is to be raised: a timeout, SIGTERM, too many failures. None to go on.

        Only a backend whose trials run in other processes has to ask: :meth:`run_trial` raises it by itself.
        """

    @property
    def no_more(self) -> BaseException | None:
        """What is to be raised instead of beginning one more trial; None to go on.

        That is :attr:`ending`, or the search has enough: its patience or its budget is used up. Trials that run are
        trained to their end then. A backend asks before it makes a trial, which would be there in vain;
        :meth:`run_trial` raises it by itself.
        """

    def enough(self, reason: str) -> None:
        """Has no new trial begin.

        Args:
            reason: Why, in words, for the result.
        """

    @property
    def output_dir(self) -> str:
        """The folder for everything that the search writes: that of the training arguments."""

    def record_of(self, number: int) -> TrialRecord | None:
        """Returns the record of a trial of this search, None for any other."""


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
            See :meth:`PortableTrials.settled_baseline`.
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

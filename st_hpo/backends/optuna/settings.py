"""The Optuna backend's arguments: those of Optuna that it passes on, and its own."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from st_hpo.backends.base import caught_exceptions, check_known
from st_hpo.backends.optuna.liveness import HEARTBEAT_SECONDS
from st_hpo.backends.optuna.urls import is_in_memory
from st_hpo.errors import ConfigurationError
from st_hpo.rung_points import PRUNERS, check_pruner_name

# Arguments of `Study.optimize` that transformers passes on
_OPTIMIZE = ("gc_after_trial", "callbacks", "catch", "n_jobs")
_OWN = ("terminator", "resume", "heartbeat_interval", "storage_patience", "threads_per_worker", "workers_per_gpu")
STUDY_NAME = "st_hpo"
PATIENCE_SECONDS = 300.0


@dataclass
class Settings:
    """What an Optuna search was told.

    Attributes:
        study: The arguments of ``optuna.create_study``: ``storage``, ``sampler``, ``pruner``, ``study_name``,
            ``load_if_exists``.
        n_jobs: How many trials run at a time, each in a process of its own if more than one.
        resume: Whether to go on to a total of ``n_trials`` in the study.
        heartbeat_interval: Seconds between two signs of life of a running trial.
        storage_patience: For how many seconds a storage that has gone away is waited for.
        threads_per_worker: PyTorch's threads in a worker; None for an equal share of this process's.
        workers_per_gpu: How many workers use one GPU before the next one is used; None spreads them over all.
        catch: Exceptions that fail a trial, but not the search.
        callbacks: Called with the study and the trial after each trial.
        gc_after_trial: Whether to collect garbage once more after each trial.
        terminator: Says after each trial whether the search has enough; True for the default one.
    """

    study: dict[str, Any]
    n_jobs: int = 1
    resume: bool = False
    heartbeat_interval: float = HEARTBEAT_SECONDS
    storage_patience: float = PATIENCE_SECONDS
    threads_per_worker: int | None = None
    workers_per_gpu: int | None = None
    catch: tuple[type[BaseException], ...] = ()
    callbacks: tuple[Any, ...] = ()
    gc_after_trial: bool = False
    terminator: Any = None

    @classmethod
    def of(cls, backend: str, kwargs: Mapping[str, Any]) -> Settings:
        """Sorts and checks the arguments.

        Args:
            backend: The backend's name, for messages.
            kwargs: All that the search was given for its backend; None stands for the default.

        Raises:
            ConfigurationError: Naming what was wrong, the choices and the fix.
        """
        names = create_study_arguments()
        check_known(
            backend,
            kwargs,
            [*names, *_OPTIMIZE, *_OWN],
            "those of optuna.create_study and Study.optimize, and its own",
        )
        given = {name: value for name, value in kwargs.items() if value is not None or name == "n_jobs"}
        settings = cls({name: value for name, value in given.items() if name in names})
        settings.n_jobs = _jobs(given.get("n_jobs", 1))
        settings.resume = _flag(given, "resume")
        settings.gc_after_trial = _flag(given, "gc_after_trial")
        settings.heartbeat_interval = _seconds(given, "heartbeat_interval", HEARTBEAT_SECONDS)
        settings.storage_patience = _seconds(given, "storage_patience", PATIENCE_SECONDS, zero=True)
        settings.threads_per_worker = _count(given, "threads_per_worker")
        settings.workers_per_gpu = _count(given, "workers_per_gpu")
        settings.catch = caught_exceptions(given.get("catch", ()))
        callbacks = given.get("callbacks", ())
        if not isinstance(callbacks, Iterable) or not all(map(callable, callbacks)):
            raise ConfigurationError(f"`callbacks` must be a list of functions(study, trial), but got {callbacks!r}.")
        settings.callbacks = tuple(callbacks)
        settings.terminator = given.get("terminator")
        check_terminator(settings.terminator)
        settings._check_storage()
        check_pruner(given.get("pruner"))
        return settings

    @property
    def is_alone(self) -> bool:
        """Whether the study is this search's own, and gone with it."""
        return self.study.get("storage") is None and not self.resume

    def _check_storage(self) -> None:
        storage, name = self.study.get("storage"), self.study.get("study_name")
        if self.resume and storage is not None and name is None:
            raise ConfigurationError(
                "`resume=True` continues the study of that name in the storage, but there is no `study_name`. Pass "
                "one, the same in every run."
            )
        if storage is None or not (self.resume or self.n_jobs > 1):
            return
        if is_in_memory(storage):
            what = "`resume=True`" if self.resume else f"n_jobs={self.n_jobs}"
            raise ConfigurationError(
                f"{what} needs a storage that other processes can open, but this one is in the memory of this "
                "process. Leave `storage` out, or pass a file or a server: 'sqlite:///study.db', "
                "'postgresql+psycopg2://user:password@host/database', or a JournalStorage."
            )


def check_pruner(pruner: Any) -> None:
    """Refuses what is no pruner.

    Raises:
        ConfigurationError: It is neither a name nor a pruner of Optuna's.
    """
    if isinstance(pruner, str):
        check_pruner_name(pruner)
    elif pruner is not None and not callable(getattr(pruner, "prune", None)):
        raise ConfigurationError(
            f"`pruner` must be {', '.join(map(repr, PRUNERS))}, or a pruner of Optuna's, but got {pruner!r}."
        )


def check_terminator(terminator: Any) -> None:
    """Refuses what is no terminator.

    Raises:
        ConfigurationError: It is neither True, False nor None, and has no method ``should_terminate``.
    """
    if isinstance(terminator, bool) or terminator is None:
        return
    if isinstance(terminator, type) or not callable(getattr(terminator, "should_terminate", None)):
        raise ConfigurationError(
            "`terminator` must be True for the default one, or an object with a method should_terminate(study), as "
            f"optuna.terminator.Terminator has it, but got {terminator!r}."
        )


def create_study_arguments() -> list[str]:
    """Returns the arguments of ``optuna.create_study``, without the direction."""
    import optuna

    names = inspect.signature(optuna.create_study).parameters
    return [name for name in names if name not in ("direction", "directions")]


def _jobs(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
        raise ConfigurationError(
            f"`n_jobs` must be a number of processes of at least 1, or -1 for one for each CPU, but got {value!r}."
        )
    if value != -1:
        return value
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise ConfigurationError(f"`{name}` must be True or False, but got {value!r}.")
    return value


def _count(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigurationError(f"`{name}` must be an integer of at least 1, or None, but got {value!r}.")
    return value


def _seconds(given: Mapping[str, Any], name: str, default: float, zero: bool = False) -> float:
    value = given.get(name, default)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise ConfigurationError(
            f"`{name}` must be a number of seconds {'of at least' if zero else 'above'} 0, but got {value!r}."
        )
    return float(value)

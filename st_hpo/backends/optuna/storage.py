"""Where a study is kept: a storage that several processes open, a journal file, or memory.

Imports optuna: for the use of the backend's own functions only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage, get_storage

from st_hpo.backends.optuna.careful import RedisWithoutSnapshots
from st_hpo.backends.optuna.journal import FindableLock, WholeLinesJournal, with_whole_lines
from st_hpo.backends.optuna.steady import steady
from st_hpo.backends.optuna.urls import driver_of, redacted
from st_hpo.errors import BackendNotInstalledError, ConfigurationError

JOURNAL = "study.journal"
# How long a process waits for another one's lock on a SQLite file
_SQLITE_SECONDS = 60.0


def open_storage(storage: Any, patience: float) -> Any:
    """Opens a storage that several processes use.

    Args:
        storage: What ``optuna.create_study`` takes: a URL, or a storage.
        patience: See :class:`~st_hpo.backends.optuna.steady.SteadyStorage`.

    Raises:
        ConfigurationError: It cannot be opened.
        BackendNotInstalledError: The driver of the database is missing.
    """
    where = redacted(str(storage), storage) if isinstance(storage, str) else type(storage).__name__
    try:
        if isinstance(storage, str) and storage.startswith("redis"):
            storage = JournalStorage(RedisWithoutSnapshots(storage))
        elif isinstance(storage, str):
            storage = RDBStorage(storage, engine_kwargs=_engine_arguments(storage))
        opened = get_storage(storage)
    except Exception as exc:
        if isinstance(exc, ImportError) and (package := driver_of(str(storage))) is not None:
            raise BackendNotInstalledError(
                f"The storage {where} needs a driver that is not installed. Run `pip install {package}`."
            ) from None
        # Optuna's own does not say what has happened. The exceptions of drivers may quote the URL
        cause = exc.__cause__ if isinstance(exc, optuna.exceptions.StorageInternalError) else None
        reason = cause or exc
        raise ConfigurationError(
            f"The storage {where} cannot be opened: {type(reason).__name__}: {redacted(str(reason), storage)}"
        ) from None
    return steady(with_whole_lines(opened), patience)


def _engine_arguments(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": _SQLITE_SECONDS}}
    return {"pool_pre_ping": True}


def open_journal(path: str, patience: float) -> Any:
    """Opens a journal file.

    Args:
        path: The file.
        patience: See :class:`~st_hpo.backends.optuna.steady.SteadyStorage`.
    """
    return steady(JournalStorage(WholeLinesJournal(path, FindableLock(path))), patience)


def in_memory(study: Any) -> Any:
    """Returns a copy of a study that needs no storage."""
    storage = InMemoryStorage()
    with _quiet():
        optuna.copy_study(
            from_study_name=study.study_name,
            from_storage=study._storage,
            to_storage=storage,
        )
        return optuna.load_study(
            study_name=study.study_name, storage=storage, sampler=study.sampler, pruner=study.pruner
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)

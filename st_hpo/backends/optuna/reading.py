"""Reading a study back as a search result. Nothing is written, made or upgraded, and nothing is unpickled.

Imports optuna: for the use of whoever reads studies only.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import NoSuchModuleError, OperationalError, SQLAlchemyError

from st_hpo.backends.optuna.records import OBJECTIVE_ATTRIBUTE, record_from
from st_hpo.backends.optuna.urls import driver_of, is_in_memory, redacted
from st_hpo.errors import (
    BackendNotInstalledError,
    BackendUnavailableError,
    ConfigurationError,
    HPOError,
    NotSupportedError,
    did_you_mean,
)
from st_hpo.records import TrialRecord
from st_hpo.results import SearchResult
from st_hpo.space import Categorical, Float, Int

SQLITE_HEADER = b"SQLite format 3\x00"
_CONNECT_SECONDS = 10
_TIMEOUT_ARGUMENTS = {
    "psycopg2": "connect_timeout",
    "psycopg": "connect_timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "mysqlconnector": "connection_timeout",
}
# Without a name in the URL SQLAlchemy takes the driver that its version prefers
_DRIVERS = {
    "postgresql": ("psycopg2", "psycopg2-binary"),
    "mysql": ("pymysql", "pymysql"),
    "mariadb": ("pymysql", "pymysql"),
}
_TABLES = ("studies", "trials", "version_info", "alembic_version")


def open_for_reading(where: str | Path) -> Any:
    """Opens a storage so that nothing in it can change by accident.

    Args:
        where: The URL of a database; or the path of a SQLite or journal file.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigurationError: It is no storage of Optuna's, or one of another version of Optuna.
        BackendNotInstalledError: The driver of the database is missing.
        BackendUnavailableError: Its server cannot be reached.
    """
    with _explained(where):
        if isinstance(where, Path):
            with open(where, "rb") as file:
                is_database = file.read(len(SQLITE_HEADER)) == SQLITE_HEADER
            return _open_sqlite(where) if is_database else JournalStorage(JournalFileBackend(str(where)))
        if where.startswith("redis"):
            raise NotSupportedError(f"The storage {described(where)} is a journal on Redis, which is not read here.")
        if is_in_memory(where):
            raise ConfigurationError(f"The storage {where} is in the memory of a process and ends with it.")
        url = sqlalchemy.make_url(where)
        if url.get_backend_name() == "sqlite":
            name = str(url.database)
            path = urllib.parse.unquote(name.removeprefix("file:")) if name.startswith("file:") else name
            return _open_sqlite(Path(path))
        arguments = {}
        if (driver := url.get_driver_name()) in _TIMEOUT_ARGUMENTS:
            arguments[_TIMEOUT_ARGUMENTS[driver]] = _CONNECT_SECONDS
        options = {"postgresql_readonly": True} if url.get_backend_name() == "postgresql" else {}
        return _opened(where, {"connect_args": arguments, "execution_options": options})


def study_names(storage: Any) -> list[str]:
    """Returns the names of the studies in a storage."""
    return sorted(optuna.get_all_study_names(storage))


def load_study(storage: Any, name: str | None, where: str | Path) -> Any:
    """Returns a study.

    Args:
        storage: What :func:`open_for_reading` returned.
        name: The study's name; None where the storage has one study only.
        where: What the storage was opened from, for messages.

    Raises:
        ConfigurationError: There is no study, none of that name, or several and no name is given.
    """
    shown = described(where)
    with _explained(where):
        names = study_names(storage)
        listed = ", ".join(map(repr, names))
        if not names:
            raise ConfigurationError(f"{shown} has no study: no search has written to it yet.")
        if name is None and len(names) > 1:
            raise ConfigurationError(f"{shown} has {len(names)} studies: {listed}. Choose one by its name (--study).")
        if name is not None and name not in names:
            raise ConfigurationError(
                f"{shown} has no study {name!r}.{did_you_mean(name, names)} Its studies are: {listed}."
            )
        return optuna.load_study(study_name=name or names[0], storage=storage)


def read_study(where: str | Path, name: str | None = None) -> SearchResult:
    """Reads a study of a search, or of any other program, as far as it says something.

    Args:
        where: The URL of a database; or the path of a SQLite or journal file.
        name: The study's name; None where the storage has one study only.

    Returns:
        The result of the search. A study knows neither the untrained model's evaluation nor a confirmation.

    Raises:
        FileNotFoundError: There is no such file.
        HPOError: As :func:`open_for_reading` and :func:`load_study`; or the study has no direction.
    """
    study = load_study(open_for_reading(where), name, where)
    with _explained(where):
        directions = [direction.name.lower() for direction in study.directions]
        if not set(directions) <= {"minimize", "maximize"}:
            raise ConfigurationError(f"The study {study.study_name!r} has no objective (it is a preferential one).")
        trials = study.get_trials(deepcopy=False)
        return SearchResult(
            trials=[record for trial in trials if (record := _record(trial)) is not None],
            objective_names=_objective_names(study, len(directions)),
            directions=directions,
            space=_space(trials),
            native=study,
        )


def described(where: str | Path) -> str:
    """Returns a storage's path or URL, the latter without its password."""
    return str(where) if isinstance(where, Path) else redacted(where, where)


def _record(trial: Any) -> TrialRecord | None:
    try:
        record = record_from(trial, None)
    except (ValueError, TypeError, AttributeError) as exc:
        raise ConfigurationError(f"The record of trial {trial.number} is damaged: {exc}") from None
    if record is not None and record.started is None and trial.datetime_start is not None:
        record.started = trial.datetime_start.timestamp()
    return record


def _objective_names(study: Any, count: int) -> list[str]:
    """The metric keys that st_hpo has left, the names that Optuna was given, or numbers."""
    for names in (study.user_attrs.get(OBJECTIVE_ATTRIBUTE), study.metric_names):
        if isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names):
            return list(names)
    return ["objective"] if count == 1 else [f"objective_{index}" for index in range(count)]


def _space(trials: list[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            if name not in found:
                found[name] = _domain(distribution)
    return found


def _domain(distribution: Any) -> str:
    with contextlib.suppress(HPOError):
        if isinstance(distribution, FloatDistribution):
            return repr(Float(distribution.low, distribution.high, distribution.log, distribution.step))
        if isinstance(distribution, IntDistribution):
            return repr(Int(distribution.low, distribution.high, distribution.log, distribution.step))
        if isinstance(distribution, CategoricalDistribution):
            return repr(Categorical(distribution.choices))
    return str(distribution)


def _open_sqlite(path: Path) -> Any:
    """SQLite makes the file that it does not find, so it is looked for first, and opened for reading only."""
    with open(path, "rb") as file:
        header = file.read(len(SQLITE_HEADER))
    if header != SQLITE_HEADER:
        raise ConfigurationError(f"{path} is {'no SQLite database' if header else 'empty'}.")
    address = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(address, uri=True, timeout=_CONNECT_SECONDS, check_same_thread=False)

    # SQLAlchemy's own way, a URL within a URL, loses a part of some paths
    return _opened("sqlite:///read-only", {"creator": connect}, path)


def _opened(url: str, engine_arguments: dict[str, Any], path: Path | None = None) -> Any:
    engine = sqlalchemy.create_engine(url, **engine_arguments)
    try:
        tables = sqlalchemy.inspect(engine)
        if not all(map(tables.has_table, _TABLES)):
            raise ConfigurationError(f"{described(path or url)} is a database, but has no study of Optuna's in it.")
        with engine.connect() as connection:
            for table in _TABLES[2:]:  # Optuna fills them where they are empty
                if connection.execute(sqlalchemy.text(f"SELECT 1 FROM {table}")).first() is None:
                    raise ConfigurationError(f"{described(path or url)} is not complete: {table} is empty.")
    finally:
        engine.dispose()
    return RDBStorage(url, engine_kwargs=engine_arguments, skip_table_creation=True)


@contextlib.contextmanager
def _explained(where: str | Path) -> Iterator[None]:
    """Turns what Optuna, SQLAlchemy and drivers raise into one line without the password, which they may quote."""
    shown = described(where)
    try:
        yield
    except (HPOError, OSError):
        raise
    except Exception as exc:
        cause = getattr(exc, "orig", None) or exc
        text = redacted(" ".join(str(cause).split()), str(where))
        if isinstance(exc, NoSuchModuleError):
            raise ConfigurationError(
                f"The storage {shown} cannot be opened: SQLAlchemy knows no such database."
            ) from None
        if isinstance(exc, ImportError):
            raise BackendNotInstalledError(_missing_driver(str(where), shown)) from None
        if isinstance(exc, OperationalError) and not _is_file(where):
            raise BackendUnavailableError(f"The storage {shown} cannot be reached: {text}") from None
        name = "" if isinstance(exc, SQLAlchemyError | RuntimeError) else f"{type(cause).__name__}: "
        raise ConfigurationError(f"The storage {shown} cannot be read: {name}{text}") from None


def _is_file(where: str | Path) -> bool:
    return isinstance(where, os.PathLike) or where.startswith("sqlite")


def _missing_driver(url: str, shown: str) -> str:
    database, named, _ = url.partition("://")[0].partition("+")
    text = f"The storage {shown} needs a driver that is not installed."
    if named and (package := driver_of(url)) is not None:
        return f"{text} Run `pip install {package}`."
    if database in _DRIVERS:
        driver, package = _DRIVERS[database]
        return f"{text} Run `pip install {package}`, and begin the URL with {database}+{driver}://."
    return text

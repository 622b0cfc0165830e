"""Where a study is kept: opened for many processes at once, patient with servers that restart, discreet of passwords.

Imports optuna: for the use of the backend's own functions only.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, InMemoryStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from st_hpo.errors import BackendUnavailableError, ConfigurationError

JOURNAL = "study.journal"
# How long a process waits for another one's lock on a SQLite file
_SQLITE_SECONDS = 60.0
_LONGEST_PAUSE = 5.0
_IN_MEMORY = re.compile(r"sqlite(\+\w+)?://(/?|/:memory:.*|/file:.*mode=memory.*)$")
OWNER_ID = ("st_hpo:worker", "id")


def redacted(text: str, url: Any) -> str:
    """Returns a text without the password of a storage's URL.

    Args:
        text: The text.
        url: The URL, or whatever else the storage is.
    """
    if not isinstance(url, str) or "://" not in url:
        return text
    scheme, _, rest = url.partition("://")
    user_info, at, where = rest.rpartition("@")
    user, colon, password = user_info.partition(":")
    if not (at and colon and password):
        return text
    text = text.replace(url, f"{scheme}://{user}:***@{where}")
    forms = {password, urllib.parse.unquote(password), urllib.parse.unquote_plus(password)}
    # Of a password with an unescaped "@", SQLAlchemy takes the end for a part of the host's name
    forms |= {part for part in password.split("@")[1:] if part}
    for secret in sorted(forms, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def is_in_memory(storage: Any) -> bool:
    """Whether no other process can open a storage."""
    backend = getattr(storage, "_backend", storage)
    url = storage if isinstance(storage, str) else getattr(backend, "url", "")
    return isinstance(storage, InMemoryStorage) or bool(isinstance(url, str) and _IN_MEMORY.match(url))


def open_storage(storage: Any, patience: float) -> Any:
    """Opens a storage that several processes use.

    Args:
        storage: What ``optuna.create_study`` takes: a URL, or a storage.
        patience: See :class:`SteadyStorage`.

    Raises:
        ConfigurationError: It cannot be opened.
    """
    try:
        if isinstance(storage, str) and not storage.startswith("redis"):
            storage = RDBStorage(storage, engine_kwargs=_engine_arguments(storage))
        opened = get_storage(storage)
    except Exception as exc:
        where = redacted(str(storage), storage) if isinstance(storage, str) else type(storage).__name__
        # The exceptions of drivers may quote the URL
        raise ConfigurationError(
            f"The storage {where} cannot be opened: {type(exc).__name__}: {redacted(str(exc), storage)}"
        ) from None
    return steady(opened, patience)


def _engine_arguments(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": _SQLITE_SECONDS}}
    return {"pool_pre_ping": True}


def steady(storage: Any, patience: float) -> Any:
    """Returns the storage as one that waits for its server and counts right with several processes.

    Journals and storages of other packages are returned as they are.
    """
    backend = getattr(storage, "_backend", None)
    if isinstance(backend, RDBStorage):
        _one_writer_at_a_time(backend)
    elif not isinstance(storage, GrpcStorageProxy):
        return storage
    return SteadyStorage(storage, patience)


def _one_writer_at_a_time(storage: RDBStorage) -> None:
    """Makes SQLite read and write in one transaction: by default it reads before it begins one.

    Two processes could otherwise both find a trial waiting, and both run it.
    """
    from sqlalchemy import event

    engine = storage.engine
    if engine.dialect.name != "sqlite" or is_in_memory(storage):
        return

    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # the connections that there are begin as before
    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)


def open_journal(path: str) -> Any:
    """Opens a journal file; a last line that a power cut has torn is taken off, which would make it unreadable."""
    lock = JournalFileSymlinkLock(path)
    if os.path.exists(path):
        lock.acquire()
        try:
            with open(path, "rb+") as file:
                content = file.read()
                if not content.endswith(b"\n"):
                    file.truncate(content.rfind(b"\n") + 1)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(path, lock_obj=lock))


def is_away(exc: BaseException) -> bool:
    """Whether an exception says that the storage's server or file could not be used just now."""
    from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError

    cause = exc.__cause__ if isinstance(exc, StorageInternalError) else exc
    if isinstance(cause, OperationalError | InterfaceError | TimeoutError):
        return True
    if getattr(cause, "connection_invalidated", False):
        return True
    code = getattr(exc, "code", None)
    if type(exc).__module__.startswith("grpc") and callable(code):
        details = str(getattr(exc, "details", lambda: "")())
        return code().name == "UNAVAILABLE" or "during the commit" in details  # there, of the server's own storage
    return False


def patiently(call: Callable[[], Any], patience: float, url: Any = None) -> Any:
    """Calls a function again and again while the storage is away.

    Args:
        call: The function. It must be harmless to call it again after an answer was lost.
        patience: For how many seconds.
        url: The storage's URL.

    Raises:
        BackendUnavailableError: The storage has been away for that long.
    """
    began, pause = time.monotonic(), 0.1
    while True:
        try:
            return call()
        except Exception as exc:
            if not is_away(exc):
                raise
            waited = time.monotonic() - began
            if waited + pause > patience:
                cause = redacted(str(exc.__cause__ or exc), url).strip()
                raise BackendUnavailableError(
                    f"The storage of the study could not be used for {waited:.0f} s: {cause}\nThe trials that were "
                    "finished are in it. When it is back, run the search again with resume=True; storage_patience= "
                    "says for how many seconds to wait."
                ) from None
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


class _Delegating:
    """Makes a class a storage by a method for each abstract one of Optuna's, which calls :meth:`_call`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in BaseStorage.__abstractmethods__:
            if getattr(cls, name) is getattr(BaseStorage, name):
                setattr(cls, name, _delegate(name))


def _delegate(name: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._call(name, *args, **kwargs)

    method.__name__ = name
    return method


class SteadyStorage(_Delegating, BaseStorage):
    """A storage that waits while its server restarts, and does nothing twice where only the answer was lost.

    Args:
        inner: Optuna's storage.
        patience: For how many seconds it waits.
    """

    def __init__(self, inner: Any, patience: float) -> None:
        self.inner = inner
        self.patience = patience

    def __reduce__(self) -> Any:
        return _reopened, (getattr(self.inner, "_backend", self.inner), self.patience)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        url = getattr(getattr(self.inner, "_backend", None), "url", None)
        return patiently(lambda: getattr(self.inner, name)(*args, **kwargs), self.patience, url)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        attribute, key = OWNER_ID
        owner = None if template_trial is None else template_trial.user_attrs.get(attribute, {}).get(key)
        tried = False

        def create() -> int:
            nonlocal tried
            if tried and owner is not None:
                for trial in self.inner.get_all_trials(study_id, deepcopy=False):
                    if trial.user_attrs.get(attribute, {}).get(key) == owner:
                        return int(trial._trial_id)
            tried = True
            return int(self.inner.create_new_trial(study_id, template_trial))

        return int(self._patiently(create))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        tried = False

        def tell() -> bool:
            nonlocal tried
            again, tried = tried, True
            try:
                return bool(self.inner.set_trial_state_values(trial_id, state, values))
            except UpdateFinishedTrialError:
                if again and self.inner.get_trial(trial_id).state == state:
                    return True
                raise

        return bool(self._patiently(tell))

    def _patiently(self, call: Callable[[], Any]) -> Any:
        return patiently(call, self.patience, getattr(getattr(self.inner, "_backend", None), "url", None))

    def remove_session(self) -> None:
        self.inner.remove_session()

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        self.inner.check_trial_is_updatable(trial_id, trial_state)


def _reopened(backend: Any, patience: float) -> Any:
    return steady(get_storage(backend), patience)


def impatient(study: Any) -> None:
    """Makes the study's storage report at once, from now on, that it is away."""
    if isinstance(study._storage, SteadyStorage):
        study._storage.patience = 0.0


def in_memory(study: Any) -> Any:
    """Returns a copy of a study that needs no storage."""
    storage = InMemoryStorage()
    with _quiet():
        optuna.copy_study(
            from_study_name=study.study_name, from_storage=study._storage, to_storage=storage,
        )
        return optuna.load_study(
            study_name=study.study_name, storage=storage, sampler=study.sampler, pruner=study.pruner
        )


@contextlib.contextmanager
def _quiet() -> Any:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)

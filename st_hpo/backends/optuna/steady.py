"""A storage that waits while its server restarts or its disk is full, and counts right with several processes.

Imports optuna: for the use of the backend's own functions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState

from st_hpo.backends.optuna.journal import WholeLinesJournal
from st_hpo.backends.optuna.patience import Patience
from st_hpo.backends.optuna.records import WORKER_ATTRIBUTE
from st_hpo.backends.optuna.urls import is_in_memory


def steady(storage: Any, patience: float) -> Any:
    """Returns the storage as one that waits for its server or its disk, and counts right with several processes.

    Journals on Redis and storages of other packages are returned as they are.
    """
    backend = getattr(storage, "_backend", None)
    if isinstance(backend, RDBStorage):
        _one_writer_at_a_time(backend)
    elif not isinstance(storage, GrpcStorageProxy) and not isinstance(backend, WholeLinesJournal):
        return storage
    steady_storage: Any = SteadyStorage  # its methods come from `_Delegating`, which no type checker sees
    return steady_storage(storage, patience)


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
    """A storage that waits while its server restarts or its disk is full.

    It does nothing twice where only the answer was lost.

    Args:
        inner: Optuna's storage.
        patience: For how many seconds it waits.
    """

    def __init__(self, inner: Any, patience: float) -> None:
        self.inner = inner
        self.patience = Patience(patience, getattr(getattr(inner, "_backend", None), "url", None))
        self._studies: set[int] = set()

    def __reduce__(self) -> Any:
        backend = getattr(self.inner, "_backend", None)
        return _reopened, (backend if isinstance(backend, RDBStorage) else self.inner, self.patience.seconds)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.patience.call(lambda: getattr(self.inner, name)(*args, **kwargs))

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        self._studies.add(study_id)
        found: list[FrozenTrial] = self._call("get_all_trials", study_id, deepcopy=deepcopy, states=states)
        return found

    def set_trial_param(self, trial_id: int, *args: Any) -> None:
        try:
            self._call("set_trial_param", trial_id, *args)
        except KeyError:
            # A gRPC server that was started again takes parameters for trials only that it has been asked for
            for study_id in self._studies:
                self._call("get_all_trials", study_id)
            self._call("set_trial_param", trial_id, *args)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        owner = None if template_trial is None else template_trial.user_attrs.get(WORKER_ATTRIBUTE, {}).get("id")
        tried = False

        def create() -> int:
            nonlocal tried
            if tried and owner is not None:
                for trial in self.inner.get_all_trials(study_id, deepcopy=False):
                    if trial.user_attrs.get(WORKER_ATTRIBUTE, {}).get("id") == owner:
                        return int(trial._trial_id)
            tried = True
            return int(self.inner.create_new_trial(study_id, template_trial))

        return int(self.patience.call(create))

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

        return bool(self.patience.call(tell))

    def remove_session(self) -> None:
        self.inner.remove_session()

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        self.inner.check_trial_is_updatable(trial_id, trial_state)


def _reopened(backend: Any, patience: float) -> Any:
    return steady(get_storage(backend), patience)


def heed(study: Any, ending: Callable[[], BaseException | None]) -> None:
    """Makes the study's storage, while it is away, end the search where it is to end."""
    if isinstance(study._storage, SteadyStorage):
        study._storage.patience.ending = ending


def impatient(study: Any, seconds: float = 0.0) -> None:
    """Makes the study's storage wait no longer than that from now on; what ends the search ends already."""
    if isinstance(study._storage, SteadyStorage):
        patience = study._storage.patience
        patience.seconds = min(patience.seconds, seconds)
        patience.ending = lambda: None


def back_at(study: Any) -> float:
    """Returns until when other processes could give no signs of life, by this process's clock."""
    return study._storage.patience.back_at if isinstance(study._storage, SteadyStorage) else -math.inf

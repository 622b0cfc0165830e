"""Fixtures of the tests of shared studies, a plugin of pytest: database servers, and one storage of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mariadb import MariaDBServer, running_mariadb
from postgres import PostgresServer, running_postgres
from shared_setup import STORAGES, storage_of


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDBServer]:
    """A MariaDB server."""
    with running_mariadb() as server:
        yield server


@pytest.fixture(params=STORAGES)
def where(request, tmp_path) -> Callable[[], Any]:
    """Returns what opens the storage, for each process anew."""
    return storage_of(request, request.param, tmp_path)

"""Fixtures of the tests of the SigOpt backend, a plugin of pytest: no server, a server, and both in turn."""

from __future__ import annotations

import pytest

from sigopt_server import running_server


@pytest.fixture
def local(monkeypatch):
    for name in ("SIGOPT_API_URL", "SIGOPT_API_TOKEN", "SIGOPT_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(local, monkeypatch):
    with running_server() as stand_in:
        for name, value in stand_in.env().items():
            monkeypatch.setenv(name, value)
        yield stand_in
    assert stand_in.unknown == []


@pytest.fixture(params=["local", "server"])
def engine(request):
    """Each test with it runs twice: locally (None) and with a server."""
    return request.getfixturevalue(request.param)

"""Fixtures of the tests of the W&B backend, a plugin of pytest: nothing of W&B around, and a server."""

from __future__ import annotations

import os
import threading

import pytest
import wandb

from wandb_server import running_server
from wandb_setup import processes, variables


@pytest.fixture
def no_wandb_of_before(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    yield
    wandb.teardown()


@pytest.fixture
def service(no_wandb_of_before, monkeypatch):
    """A server that must have understood everything, and of which nothing may be left behind."""
    with running_server() as running:
        for name, value in running.env().items():
            monkeypatch.setenv(name, value)
        environment, threads, children = variables(), set(threading.enumerate()), set(processes())
        yield running
        assert (running.unknown, running.errors) == ([], [])
        assert wandb.run is None
        assert variables() == environment
        late = {item.name for item in set(threading.enumerate()) - threads} - {"tqdm_monitor"}
        assert not {name for name in late if "wandb" in name.lower() or "W&B" in name}, late
        assert set(processes()) <= children

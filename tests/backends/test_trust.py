"""What a study and its storage are not trusted with: passwords in messages, and pickles."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
from typing import Any

import cloudpickle
import numpy
import optuna
import pytest
from optuna.storages.journal import _redis
from optuna.trial import TrialState, create_trial

from st_hpo import ConfigurationError, TrialRecord
from st_hpo.backends.optuna import careful
from st_hpo.backends.optuna.records import RECORD_ATTRIBUTE, record_attributes, record_from
from st_hpo.backends.optuna.storage import open_storage
from st_hpo.backends.optuna.urls import redacted
from st_hpo.errors import BackendNotInstalledError, NotSupportedError

from shared_setup import Search, search

pytest_plugins = ["shared_fixtures"]
pytestmark = pytest.mark.usefixtures("quiet_optuna")


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize(
    ("password", "sent"), [("wrong", "wrong"), ("wr@ng/one", "wr@ng/one"), ("wr@ng one", "wr%40ng%20one")]
)
def test_a_password_in_a_url_is_never_shown(password, sent, postgres):
    with pytest.raises(ConfigurationError) as caught:
        open_storage(postgres.url(password=sent), 1.0)
    message = str(caught.value)
    assert "postgresql+psycopg2://searcher:***@127.0.0.1:" in message and " cannot be opened: " in message
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    for part in (password, sent, "ng/one", "ng%20one", "ng one"):
        assert part not in message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql+pymysql://u:s3cret@host/db", "mysql+pymysql://u:***@host/db"),
        ("postgresql://host/db?user=u&password=s3cret", "postgresql://host/db?user=u&password=***"),
        ("postgresql:/u:s3cret@host", "postgresql:***"),
        ("postgresql://u:s3cret:more@ho@st/db", "postgresql://u:***@st/db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("postgresql://u@host/db", "postgresql://u@host/db"),
    ],
)
def test_of_a_url_all_but_the_password_is_shown(url, shown):
    assert redacted(f"<{url}>", url) == f"<{shown}>"


def test_nothing_is_unpickled_that_came_from_a_study(where, monkeypatch):
    search(where, 2)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    for module, name in ((pickle, "loads"), (pickle, "load"), (cloudpickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    target = Search()
    assert len(search(where, 4, target).records(target)) == 4


def test_the_state_of_the_cma_es_sampler_cannot_run_code():
    """Optuna keeps it as a pickle in the study, where others may write."""
    cma_es: Any = importlib.import_module("optuna.samplers._cmaes")
    before = cma_es.pickle
    with careful.careful_sampling():
        with pytest.raises(NotSupportedError, match=r"`posix\.mkdir` in it\..*not unpickled"):
            cma_es.pickle.loads(pickle.dumps(Evil()))
        state = {"mean": numpy.zeros(3), "sigma": numpy.float64(0.5)}
        assert cma_es.pickle.loads(cma_es.pickle.dumps(state))["sigma"] == 0.5
    assert not os.path.exists("unpickled") and cma_es.pickle is before


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_journal_on_redis_is_read_without_its_snapshots(monkeypatch):
    class Redis(dict):
        """What a client of the server is to Optuna's backend."""

        def setnx(self, key: str, value: Any) -> None:
            self.setdefault(key, value)

        def set(self, key: str, value: Any) -> None:
            self[key] = value

        def eval(self, script: str, count: int, prefix: str, log: str) -> None:
            self[f"{prefix}:log_number"] += 1
            self[f"{prefix}:log:{self[f'{prefix}:log_number']}"] = log

    server = Redis({":snapshot": pickle.dumps(Evil())})
    module = type("redis", (), {"Redis": type("Redis", (), {"from_url": staticmethod(lambda url: server)})})
    monkeypatch.setattr(_redis, "redis", module, raising=False)
    monkeypatch.setattr(_redis._imports, "check", lambda: None)
    opened = open_storage("redis://127.0.0.1/0", 1.0)
    optuna.create_study(study_name="s", storage=opened).ask()
    assert len(optuna.load_study(study_name="s", storage=open_storage("redis://127.0.0.1/0", 1.0)).trials) == 1
    assert not os.path.exists("unpickled")


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("mysql+pymysql://u:s3cret@host/db", "pymysql"),
        ("mysql://u:s3cret@host/db", "mysqlclient"),
        ("postgresql://u:s3cret@host/db", "psycopg2-binary"),
        ("postgresql+psycopg://u:s3cret@host/db", "'psycopg[binary]'"),
    ],
)
def test_of_a_missing_driver_the_package_is_named(url, package, monkeypatch):
    for module in ("pymysql", "MySQLdb", "psycopg2", "psycopg"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendNotInstalledError) as caught:
        open_storage(url, 1.0)
    shown = url.replace("s3cret", "***")
    assert str(caught.value) == (
        f"The storage {shown} needs a driver that is not installed. Run `pip install {package}`."
    )


def test_a_long_record_is_kept_in_pieces_that_every_database_takes():
    long = TrialRecord(0, "completed", 1.0, metrics={f"eval_\u00e9_{index}": index / 7 for index in range(9000)})
    short = TrialRecord(0, "completed", 2.0)
    attributes = record_attributes(long)
    assert list(attributes)[:2] == [RECORD_ATTRIBUTE, f"{RECORD_ATTRIBUTE}:1"] and len(attributes) > 3
    assert all(len(json.dumps(piece).encode()) < 2**16 for piece in attributes.values())

    def read(found: dict[str, str]) -> Any:
        return record_from(create_trial(state=TrialState.COMPLETE, value=1.0, user_attrs=found), None)

    assert read(attributes) == long
    assert list(record_attributes(short)) == [RECORD_ATTRIBUTE]
    assert read({**attributes, **record_attributes(short)}) == short

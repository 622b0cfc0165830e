"""Settings and fixtures of all tests: offline, one thread, quiet loading."""

from __future__ import annotations

import os
import signal
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: its workers would wait for all other tests

import pytest
import torch
import transformers
from hypothesis import settings

pytest.register_assert_rewrite("st_hpo.testing")

torch.set_num_threads(1)
settings.register_profile("tests", derandomize=True, deadline=None)
settings.load_profile("tests")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in a script's background; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes: a file's tests share what its fixtures have made, so one process runs them.

    All tests with Ray run in one process, too: a search that starts Ray would join a cluster that another test has
    running.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            with_ray = "ray" in file.rpartition("/")[2] or "TestRay" in test or "ray_page" in test or "[ray]" in test
            return "ray" if with_ray else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Whatever a test writes without saying where lands in its temporary folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quiet_optuna():
    """Leaves only errors of Optuna's own log."""
    import optuna

    previous = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(previous)

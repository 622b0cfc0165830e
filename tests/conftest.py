"""Settings and fixtures of all tests: offline, one thread, quiet loading."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers

pytest.register_assert_rewrite("st_hpo.testing")

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in a script's background; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (``--dist loadgroup``): a file's tests share what its fixtures have made.

    All tests with Ray run in one process: a search that starts Ray would join a cluster that another test has running.
    """
    for item in items:
        with_ray = "ray" in item.path.stem or "TestRay" in item.nodeid or "ray" in item.name
        item.add_marker(pytest.mark.xdist_group("ray" if with_ray else str(item.path)))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Whatever a test writes without saying where lands in its temporary folder."""
    monkeypatch.chdir(tmp_path)

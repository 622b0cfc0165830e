"""Fixtures of the tests under torchrun, a plugin of pytest: a folder with the tiny model, and cases of one job.

A test that is marked ``case(name)`` takes what its case has left from the fixture ``ran``. All cases of the tests of a
file that were selected run in one job. With ``hand={...}``, what plain training gives comes with it.
"""

from __future__ import annotations

import pytest

from st_hpo.testing import build_tiny_model

from launching import run_together


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tiny_model, tmp_path):
    (tmp_path / "model.txt").write_text(tiny_model)
    return tmp_path


@pytest.fixture(scope="module")
def job(request, tiny_model, tmp_path_factory):
    marks = [
        mark
        for item in request.session.items
        if item.module is request.module and (mark := item.get_closest_marker("case")) is not None
    ]
    folders = {mark.args[0]: tmp_path_factory.mktemp("case") for mark in marks}
    for path in folders.values():
        (path / "model.txt").write_text(tiny_model)
    return run_together({mark.args[0]: mark.kwargs.get("hand") for mark in marks}, folders)


@pytest.fixture
def ran(request, job):
    return job[request.node.get_closest_marker("case").args[0]]

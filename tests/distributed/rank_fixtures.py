"""Fixtures of the tests under torchrun, a plugin of pytest: a folder in which the tiny model can be found."""

from __future__ import annotations

import pytest

from st_hpo.testing import build_tiny_model


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tiny_model, tmp_path):
    (tmp_path / "model.txt").write_text(tiny_model)
    return tmp_path

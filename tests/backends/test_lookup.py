"""Finding a backend: by name, from transformers, from another package; and what is imported on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers.hyperparameter_search import default_hp_search_backend
from transformers.trainer_utils import HPSearchBackend

from st_hpo import BackendNotInstalledError, ConfigurationError, NotSupportedError
from st_hpo.backends import BACKENDS, SearchBackend, backend_names, get_backend
from st_hpo.backends.optuna.backend import OptunaBackend

from fast_trainer import RATES, fast_trainer
from own_backend import RandomBackend

OURS = ["optuna", "ray", "sigopt", "wandb"]


@pytest.mark.parametrize("name", OURS)
def test_every_backend_answers_to_its_name(name):
    found = get_backend(name)
    assert isinstance(found, SearchBackend) and found.name == name
    assert get_backend(name) is not found
    assert found.native is None
    assert "seed" not in found.default_hp_space(None)
    assert sorted(BACKENDS) == OURS


@pytest.mark.parametrize("name", [HPSearchBackend.OPTUNA, HPSearchBackend.RAY, HPSearchBackend.WANDB])
def test_transformers_names_are_taken(name):
    assert get_backend(name).name == name.value


def test_the_default_is_that_of_transformers(monkeypatch):
    assert get_backend(None).name == "optuna"
    assert default_hp_search_backend() == "optuna"
    monkeypatch.setattr(OptunaBackend, "is_available", staticmethod(lambda: False))
    assert get_backend(None).name == "ray"


def test_a_backend_or_its_class_may_be_given_itself():
    backend = RandomBackend()
    assert get_backend(backend) is backend
    assert type(get_backend(RandomBackend)) is RandomBackend


@pytest.mark.parametrize(("name", "hint"), [("optun", " Did you mean 'optuna'?"), ("hyperopt", ""), ("", "")])
def test_an_unknown_backend_is_refused_with_what_was_meant(name, hint):
    with pytest.raises(ConfigurationError) as caught:
        get_backend(name)
    assert str(caught.value) == f"There is no backend {name!r}.{hint} Choose one of {OURS}."


@pytest.mark.parametrize("name", [3, ["optuna"], int])
def test_a_backend_is_given_by_its_name(name):
    with pytest.raises(ConfigurationError, match=r"`backend` must be the name of a backend, one of .*'optuna'"):
        get_backend(name)


@pytest.mark.parametrize(
    ("name", "command"), [("ray", r"`pip install 'ray\[tune\]'`"), ("wandb", "`pip install wandb`")]
)
def test_a_missing_package_is_named_with_the_pip_command(name, command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(BackendNotInstalledError, match=f"The backend {name!r} needs a package .* Run {command}"):
        get_backend(name)


def register(folder: Path, monkeypatch, value: str, module: str = "") -> None:
    """What installing a package does: its metadata lie on the path."""
    info = folder / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[st_hpo.backends]\ntheirs = {value}\n")
    (folder / "their_package.py").write_text(module)
    monkeypatch.syspath_prepend(str(folder))


def test_another_package_registers_its_backend(tmp_path, monkeypatch):
    register(tmp_path, monkeypatch, "own_backend:RandomBackend")
    assert backend_names() == sorted([*OURS, "theirs"])
    assert type(get_backend("theirs")) is RandomBackend
    with pytest.raises(ConfigurationError, match="Did you mean 'theirs'"):
        get_backend("their")


def test_a_backend_that_compares_nothing_refuses_rungs():
    with pytest.raises(NotSupportedError, match=r"'random' prunes nothing\. Leave out `rungs`"):
        fast_trainer().hyperparameter_search(RATES, n_trials=1, backend=RandomBackend, rungs=[0.5])


def test_a_registered_name_that_is_no_backend_is_refused(tmp_path, monkeypatch):
    register(tmp_path, monkeypatch, "their_package:Backend", "class Backend: ...")
    with pytest.raises(ConfigurationError, match=r"must name a subclass of st_hpo\.backends\.SearchBackend"):
        get_backend("theirs")


def test_a_registered_package_cannot_replace_a_backend_of_ours(tmp_path, monkeypatch):
    register(tmp_path, monkeypatch, "own_backend:RandomBackend")
    entries = tmp_path / "their_package-1.0.dist-info" / "entry_points.txt"
    entries.write_text("[st_hpo.backends]\noptuna = own_backend:RandomBackend\n")
    assert type(get_backend("optuna")) is OptunaBackend


SEARCH = """
import sys
import fast_trainer
trainer = fast_trainer.fast_trainer()
trainer.hyperparameter_search(fast_trainer.RATES, n_trials=1)
print("FOUND", sorted({"ray", "wandb", "sigopt", "optuna"} & set(sys.modules)))
"""


def test_an_optuna_search_imports_no_other_backend():
    path = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "examples")]
    code = f"import sys; sys.path[:0] = {path!r}" + SEARCH
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert "FOUND ['optuna']" in done.stdout, done.stderr

"""A real search, and then every command on what it has left."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import optuna
import pytest
import yaml

from st_hpo import Categorical, Float, SearchSpace

from cli_setup import complaint, printed, st_hpo
from fast_trainer import METRIC, fast_trainer, random_sampler


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """Three trials: in a database, and saved."""
    folder = tmp_path_factory.mktemp("search")
    space = {
        "learning_rate": Float(1e-5, 1e-3, log=True),
        "warmup_steps": Categorical([0, 0.5]),
        "loss.scale": Float(5.0, 50.0),
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trainer = fast_trainer()
    best = trainer.hyperparameter_search(
        hp_space=SearchSpace(space),
        n_trials=3,
        backend="optuna",
        storage=f"sqlite:///{folder}/study.db",
        study_name="fast",
        sampler=random_sampler(),
    )
    best.run_summary.save(folder / "result.json")
    return folder, best


@pytest.mark.parametrize("name", ["result.json", "study.db"])
def test_the_best_trial_is_that_of_the_search(search, name):
    folder, best = search
    source = folder / name
    assert yaml.safe_load(printed("best", source)) == best.hyperparameters
    entry = json.loads(printed("best", source, "-f", "json"))
    assert entry["objectives"] == {METRIC: best.objective} and str(entry["trial"]) == best.run_id
    made: dict = {}
    exec(printed("best", source, "-f", "python"), made)
    assert made["args"].learning_rate == best.hyperparameters["learning_rate"]
    assert made["args"].warmup_steps == best.hyperparameters["warmup_steps"]
    assert made["loss_values"] == {"scale": best.hyperparameters["loss.scale"]}


@pytest.mark.parametrize("name", ["result.json", "study.db"])
def test_the_trials_are_those_of_the_search(search, name):
    folder, best = search
    source = folder / name
    wanted = [trial.to_dict() for trial in best.run_summary.trials]
    assert json.loads(printed("trials", source, "--sort", "number", "-f", "json")) == wanted
    rows = list(csv.DictReader(io.StringIO(printed("trials", source, "-f", "csv"))))
    assert rows[0]["objective"] == str(best.objective)
    assert rows[0][f"metrics.{METRIC}"] == str(best.objective)
    assert printed("trials", source, "--limit", 1).splitlines()[1].split()[:2] == [best.run_id, "*"]


@pytest.mark.parametrize("name", ["result.json", "study.db"])
def test_the_report_is_a_page_with_the_best_objective(search, name, monkeypatch):
    folder, best = search
    addresses: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: addresses.append(address) or True)
    assert printed("report", folder / name, "-o", "pages/search.html", "--open") == "pages/search.html\n"
    page = Path("pages/search.html").read_text(encoding="utf-8")
    assert page.lower().lstrip().startswith("<!doctype html") and METRIC in page and f"{best.objective:.3f}" in page
    assert addresses == [Path("pages/search.html").absolute().as_uri()]
    assert printed("report", folder / name) == "report.html\n" and Path("report.html").exists()


def test_the_folder_of_the_search_is_enough(search):
    folder, best = search
    assert yaml.safe_load(printed("best", folder)) == best.hyperparameters
    assert "no study 'slow'" in complaint("best", folder / "study.db", "--study", "slow")
    assert st_hpo("trials", folder / "study.db", "--study", "fast").exit_code == 0

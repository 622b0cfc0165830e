"""The pages on the backends: their examples run, and what they say of all backends names all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray

from st_hpo import SearchResult, default_search_space
from st_hpo.backends import backend_names, get_backend
from st_hpo.records import COMPLETED

import own_backend

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "backends"
SIZES = (16, 32, 64, 128)


def text_of(page: str) -> str:
    return (PAGES / f"{page}.md").read_text(encoding="utf-8")


def run_page(page: str) -> dict[str, Any]:
    """Runs the Python blocks of a page, one after the other, as a script would."""
    blocks = re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)
    assert blocks
    scope: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(block, scope)
    return scope


def check_example(scope: dict[str, Any], printed: str) -> SearchResult:
    """What the pages promise of their first example."""
    best = scope["best_trial"]
    assert f"BestRun(run_id='{best.run_id}'" in printed
    result: SearchResult = best.run_summary
    assert [record.state for record in result.trials] == [COMPLETED] * 3
    for record in result.trials:
        assert set(record.hyperparameters) == {"learning_rate", "per_device_train_batch_size"}
        assert 1e-6 <= record.hyperparameters["learning_rate"] <= 1e-4
        assert record.hyperparameters["per_device_train_batch_size"] in SIZES
    assert best.objective == max(record.objective for record in result.trials)
    return result


def table_rows() -> list[list[str]]:
    """The cells of the table on what each backend can do."""
    section = text_of("index").split("## What each can do")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_example_of_the_optuna_page_runs(capsys):
    result = check_example(run_page("optuna"), capsys.readouterr().out)
    assert isinstance(result.native, optuna.Study)
    assert [trial.number for trial in result.native.trials] == [0, 1, 2]


def test_the_arguments_on_the_optuna_page_are_taken():
    section = text_of("optuna").split("## Arguments")[1].split("\n## ")[0]
    named = {name for line in section.splitlines() if line.startswith("| `") for name in first_cell_names(line)}
    assert len(named) >= 9
    for name in named:
        given = {name: {"n_jobs": 1, "catch": ()}.get(name)}
        get_backend("optuna").check(default_search_space(), 1, ["maximize"], given)


def first_cell_names(line: str) -> list[str]:
    return re.findall(r"`(\w+)`", line.split("|")[1])


@pytest.mark.slow
def test_the_example_of_the_ray_page_runs_and_ends_the_ray_that_it_has_started(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    result = check_example(run_page("ray"), capsys.readouterr().out)
    assert isinstance(result.native, ray.tune.ExperimentAnalysis)
    assert {record.backend_id for record in result.trials} == {trial.trial_id for trial in result.native.trials}
    assert not ray.is_initialized()
    assert Path(result.native.experiment_path).is_dir()


def test_the_ray_page_names_what_a_population_may_change_and_what_the_best_run_may_be_chosen_by():
    from st_hpo.backends.ray.monitor import SCOPES
    from st_hpo.backends.ray.worker import MUTABLE

    page = text_of("ray")
    for name in (*MUTABLE, *SCOPES):
        assert f"`{name}`" in page


def test_the_names_of_schedulers_on_the_ray_page_are_ray_tunes():
    from ray.tune.schedulers import create_scheduler

    (sentence,) = re.findall(r"`scheduler=` takes(.*?)\.\s", text_of("ray"), re.DOTALL)
    names = re.findall(r'`"(\w+)"`', sentence)
    assert len(names) == 3
    for name in names:
        assert create_scheduler(name, metric="objective", mode="max")


def test_the_table_names_all_backends_and_has_a_cell_for_each():
    header, line, *rows = table_rows()
    assert sorted(re.findall(r"\{doc\}`(\w+)`", " ".join(header))) == backend_names()
    assert all(cell == "---" for cell in line)
    assert len(rows) >= 15
    for row in rows:
        assert len(row) == len(header), row
        assert all(row), row


def test_every_backend_has_a_page_and_the_pages_are_in_the_contents():
    listed = re.findall(r"```\{toctree\}\n:hidden:\n\n(.*?)```", text_of("index"), re.DOTALL)[0].split()
    assert sorted({*backend_names(), "own"}) == sorted(listed)
    assert sorted(path.stem for path in PAGES.glob("*.md")) == sorted([*listed, "index"])


def test_the_table_tells_the_default_space_that_a_backend_has_of_its_own():
    header, *rows = table_rows()
    (cells,) = [row for row in rows if row[0] == "default space"]
    for title, cell in zip(header[1:], cells[1:], strict=True):
        name = re.findall(r"`(\w+)`", title)[0]
        differs = get_backend(name).default_hp_space(None) != default_search_space()
        assert differs == ("Categorical" in cell), name


def test_the_page_on_own_backends_shows_the_example_that_the_contract_runs_over():
    (included,) = re.findall(r"```\{literalinclude\} (\S+)", text_of("own"))
    shown = (PAGES / included).resolve()
    assert shown == Path(own_backend.__file__).resolve()
    contract = (Path(__file__).parent / "test_contract.py").read_text(encoding="utf-8")
    (tested,) = re.findall(r"class TestTemplate\(BackendContract\):\n    backend = (\w+)", contract)
    assert f"from {shown.stem} import {tested}\n" in contract
    assert getattr(own_backend, tested) is own_backend.RandomBackend

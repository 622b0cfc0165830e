"""What a search has left is found, read as it is, and never changed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from st_hpo import ConfigurationError, SearchResult
from st_hpo.backends.optuna import reading
from st_hpo.backends.optuna.reading import read_study
from st_hpo.backends.optuna.rebuilding import rebuilt_study
from st_hpo.backends.optuna.records import RECORD_ATTRIBUTE
from st_hpo.cli.sources import find_source

from cli_setup import METRIC, complaint, front_result, journal, printed, records, small_result, st_hpo, write_study
from postgres import PASSWORD, running_postgres

optuna.logging.set_verbosity(optuna.logging.WARNING)


def as_read(result: SearchResult) -> list[str]:
    return [repr(trial) for trial in result.trials]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and the time of its last change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# -- the same search, from everything that it may be kept in


def kept_as_result(folder: Path) -> str:
    small_result().save(folder / "result.json")
    return str(folder / "result.json")


def kept_as_other_name(folder: Path) -> str:
    small_result().save(folder / "my.search")
    return str(folder / "my.search")


def kept_as_url(folder: Path) -> str:
    write_study(f"sqlite:///{folder}/study.db", small_result())
    return f"sqlite:///{folder}/study.db"


def kept_as_relative_url(folder: Path) -> str:
    write_study("sqlite:///study.db", small_result())
    return "sqlite:///study.db"


def kept_as_database_file(folder: Path) -> str:
    awkward = folder / "a {b} %41 #?.db"
    write_study(f"sqlite:///{folder}/study.db", small_result())
    shutil.move(folder / "study.db", awkward)
    return str(awkward)


def kept_as_journal(folder: Path) -> str:
    write_study(journal(folder / "study.journal"), small_result())
    return str(folder / "study.journal")


def kept_as_torn_journal(folder: Path) -> str:
    path = Path(kept_as_journal(folder))
    with open(path, "ab") as file:
        file.write(b'{"op_code": 4, "worker_')
    return str(path)


def kept_in_a_folder_with_a_journal(folder: Path) -> str:
    kept_as_journal(folder)
    return str(folder)


def kept_in_a_folder_with_a_result(folder: Path) -> str:
    kept_as_result(folder)
    return str(folder)


KEPT = [function for name, function in list(globals().items()) if name.startswith("kept_")]


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.__name__)
def test_a_search_is_read_with_every_digit_and_nothing_is_changed(kept, tmp_path):
    source = kept(tmp_path)
    before = contents(tmp_path)
    found = find_source(source).read()
    assert as_read(found) == as_read(small_result())
    assert found.objective_names == [METRIC] and found.directions == ["maximize"]
    assert [best.number for best in found.best_trials] == [1]
    for command in ("trials", "best"):
        assert "0.0018263643594521016" in printed(command, source)
    assert contents(tmp_path) == before


def test_a_study_of_a_read_only_file_is_read(tmp_path):
    source = kept_as_url(tmp_path)
    os.chmod(tmp_path / "study.db", 0o444)
    os.chmod(tmp_path, 0o555)
    try:
        assert as_read(read_study(source)) == as_read(small_result())
    finally:
        os.chmod(tmp_path, 0o755)


@pytest.mark.parametrize("kept", [kept_as_url, kept_as_database_file], ids=["url", "file"])
def test_a_study_that_is_open_for_reading_cannot_be_written_to(kept, tmp_path):
    source = kept(tmp_path)
    where = find_source(source).where
    study = read_study(where).native
    with pytest.raises(StorageInternalError) as refused:
        study.set_user_attr("a", 1)
    assert "readonly" in str(refused.value.__cause__)
    assert study.user_attrs.keys() == {"st_hpo:objective"}


def test_a_running_search_can_be_read_and_go_on(tmp_path):
    study = optuna.create_study(storage="sqlite:///live.db", study_name="live")
    study.tell(study.ask(), 1.0)
    running = study.ask()
    assert [trial.state for trial in read_study(Path("live.db")).trials] == ["completed", "running"]
    study.tell(running, 2.0)
    assert [trial.state for trial in read_study(Path("live.db")).trials] == ["completed", "completed"]


def test_in_a_folder_the_result_is_read_but_the_dashboard_shows_the_study(tmp_path):
    kept_as_journal(tmp_path)
    small_result(trials=records()[:1]).save("result.json")
    os.utime("study.journal", (1, 1))
    assert find_source(".").is_result and find_source(".").note is None
    assert find_source(".", live=True).where == Path("study.journal")
    os.utime("study.journal", (2**32, 2**32))
    done = st_hpo("best", ".")
    assert done.exit_code == 0 and "learning_rate: 1.0e-05" in done.stdout
    assert done.stderr == "st-hpo: result.json is read; study.journal beside it is newer.\n"


def test_the_study_is_chosen_by_its_name():
    write_study("sqlite:///two.db", small_result(), "first")
    write_study("sqlite:///two.db", small_result(trials=records()[:1]), "second")
    assert len(json.loads(printed("trials", "two.db", "--study", "first", "-f", "json"))) == 4
    assert len(json.loads(printed("trials", "two.db", "--study", "second", "-f", "json"))) == 1
    assert complaint("best", "two.db") == (
        "st-hpo: two.db has 2 studies: 'first', 'second'. Choose one by its name (--study)."
    )
    assert "Did you mean 'first'? Its studies are: 'first', 'second'." in complaint(
        "best", "two.db", "--study", "frst"
    )


def test_a_saved_result_has_no_studies_to_choose_from():
    small_result().save("result.json")
    assert "--study" in complaint("best", "result.json", "--study", "nli", code=2)


# -- studies of other programs


def test_a_study_of_another_program_is_read_as_far_as_it_says_something():
    study = optuna.create_study(storage="sqlite:///other.db", study_name="other")
    for x, y in ((3.0, "a"), (-1.0, "b")):
        study.enqueue_trial({"x": x, "n": 4, "kind": y})
        trial = study.ask()
        value = trial.suggest_float("x", -5, 5, step=1.0) + trial.suggest_int("n", 1, 16, log=True)
        trial.suggest_categorical("kind", ["a", "b"])
        study.tell(trial, value)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.tell(study.ask(), state=TrialState.PRUNED)
    study.enqueue_trial({"x": 0.0})
    found = read_study("sqlite:///other.db")
    assert found.objective_names == ["objective"] and found.directions == ["minimize"]
    assert [trial.state for trial in found.trials] == ["completed", "completed", "failed", "pruned", "waiting"]
    assert [trial.objective for trial in found.trials] == [7.0, 3.0, None, None, None]
    assert found.trials[0].hyperparameters == {"x": 3.0, "n": 4, "kind": "a"}
    starts = [trial.datetime_start.timestamp() for trial in study.trials[:4]]
    assert [trial.started for trial in found.trials] == [*starts, None]
    assert found.trials[0].seconds > 0 and found.best_trials[0].number == 1
    assert found.space == {
        "x": "Float(low=-5.0, high=5.0, log=False, step=1.0)",
        "n": "Int(low=1, high=16, log=True, step=1)",
        "kind": "Categorical(choices=('a', 'b'))",
    }
    assert SearchResult.from_json(found.to_json()) == found
    assert "kind: b" in printed("best", "other.db") and "waiting" in printed("trials", "other.db")


def test_several_objectives_have_their_names_or_numbers():
    study = optuna.create_study(storage="sqlite:///m.db", directions=["minimize", "maximize"])
    study.tell(study.ask(), [1.0, 2.0])
    assert read_study("sqlite:///m.db").objective_names == ["objective_0", "objective_1"]
    study.set_metric_names(["loss", "score"])
    found = read_study("sqlite:///m.db")
    assert found.objective_names == ["loss", "score"] and found.trials[0].objective == [1.0, 2.0]
    write_study("sqlite:///front.db", front_result())
    assert read_study("sqlite:///front.db").objective_names == ["eval_x", "eval_seconds"]


def test_a_damaged_record_is_named():
    write_study("sqlite:///d.db", small_result())
    with contextlib.closing(sqlite3.connect("d.db")) as database:
        broken = (json.dumps('{"number": 1, '), RECORD_ATTRIBUTE)
        sql = "UPDATE trial_user_attributes SET value_json=? WHERE key=? AND trial_id=2"
        assert database.execute(sql, broken).rowcount == 1
        database.commit()
    assert complaint("trials", "d.db").startswith("st-hpo: The record of trial 1 is damaged: ")


# -- a result as a study in memory


def test_a_result_becomes_a_study_with_all_of_its_trials_and_back():
    result = small_result(space={"learning_rate": "Float(low=1e-05, high=0.01, log=True, step=None)"})
    study = rebuilt_study(result, "mine")
    assert study.study_name == "mine" and study.best_trial.number == 1 and study.metric_names == [METRIC]
    assert [reading._record(trial) for trial in study.get_trials()] == records()
    assert [trial.params for trial in study.trials] == [record.hyperparameters for record in records()]
    first, second = study.trials[:2]
    assert first.distributions["learning_rate"].log and not first.distributions["loss.scale"].log
    assert second.intermediate_values == {1: 0.25}
    assert (second.datetime_start.timestamp(), second.duration.total_seconds()) == (1.7e9 + 13, 10.0)


def test_a_result_of_another_backend_with_any_values_becomes_a_study():
    values: list[Any] = [1, True, 1.0, None, "1", [1], {"a": 1}, float("nan"), 2**70]
    trials = [dataclasses.replace(records()[0], number=2 * k, hyperparameters={"x": v}) for k, v in enumerate(values)]
    trials.append(dataclasses.replace(records()[0], number=99, objective=float("nan")))
    study = rebuilt_study(small_result(trials=trials, backend="ray"), "ray")
    shown = [trial.params["x"] for trial in study.trials[: len(values)]]
    assert len({repr(value) for value in shown}) == len(values)
    assert study.trials[-1].state == TrialState.FAIL
    front = rebuilt_study(front_result(), "front")
    assert [trial.values for trial in front.trials] == [trial.objective for trial in front_result().trials]
    assert {trial.number for trial in front.best_trials} == {0, 1}


# -- a server


@pytest.fixture(scope="module")
def postgres():
    with running_postgres() as server:
        yield server


def test_a_study_on_a_server_is_read_without_a_change_and_without_its_password(postgres):
    url = postgres.new_database("hpo")
    write_study(url, small_result())
    found = read_study(url)
    assert as_read(found) == as_read(small_result())
    with pytest.raises(Exception) as refused:
        found.native.set_user_attr("a", 1)
    assert "read-only" in f"{refused.value} {refused.value.__cause__}"
    assert "0.0018263643594521016" in printed("best", url)
    said = complaint("best", url, "--study", "other")
    assert "searcher:***@127.0.0.1" in said and "'nli'" in said and "battery" not in said
    found.native._storage._backend.engine.dispose()


def test_an_empty_database_of_a_server_stays_empty(postgres):
    url = postgres.new_database("empty")
    said = complaint("trials", url)
    assert said.endswith("is a database, but has no study of Optuna's in it.") and "battery" not in said
    assert complaint("trials", url) == said


def test_a_wrong_password_is_not_shown(postgres):
    said = complaint("trials", postgres.url(password="quite%20wrong"))
    assert "cannot be reached" in said and "authentication failed" in said
    assert "wrong" not in said and PASSWORD not in said


def test_what_cannot_be_read_raises_an_error_of_ours():
    with pytest.raises(ConfigurationError):
        read_study("sqlite://")

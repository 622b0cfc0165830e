"""Every wrong input: one clear line, no traceback, no password, the right exit code; and nothing is made."""

from __future__ import annotations

import builtins
import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from st_hpo import __version__
from st_hpo.backends.optuna import reading
from st_hpo.cli.app import State, Trainer, app
from st_hpo.cli.best import ARGUMENTS
from st_hpo.records import STATES

from cli_setup import complaint, printed, process, records, small_result, st_hpo, write_study

COMMANDS = ["report", "trials", "best", "dashboard"]
SECRET = "s3cr%2Fet"
SECRETS = ("s3cr", "%2Fet", "/et@")


# -- help


def test_no_command_prints_the_help_as_a_usage_error():
    done = st_hpo()
    assert done.exit_code == 2 and all(name in done.stdout + done.stderr for name in COMMANDS)


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_help_has_examples_without_colours(command, option):
    text = printed(*([command] if command else []), option)
    examples = text.split("Examples:")[1]
    assert "\x1b" not in text and f"st-hpo {command or 'best'}" in examples
    assert max(map(len, text.splitlines())) <= 119
    assert "..." not in text.split("Commands:")[-1].split("Examples:")[0] or command


def test_every_example_of_the_help_is_a_command_that_exists():
    import re

    found = 0
    for command in COMMANDS:
        text = printed(command, "--help").split("Examples:")[1]
        options = printed(command, "--help").split("Options:")[1].split("Examples:")[0]
        for line in (line for line in text.splitlines() if line.strip().startswith("st-hpo")):
            assert line.split()[1] == command
            for option in re.findall(r" (--?[a-z-]+)", line.split("|")[0]):
                found += 1
                assert option in options, line
    assert found > 10


def test_the_version():
    assert printed("--version") == f"st-hpo {__version__}\n"


def test_the_installed_command_is_this_one():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'st-hpo = "st_hpo.cli:main"' in text.split("[project.scripts]")[1].split("\n[")[0]


# -- the wrong command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["bset", "x"],
            "There is no command 'bset'. Did you mean 'best'? Choose one of report, trials, best, dashboard.",
        ),
        (["zzz"], "There is no command 'zzz'. Choose one of report, trials, best, dashboard."),
        (["result.json"], "A command is missing before result.json: one of report, trials, best, dashboard."),
        (["postgresql://u:s3cr%2Fet@h/d"], "A command is missing before postgresql://u:***@h/d: one of"),
        (["best"], "SOURCE"),
        (["best", "result.json", "postgresql://u:s3cr%2Fet@h/d"], "extra argument"),
        (["--fast", "best", "result.json"], "--fast"),
        (["dashboard", "result.json", "--port", "70000"], "--port"),
        (["dashboard", "result.json", "--port", "auto"], "--port"),
        (["report", "result.json", "-o", "."], "directory"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments, message):
    small_result().save("result.json")
    said = complaint(*arguments, code=2)
    assert message in said and not any(secret in said for secret in SECRETS)


# -- the wrong source


def no_file(folder: Path) -> str:
    small_result().save(folder / "result.json")
    return "reslt.json"


def no_folder(folder: Path) -> str:
    return "nowhere/result.json"


def no_database(folder: Path) -> str:
    return "sqlite:///nowhere.db"


def no_folder_of_a_database(folder: Path) -> str:
    return "sqlite:////nowhere/at/all.db"


def a_folder_as_database(folder: Path) -> str:
    return f"sqlite:///{folder}"


def empty_folder(folder: Path) -> str:
    return str(folder)


def folder_with_others(folder: Path) -> str:
    (folder / "study.db").write_text("x")
    return str(folder)


def empty_file(folder: Path) -> str:
    (folder / "study.db").touch()
    return "study.db"


def empty_database(folder: Path) -> str:
    (folder / "study.db").touch()
    return "sqlite:///study.db"


def text_file(folder: Path) -> str:
    (folder / "notes.txt").write_text("learning rate: 1e-5\n")
    return "notes.txt"


def text_as_database(folder: Path) -> str:
    (folder / "notes.txt").write_text("learning rate: 1e-5\n")
    return "sqlite:///notes.txt"


def binary_file(folder: Path) -> str:
    (folder / "model.bin").write_bytes(bytes(range(256)))
    return "model.bin"


def other_database(folder: Path) -> str:
    with contextlib.closing(sqlite3.connect(folder / "other.db")) as database:
        database.execute("CREATE TABLE a (b)")
    return "other.db"


def unfinished_database(folder: Path) -> str:
    optuna.create_study(storage="sqlite:///half.db")
    with contextlib.closing(sqlite3.connect(folder / "half.db")) as database:
        database.execute("DELETE FROM version_info")
        database.commit()
    return "half.db"


def torn_database(folder: Path) -> str:
    write_study("sqlite:///torn.db", small_result())
    content = (folder / "torn.db").read_bytes()
    (folder / "torn.db").write_bytes(content[:4096] + b"\xff" * 8192)
    return "torn.db"


def no_study(folder: Path) -> str:
    optuna.create_study(storage="sqlite:///none.db", study_name="x")
    optuna.delete_study(storage="sqlite:///none.db", study_name="x")
    return "none.db"


def later_database(folder: Path) -> str:
    optuna.create_study(storage="sqlite:///later.db")
    with contextlib.closing(sqlite3.connect(folder / "later.db")) as database:
        database.execute("UPDATE alembic_version SET version_num='v99.0.0.a'")
        database.commit()
    return "later.db"


def cut_off_result(folder: Path) -> str:
    small_result().save(folder / "result.json")
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text[: len(text) // 2])
    return "result.json"


def other_json(folder: Path) -> str:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return "config.json"


def later_result(folder: Path) -> str:
    (folder / "result.json").write_text('{"format_version": 2}')
    return "result.json"


def damaged_result(folder: Path) -> str:
    (folder / "result.json").write_text('{"format_version": 1, "trials": [{"nmber": 1}]}')
    return "result.json"


def damaged_journal(folder: Path) -> str:
    (folder / "study.journal").write_text('{"op_code": 0, "worker_id": "x"}\n{"op_code": \n{"op_code": 1}\n')
    return "study.journal"


def memory(folder: Path) -> str:
    return "sqlite:///:memory:"


def redis(folder: Path) -> str:
    return f"redis://:{SECRET}@localhost:6379/0"


def unknown_database(folder: Path) -> str:
    return f"postgres://user:{SECRET}@localhost/hpo"


def no_driver(folder: Path) -> str:
    return f"mysql+cymysql://user:{SECRET}@localhost/hpo"


def no_url(folder: Path) -> str:
    return f"://user:{SECRET}@localhost/hpo"


WRONG = {
    no_file: "There is no file 'reslt.json'. Did you mean 'result.json'?",
    no_folder: "There is no file 'nowhere/result.json'.",
    no_database: "nowhere.db: No such file or directory",
    no_folder_of_a_database: "/nowhere/at/all.db: No such file or directory",
    a_folder_as_database: "Is a directory",
    empty_folder: "has neither a result.json nor a study.journal.",
    folder_with_others: "It has study.db: name the file itself.",
    empty_file: "'study.db' is empty: no search has written to it yet.",
    empty_database: "study.db is empty.",
    text_file: "'notes.txt' is nothing that a search has left",
    text_as_database: "notes.txt is no SQLite database.",
    binary_file: "'model.bin' is nothing that a search has left",
    other_database: "other.db is a database, but has no study of Optuna's in it.",
    unfinished_database: "half.db is not complete: version_info is empty.",
    torn_database: "The storage torn.db cannot be read: ",
    no_study: "none.db has no study: no search has written to it yet.",
    later_database: "Please try updating optuna to the latest version",
    cut_off_result: "result.json: This is no saved SearchResult: it is no JSON",
    other_json: "config.json: This is no SearchResult that this version of st_hpo reads: its format_version is None",
    later_result: "A later one needs `pip install -U st-hpo`",
    damaged_result: "result.json: This SearchResult is damaged: ",
    damaged_journal: "The storage study.journal cannot be read: ",
    memory: "is in the memory of a process and ends with it.",
    redis: "The storage redis://:***@localhost:6379/0 is a journal on Redis, which is not read here.",
    unknown_database: "postgres://user:***@localhost/hpo cannot be opened: SQLAlchemy knows no such database.",
    no_driver: "needs a driver that is not installed. Run `pip install cymysql`.",
    no_url: "cannot be read: ",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_source_is_said_in_one_line_and_nothing_is_made(wrong, tmp_path):
    source = wrong(tmp_path)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    for command in COMMANDS:
        said = complaint(command, source)
        assert said.startswith("st-hpo: ") and WRONG[wrong] in said
        assert not any(secret in said for secret in SECRETS)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("source", ["result.json", "study.db", "sqlite:///study.db"])
def test_a_file_that_may_not_be_read_is_named(source, monkeypatch):
    """The tests may run as a user who may read everything."""
    for name in ("result.json", "study.db"):
        Path(name).write_text("x")

    def refused(path, *args, **kwargs):
        if str(path) in ("result.json", "study.db"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    opened = builtins.open
    monkeypatch.setattr(builtins, "open", refused)
    assert complaint("best", source) == f"st-hpo: {source.removeprefix('sqlite:///')}: Permission denied"


@pytest.mark.parametrize("debug", [False, True])
def test_a_server_that_is_not_there_is_said_within_seconds_and_without_the_password(debug):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"postgresql+psycopg2://user:{SECRET}@127.0.0.1:{closed.getsockname()[1]}/hpo"
        start = time.monotonic()
        done = st_hpo(*(["--debug"] if debug else []), "best", url)
    assert time.monotonic() - start < 30
    assert done.exit_code == 1 and "@127.0.0.1" in done.stderr and "cannot be reached" in done.stderr
    assert ("Traceback" in done.stderr) is debug
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)


def test_a_server_that_says_nothing_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(reading, "_CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg2://user:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/hpo"
        start = time.monotonic()
        assert "cannot be reached" in complaint("best", url)
    assert 1 < time.monotonic() - start < 30


# -- errors of our own


def fail_with(monkeypatch, error):
    def find_source(*args, **kwargs):
        raise error

    monkeypatch.setattr("st_hpo.cli.app.find_source", find_source)


def test_a_mistake_of_ours_has_no_traceback_unless_it_is_asked_for(monkeypatch):
    url = "mysql://u:s3cr%2Fet@h/d"
    fail_with(monkeypatch, RuntimeError(f"two\nlines of {url}"))
    said = complaint("best", url)
    assert "RuntimeError: two lines of mysql://u:***@h/d" in said and "--debug" in said
    for done in (st_hpo("--debug", "best", url), st_hpo("best", url, env={"ST_HPO_DEBUG": "1"})):
        assert done.exit_code == 1 and "Traceback (most recent call last)" in done.stderr
        assert done.stderr.splitlines()[-1] == said and not any(secret in done.stderr for secret in SECRETS)
    assert "Traceback" not in st_hpo("best", url, env={"ST_HPO_DEBUG": "0"}).stderr


def test_ctrl_c_ends_a_command_without_a_word(monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    done = st_hpo("best", "x")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "")


def test_a_report_that_cannot_be_written_is_said(tmp_path):
    small_result().save("result.json")
    (tmp_path / "file").touch()
    assert "file" in complaint("report", "result.json", "-o", "file/report.html")


def test_the_dashboard_says_how_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    small_result().save("result.json")
    assert complaint("dashboard", "result.json").endswith("is not installed: `pip install optuna-dashboard`.")


def test_a_port_that_is_in_use_is_said():
    small_result().save("result.json")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = complaint("dashboard", "result.json", "--port", port)
    assert said == f"st-hpo: Port {port} is in use: choose another with --port, or a free one with --port 0."
    assert "cannot listen at nowhere.invalid:0" in complaint(
        "dashboard", "result.json", "--host", "nowhere.invalid", "--port", 0
    )


# -- in a process of its own


def test_who_stops_reading_gets_no_message():
    small_result(trials=records() * 5000).save("result.json")
    reader, writer = os.pipe()
    with process(["trials", "result.json", "-f", "json"], stdout=writer) as running:
        os.close(writer)
        assert os.read(reader, 10)
        os.close(reader)
        _, said = running.communicate(timeout=300)
    assert (running.returncode, said) == (141, "")


def test_the_module_is_the_command_and_says_it_all_without_a_terminal():
    with process(["best", "nowhere.json"], env={"PYTHONIOENCODING": "ascii"}, stdin=subprocess.DEVNULL) as running:
        out, said = running.communicate(timeout=300)
    assert (running.returncode, out, said) == (1, "", "st-hpo: There is no file 'nowhere.json'.\n")


def test_the_commands_are_those_of_this_file():
    assert sorted(item.callback.__name__ for item in app.registered_commands) == sorted(COMMANDS)


def test_every_state_and_trainer_has_its_option():
    assert [item.value for item in State] == list(STATES) and [item.value for item in Trainer] == list(ARGUMENTS)

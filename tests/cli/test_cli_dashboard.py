"""``st-hpo dashboard``: the real server, asked over HTTP and ended by Ctrl-C."""

from __future__ import annotations

import json
import select
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from st_hpo.cli import app as commands
from st_hpo.cli.dashboard import dashboard_app, open_server
from st_hpo.cli.sources import find_source

from cli_setup import complaint, journal, process, records, small_result, st_hpo, write_study


def answer(url: str, method: str = "GET") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def first_line(running: Any) -> str:
    ready, _, _ = select.select([running.stdout], [], [], 300)
    assert ready, "the dashboard has not started within five minutes"
    line = running.stdout.readline().strip()
    assert line, running.stderr.read()
    return line


@contextmanager
def running_dashboard(source: Any, *options: Any) -> Iterator[str]:
    """Starts the command, and after its use ends it with Ctrl-C: it must end quietly, and all of it."""
    running = process(["dashboard", source, "--port", 0, *options])
    try:
        yield first_line(running)
        children = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signal.SIGINT)
        out, said = running.communicate(timeout=60)
        assert (running.returncode, out, said) == (0, "", "Ctrl-C ends it.\n\n")
        assert not [child for child in children if child.is_running()]
    finally:
        running.kill()
        running.wait()


def test_a_study_in_a_journal_is_shown_while_it_goes_on_and_ctrl_c_ends_it():
    write_study(journal("study.journal"), small_result(), "nli")
    with running_dashboard(".") as address:
        parts = urlsplit(address)
        base = f"http://{parts.netloc}"
        assert parts.hostname == "127.0.0.1" and parts.path == "/dashboard/studies/0"
        status, page = answer(address)
        assert status == 200 and "<html" in page
        _, text = answer(f"{base}/api/studies")
        assert [study["study_name"] for study in json.loads(text)["study_summaries"]] == ["nli"]
        study = json.loads(answer(f"{base}/api/studies/0")[1])
        assert [trial["state"] for trial in study["trials"]] == ["Complete", "Complete", "Fail", "Pruned"]
        write_study(journal("study.journal"), small_result(), "later")
        summaries = json.loads(answer(f"{base}/api/studies")[1])["study_summaries"]
        assert [summary["study_name"] for summary in summaries] == ["nli", "later"]
        before = Path("study.journal").read_bytes()
        for method in ("DELETE", "POST", "PUT"):
            status, text = answer(f"{base}/api/studies/0", method)
            assert status == 403 and "changes none" in json.loads(text)["reason"]
        assert Path("study.journal").read_bytes() == before


@contextmanager
def served(source: str, study: str | None = None) -> Iterator[tuple[str, str]]:
    """The dashboard within this process: its address, and the path of the study in it."""
    import threading

    app, path = dashboard_app(find_source(source, live=True), study)
    with open_server(app, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", path
        finally:
            server.shutdown()
            thread.join()


def test_a_saved_result_of_any_backend_is_shown():
    small_result(backend="ray").save("search/result.json")
    with served("search/result.json") as (base, path):
        assert answer(base + path)[0] == 200 and path == "/dashboard/studies/0"
        study = json.loads(answer(f"{base}/api/studies/0")[1])
        assert study["name"] == "search"
        assert [trial["state"] for trial in study["trials"]] == ["Complete", "Complete", "Fail", "Pruned"]
        best = study["trials"][1]
        assert best["values"] == [0.7354870734037782]
        shown = {item["name"]: item["param_external_value"] for item in best["params"]}
        assert shown["learning_rate"] == "0.0018263643594521016" and shown["warmup_steps"] == "3"


def test_of_several_studies_in_a_database_one_may_be_chosen():
    for name in ("first", "second"):
        write_study("sqlite:///two.db", small_result(), name)
    before = Path("two.db").read_bytes()
    with served("sqlite:///two.db") as (base, path):
        assert path == "/dashboard" and answer(base + path)[0] == 200
        summaries = json.loads(answer(f"{base}/api/studies")[1])["study_summaries"]
        assert [summary["study_name"] for summary in summaries] == ["first", "second"]
        assert answer(f"{base}/api/studies/1", "DELETE")[0] == 403
    with served("two.db", "second") as (base, path):
        assert path == "/dashboard/studies/2" and answer(base + path)[0] == 200
    assert Path("two.db").read_bytes() == before
    assert "Its studies are: 'first', 'second'." in complaint("dashboard", "two.db", "--study", "third")


@pytest.fixture
def opened(monkeypatch):
    """The addresses that a browser would have been sent to; the server is interrupted at once."""
    addresses: list[str] = []

    class Interrupted:
        def __init__(self, server):
            self.server = server

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.server.server_close()

        server_port = property(lambda self: self.server.server_port)

        def serve_forever(self):
            raise KeyboardInterrupt

    monkeypatch.setattr("st_hpo.cli.dashboard.open_server", lambda *args: Interrupted(open_server(*args)))
    monkeypatch.setattr("webbrowser.open", lambda address: addresses.append(address) or True)
    return addresses


@pytest.mark.parametrize(("host", "shown"), [("localhost", "localhost"), ("127.0.0.1", "127.0.0.1")])
def test_the_browser_is_opened_only_if_that_is_asked_for(opened, host, shown):
    small_result(trials=records()[:1]).save("result.json")
    done = st_hpo("dashboard", "result.json", "--port", 0, "--host", host)
    assert done.exit_code == 0 and opened == [] and done.stdout.startswith(f"http://{shown}:")
    done = st_hpo("dashboard", "result.json", "--port", 0, "--host", host, "--open")
    assert done.exit_code == 0 and opened == [done.stdout.strip()]


def test_a_machine_without_a_browser_gets_the_address(monkeypatch, capsys):
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    commands._open_in_browser("http://127.0.0.1:1/")
    assert capsys.readouterr().err == "st-hpo: no browser was found for http://127.0.0.1:1/\n"

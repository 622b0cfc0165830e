"""The commands of ``st-hpo``, their options and their help."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from st_hpo._version import __version__
from st_hpo.cli.best import as_json, as_python, as_yaml, chosen_trials
from st_hpo.cli.group import ReportingGroup
from st_hpo.cli.sources import find_source
from st_hpo.cli.table import as_csv, print_table, records_as_json, selected
from st_hpo.results import SearchResult

EPILOG = """Examples:

\b
  st-hpo best checkpoints/                        # a folder with a result.json or a study.journal
  st-hpo trials sqlite:///study.db --study nli    # a study in a database
  st-hpo report result.json -o report.html --open

Exit codes: 0 done; 1 something is wrong with the data; 2 something is wrong with the command; 130 Ctrl-C.
ST_HPO_DEBUG=1 does what --debug does."""


class State(str, Enum):
    """The states of trials."""

    completed = "completed"
    pruned = "pruned"
    failed = "failed"
    running = "running"
    waiting = "waiting"


class Trainer(str, Enum):
    """Whose training arguments ``best`` writes."""

    embedding = "embedding"
    cross_encoder = "cross-encoder"
    sparse_encoder = "sparse-encoder"
    multi_vector_encoder = "multi-vector-encoder"


class TableFormat(str, Enum):
    """How ``trials`` prints."""

    table = "table"
    csv = "csv"
    json = "json"


class BestFormat(str, Enum):
    """How ``best`` prints."""

    yaml = "yaml"
    python = "python"
    json = "json"


app = typer.Typer(
    cls=ReportingGroup,
    name="st-hpo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        show_default=False,
        help="A saved result (result.json); a storage of Optuna's: sqlite:///study.db, postgresql://..., mysql://...; "
        "a SQLite or journal file; or a folder with a result.json or a study.journal.",
    ),
]
StudyOption = Annotated[
    Optional[str],  # noqa: UP045 - typer evaluates it, also on Python 3.10
    typer.Option("--study", metavar="NAME", help="The study, where a storage has several."),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"st-hpo {__version__}")
        raise typer.Exit


@app.callback()
def st_hpo(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Shows what a hyperparameter search of st_hpo has found. Nothing that is read is changed."""


def _read(source: str, study: str | None) -> SearchResult:
    found = find_source(source)
    if found.note:
        typer.echo(f"st-hpo: {found.note}", err=True)
    return found.read(study)


@app.command(
    epilog="""Examples:

\b
  st-hpo report result.json
  st-hpo report sqlite:///study.db --study nli -o nli.html --open"""
)
def report(
    source: SourceArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.", dir_okay=False)
    ] = Path("report.html"),
    study: StudyOption = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Writes a report as one HTML file.

    It prints the path of the file, which needs no network to be read.
    """
    path = Path(_read(source, study).report(output))
    typer.echo(path)
    if open_it:
        _open_in_browser(path.absolute().as_uri())


@app.command(
    epilog="""Examples:

\b
  st-hpo trials result.json --sort number
  st-hpo trials study.db --state completed --limit 5
  st-hpo trials study.db --format csv > trials.csv
  st-hpo trials result.json --format json | jq '.[0].hyperparameters'"""
)
def trials(
    source: SourceArgument,
    study: StudyOption = None,
    form: Annotated[TableFormat, typer.Option("--format", "-f", help="How to print them.")] = TableFormat.table,
    state: Annotated[
        Optional[list[State]],  # noqa: UP045
        typer.Option("--state", help="Only trials of this state; may be given several times."),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            "--sort",
            metavar="NAME",
            help="objective (the best first), number, seconds, or the name of an objective, a hyperparameter or a "
            "metric.",
        ),
    ] = "objective",
    reverse: Annotated[bool, typer.Option("--reverse", help="Turn the order round.")] = False,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--limit", "-n", metavar="N", min=1, help="Only the first N."),
    ] = None,
) -> None:
    """Prints all trials: a table, CSV or JSON.

    The best trials are marked with * in the table.
    """
    result = _read(source, study)
    chosen = selected(result, [item.value for item in state or []], sort, reverse, limit)
    if form is TableFormat.csv:
        print(as_csv(chosen, result))
    elif form is TableFormat.json:
        print(records_as_json(chosen))
    elif chosen:
        print_table(chosen, result, {trial.number for trial in result.best_trials})
    else:
        typer.echo(f"No trial to show; the search has {str(result).splitlines()[0]}.", err=True)


@app.command(
    epilog="""Examples:

\b
  st-hpo best result.json > best.yaml
  st-hpo best study.db --format python
  st-hpo best result.json --format python --trainer cross-encoder
  st-hpo best result.json --trial 3 --format json"""
)
def best(
    source: SourceArgument,
    study: StudyOption = None,
    form: Annotated[BestFormat, typer.Option("--format", "-f", help="How to print them.")] = BestFormat.yaml,
    trial: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--trial", "-t", metavar="N", min=0, help="This trial instead of the best one."),
    ] = None,
    trainer: Annotated[
        Trainer, typer.Option("--trainer", help="Whose training arguments --format python writes.")
    ] = Trainer.embedding,
) -> None:
    """Prints the best hyperparameters.

    As YAML, as Python code that builds the training arguments, or as JSON. Of a search with several objectives it
    lists the Pareto front; --trial chooses one of its trials.
    """
    result = _read(source, study)
    chosen = chosen_trials(result, trial)
    if form is BestFormat.yaml:
        print(as_yaml(chosen, result))
    elif form is BestFormat.json:
        print(as_json(chosen, result))
    else:
        print(as_python(chosen, result, trainer.value))


@app.command(
    epilog="""Examples:

\b
  st-hpo dashboard sqlite:///study.db
  st-hpo dashboard checkpoints/ --port 0 --open"""
)
def dashboard(
    source: SourceArgument,
    study: StudyOption = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="The port; 0 for any that is free.")
    ] = 8080,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Starts optuna-dashboard on a study.

    For reading only: nothing can be changed there. It prints the address; Ctrl-C ends it. It has no password: whoever
    reaches the address sees all studies of the storage.
    """
    from st_hpo.cli.dashboard import dashboard_app, open_server

    found = find_source(source, live=True)
    if found.note:
        typer.echo(f"st-hpo: {found.note}", err=True)
    shown, path = dashboard_app(found, study)
    with open_server(shown, host, port) as server:
        address = f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}{path}"
        try:
            print(address, flush=True)
            typer.echo("Ctrl-C ends it.", err=True)
            if open_it:
                _open_in_browser(address)
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("", err=True)


def _open_in_browser(address: str) -> None:
    import webbrowser

    if not webbrowser.open(address):
        typer.echo(f"st-hpo: no browser was found for {address}", err=True)


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line, and ends the process with its exit code.

    Args:
        arguments: Instead of those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know a letter
    return app(arguments, prog_name="st-hpo")

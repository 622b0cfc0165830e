"""The command line, run as a user runs it, and what it reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from typer.testing import CliRunner

from st_hpo import SearchResult, TrialRecord
from st_hpo.backends.optuna.records import OBJECTIVE_ATTRIBUTE, record_attributes
from st_hpo.cli.app import app

METRIC = "eval_sts-dev_spearman_cosine"


def records() -> list[TrialRecord]:
    """Two completed trials, a failed one whose error would colour a terminal, and a pruned one."""
    return [
        TrialRecord(
            0,
            "completed",
            0.5,
            {"learning_rate": 1e-05, "warmup_steps": 0.1, "loss.scale": 20.0},
            {METRIC: 0.5, "epoch": 1.0},
            seconds=12.34,
            started=1.7e9,
        ),
        TrialRecord(
            1,
            "completed",
            0.7354870734037782,
            {"learning_rate": 0.0018263643594521016, "warmup_steps": 3, "loss.scale": 5.5},
            {METRIC: 0.7354870734037782, "epoch": 1.0},
            seconds=10.0,
            started=1.7e9 + 13,
            evaluations=[{"step": 1, "epoch": 0.5, "metrics": {METRIC: 0.25}}],
        ),
        TrialRecord(
            2,
            "failed",
            None,
            {"learning_rate": 0.01},
            error="ValueError: too\n\x1b[31mlarge",
            seconds=3.0,
            started=1.7e9 + 25,
        ),
        TrialRecord(
            3,
            "pruned",
            None,
            {"learning_rate": 0.001, "loss.scale": 7.0},
            {METRIC: 0.1},
            seconds=2.0,
            started=1.7e9 + 30,
        ),
    ]


def small_result(**changes: Any) -> SearchResult:
    return SearchResult(**{"trials": records(), "objective_names": [METRIC], "directions": ["maximize"], **changes})


def front_result() -> SearchResult:
    """Trials 0 and 1 beat each other; trial 2 is beaten by both."""
    trials = [
        TrialRecord(k, "completed", values, {"learning_rate": 10.0 ** -(k + 4)})
        for k, values in enumerate([[0.5, 1.0], [0.75, 2.0], [0.25, 3.0]])
    ]
    return SearchResult(trials, ["eval_x", "eval_seconds"], ["maximize", "minimize"])


def write_study(storage: Any, result: SearchResult, name: str = "nli") -> None:
    """What the Optuna backend leaves of a search: the trials, their records, the names of the objectives."""
    study = optuna.create_study(storage=storage, study_name=name, directions=result.directions)
    study.set_user_attr(OBJECTIVE_ATTRIBUTE, result.objective_names)
    for record in result.trials:
        trial = study.ask()
        trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
        for key, value in record_attributes(record).items():
            trial.set_user_attr(key, value)
        state = {"completed": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}[record.state]
        study.tell(trial, record.values or None, state=optuna.trial.TrialState[state])


def journal(path: str | Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def st_hpo(*arguments: Any, env: dict[str, str] | None = None) -> Any:
    """Runs a command in this process; the result has exit_code, stdout and stderr."""
    done = CliRunner().invoke(app, [str(item) for item in arguments], prog_name="st-hpo", env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def printed(*arguments: Any) -> str:
    """What a command that works prints."""
    done = st_hpo(*arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def complaint(*arguments: Any, code: int = 1) -> str:
    """The one line that a command says that does not work; a wrong command line has its usage before it."""
    done = st_hpo(*arguments)
    assert done.exit_code == code, (done.exit_code, done.stdout, done.stderr)
    assert done.stdout == "" and "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert code == 2 or len(lines) == 1, lines
    return lines[-1]


def process(arguments: Sequence[Any], **options: Any) -> subprocess.Popen[str]:
    """Starts the command in a process of its own. Ctrl-C works in it, also if these tests run in the background."""
    command = [sys.executable, "-m", "st_hpo", *map(str, arguments)]
    environment = {**os.environ, **options.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(
        command,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def same(a: Any, b: Any) -> bool:
    """Equality of type, sign and every bit, whatever the depth."""
    return json.dumps(a) == json.dumps(b) and repr(a) == repr(b)

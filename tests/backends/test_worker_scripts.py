"""Scripts with several trials at a time, and what befalls them: signals, and the death of some or all processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from st_hpo import scratch
from st_hpo.backends.optuna.records import counts, ended
from st_hpo.testing import (
    build_tiny_model,
)

from workers_setup import (
    COMPLETE,
    FAIL,
    PATIENCE,
    ROOT,
    RUNNING,
    is_worker,
    nothing_left,
    until,
    workers_of,
)

pytest_plugins = ["shared_fixtures"]
pytestmark = pytest.mark.slow  # a worker imports PyTorch and transformers first: seconds
SCRIPT = """
import sys
from pathlib import Path
import torch
from st_hpo.testing import METRIC, SPACE, make_trainer, scaled_loss
import workers_setup
torch.set_num_threads(2)
folder = Path(sys.argv[1])
seen = workers_setup.Slow(folder, None if sys.argv[3] == "all" else set(sys.argv[3].split(",")))
class Unseen(Exception):
    pass
def loss_init(model, scale=20.0):
    return (lambda: scaled_loss(model, scale))()
trainer = make_trainer(sys.argv[2], folder / "output", loss_init=loss_init, callbacks=[seen])
trainer.args.max_steps = int(sys.argv[4])
best = trainer.hyperparameter_search(
    SPACE, compute_objective=METRIC, n_trials=5, backend="optuna", n_jobs=2, baseline=False, resume=True,
    heartbeat_interval=1.0, storage=sys.argv[5] or None, study_name="st_hpo",
)
print("best", best.objective, sorted({record.state for record in best.run_summary.trials}))
"""


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["journal", "postgres"])
def database(request: pytest.FixtureRequest) -> str:
    """The storage's URL; an empty one for the journal in the output folder."""
    return "" if request.param == "journal" else request.getfixturevalue(request.param).new_database("study")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    with nothing_left(tmp_path, monkeypatch) as folder:
        yield folder


started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _ended(temporary):
    """Leaves no script behind, whatever has ended the test."""
    yield
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            shutil.rmtree(temporary)
            temporary.mkdir()
    started.clear()


def script(tiny_model: str, folder: Path, slow: str, steps: int = 4, where: str = "") -> subprocess.Popen:
    """Starts a search; it has no ``if __name__ == "__main__"``."""
    (folder / "script.py").write_text(SCRIPT)
    path = [str(ROOT), *(str(ROOT / name) for name in ("examples", "tests", "tests/backends"))]
    process = subprocess.Popen(
        [sys.executable, str(folder / "script.py"), str(folder), tiny_model, slow, str(steps), where],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    return process


def study_in(folder: Path, where: str = "") -> list[Any]:
    from st_hpo.backends.optuna.storage import JOURNAL, open_journal

    storage = where or open_journal(str(folder / "output" / JOURNAL), 1.0)
    return optuna.load_study(study_name="st_hpo", storage=storage).get_trials()


def test_a_script_whose_parent_is_killed_leaves_no_process_and_is_resumed(tiny_model, tmp_path, temporary, database):
    process = script(tiny_model, tmp_path, "run-2,run-3", 100, database)
    until(lambda: any(name.startswith("run-3") for name in os.listdir(tmp_path)))
    left = workers_of(process.pid)
    assert len(left) == 2
    process.kill()
    process.communicate()
    until(lambda: not any(is_worker(worker) for worker in left))
    assert not [item for item in temporary.iterdir() if item.name.startswith("st_hpo")]
    assert [trial.state for trial in study_in(tmp_path, database)] == [COMPLETE, COMPLETE, RUNNING, RUNNING]
    resumed = script(tiny_model, tmp_path, "none", 100, database)
    output, _ = resumed.communicate(timeout=PATIENCE)
    assert resumed.returncode == 0 and "best" in output, output
    trials = study_in(tmp_path, database)
    assert sum(map(counts, trials)) == 5 and len(trials) == 7
    assert {str(trial.params) for trial in trials[2:4]} == {str(trial.params) for trial in trials[4:6]}


def test_two_scripts_run_one_study_together_one_is_killed_with_all_its_workers(tiny_model, tmp_path, temporary):
    first = script(tiny_model, tmp_path, "run-0,run-1", steps=2000)
    until(lambda: any(name.startswith("run-1") for name in os.listdir(tmp_path)))
    second = script(tiny_model, tmp_path, "none", steps=20)
    until(lambda: any(name.startswith("run-2") for name in os.listdir(tmp_path)))
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0 and "best" in output, output
    trials = study_in(tmp_path)
    assert sum(map(counts, trials)) == 5
    assert [trial.state for trial in trials[:2]] == [FAIL, FAIL]
    assert all("has ended" in ended(trial)["error"] for trial in trials[:2])
    # There was nobody left to take them away; the next search does
    assert len(list(temporary.glob("st_hpo*"))) == len(list(temporary.glob("st_hpo-tokens-*"))) + 1 == 2
    for prefix in (scratch.TOKENS, scratch.WORKERS):
        scratch.sweep(prefix)


@pytest.mark.parametrize(
    ("number", "to_group", "code", "reason"),
    [
        (signal.SIGTERM, False, 143, "stopped: SIGTERM"),
        (signal.SIGTERM, True, 143, "stopped: SIGTERM"),
        (signal.SIGINT, True, 1, "stopped: Ctrl-C"),
    ],
    ids=["SIGTERM", "SIGTERM-to-all", "Ctrl-C"],
)
def test_a_signal_ends_the_search_in_good_order(number, to_group, code, reason, tiny_model, tmp_path, temporary):
    process = script(tiny_model, tmp_path, "all", steps=2000)
    until(lambda: len([name for name in os.listdir(tmp_path) if name.startswith("run-")]) == 2)
    left = workers_of(process.pid)
    (os.killpg if to_group else os.kill)(process.pid, number)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode in (code, -number), output
    assert not any(is_worker(worker) for worker in left)
    trials = study_in(tmp_path)
    assert [ended(trial).get("why") for trial in trials if trial.state == FAIL] == ["stopped", "stopped"]
    assert all(f'"error": "{reason}"' in trial.user_attrs["st_hpo:record"] for trial in trials[:2])
    assert "Traceback" not in output or number == signal.SIGINT

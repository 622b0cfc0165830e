"""Several trials at a time in processes of one machine, with real trainings of the tiny model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch
from optuna.trial import TrialState
from transformers import TrainerCallback

from st_hpo import Float, SearchResult, SearchSpace
from st_hpo.backends.optuna import parallel, workers
from st_hpo.backends.optuna.records import counts, ended
from st_hpo.results import COMPLETED, FAILED, PRUNED
from st_hpo.testing import (
    METRIC,
    SPACE,
    BackendContract,
    ModelInit,
    Probe,
    build_tiny_model,
    make_trainer,
    scaled_loss,
    train_by_hand,
)

pytestmark = pytest.mark.slow  # a worker imports PyTorch and transformers first: seconds
ROOT = Path(__file__).parents[2]
RATE = SearchSpace({"learning_rate": Float(1e-4, 1e-2, log=True)})
COMPLETE, FAIL, RUNNING = (TrialState[name] for name in ("COMPLETE", "FAIL", "RUNNING"))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where temporary files go in a test: nothing may be left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert not [item.name for item in folder.iterdir() if item.name.startswith("st_hpo")]
    assert workers_of(os.getpid()) == []


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a process, without the helper that multiprocessing keeps until that ends."""
    return [child for child in psutil.Process(pid).children(recursive=True) if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return "popen_loky_posix" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def searched(trainer: Any, n_trials: int = 4, **kwargs: Any) -> Any:
    options = {"hp_space": SPACE, "compute_objective": METRIC, "backend": "optuna", "n_jobs": 2, "baseline": False}
    return trainer.hyperparameter_search(**{**options, "n_trials": n_trials, **kwargs})


def until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to this in time"
        time.sleep(0.05)


class Note(TrainerCallback):
    """Leaves a file for every trial that has begun: its name, and the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (self.folder / f"{state.trial_name}-{os.getpid()}").touch()

    def begun(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("run-*"))


class Slow(Note):
    """Makes the steps of some trials slow.

    Args:
        folder: See :class:`Note`.
        names: The trials' names; None for all.
    """

    def __init__(self, folder: Path, names: set[str] | None = None) -> None:
        super().__init__(folder)
        self.names = names

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.names is None or state.trial_name in self.names:
            time.sleep(0.2)


class Where(Probe):
    """Measures also where it runs."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        own = {"pid": os.getpid(), "threads": torch.get_num_threads(), "precision": matmul_precision()}
        return {**super().__call__(*args, **kwargs), "gpu": float(os.environ["CUDA_VISIBLE_DEVICES"] or -1), **own}


def matmul_precision() -> int:
    return ["highest", "high", "medium"].index(torch.get_float32_matmul_precision())


class TestContract(BackendContract):
    backend = "optuna"
    arguments = {"n_jobs": 2}  # noqa: RUF012


# -- what a trial is in a worker


def test_lambdas_local_functions_gpus_threads_and_settings_reach_the_workers(tiny_model, tmp_path, monkeypatch):
    """All on one search; the GPUs are in name only."""
    monkeypatch.setattr(parallel, "gpus_of_workers", lambda count, per_gpu: ["7", "9"])
    scale = 20.0
    init = ModelInit(tiny_model)

    def local_loss(model: Any, scale: float = scale) -> Any:
        return scaled_loss(model, scale)

    trainer = make_trainer(tiny_model, tmp_path, loss_init=local_loss, model_init=lambda: init(), evaluator=Where())
    proposals = []

    def hp_space(trial: Any) -> dict[str, float]:
        proposals.append(trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True))
        return {"learning_rate": proposals[-1]}

    torch.set_float32_matmul_precision("high")
    try:
        sampler = optuna.samplers.RandomSampler(seed=3)
        best = searched(
            trainer,
            7,
            hp_space=hp_space,
            compute_objective="eval_probe_agreement",
            sampler=sampler,
            threads_per_worker=2,
            direction="maximize",
        )
    finally:
        torch.set_float32_matmul_precision("highest")
    result = best.run_summary
    assert [(record.number, record.state) for record in result.trials] == [(n, COMPLETED) for n in range(7)]
    alone = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    expected = [alone.ask().suggest_float("learning_rate", 1e-4, 1e-2, log=True) for _ in range(7)]
    assert proposals == expected == [record.hyperparameters["learning_rate"] for record in result.trials]
    metrics = [record.metrics for record in result.trials]
    assert {(item["eval_gpu"], item["eval_threads"], item["eval_precision"]) for item in metrics} == {
        (7, 2, 1), (9, 2, 1),
    }  # fmt: skip
    assert len({item["eval_pid"] for item in metrics}) == 2 and os.getpid() not in {m["eval_pid"] for m in metrics}
    study = result.native
    assert [trial.value for trial in study.trials] == [record.objective for record in result.trials]
    assert isinstance(study._storage, optuna.storages.InMemoryStorage) and len(study.ask().params) == 0
    assert all(set(record.phases) >= {"propose", "train", "evaluate"} for record in result.trials)
    assert SearchResult.from_json(result.to_json()) == result


def test_model_init_may_suggest_and_pruners_see_the_trials_of_all_workers(tiny_model, tmp_path):
    class BelowTheBest(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return bool(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def model_init(trial: Any) -> Any:
        model = ModelInit(tiny_model)()
        if trial is not None:
            model[0].auto_model.embeddings.dropout.p = trial.suggest_float("dropout", 0.0, 0.4)
        return model

    trainer = make_trainer(tiny_model, tmp_path, model_init=model_init)
    trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 1
    result = searched(trainer, 6, hp_space=RATE, pruner=BelowTheBest()).run_summary
    assert {record.state for record in result.trials} == {COMPLETED, PRUNED}
    assert 1 <= len(result.completed) <= 2
    dropouts = [record.hyperparameters["dropout"] for record in result.trials]
    assert len(set(dropouts)) == 6
    assert dropouts == [trial.params["dropout"] for trial in result.native.trials]
    assert all(trial.intermediate_values for trial in result.native.trials)


def test_the_proposal_itself_may_fail_or_prune_and_a_callback_may_end_the_search(tiny_model, tmp_path):
    def hp_space(trial: Any) -> dict[str, float]:
        if trial.number == 1:
            raise optuna.TrialPruned("not that one")
        if trial.number == 2:
            raise ArithmeticError("none")
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)}

    trainer = make_trainer(tiny_model, tmp_path)
    seen: list[int] = []

    def callback(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seen.append(trial.number)
        if trial.state == COMPLETE:
            study.stop()

    result = searched(trainer, 50, hp_space=hp_space, catch=ArithmeticError, callbacks=[callback]).run_summary
    assert [record.state for record in result.trials] == [COMPLETED, PRUNED, FAILED, COMPLETED]
    assert result.trials[2].error == "ArithmeticError: none" and sorted(seen) == [0, 1, 2, 3]


# -- how a search ends


class DiesIn(Note):
    """Kills its process in the middle of a trial.

    Args:
        folder: See :class:`Note`.
        times: How often.
    """

    def __init__(self, folder: Path, times: int) -> None:
        super().__init__(folder)
        self.times = times

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.learning_rate == 5e-3 and len(list(self.folder.glob("died-*"))) < self.times:
            (self.folder / f"died-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_trial_whose_worker_dies_is_retried_and_the_others_go_on(tiny_model, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    study.enqueue_trial({"learning_rate": 5e-3})
    trainer = make_trainer(tiny_model, tmp_path, callbacks=[DiesIn(tmp_path, times=2)])
    result = searched(trainer, 4, hp_space=RATE, storage=storage, study_name="s", load_if_exists=True).run_summary
    trials = result.native.trials
    assert sum(map(counts, trials)) == 4
    lost = [record for record in result.trials if record.state == FAILED]
    assert len(lost) == 2
    for record in lost:
        assert record.error == "lost: the worker process was ended by SIGKILL (by the system, if memory was short)"
        assert record.hyperparameters == {"learning_rate": 5e-3}
    assert len(result.completed) == 4
    (again,) = [record for record in result.completed if record.hyperparameters == {"learning_rate": 5e-3}]
    assert again.objective == train_by_hand(tiny_model, tmp_path, {"learning_rate": 5e-3})[METRIC]


def test_an_error_ends_the_other_trials_between_two_steps(tiny_model, tmp_path):
    class FailsOnceTheOtherOneRuns(Slow):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if len(self.begun()) == 2 and state.trial_name == "run-0":
                raise ZeroDivisionError("of one's own")
            time.sleep(0.1)

    trainer = make_trainer(tiny_model, tmp_path, callbacks=[FailsOnceTheOtherOneRuns(tmp_path)])
    trainer.args.max_steps = 600
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="of one's own") as caught:
        searched(trainer, 5)
    assert time.monotonic() - began < 60
    assert "FailsOnceTheOtherOneRuns" in str(caught.value.__cause__) or "on_step_end" in str(caught.value.__cause__)
    assert [record.error for record in trainer.last_search.trials] == [
        "ZeroDivisionError: of one's own",
        "stopped: the search has ended with ZeroDivisionError",
    ]
    assert [trial.state for trial in trainer.last_search.native.trials] == [FAIL, FAIL]


def test_a_timeout_ends_the_trials_that_run_by_force_if_need_be(tiny_model, tmp_path, monkeypatch):
    class NeverComesBack(Note):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            time.sleep(600 if state.trial_name == "run-1" else 0.1)

    monkeypatch.setattr(parallel, "STOP_SECONDS", 3.0)
    trainer = make_trainer(tiny_model, tmp_path, callbacks=[NeverComesBack(tmp_path)])
    trainer.args.max_steps = 6000
    with pytest.raises(Exception, match="None of the 2 trials was finished"):
        searched(trainer, 5, timeout=20.0)
    assert [record.error for record in trainer.last_search.trials] == ["stopped: timeout of 20 s"] * 2
    assert [ended(trial)["why"] for trial in trainer.last_search.native.trials] == ["stopped"] * 2


# -- a script, and what befalls it

SCRIPT = """
import sys
from pathlib import Path
import torch
from st_hpo.testing import METRIC, SPACE, make_trainer, scaled_loss
import test_workers
torch.set_num_threads(2)
folder = Path(sys.argv[1])
seen = test_workers.Slow(folder, None if sys.argv[3] == "all" else set(sys.argv[3].split(",")))
class Unseen(Exception):
    pass
def loss_init(model, scale=20.0):
    return (lambda: scaled_loss(model, scale))()
trainer = make_trainer(sys.argv[2], folder / "output", loss_init=loss_init, callbacks=[seen])
trainer.args.max_steps = int(sys.argv[4])
best = trainer.hyperparameter_search(
    SPACE, compute_objective=METRIC, n_trials=5, backend="optuna", n_jobs=2, baseline=False, resume=True,
    heartbeat_interval=1.0,
)
print("best", best.objective, sorted({record.state for record in best.run_summary.trials}))
"""


def script(tiny_model: str, folder: Path, slow: str, steps: int = 4) -> subprocess.Popen:
    """Starts a search; it has no ``if __name__ == "__main__"``."""
    (folder / "script.py").write_text(SCRIPT)
    path = [str(ROOT), *(str(ROOT / name) for name in ("examples", "tests", "tests/backends"))]
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py"), str(folder), tiny_model, slow, str(steps)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def study_in(folder: Path) -> list[Any]:
    from st_hpo.backends.optuna.storage import JOURNAL, open_journal

    storage = open_journal(str(folder / "output" / JOURNAL))
    return optuna.load_study(study_name="st_hpo", storage=storage).get_trials()


def test_a_script_whose_parent_is_killed_leaves_no_process_and_is_resumed(tiny_model, tmp_path, temporary):
    process = script(tiny_model, tmp_path, "run-2,run-3", steps=100)
    until(lambda: any(name.startswith("run-3") for name in os.listdir(tmp_path)), 90)
    left = workers_of(process.pid)
    assert len(left) == 2
    process.kill()
    process.communicate()
    until(lambda: not any(is_worker(worker) for worker in left), 20)
    assert not [item for item in temporary.iterdir() if item.name.startswith("st_hpo")]
    assert [trial.state for trial in study_in(tmp_path)] == [COMPLETE, COMPLETE, RUNNING, RUNNING]
    resumed = script(tiny_model, tmp_path, "none", steps=100)
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0 and "best" in output, output
    trials = study_in(tmp_path)
    assert sum(map(counts, trials)) == 5 and len(trials) == 7
    assert {str(trial.params) for trial in trials[2:4]} == {str(trial.params) for trial in trials[4:6]}


def test_two_scripts_run_one_study_together_one_is_killed_with_all_its_workers(tiny_model, tmp_path, temporary):
    first = script(tiny_model, tmp_path, "run-0,run-1", steps=2000)
    until(lambda: any(name.startswith("run-1") for name in os.listdir(tmp_path)), 90)
    second = script(tiny_model, tmp_path, "none", steps=20)
    until(lambda: any(name.startswith("run-2") for name in os.listdir(tmp_path)), 90)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 0 and "best" in output, output
    trials = study_in(tmp_path)
    assert sum(map(counts, trials)) == 5
    assert [trial.state for trial in trials[:2]] == [FAIL, FAIL]
    assert all("has ended" in ended(trial)["error"] for trial in trials[:2])
    (left,) = temporary.glob("st_hpo*")  # there was nobody left to take it away
    shutil.rmtree(left)


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
    until(lambda: len([name for name in os.listdir(tmp_path) if name.startswith("run-")]) == 2, 90)
    left = workers_of(process.pid)
    (os.killpg if to_group else os.kill)(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (code, -number), output
    assert not any(is_worker(worker) for worker in left)
    trials = study_in(tmp_path)
    assert [ended(trial).get("why") for trial in trials if trial.state == FAIL] == ["stopped", "stopped"]
    assert all(f'"error": "{reason}"' in trial.user_attrs["st_hpo:record"] for trial in trials[:2])
    assert "Traceback" not in output or number == signal.SIGINT


# -- the parts


@pytest.mark.parametrize(
    ("count", "visible", "workers_there", "per_gpu", "expected"),
    [
        (0, None, 2, None, []),
        (2, None, 2, None, ["0", "1"]),
        (2, None, 5, None, ["0", "1", "0", "1", "0"]),
        (4, None, 4, 2, ["0", "0", "1", "1"]),
        (1, None, 3, None, ["0", "0", "0"]),
        (2, "3,5", 3, None, ["3", "5", "3"]),
        (2, "GPU-a, GPU-b", 2, None, ["GPU-a", "GPU-b"]),
    ],
)
def test_gpus_go_round(count, visible, workers_there, per_gpu, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers.gpus_of_workers(workers_there, per_gpu) == expected


@pytest.mark.parametrize(
    ("threads", "count", "wanted", "expected"), [(8, 2, None, 4), (2, 4, None, 1), (8, 3, None, 2), (8, 2, 6, 6)]
)
def test_threads_are_shared_out(threads, count, wanted, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert workers.threads_of_workers(count, wanted) == expected

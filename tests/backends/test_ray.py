"""Ray Tune on a real cluster of two nodes: parallel trials, schedulers, search algorithms, a node that goes away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest
import ray
from datasets import load_from_disk
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from st_hpo import Categorical, ConfigurationError, Float, Int, SearchSpace, SearchSpaceError
from st_hpo.backends import get_backend
from st_hpo.records import COMPLETED
from st_hpo.testing import make_trainer, sentence_pairs

from ray_setup import EVALUATING, Where, by_hand, checkpoints, evaluating, search

pytest_plugins = ["ray_fixtures"]
pytestmark = pytest.mark.slow


# -- several nodes


def test_trials_run_on_both_nodes_with_data_that_only_the_driver_has(cluster, tiny_model, tmp_path):
    marks, stored = tmp_path / "marks", tmp_path / "dataset"
    marks.mkdir()
    sentence_pairs(32).save_to_disk(stored)
    dataset = load_from_disk(stored)
    assert dataset.cache_files
    trainer = make_trainer(tiny_model, tmp_path, train_dataset=dataset, callbacks=[Where(marks, 0.5, nodes=2)])
    for file in stored.iterdir():
        file.unlink()  # the driver still has it open; nobody else can open it
    best = search(trainer, storage_path=str(tmp_path / "storage"))
    result = best.run_summary
    assert [record.state for record in result.trials] == [COMPLETED] * 4
    assert len({mark.name.partition("-")[0] for mark in marks.iterdir()}) == 2
    for record in result.trials:
        assert record.objective == by_hand(tiny_model, tmp_path, record)
    assert checkpoints(tmp_path / "storage") == []
    assert isinstance(result.native, tune.ExperimentAnalysis)
    assert result.native.best_config["learning_rate"] == best.hyperparameters["learning_rate"]


def test_a_budget_ends_the_search_with_what_runs(cluster, tiny_model, tmp_path):
    result = search(make_trainer(tiny_model, tmp_path), n_trials=6, budget=1).run_summary
    done = [record for record in result.trials if record.state == COMPLETED]
    assert 1 <= len(done) <= len(result.trials) < 6
    assert result.ended_early == "the budget of 1 full training is used up"
    assert {record.error for record in result.trials} <= {None, f"stopped: {result.ended_early}"}


@pytest.mark.timeout(1000)
def test_a_search_goes_on_when_a_node_goes_away(cluster, tiny_model, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    head = ray.get_runtime_context().get_node_id()
    doomed = next(node for node in cluster.list_all_nodes() if node.node_id != head)

    def remove() -> None:
        deadline = time.monotonic() + 400
        while not list(marks.glob(f"{doomed.node_id}-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        cluster.remove_node(doomed, allow_graceful=False)

    removing = threading.Thread(target=remove)
    removing.start()
    try:
        trainer = make_trainer(tiny_model, tmp_path, callbacks=[Where(marks, 1.0)])
        best = search(trainer, n_trials=3, storage_path=str(tmp_path / "storage"))
    finally:
        removing.join()
        cluster.add_node(wait=False, num_cpus=1, object_store_memory=100 * 2**20)
        cluster.wait_for_nodes(timeout=300)
    records = best.run_summary.trials
    assert list(marks.glob(f"{doomed.node_id}-*")), "no trial has run on the node that went away"
    assert [record.state for record in records] == [COMPLETED] * 3
    for record in records:
        assert record.objective == by_hand(tiny_model, tmp_path, record)


def test_checkpoints_that_the_user_asks_for_are_in_rays_storage(cluster, tiny_model, tmp_path):
    trainer = evaluating(make_trainer(tiny_model, tmp_path / "out"), steps=4)
    trainer.args.save_strategy, trainer.args.save_steps = "steps", 2
    result = search(trainer, n_trials=1, storage_path=str(tmp_path / "storage")).run_summary
    assert len(list((tmp_path / "storage").rglob("model.safetensors"))) == 2
    arguments = {**EVALUATING, "max_steps": 4}
    assert result.trials[0].objective == by_hand(tiny_model, tmp_path, result.trials[0], **arguments)


# -- without a cluster


def refused(error, match, tiny_model, tmp_path, **changes):
    trainer = make_trainer(tiny_model, tmp_path)
    trainer.model_init.path = "/there/is/no/model"
    with pytest.raises(error, match=match):
        search(trainer, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"resources_per_trail": {"cpu": 1}}, ConfigurationError, "resources_per_trial"),
        ({"hp_space": lambda trial: {"learning_rate": trial.suggest_float("a", 0, 1)}}, SearchSpaceError, "optuna"),
        ({"hp_space": {"learning_rat": 1}}, ConfigurationError, "learning_rate"),
        ({"hp_space": [1]}, SearchSpaceError, "tune.loguniform"),
        ({"hp_space": {}}, SearchSpaceError, "empty"),
        ({"hp_space": SearchSpace({"learning_rate": Float(0, 1, step=1e-6)})}, SearchSpaceError, "learning_rate"),
        ({"scheduler": tune.schedulers.ASHAScheduler()}, ConfigurationError, "eval_strategy"),
        ({"search_alg": OptunaSearch(metric="objective", mode="min")}, ConfigurationError, "mode"),
        ({"catch": "RuntimeError"}, ConfigurationError, "catch"),
    ],
)
def test_what_cannot_work_is_refused_before_ray_starts(changes, error, match, tiny_model, tmp_path):
    refused(error, match, tiny_model, tmp_path, **changes)


def test_every_dimension_has_its_counterpart():
    from st_hpo.backends.ray.space import tune_space

    space = SearchSpace(
        {
            "a": Float(0.1, 1.0),
            "b": Float(1e-3, 1.0, log=True),
            "c": Float(0.1, 0.5, step=0.2),
            "d": Int(1, 3),
            "e": Int(1, 100, log=True),
            "f": Int(1, 10, step=4),
            "g": Categorical([None, 1, "1", {"a": 1}]),
            "h": Float(2.0, 2.0),
        }
    )
    drawn = [space.decode({name: domain.sample() for name, domain in tune_space(space).items()}) for _ in range(300)]
    assert {type(values["a"]) for values in drawn} == {type(values["b"]) for values in drawn} == {float}
    assert {values["c"] for values in drawn} == {0.1, 0.1 + 0.2, 0.1 + 2 * 0.2}
    assert {values["d"] for values in drawn} == {1, 2, 3}
    assert {type(values["e"]) for values in drawn} == {int}
    assert all(1 <= values["e"] <= 100 for values in drawn)
    assert {values["f"] for values in drawn} == {1, 5, 9}
    assert {json.dumps(values["g"]) for values in drawn} == {"null", "1", '"1"', '{"a": 1}'}
    assert {values["h"] for values in drawn} == {2.0}


SCRIPT = """
import os, signal, sys
from pathlib import Path
from transformers import TrainerCallback
from st_hpo import SearchSpace, Float
from st_hpo.testing import make_trainer, METRIC

class Slow(TrainerCallback):
    def __init__(self, folder):
        self.folder = folder

    def on_step_begin(self, args, state, control, **kwargs):
        import time
        Path(self.folder, state.trial_name).touch()
        time.sleep(0.1 if len(list(Path(self.folder).iterdir())) < 3 else 60)

signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.environ.pop("PYTHONBREAKPOINT", None)
space = SearchSpace({"learning_rate": Float(1e-4, 1e-2)})
trainer = make_trainer(sys.argv[1], Path(sys.argv[2]), callbacks=[Slow(sys.argv[3])])
best = trainer.hyperparameter_search(space, METRIC, 20, "maximize", "ray", baseline=False,
    max_concurrent_trials=1, storage_path=sys.argv[2])
result = best.run_summary
print("SAME", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "PYTHONBREAKPOINT" in os.environ)
print("STATES", [record.state for record in result.trials], result.interrupted)
import ray
print("RAY", ray.is_initialized())
"""


@pytest.fixture
def ray_folder():
    """A folder in which Ray finds no cluster to connect to; a short one, for the names of sockets are limited."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield folder


def test_ctrl_c_gives_back_the_trials_done_so_far_and_leaves_no_process(tiny_model, tmp_path, ray_folder):
    script, marks = tmp_path / "script.py", tmp_path / "marks"
    marks.mkdir()
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), tiny_model, str(tmp_path / "out"), str(marks)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": ray_folder},
        cwd=tmp_path,
    )
    try:
        deadline = time.monotonic() + 300
        while len(list(marks.iterdir())) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "STATES ['completed', 'completed', 'failed'] True" in out
    assert "RAY False" in out and "SAME True False" in out


def test_ray_is_a_backend_by_name():
    assert get_backend("ray").name == "ray"

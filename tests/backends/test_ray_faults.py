"""Ray Tune when something goes wrong: what trials raise, workers that die, and what a search leaves behind."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy
import pytest
import ray
from ray import tune
from ray.tune.stopper.timeout import TimeoutStopper
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from st_hpo import BackendUnavailableError, NoFinishedTrialError
from st_hpo.records import COMPLETED, FAILED, PRUNED
from st_hpo.testing import METRIC, make_trainer, scaled_loss

from ray_setup import EVALUATING, by_hand, evaluating, search

pytest_plugins = ["ray_fixtures"]
pytestmark = pytest.mark.slow


class Needs(ValueError):
    """Cannot be made of its message, and holds what cannot be pickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.one, self.lock = one, threading.Lock()


class InStep(TrainerCallback):
    """Calls a function in a step, in each trial or once in a search.

    Args:
        act: The function.
        step: The step.
        once: A file that is made then, and without which it is not called; None calls it in every trial.
    """

    def __init__(self, act, step=1, once=None):
        self.act, self.step, self.once = act, step, once

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            self.act()


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def raises_needs():
    raise Needs(1, two=2)


def exits():
    raise SystemExit(3)


def trainer_with(tiny_model, tmp_path, *callbacks, **changes):
    return make_trainer(tiny_model, tmp_path / "out", callbacks=list(callbacks), **changes)


def storage(tmp_path):
    return {"storage_path": str(tmp_path / "storage"), "max_concurrent_trials": 1}


def test_an_exception_arrives_as_it_was_and_catch_knows_it(cluster, tiny_model, tmp_path):
    trainer = trainer_with(tiny_model, tmp_path, InStep(raises_needs))
    with pytest.raises(Needs, match=r"^1 and 2$") as caught:
        search(trainer, **storage(tmp_path))
    assert caught.value.one == 1 and "raises_needs" in str(caught.value.__cause__)
    assert [(record.number, record.state) for record in trainer.last_search.trials] == [(0, FAILED)]
    trainer = trainer_with(tiny_model, tmp_path, InStep(raises_needs, once=tmp_path / "once"))
    result = search(trainer, n_trials=2, catch=Needs, **storage(tmp_path)).run_summary
    assert [(record.state, record.error) for record in result.trials] == [
        (FAILED, "Needs: 1 and 2"),
        (COMPLETED, None),
    ]


@pytest.mark.parametrize("step", [1, 3])
def test_an_exit_in_a_trial_ends_the_search_as_anywhere(cluster, tiny_model, tmp_path, step):
    trainer = evaluating(trainer_with(tiny_model, tmp_path, InStep(exits, step=step)))
    with pytest.raises(SystemExit) as caught:
        search(trainer, **storage(tmp_path))
    assert caught.value.code == 3
    assert [(record.state, record.error) for record in trainer.last_search.trials] == [(FAILED, "SystemExit: 3")]


@pytest.mark.parametrize("fail_fast", [True, "raise"])
def test_fail_fast_raises_what_the_trial_has_raised(cluster, tiny_model, tmp_path, fail_fast):
    trainer = trainer_with(tiny_model, tmp_path, InStep(raises_needs))
    with pytest.raises(Needs):
        search(trainer, fail_fast=fail_fast, **storage(tmp_path))
    assert [record.error for record in trainer.last_search.trials] == ["Needs: 1 and 2"]


@pytest.mark.parametrize(("act", "error"), [(raises_needs, Needs), (exits, SystemExit)])
def test_an_error_of_the_baseline_arrives_as_it_was(cluster, tiny_model, tmp_path, act, error):
    def loss_init(model, scale=None):
        if scale is None and ray.get_runtime_context().get_task_id() is not None:
            act()
        return scaled_loss(model)

    trainer = trainer_with(tiny_model, tmp_path, loss_init=loss_init)
    with pytest.raises(error):
        search(trainer, baseline=True, **storage(tmp_path))


def test_a_trial_whose_worker_is_killed_is_begun_again(cluster, tiny_model, tmp_path):
    trainer = evaluating(trainer_with(tiny_model, tmp_path, InStep(dies, step=5, once=tmp_path / "once")))
    trainer.args.save_strategy, trainer.args.save_steps = "steps", 2
    result = search(trainer, n_trials=2, **storage(tmp_path)).run_summary
    assert (tmp_path / "once").exists()
    assert [(record.number, record.state) for record in result.trials] == [(0, COMPLETED), (1, COMPLETED)]
    for record in result.trials:
        assert record.objective == by_hand(tiny_model, tmp_path, record, **EVALUATING)


def test_a_trial_whose_worker_always_dies_is_an_error_that_says_so(cluster, tiny_model, tmp_path):
    trainer = trainer_with(tiny_model, tmp_path, InStep(dies))
    with pytest.raises(BackendUnavailableError, match=r"has died 4 times.*memory"):
        search(trainer, **storage(tmp_path))
    assert [record.state for record in trainer.last_search.trials] == [FAILED]


def test_what_stop_ends_is_pruned(cluster, tiny_model, tmp_path):
    trainer = evaluating(make_trainer(tiny_model, tmp_path / "out"))
    with pytest.raises(Exception, match="None of the 2 trials was finished"):
        search(trainer, n_trials=2, stop={"training_iteration": 2}, **storage(tmp_path))
    records = trainer.last_search.trials
    assert [(record.state, record.error) for record in records] == [(PRUNED, "stopped at step 4")] * 2


def test_searches_do_not_fill_the_object_store(cluster, tiny_model, tmp_path):
    def free():
        return ray.available_resources()["object_store_memory"]

    large, before = numpy.ones(2_000_000), free()

    def loss_init(model, scale=20.0):
        return scaled_loss(model, scale * large[0])

    for _ in range(2):
        search(make_trainer(tiny_model, tmp_path / "out", loss_init=loss_init), n_trials=1, **storage(tmp_path))
    deadline = time.monotonic() + 240
    while free() < before - large.nbytes / 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert free() > before - large.nbytes / 2


def test_relative_paths_are_those_of_the_script(cluster, tiny_model, tmp_path):
    Path("model").symlink_to(tiny_model)
    trainer = make_trainer(tiny_model, tmp_path / "out", model_init=lambda: SentenceTransformer("./model"))
    result = search(trainer, n_trials=1, baseline=True, **storage(tmp_path)).run_summary
    assert result.trials[0].objective == by_hand(tiny_model, tmp_path, result.trials[0])


def test_the_objective_of_an_evaluator_has_its_name_without_a_baseline(cluster, tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path / "out")
    result = search(trainer, compute_objective=None, direction=None, n_trials=1, **storage(tmp_path)).run_summary
    assert (result.objective_names, result.directions) == ([METRIC], ["maximize"])


def test_several_objectives_of_a_search_algorithm(cluster, tiny_model, tmp_path):
    from ray.tune.search.optuna import OptunaSearch

    keys = [METRIC, "eval_probe_size"]
    runs = search(
        make_trainer(tiny_model, tmp_path / "out"),
        compute_objective=keys,
        direction=["maximize", "minimize"],
        n_trials=2,
        search_alg=OptunaSearch(metric=keys, mode=["max", "min"]),
        **storage(tmp_path),
    )
    records = runs[0].run_summary.trials
    assert [record.state for record in records] == [COMPLETED] * 2
    for record in records:
        assert record.objective == [record.metrics[key] for key in keys]
        assert record.objective[0] == by_hand(tiny_model, tmp_path, record)


def test_a_timeout_ends_the_training_with_ones_own_arguments_at_once(cluster, tiny_model, tmp_path):
    class Slow(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            time.sleep(600)

    trainer = trainer_with(tiny_model, tmp_path, Slow())
    began = time.monotonic()
    with pytest.raises(NoFinishedTrialError):
        search(trainer, n_trials=1, default_trial=True, timeout=12, **storage(tmp_path))
    assert time.monotonic() - began < 300 and trainer.last_search.trials == []
    assert trainer.last_search.default.error == "stopped: timeout of 12 s"


def test_time_that_is_up_leaves_what_was_finished(cluster, tiny_model, tmp_path, monkeypatch):
    class Slow(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if (tmp_path / "once").exists():
                (tmp_path / "second").touch()

        def on_step_end(self, args, state, control, **kwargs):
            time.sleep(60 if (tmp_path / "once").exists() else 0)
            if state.global_step == state.max_steps:
                (tmp_path / "once").touch()

    counts = TimeoutStopper.stop_all  # from its first call on; the start of a worker may take long
    monkeypatch.setattr(TimeoutStopper, "stop_all", lambda self: (tmp_path / "second").exists() and counts(self))
    trainer = trainer_with(tiny_model, tmp_path, Slow())
    result = search(trainer, n_trials=5, time_budget_s=5, **storage(tmp_path)).run_summary
    states = [record.state for record in result.trials]
    assert states == [COMPLETED, FAILED] and re.search("ended before", result.trials[1].error)
    assert isinstance(result.native, tune.ExperimentAnalysis)

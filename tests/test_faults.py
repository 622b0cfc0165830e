"""What ends a trial, what ends a search, and what ends neither."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers import TrainerCallback

from st_hpo import ConfigurationError, NoFinishedTrialError, TooManyFailuresError
from st_hpo.faults import FaultPolicy, StopSignal, describe, is_disk_full, is_out_of_memory
from st_hpo.records import COMPLETED, FAILED, PRUNED

from fast_trainer import METRIC, RATES, FailIn, fast_arguments, fast_trainer, random_sampler


def search(trainer, **changes):
    options = {"hp_space": RATES, "compute_objective": METRIC, "n_trials": 4, "sampler": random_sampler()}
    return trainer.hyperparameter_search(**{**options, **changes})


def states(trainer):
    return [record.state for record in trainer.last_search.trials]


class RaisingLoss(torch.nn.Module):
    """Raises in its forward pass, holding what it was given."""

    def __init__(self, model: Any, error: BaseException) -> None:
        super().__init__()
        self.model = model
        self.error = error

    def forward(self, features: Any, labels: Any) -> Any:
        raise self.error


def failing_losses(error, which):
    """A ``loss_init`` whose loss raises in the trials of these numbers."""
    made = iter(range(-2, 1000))  # the trainer's own, and the baseline's

    def loss_init(model):
        number = next(made)
        return RaisingLoss(model, error) if number in which else CoSENTLoss(model)

    return loss_init


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_trial_that_needs_too_much_memory_fails_and_the_search_goes_on(error):
    trainer = fast_trainer(loss_init=failing_losses(error, {1}))
    best = search(trainer)
    assert states(trainer) == [COMPLETED, FAILED, COMPLETED, COMPLETED]
    assert best.run_summary.trials[1].error == describe(error)
    assert describe(error).startswith("Out of memory: ")


def test_a_full_disk_fails_the_trial_with_the_reason():
    error = OSError(errno.ENOSPC, "No space left on device", "checkpoint-2")
    trainer = fast_trainer(loss_init=failing_losses(error, {0}))
    best = search(trainer)
    assert states(trainer) == [FAILED, COMPLETED, COMPLETED, COMPLETED]
    assert best.run_summary.trials[0].error.startswith("Disk full: OSError: [Errno 28] No space left on device")


def test_any_other_error_ends_the_search_unless_it_is_told_to_go_on():
    error = ValueError("of the script")
    trainer = fast_trainer(loss_init=failing_losses(error, {1}))
    with pytest.raises(ValueError, match="of the script"):
        search(trainer)
    assert states(trainer) == [COMPLETED, FAILED]
    trainer = fast_trainer(loss_init=failing_losses(error, {1}))
    search(trainer, on_error="continue")
    assert states(trainer) == [COMPLETED, FAILED, COMPLETED, COMPLETED]


def test_failures_in_a_row_end_the_search_with_their_causes():
    trainer = fast_trainer(loss_init=failing_losses(ValueError("every time"), set(range(1, 100))))
    with pytest.raises(TooManyFailuresError) as caught:
        search(trainer, n_trials=20, on_error="continue")
    assert states(trainer) == [COMPLETED] + [FAILED] * 5
    assert "5 trials in a row have failed" in str(caught.value)
    assert str(caught.value).count("ValueError: every time") == 1
    study = trainer.last_search.native
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] + ["FAIL"] * 5


def test_failures_with_successes_between_them_do_not():
    trainer = fast_trainer(loss_init=failing_losses(ValueError("now and then"), {0, 1, 3, 4}))
    search(trainer, n_trials=6, on_error="continue", max_consecutive_failures=3)
    assert states(trainer) == [FAILED, FAILED, COMPLETED, FAILED, FAILED, COMPLETED]


def test_the_limit_can_be_lifted():
    trainer = fast_trainer(loss_init=failing_losses(ValueError("every time"), set(range(100))))
    with pytest.raises(NoFinishedTrialError):
        search(trainer, n_trials=7, on_error="continue", max_consecutive_failures=None)
    assert states(trainer) == [FAILED] * 7


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"on_error": "ignore"}, "on_error"),
        ({"max_consecutive_failures": 0}, "max_consecutive_failures"),
        ({"max_consecutive_failures": 2.5}, "max_consecutive_failures"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "1h"}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, match):
    with pytest.raises(ConfigurationError, match=match):
        search(fast_trainer(), **changes)


class Slow(TrainerCallback):
    """Takes its time for every step, from a trial on."""

    def __init__(self, seconds: float, trial: str = "run-0") -> None:
        self.seconds = seconds
        self.trial = trial
        self.steps = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Slow:
        return self

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if int(state.trial_name.removeprefix("run-")) >= int(self.trial.removeprefix("run-")):
            self.steps += 1
            time.sleep(self.seconds)


def test_a_timeout_ends_a_trial_between_its_steps_and_keeps_what_is_done():
    slow = Slow(5.0, "run-1")
    trainer = fast_trainer(callbacks=[slow])
    trainer.args.max_steps = 6
    best = search(trainer, timeout=20, n_trials=50)
    records = best.run_summary.trials
    assert records[0].state == COMPLETED and best.run_id == "0"
    assert records[-1].state == FAILED and records[-1].error == "stopped: timeout of 20 s"
    assert len(records) == 2 and slow.steps < 6
    assert best.run_summary.native.trials[1].state.name == "FAIL"
    assert trainer.evaluate()[METRIC] == best.run_summary.baseline.objective


def test_a_timeout_before_the_first_trial_is_done_leaves_no_best_run():
    trainer = fast_trainer(callbacks=[Slow(0.5)])
    trainer.args.max_steps = 1000
    with pytest.raises(NoFinishedTrialError, match="stopped: timeout of 1 s"):
        search(trainer, timeout=1)


SCRIPT = """
import sys, time
from pathlib import Path
from transformers import TrainerCallback
import fast_trainer

class Slow(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.trial_name != "run-0":
            Path(sys.argv[1], "slow").touch()
            time.sleep(0.2)

trainer = fast_trainer.fast_trainer(callbacks=[Slow()])
trainer.args.max_steps = 300
try:
    trainer.hyperparameter_search(fast_trainer.RATES, fast_trainer.METRIC, 20, "maximize", baseline=False,
        storage=f"sqlite:///{sys.argv[1]}/study.db", study_name="s")
except SystemExit as exc:
    print("EXIT", exc.code, [record.state for record in trainer.last_search.trials],
          trainer.last_search.trials[-1].error)
    raise
"""


def test_sigterm_ends_a_trial_between_its_steps_and_keeps_the_study_consistent(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    deadline = time.monotonic() + 400
    while not (tmp_path / "slow").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "EXIT 143 ['completed', 'failed'] stopped: SIGTERM" in out
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"]


def test_sigterm_that_ends_the_data_loaders_workers_too_is_no_failure_of_the_trial():
    class ToTheGroup(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.trial_name == "run-1":
                signal.raise_signal(signal.SIGTERM)
                for worker in multiprocessing.active_children():
                    subprocess.run(["kill", "-TERM", str(worker.pid)], check=False)  # not from its parent: it may ask
                time.sleep(600)  # torch raises here, in its handler of SIGCHLD

    trainer = fast_trainer(args=fast_arguments(dataloader_num_workers=1), callbacks=[ToTheGroup])
    began = time.monotonic()
    with pytest.raises(SystemExit, match="143"):
        search(trainer, n_trials=3)
    states = [(trial.state, trial.error) for trial in trainer.last_search.trials]
    assert states == [(COMPLETED, None), (FAILED, "stopped: SIGTERM")] and time.monotonic() - began < 300


def test_under_a_launcher_a_signal_that_comes_twice_is_one():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        stop, clock = StopSignal(), [0.0]
        with pytest.MonkeyPatch.context() as patch, stop.watching(interrupts=True):
            patch.setattr("st_hpo.faults.time", SimpleNamespace(monotonic=lambda: clock[0]))
            for clock[0] in (10.0, 14.0):
                signal.raise_signal(signal.SIGTERM)
            assert stop.reason == "SIGTERM" and seen == []
            clock[0] = 16.0
            signal.raise_signal(signal.SIGTERM)
            assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_search_gives_the_signal_handler_back():
    handler = lambda number, frame: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, handler)
    try:
        search(fast_trainer(), n_trials=1, timeout=60)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_handler_is_for_the_main_thread_alone():
    done = []
    thread = threading.Thread(target=lambda: done.append(search(fast_trainer(), n_trials=1)))
    thread.start()
    thread.join()
    assert done[0].run_summary.trials[0].state == COMPLETED


class EverySeventh(optuna.pruners.BasePruner):
    """Prunes trials 5, 12, 19 and so on."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number % 7 == 5


@pytest.mark.slow
def test_nothing_grows_over_fifty_trials_of_all_kinds():
    """Memory, file handles, threads and child processes, over finished, failed and pruned trials."""
    process = psutil.Process()
    seen = []

    class Measure(TrainerCallback):
        def __deepcopy__(self, memo: dict[int, Any]) -> Measure:
            return self

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(
                (
                    process.memory_info().rss,
                    process.num_fds(),
                    process.num_threads(),
                    len(process.children(recursive=True)),
                )
            )

    failing = FailIn({number for number in range(50) if number % 7 == 3}, ValueError("now and then"))
    trainer = fast_trainer(callbacks=[Measure(), failing])
    search(trainer, n_trials=50, on_error="continue", pruner=EverySeventh(), rungs=[0.5])
    assert states(trainer)[:7] == [COMPLETED] * 3 + [FAILED, COMPLETED, PRUNED, COMPLETED]
    assert states(trainer)[3:].count(FAILED) == states(trainer)[3:].count(PRUNED) == 7
    assert len(seen) == 50
    memory, handles, threads, children = zip(*seen, strict=True)
    # The lowest of some trials: what the allocator keeps for a moment comes and goes by a model's size
    assert min(memory[35:]) - min(memory[5:20]) < 8 * 2**20
    assert max(handles[40:]) <= max(handles[5:15])
    assert max(threads[40:]) <= max(threads[5:15])
    assert max(children[40:]) <= max(children[5:15])


# -- the parts


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_is_told_from_other_errors(error):
    assert is_out_of_memory(error) and not is_disk_full(error)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory"), OSError(2, "no file")])
def test_other_errors_are_neither(error):
    assert not is_out_of_memory(error) and not is_disk_full(error)


def test_what_stops_a_search_is_no_failure_of_a_trial():
    policy = FaultPolicy("continue", 2)
    assert not policy.survives(KeyboardInterrupt()) and not policy.survives(SystemExit())
    assert FaultPolicy().survives(KeyError(), (LookupError,))
    stop = StopSignal(timeout=0.01)
    assert stop.reason is None
    with stop.watching():
        time.sleep(0.02)
        assert stop.reason == "timeout of 0.01 s" and not stop.terminated

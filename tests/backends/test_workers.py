"""Several trials at a time in processes of one machine, with real trainings of the tiny model."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from st_hpo import SearchResult
from st_hpo.backends.optuna import parallel, workers
from st_hpo.backends.optuna.records import counts, ended
from st_hpo.records import COMPLETED, FAILED, PRUNED
from st_hpo.testing import (
    METRIC,
    BackendContract,
    ModelInit,
    Probe,
    build_tiny_model,
    make_trainer,
    scaled_loss,
    train_by_hand,
)

from workers_setup import (
    COMPLETE,
    FAIL,
    RATE,
    DiesIn,
    Note,
    Slow,
    nothing_left,
    searched,
)

pytestmark = pytest.mark.slow  # a worker imports PyTorch and transformers first: seconds


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    with nothing_left(tmp_path, monkeypatch) as folder:
        yield folder


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

    here = os.getpid()

    class Proposing(optuna.samplers.RandomSampler):
        """Proposes whole trials, as CMA-ES and Gaussian processes do; one in a worker would propose something else."""

        def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> dict[str, Any]:
            return {"dropout": optuna.distributions.FloatDistribution(0.0, 0.4)}

        def sample_relative(self, study: optuna.Study, trial: Any, search_space: Any) -> dict[str, Any]:
            return {"dropout": trial.number / 100 if os.getpid() == here else 0.3}

    trainer = make_trainer(tiny_model, tmp_path, model_init=model_init)
    trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 1
    result = searched(trainer, 6, hp_space=RATE, pruner=BelowTheBest(), sampler=Proposing()).run_summary
    assert {record.state for record in result.trials} == {COMPLETED, PRUNED}
    assert 1 <= len(result.completed) <= 2
    dropouts = [record.hyperparameters["dropout"] for record in result.trials]
    assert dropouts == [number / 100 for number in range(6)]
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


def test_a_worker_that_dies_is_noticed_though_its_own_child_lives_on(tiny_model, tmp_path):
    """As one of a DataLoader does for a while: it holds both ends by which a death is noticed."""

    class LeavesAChild(Note):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.trial_name == "run-0":
                child = os.fork()
                if child == 0:
                    time.sleep(3600)
                (self.folder / f"child-{child}").touch()
                os.kill(os.getpid(), signal.SIGKILL)

    trainer = make_trainer(tiny_model, tmp_path, callbacks=[LeavesAChild(tmp_path)])
    try:
        result = searched(trainer, 2, n_jobs=2).run_summary
        assert [record.state for record in result.trials].count(COMPLETED) == 2
        assert [record.error for record in result.trials if record.state == FAILED] == [
            "lost: the worker process was ended by SIGKILL (by the system, if memory was short)"
        ]
    finally:
        (child,) = tmp_path.glob("child-*")
        os.kill(int(child.name.partition("-")[2]), signal.SIGKILL)


def test_a_worker_that_cannot_be_started_ends_the_search_at_once(tiny_model, tmp_path, monkeypatch):
    def refuse(self: Any, index: int) -> None:
        raise OSError("no process left")

    monkeypatch.setattr(workers.Workers, "_start", refuse)
    monkeypatch.setattr(parallel, "STOP_SECONDS", 3600.0)
    trainer = make_trainer(tiny_model, tmp_path)
    with pytest.raises(OSError, match="no process left"):
        searched(trainer, 2)
    assert [record.error for record in trainer.last_search.trials] == ["stopped: the search has ended with OSError"]


def test_an_error_ends_the_other_trials_between_two_steps(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "STOP_SECONDS", 3600.0)  # never by force

    class FailsOnceTheOtherOneRuns(Slow):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if len(self.begun()) == 2 and state.trial_name == "run-0":
                raise ZeroDivisionError("of one's own")
            time.sleep(0.1)

    trainer = make_trainer(tiny_model, tmp_path, callbacks=[FailsOnceTheOtherOneRuns(tmp_path)])
    trainer.args.max_steps = 6000
    with pytest.raises(ZeroDivisionError, match="of one's own") as caught:
        searched(trainer, 5)
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

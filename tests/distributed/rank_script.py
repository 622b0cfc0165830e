"""What the ranks of the distributed tests run: ``torchrun rank_script.py CASE FOLDER``. Leaves rank<n>.json there."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.distributed as dist
import transformers
from transformers import TrainerCallback

import st_hpo
from st_hpo import Float, SearchSpace
from st_hpo.testing import METRIC, FailingLoss, make_trainer, scaled_loss

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
optuna.logging.set_verbosity(optuna.logging.ERROR)

CASE, FOLDER = sys.argv[1], Path(sys.argv[2])
RANK = int(os.environ["RANK"])
SPACE = SearchSpace({"learning_rate": Float(1e-4, 1e-2, log=True), "loss.scale": Float(5.0, 50.0)})


def trainer_of(**changes: Any) -> Any:
    args = {name: changes.pop(name) for name in ("max_steps", "eval_strategy", "eval_steps") if name in changes}
    trainer = make_trainer((FOLDER / "model.txt").read_text(), FOLDER / "out", **changes)
    for name, value in args.items():
        setattr(trainer.args, name, value)
    trainer.args.ddp_timeout = 30
    return trainer


def search(trainer: Any, **changes: Any) -> Any:
    sampler = optuna.samplers.RandomSampler(seed=RANK)  # were the ranks to propose for themselves, they would differ
    return trainer.hyperparameter_search(
        **{"hp_space": SPACE, "compute_objective": METRIC, "n_trials": 3, "sampler": sampler, **changes}
    )


class OnRank(TrainerCallback):
    """Does something at a step of a trial on one rank."""

    def __init__(self, rank: int, trial: str, action: Any, step: int = 1) -> None:
        self.rank, self.trial, self.action, self.step = rank, trial, action, step

    def __deepcopy__(self, memo: Any) -> OnRank:
        return self

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.rank in (RANK, -1) and state.trial_name == self.trial and state.global_step >= self.step:
            self.action()


def fail() -> None:
    raise ValueError(f"of rank {RANK}")


class PruneSecond(optuna.pruners.BasePruner):
    def prune(self, study: Any, trial: Any) -> bool:
        return trial.number == 1


def family(name: str) -> Any:
    """One of the scenarios that the tests of a single process use."""
    from scenarios import SCENARIOS, arguments

    scenario = SCENARIOS[name]
    fixed = {**(scenario.fixed or {}), "use_cpu": True, "per_device_train_batch_size": 4}
    if name == "cross_encoder":  # with the default, upstream's own trainer fails under DDP
        fixed["ddp_find_unused_parameters"] = False
    trainer = getattr(st_hpo, scenario.trainer)(
        args=arguments(scenario.arguments, **fixed),
        train_dataset=scenario.train(),
        eval_dataset=scenario.eval_data() if scenario.eval_data else None,
        evaluator=scenario.evaluator(),
        model_init=scenario.model_init,
        loss_init=scenario.loss_init,
    )
    # Under DDP, upstream's evaluation of this family gives no loss
    metric = "eval_dev_maxsim_accuracy" if scenario.metric == "eval_loss" else scenario.metric
    space = SearchSpace({"learning_rate": Float(1e-4, 1e-3)})
    return trainer.hyperparameter_search(space, metric, 2, "maximize"), None


def suggesting() -> Any:
    def loss_init(model: Any, trial: Any) -> Any:
        return scaled_loss(model, 20.0 if trial is None else trial.suggest_float("scale", 5.0, 50.0))

    trainer = trainer_of(loss_init=loss_init)
    return search(trainer, hp_space=SearchSpace({"learning_rate": Float(1e-4, 1e-2)})), trainer


def failing(rank: int, **changes: Any) -> Any:
    trainer = trainer_of(callbacks=[OnRank(rank, "run-1", fail)])
    return search(trainer, **changes), trainer


def run(case: str) -> tuple[Any, Any]:
    if case.startswith("family:"):
        return family(case.removeprefix("family:"))
    if case == "plain":
        trainer = trainer_of()
        return search(trainer), trainer
    if case == "best model":
        trainer = trainer_of(eval_strategy="steps", eval_steps=1)
        best = search(trainer, save_best_model=True, default_trial=True, objective_from="best")
        trainer.confirm(k=1, seeds=[3, 4], resume=True)
        return best, None
    if case == "no baseline":
        trainer = trainer_of()
        return search(trainer, compute_objective=None, direction="maximize", baseline=False), trainer
    if case == "pruning":
        trainer = trainer_of(max_steps=6, eval_strategy="steps", eval_steps=2)
        return search(trainer, pruner=PruneSecond(), rungs="evaluations"), trainer
    if case == "rungs":
        from scenarios import embedding_evaluator

        trainer = trainer_of(max_steps=6)
        return search(trainer, pruner=PruneSecond(), rungs=[0.3, 0.6], trial_evaluator=embedding_evaluator()), trainer
    if case == "enough":
        scales = [10.0, 10.0, 20.0, 30.0]
        options = {"hp_space": lambda trial: {"loss.scale": scales[trial.number]}, "budget": 2, "n_trials": 4}
        return search(trainer_of(), **options), None
    if case == "timeout":
        trainer = trainer_of(max_steps=40, callbacks=[OnRank(-1, "run-1", lambda: time.sleep(2.0))])
        return search(trainer, timeout=15, n_trials=20), None
    if case == "several objectives":
        trainer = trainer_of()
        objectives = {"compute_objective": [METRIC, "eval_probe_size"], "direction": ["maximize", "minimize"]}
        return search(trainer, **objectives), trainer
    if case == "suggestion":
        return suggesting()
    if case.startswith("fails on "):
        return failing(int(case[-1]), catch=(ValueError,))
    if case.startswith("raises on "):
        return failing(int(case[-1]))
    if case.startswith("init fails on "):
        loss = FailingLoss(FOLDER, {1}, ValueError("in loss_init"))
        if int(case[-1]) != RANK:
            loss = scaled_loss  # type: ignore[assignment]
        trainer = trainer_of(loss_init=loss)
        return search(trainer, on_error="continue"), trainer
    if case == "nan":
        trainer = trainer_of(loss_init=lambda model, scale=20.0: scaled_loss(model, scale))
        rates = [1e-3, math.inf, 1e-3]
        return search(trainer, hp_space=lambda trial: {"loss.scale": rates[trial.number]}), trainer
    if case == "dies":
        trainer = trainer_of(callbacks=[OnRank(1, "run-1", lambda: os.kill(os.getpid(), signal.SIGKILL))])
        storage = f"sqlite:///{FOLDER}/study.db"
        return search(trainer, storage=storage if RANK == 0 else None, study_name="s"), trainer
    if case == "hangs":
        trainer = trainer_of(callbacks=[OnRank(1, "run-1", lambda: time.sleep(600))])
        return search(trainer), trainer
    if case == "ray":
        return search(trainer_of(), backend="ray", sampler=None), None
    raise AssertionError(case)


def main() -> None:
    found: dict[str, Any] = {}
    trainer = None
    try:
        best, trainer = run(CASE)
        runs = best if isinstance(best, list) else [best]
        result = runs[0].run_summary
        found = {
            "ids": [item.run_id for item in runs],
            "objectives": [item.objective for item in runs],
            "hyperparameters": [item.hyperparameters for item in runs],
            "result": json.loads(result.to_json()),
            "native": type(result.native).__name__,
        }
        if trainer is not None and not isinstance(best, list):
            trainer.apply_best_run(best)
            trainer.train()
            found["again"] = trainer.evaluate()[METRIC]
    except BaseException as exc:
        found = {"error": type(exc).__name__, "message": str(exc)}
        if CASE in ("dies", "hangs"):
            raise
    finally:
        (FOLDER / f"rank{RANK}.json").write_text(json.dumps(found))
    # The model first: were the process group to go with it, torch would join its threads while it holds the GIL
    del trainer
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

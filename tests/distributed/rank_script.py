"""What the ranks of the distributed tests run: ``torchrun rank_script.py CASE FOLDER [CASE FOLDER ...]``.

The cases run one after the other, in one process group. Each leaves rank<n>.json in its folder.
"""

from __future__ import annotations

import datetime
import gc
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.distributed as dist
import transformers
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

import st_hpo
from st_hpo import ConfigurationError, Float, NotSupportedError, RankError, SearchSpace, sharing
from st_hpo.testing import METRIC, FailingLoss, Probe, scaled_loss

from rank_setup import (
    ENDED,
    NOW,
    RANK,
    SECONDS,
    OnRank,
    cases,
    die,
    fail,
    hang,
    in_backward,
    out_of_memory,
    search,
    stored,
    trainer_of,
)

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
optuna.logging.set_verbosity(optuna.logging.ERROR)

MORE: dict[str, Any] = {}  # what a case leaves beside its first search


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
        if trial is None:
            return scaled_loss(model)
        trial.set_user_attr("process", RANK)
        if RANK == 1 and getattr(trial, "number", None) == 1:
            fail()  # before rank 0 suggests
        return scaled_loss(model, trial.suggest_float("scale", 5.0, 50.0))

    trainer = trainer_of(loss_init=loss_init)
    space = SearchSpace({"learning_rate": Float(1e-4, 1e-2)})
    return search(trainer, hp_space=space, n_trials=4, catch=ValueError, **stored()), trainer


class Folders(TrainerCallback):
    """Notes the folder of every training."""

    def __init__(self, folders: list[str]) -> None:
        self.folders = folders

    def __deepcopy__(self, memo: Any) -> Folders:
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.folders.append(args.output_dir)


class TokenFiles(TrainerCallback):
    """Notes where each training finds tokens of other processes."""

    def __init__(self, files: list[str | None]) -> None:
        self.files = files

    def __deepcopy__(self, memo: Any) -> TokenFiles:
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (cache := sharing._cache()) is not None:  # not when the best is trained again
            self.files.append(cache.file.path)


class FailingProbe(Probe):
    """Raises in its third call: that of trial 2, as trial 1 does not come to its evaluation."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().__call__(*args, **kwargs)
        self.calls += 1
        if self.calls == 3:
            raise ValueError("in the evaluator")
        return metrics


def failing_in_forward_and_evaluator() -> Any:
    def loss_init(model: Any, trial: Any, scale: float = 20.0) -> Any:
        loss = scaled_loss(model, scale)
        if RANK == 1 and getattr(trial, "number", None) == 1:
            loss.register_forward_pre_hook(lambda *args: fail())
        return loss

    trainer = trainer_of(loss_init=loss_init, evaluator=FailingProbe(), eval_strategy="steps", eval_steps=2)
    trainer.args.metric_for_best_model = METRIC  # which the other rank then misses, and fails as well
    return search(trainer, n_trials=4, catch=ValueError), trainer


def pruners() -> Any:
    trainer = trainer_of(max_steps=6)
    asha = search(trainer, pruner="asha")
    options = {"pruner": "median", "rungs": [16, 40], "rung_scale": "examples", "n_trials": 2}
    MORE["examples"] = json.loads(search(trainer, **options).run_summary.to_json())
    return asha, trainer


def other_backends() -> Any:
    seen = MORE["seen"] = []

    def model_init(trial: Any) -> Any:
        if trial is not None:
            names = [getattr(trial, name, None) for name in ("number", "id")]
            seen.append([*names, trial["learning_rate"], trial.assignments["loss.scale"], trial.params["loss.scale"]])
        return SentenceTransformer((NOW.folder / "model.txt").read_text(), device="cpu")

    trainer = trainer_of(model_init=model_init)
    sigopt = search(trainer, backend="sigopt", seed=0)
    wandb = search(trainer, backend="wandb", project="tests", n_trials=2)
    MORE["wandb"] = json.loads(wandb.run_summary.to_json())
    return sigopt, None


def refused() -> Any:
    said = []
    unclear = {"baseline": False, "compute_objective": "eval_probe_size"}
    for options in ({"backend": "ray"}, {"n_jobs": 2}, unclear):
        try:
            search(trainer_of(), **options)
        except (NotSupportedError, RankError, ConfigurationError) as exc:
            said.append(str(exc))
    raise NotSupportedError("\n".join(said))


def terminated() -> Any:
    """Rank 0 says that trial 1 has begun; rank 1 is slow, so that rank 0 waits for it most of the time."""

    def act() -> None:
        if RANK == 0:
            (NOW.folder / "begun").touch()
        else:
            time.sleep(0.3)

    trainer = trainer_of(max_steps=400, callbacks=[OnRank(-1, "run-1", act)])
    space = lambda trial: {"max_steps": 2 if trial.number == 0 else 400, "loss.scale": 20.0}  # noqa: E731
    return search(trainer, hp_space=space, **stored()), None


def failing(rank: int, **changes: Any) -> Any:
    trainer = trainer_of(callbacks=[OnRank(rank, "run-1", fail)])
    return search(trainer, **changes), trainer


def run(case: str) -> tuple[Any, Any]:
    if case.startswith("family:"):
        return family(case.removeprefix("family:"))
    if case == "plain":
        tokens = MORE["tokens"] = []
        trainer = trainer_of(callbacks=[TokenFiles(tokens)])
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
        space = lambda trial: {"max_steps": 2 if trial.number == 0 else 40, "loss.scale": 20.0}  # noqa: E731
        return search(trainer, hp_space=space, timeout=30, n_trials=20), None
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
        loss = FailingLoss(NOW.folder, {1}, ValueError("in loss_init"))
        if int(case[-1]) != RANK:
            loss = scaled_loss  # type: ignore[assignment]
        trainer = trainer_of(loss_init=loss)
        return search(trainer, on_error="continue"), trainer
    if case == "nan":
        trainer = trainer_of(loss_init=lambda model, scale=20.0: scaled_loss(model, scale))
        rates = [1e-3, math.inf, 1e-3]
        return search(trainer, hp_space=lambda trial: {"loss.scale": rates[trial.number]}), trainer
    if case in ("dies", "leader dies"):
        return search(trainer_of(callbacks=[OnRank(int(case == "dies"), "run-1", die)]), **stored()), None
    if case == "same name":
        folders = MORE["folders"] = []
        trainer = trainer_of(callbacks=[Folders(folders)], eval_strategy="steps", eval_steps=1)
        trainer.args.save_strategy, trainer.args.save_steps = "steps", 1
        trainer.args.load_best_model_at_end, trainer.args.metric_for_best_model = True, METRIC
        return search(trainer, hp_name=lambda trial: "same", n_trials=2), trainer
    if case == "waits":
        trainer = trainer_of()
        trainer.args.ddp_timeout = 20
        return search(trainer, n_trials=2, **stored()), None
    if case == "resumes":
        return search(trainer_of(), **stored()), None
    if case == "hangs in backward":
        return search(trainer_of(loss_init=in_backward(hang))), None
    if case == "out of memory in backward":
        return search(trainer_of(loss_init=in_backward(out_of_memory)), **stored()), None
    simple = {
        "forward and evaluator": failing_in_forward_and_evaluator,
        "pruners": pruners,
        "other backends": other_backends,
        "refused": refused,
        "terminated": terminated,
    }
    if case in simple:
        return simple[case]()
    raise AssertionError(case)


def run_and_note(case: str, folder: Path) -> int:
    """Runs a case and leaves what it found; returns the exit status that it asks for."""
    NOW.case, NOW.folder = case, folder
    os.chdir(folder)
    MORE.clear()
    found: dict[str, Any] = {}
    trainer, code = None, 0
    try:
        best, trainer = run(case)
        runs = best if isinstance(best, list) else [best]
        result = runs[0].run_summary
        found = {
            "ids": [item.run_id for item in runs],
            "objectives": [item.objective for item in runs],
            "hyperparameters": [item.hyperparameters for item in runs],
            "result": json.loads(result.to_json()),
            "native": type(result.native).__name__,
            **MORE,
        }
        if trainer is not None and not isinstance(best, list):
            trainer.apply_best_run(best)
            trainer.train()
            found["again"] = trainer.evaluate()[METRIC]
    except BaseException as exc:
        found = {"error": type(exc).__name__, "message": str(exc)}
        if case in ENDED:
            raise
        code = exc.code if isinstance(exc, SystemExit) else 0
    finally:
        (folder / f"rank{RANK}.json").write_text(json.dumps(found))
    # The model first: were the process group to go with it, torch would join its threads while it holds the GIL
    del trainer
    gc.collect()
    return code


def main() -> None:
    first, folder = cases()[0]
    if first in ENDED:
        if RANK == 0:  # the short timeout is not for the imports, nor for the tables
            optuna.storages.RDBStorage(f"sqlite:///{folder}/study.db")
        (folder / f"here{RANK}").touch()
        while len(list(folder.glob("here*"))) < 2:
            time.sleep(0.05)
        # On CPU, transformers does not hand `ddp_timeout` on to the process group
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=SECONDS))
    codes = [run_and_note(case, folder) for case, folder in cases()]
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(max(codes))


if __name__ == "__main__":
    main()

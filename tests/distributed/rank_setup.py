"""What the cases of ``rank_script.py`` share: which rank of which case this is, trainers, searches, faults."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from transformers import TrainerCallback

from st_hpo import Float, SearchSpace
from st_hpo.testing import METRIC, make_trainer, scaled_loss

RANK = int(os.environ["RANK"])
SPACE = SearchSpace({"learning_rate": Float(1e-4, 1e-2, log=True), "loss.scale": Float(5.0, 50.0)})
ENDED = ("dies", "leader dies", "hangs in backward", "out of memory in backward")
SECONDS = 25


@dataclass
class Now:
    """The case that runs, and its folder."""

    case: str = ""
    folder: Path = Path()


NOW = Now()


def cases() -> list[tuple[str, Path]]:
    """What this job is to run: pairs of a case and its folder."""
    return [(case, Path(folder)) for case, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True)]


def stored() -> dict[str, Any]:
    """Both ranks have the same arguments, as in a script of a user's; rank 0 alone opens the storage."""
    return {"storage": f"sqlite:///{NOW.folder}/study.db", "study_name": "s", "resume": True}


def trainer_of(**changes: Any) -> Any:
    args = {name: changes.pop(name) for name in ("max_steps", "eval_strategy", "eval_steps") if name in changes}
    trainer = make_trainer((NOW.folder / "model.txt").read_text(), NOW.folder / "out", **changes)
    for name, value in args.items():
        setattr(trainer.args, name, value)
    trainer.args.ddp_timeout = SECONDS if NOW.case in ENDED else 30
    return trainer


def search(trainer: Any, **changes: Any) -> Any:
    fixed = {"hp_space": SPACE, "compute_objective": METRIC, "n_trials": 3}
    if "backend" not in changes:  # were the ranks to propose for themselves, they would differ
        fixed["sampler"] = optuna.samplers.RandomSampler(seed=RANK)
    return trainer.hyperparameter_search(**{**fixed, **changes})


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


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(*args: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher need not wait until it may kill
    time.sleep(600)


def out_of_memory(*args: Any) -> None:
    raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")


def in_backward(action: Any) -> Any:
    """A ``loss_init`` that does something in the backward pass of trial 1 on rank 1, where rank 0 waits for it."""

    def loss_init(model: Any, trial: Any, scale: float = 20.0) -> Any:
        if RANK == 1 and trial is not None and trial.number == 1:
            next(model.parameters()).register_hook(action)
        return scaled_loss(model, scale)

    return loss_init

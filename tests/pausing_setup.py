"""A trial that pauses in the middle of its training, and is taken up again at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from st_hpo.backends.optuna.promotion import is_promoted
from st_hpo.backends.optuna.pruners import AshaPruner
from st_hpo.records import COMPLETED, PRUNED

from fast_trainer import METRIC, RATES, fast_arguments, fast_trainer, random_sampler

STEPS = 8


class AtFirst(AshaPruner):
    """Pauses every trial at its first rung, and takes it up again at once."""

    def __init__(self, keep: int = 3) -> None:
        super().__init__(pauses=True, keep=keep)

    def prune(self, study: Any, trial: Any) -> bool:
        return not is_promoted(trial)

    def promotable(self, study: Any, last: bool) -> Any:
        trials = study.get_trials(deepcopy=False)
        paused = [trial for trial in trials if trial.state == optuna.trial.TrialState.PRUNED]
        return paused[-1] if paused and trials[-1].number == paused[-1].number else None


def search(trainer: Any, **changes: Any) -> Any:
    options = {"hp_space": RATES, "compute_objective": METRIC, "n_trials": 1, "sampler": random_sampler()}
    return trainer.hyperparameter_search(**{**options, "pruner": AtFirst(), "rungs": [0.5], **changes}).run_summary


def trainer_of(folder: Path, **changes: Any) -> Any:
    args = {"max_steps": STEPS, "output_dir": str(folder / "output"), **changes.pop("arguments", {})}
    return fast_trainer(args=fast_arguments(**args), **changes)


def whole(folder: Path, **changes: Any) -> Any:
    """The same trial without a pruner."""
    (trial,) = search(trainer_of(folder, **changes), pruner=None, rungs=None).trials
    return trial


def scores_of(trial: Any) -> list[tuple[int, float, float]]:
    """Its learning curve, without the times."""
    return [(item["step"], item["epoch"], item["metrics"][METRIC]) for item in trial.evaluations]


def check(result: Any, expected: float, continued: bool) -> None:
    before, after = result.trials
    assert (before.state, after.state, after.continues) == (PRUNED, COMPLETED, 0)
    assert after.objective == expected
    assert (before.fraction, after.fraction) == (0.5, 0.5 if continued else 1.0)

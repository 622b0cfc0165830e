"""Very many trials of next to no training: what st_hpo costs beside the training, from the first trial to the last.

Started by ``same_search.py --machinery``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from typing import Any

from one_search import OURS, arguments, import_trainer, model_init_from, resident

USER_PHASES = ("model", "loss", "train", "evaluate")


def measure_machinery(options: argparse.Namespace) -> dict[str, Any]:
    """Runs very many trials with next to no training; returns what each hundred of them cost."""
    trainer_class, _ = import_trainer(OURS, options.threads)
    import optuna
    from sentence_transformers.base.evaluation import BaseEvaluator
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    from embedded import sts_benchmark

    class Constant(BaseEvaluator):
        def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            return {"constant": 0.5}

    n_trials = options.machinery_trials
    block = min(100, n_trials)
    starts: list[float] = []
    memory: list[float] = []

    def hp_space(trial: optuna.Trial) -> dict[str, Any]:
        # Noted here and not in a callback of Optuna's, for which it would copy the trial
        if trial.number and trial.number % block == 0:
            memory.append(resident())
        starts.append(time.perf_counter())
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True)}

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            args=arguments(folder, max_steps=1, per_device_train_batch_size=2, logging_strategy="no"),
            model_init=model_init_from(options.model),
            loss_init=CosineSimilarityLoss,
            train_dataset=sts_benchmark("train", 16),
            evaluator=Constant(),
        )
        best = trainer.hyperparameter_search(
            hp_space=hp_space,
            compute_objective="eval_constant",
            direction="maximize",
            n_trials=n_trials,
            backend="optuna",
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
    ended = time.perf_counter()
    memory.append(resident())
    phases = [trial.phases for trial in best.run_summary.trials]
    user = [sum(phase.get(key, 0.0) for key in USER_PHASES) * 1e3 for phase in phases]
    inside = [sum(phase.values()) * 1e3 - spent for phase, spent in zip(phases, user, strict=True)]
    # From one proposal to the next, so with Optuna's own work and what lies between the phases
    whole = [(after - before) * 1e3 - spent for (before, after), spent in zip(pairwise(starts), user, strict=False)]
    blocks = []
    for first in range(0, n_trials - block + 1, block):
        span = range(first, first + block)
        blocks.append(
            {
                "trials": f"{first}-{first + block - 1}",
                "machinery_ms": statistics.median(whole[first : first + block]),
                "in_phases_ms": statistics.median(inside[i] for i in span),
                "user_ms": statistics.median(user[i] for i in span),
                "rss_mib": memory[first // block],
                "phases_ms": {key: statistics.median(phases[i][key] * 1e3 for i in span) for key in phases[0]},
            }
        )
    return {"blocks": blocks, "total_s": ended - starts[0], "trials": n_trials}

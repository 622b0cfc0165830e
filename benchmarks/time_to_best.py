"""How long until a search holds a configuration as good as upstream's whole search has found.

Side by side, for every seed: upstream's ``hyperparameter_search`` with Optuna's TPE, the same with Ray Tune and ASHA,
and st_hpo with ``pruner="asha"`` in one process and in two workers. Every search has a process of its own. The target
is upstream's best objective less a tolerance, and what counts is a trial that was trained to its end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]
METRIC = "eval_sts-dev_spearman_cosine"
TOLERANCE = 0.002
EVALUATIONS = 5  # of a whole training, for Ray Tune's ASHA on upstream's trainer
UPSTREAM, UPSTREAM_RAY, ONE, TWO = CONTENDERS = ("upstream", "upstream-ray-asha", "st_hpo", "st_hpo-2-workers")
PACKAGES = ("sentence-transformers", "transformers", "torch", "optuna", "ray", "datasets")


def search_space(trial: Any) -> dict[str, Any]:
    """The official example's own space, for Optuna."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 5e-3, log=True),
        "per_device_train_batch_size": trial.suggest_int("per_device_train_batch_size", 32, 128),
        "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 2),
        "warmup_steps": trial.suggest_float("warmup_steps", 0.0, 0.3),
    }


def ray_space(trial: Any) -> dict[str, Any]:
    """The same, for Ray Tune."""
    from ray import tune

    return {
        "learning_rate": tune.loguniform(1e-5, 5e-3),
        "per_device_train_batch_size": tune.randint(32, 129),
        "num_train_epochs": tune.randint(1, 3),
        "warmup_steps": tune.uniform(0.0, 0.3),
    }


def build(options: argparse.Namespace, folder: str, **changes: Any) -> Any:
    """Returns the trainer of a contender."""
    from one_search import UPSTREAM as UPSTREAMS_TRAINER
    from one_search import arguments, import_trainer, model_init_from, shape
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers

    ours = options.run in (ONE, TWO)
    trainer_class, _ = import_trainer("st_hpo" if ours else UPSTREAMS_TRAINER, options.threads)
    parts = shape(options.triplets, options.train_size, options.dev_size)
    loss = parts.pop("loss")
    if options.triplets is not None:
        changes["batch_sampler"] = BatchSamplers.NO_DUPLICATES
    args = arguments(folder, **changes)
    return trainer_class(args=args, model_init=model_init_from(None), loss=lambda model: loss(model), **parts)


def run_upstream(options: argparse.Namespace, folder: str) -> list[tuple[float, float]]:
    """Runs upstream's search with TPE; returns when each trial was done, and its objective."""
    import optuna

    done: list[tuple[float, float]] = []
    started = time.perf_counter()

    def compute_objective(metrics: dict[str, float]) -> float:
        done.append((time.perf_counter() - started, metrics[METRIC]))
        return metrics[METRIC]

    build(options, folder).hyperparameter_search(
        hp_space=search_space,
        compute_objective=compute_objective,
        n_trials=options.trials,
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.TPESampler(seed=options.seed),
    )
    return done


def run_upstream_ray(options: argparse.Namespace, folder: str) -> list[tuple[float, float]]:
    """Runs upstream's search with Ray Tune and ASHA, two trials at a time; returns the whole trainings among them."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import numpy as np
    from ray import tune

    started, wall = time.perf_counter(), time.time()
    trainer = build(options, folder, eval_strategy="steps", eval_steps=1 / EVALUATIONS)
    np.random.seed(options.seed)  # Ray Tune's own search draws from it, and upstream's trainer has just seeded it
    found = trainer.hyperparameter_search(
        hp_space=ray_space,
        compute_objective=_metric,
        n_trials=options.trials,
        direction="maximize",
        backend="ray",
        scheduler=tune.schedulers.ASHAScheduler(
            metric="objective", mode="max", max_t=EVALUATIONS, grace_period=1, reduction_factor=3
        ),
        resources_per_trial={"cpu": 1},
        max_concurrent_trials=2,
        storage_path=folder,
        verbose=0,
    )
    assert time.perf_counter() > started
    whole = [
        trial.last_result
        for trial in found.run_summary.trials
        if trial.last_result.get("training_iteration", 0) >= EVALUATIONS
    ]
    return sorted((result["timestamp"] - wall, result["objective"]) for result in whole)


def _metric(metrics: dict[str, float]) -> float:
    return metrics[METRIC]


def run_ours(options: argparse.Namespace, folder: str) -> list[tuple[float, float]]:
    """Runs st_hpo's search until the target is held, or its time is up; returns the whole trainings."""
    import optuna

    from st_hpo.backends.optuna.pruners import AshaPruner

    done: list[tuple[float, float]] = []
    started = time.perf_counter()

    def note(study: Any, trial: Any) -> None:
        if trial.state == optuna.trial.TrialState.COMPLETE:
            done.append((time.perf_counter() - started, trial.value))
            if trial.value >= options.target:
                study.stop()

    evaluator: dict[str, Any] = {}
    trainer = build(options, folder)
    if options.sample is not None:
        from st_hpo import subsample_evaluator

        evaluator["trial_evaluator"] = subsample_evaluator(trainer.evaluator, options.sample)
    trainer.hyperparameter_search(
        hp_space=search_space,
        compute_objective=METRIC,
        n_trials=options.trials * 3,  # no more than the time that upstream's search has taken
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.TPESampler(seed=options.seed),
        pruner="asha" if options.reduction_factor is None else AshaPruner(options.reduction_factor, pauses=True),
        n_jobs=2 if options.run == TWO else 1,
        timeout=options.limit,
        callbacks=[note],
        **evaluator,
    )
    return done


def measure(options: argparse.Namespace) -> None:
    """Runs one contender in this process, and prints one line of JSON."""
    runs = {UPSTREAM: run_upstream, UPSTREAM_RAY: run_upstream_ray, ONE: run_ours, TWO: run_ours}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = runs[options.run](options, folder)
        print("RESULT " + json.dumps({"seconds": time.perf_counter() - started, "done": done}))


def in_a_process(options: argparse.Namespace, contender: str, seed: int, *more: str) -> dict[str, Any]:
    """Runs one contender in a process of its own."""
    command = [sys.executable, __file__, "--run", contender, "--seed", str(seed), *more]
    for name in ("triplets", "train_size", "dev_size", "trials", "threads", "sample", "reduction_factor"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in found.stdout.splitlines() if line.startswith("RESULT ")]
    if found.returncode or not lines:
        raise SystemExit(f"{contender} failed:\n{found.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))  # type: ignore[no-any-return]


def first_reaching(run: dict[str, Any], target: float) -> float:
    """Returns the seconds until a run held the target; infinity if it never did."""
    return min((at for at, value in run["done"] if value >= target), default=math.inf)


def summary(rounds: list[dict[str, Any]], contenders: list[str]) -> str:
    """Returns the two ratios of every contender as a table."""
    lines = [
        "| | a: time to the target / upstream's total | b: / the time upstream took to it | reached | search, s |",
        "|---|---|---|---|---|",
    ]
    for name in contenders:
        totals = [item["runs"][UPSTREAM]["seconds"] for item in rounds]
        times = [first_reaching(item["runs"][name], item["target"]) for item in rounds]
        firsts = [first_reaching(item["runs"][UPSTREAM], item["target"]) for item in rounds]
        a = [at / total for at, total in zip(times, totals, strict=True)]
        b = [at / first for at, first in zip(times, firsts, strict=True)]
        seconds = [item["runs"][name]["seconds"] for item in rounds]
        reached = f"{sum(map(math.isfinite, times))} of {len(times)}"
        lines.append(f"| {name} | {_spread(a)} | {_spread(b)} | {reached} | {_spread(seconds, 0)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int = 2) -> str:
    shown = [f"{value:.{digits}f}" if math.isfinite(value) else "∞" for value in sorted(values)]
    middle = statistics.median(values)
    return (
        f"{middle:.{digits}f} ({shown[0]}..{shown[-1]})" if math.isfinite(middle) else f"∞ ({shown[0]}..{shown[-1]})"
    )


def main() -> None:
    """Runs the contenders in turns, seed by seed, and prints the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--triplets", help="lines of JSON with anchor, positive, negative; without it STS-B pairs")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--dev-size", type=int)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of a search; workers share them")
    parser.add_argument("--sample", type=float, help="evaluate at the rungs on this part of the evaluation data")
    parser.add_argument("--reduction-factor", type=int, help="one of how many trials goes on from a rung; st_hpo's 4")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", help="keep everything here; continued if it is there")
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=float, default=math.inf, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        measure(options)
        return
    if options.reduction_factor is not None and options.reduction_factor < 2:
        parser.error(f"--reduction-factor must be at least 2, but got {options.reduction_factor}")
    contenders = [name for name in CONTENDERS if name == UPSTREAM or name in options.contenders]
    kept = Path(options.json) if options.json else None
    rounds = json.loads(kept.read_text())["rounds"] if kept is not None and kept.exists() else []
    for seed in range(len(rounds), options.seeds):
        runs = {UPSTREAM: in_a_process(options, UPSTREAM, seed)}
        target = max(value for _, value in runs[UPSTREAM]["done"]) - TOLERANCE
        for name in contenders[1:]:
            ours = name in (ONE, TWO)
            limits = ("--target", repr(target), "--limit", repr(runs[UPSTREAM]["seconds"])) if ours else ()
            runs[name] = in_a_process(options, name, seed, *limits)
        rounds.append({"seed": seed, "target": target, "runs": runs})
        if kept is not None:
            machine = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
            versions = {name: version(name) for name in PACKAGES}
            kept.write_text(json.dumps({"options": vars(options), **machine, "versions": versions, "rounds": rounds}))
        print(f"seed {seed}: target {target:.4f}\n{summary(rounds, contenders)}\n", flush=True)


if __name__ == "__main__":
    main()

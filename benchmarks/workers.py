"""How many trials an hour: one process against two workers, on the embedded model, in turns.

Every search has a process of its own. ``--threads`` is what the sequential search has, and what the workers share.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs one search in this process, and returns its times and objectives."""
    from one_search import OURS, arguments, import_trainer, model_init_from, shape

    trainer_class, _ = import_trainer(OURS, options.threads)
    import optuna

    from st_hpo import Categorical, Float, SearchSpace

    parts = shape(None, options.train_size, options.dev_size)
    loss = parts.pop("loss")
    ended: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            args=arguments(folder), model_init=model_init_from(None), loss_init=lambda model: loss(model), **parts
        )
        started = time.perf_counter()
        best = trainer.hyperparameter_search(
            SearchSpace(
                {
                    "learning_rate": Float(1e-5, 1e-3, log=True),
                    "per_device_train_batch_size": Categorical([32, 64]),
                    "warmup_steps": Float(0.0, 0.3),
                }
            ),
            n_trials=options.trials,
            backend="optuna",
            baseline=False,
            sampler=optuna.samplers.RandomSampler(seed=0),
            n_jobs=options.run,
            callbacks=[lambda study, trial: ended.append(time.perf_counter())],
        )
        seconds = time.perf_counter() - started
    warm = options.run  # the first trial of each worker has the imports before it
    return {
        "seconds": seconds,
        "trials_per_hour": options.trials / seconds * 3600,
        "trials_per_hour_warm": (options.trials - warm) / (ended[-1] - ended[warm - 1]) * 3600,
        "rates": [record.hyperparameters["learning_rate"] for record in best.run_summary.trials],
        "load": os.getloadavg()[0],
    }


def spread(values: Sequence[float]) -> str:
    """Returns the median, the least and the greatest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def main() -> None:
    """Measures all, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-size", type=int, default=600)
    parser.add_argument("--dev-size", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        print(json.dumps(measure(options)))
        return
    variants = {
        f"one process, {options.threads} threads": (1, options.threads),
        "one process, 1 thread": (1, 1),
        f"{options.workers} workers": (options.workers, options.threads),
    }
    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        found = {}
        for name, (jobs, threads) in variants.items():
            command = [sys.executable, __file__, f"--run={jobs}", f"--threads={threads}"]
            command += [
                f"--{key}={getattr(options, key.replace('-', '_'))}" for key in ("trials", "train-size", "dev-size")
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}: {found[name]['seconds']:.1f} s, load {found[name]['load']:.1f}", file=sys.stderr)
        if len({tuple(run["rates"]) for run in found.values()}) > 1:
            raise SystemExit("The searches were proposed different values.")
        rounds.append(found)
    first = next(iter(variants))
    print("| | trials an hour | ratio, whole search | ratio, once the workers have started |\n|---|---|---|---|")
    for name in variants:
        rates = [item[name]["trials_per_hour"] for item in rounds]
        whole = [item[name]["trials_per_hour"] / item[first]["trials_per_hour"] for item in rounds]
        warm = [item[name]["trials_per_hour_warm"] / item[first]["trials_per_hour_warm"] for item in rounds]
        print(f"| {name} | {statistics.median(rates):.0f} | {spread(whole)} | {spread(warm)} |")
    if options.json is not None:
        options.json.write_text(json.dumps(rounds, indent=2))


if __name__ == "__main__":
    main()

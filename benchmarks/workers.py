"""How many trials an hour, and how much memory: one process, workers, and upstream's search, in turns.

Every search has a process of its own. ``--threads`` is what a sequential search has, and what the workers share. On a
machine with a GPU, ``--workers 1 2 4 8 --workers-per-gpu 8`` is the question how many trainings one GPU takes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]


def search_space(trial: Any) -> dict[str, Any]:
    """What is searched, for Optuna."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [32, 64]),
        "warmup_steps": trial.suggest_float("warmup_steps", 0.0, 0.3),
    }


class PeakMemory:
    """The most memory in use at one time: of this process with its children, and of the GPU with all its processes.

    Attributes:
        host: In MiB; what processes share is shared out between them (PSS).
        gpu: In MiB; 0 without a GPU.
    """

    def __init__(self) -> None:
        self.host = self.gpu = 0.0

    @contextlib.contextmanager
    def watching(self, every: float = 2.0) -> Iterator[None]:
        """Looks at it again and again in this block.

        Args:
            every: After so many seconds.
        """
        ended = threading.Event()
        watcher = threading.Thread(target=lambda: [self._look() for _ in iter(lambda: ended.wait(every), True)])
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _look(self) -> None:
        import psutil
        import torch

        used = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                memory = process.memory_full_info()
                used += getattr(memory, "pss", memory.uss)
        self.host = max(self.host, used / 2**20)
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            self.gpu = max(self.gpu, (total - free) / 2**20)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs one search in this process, and returns its times and proposals."""
    from one_search import OURS, UPSTREAM, arguments, import_trainer, model_init_from, shape

    upstream = options.run == 0
    trainer_class, _ = import_trainer(UPSTREAM if upstream else OURS, options.threads)
    import optuna

    parts = shape(None, options.train_size, options.dev_size)
    loss = parts.pop("loss")
    ended: list[float] = []
    rates: list[float] = []

    def space(trial: Any) -> dict[str, Any]:
        found = search_space(trial)
        rates.append(found["learning_rate"])
        return found

    def objective(metrics: dict[str, float]) -> float:
        ended.append(time.perf_counter())
        return metrics["eval_sts-dev_spearman_cosine"]

    own: dict[str, Any] = {"compute_objective": objective}
    if not upstream:
        own = {"baseline": False, "n_jobs": options.run, "workers_per_gpu": options.workers_per_gpu}
        own["callbacks"] = [lambda study, trial: ended.append(time.perf_counter())]
    peak = PeakMemory()
    with tempfile.TemporaryDirectory() as folder, peak.watching():
        trainer = trainer_class(
            args=arguments(folder), model_init=model_init_from(options.model), loss=lambda model: loss(model), **parts
        )
        started = time.perf_counter()
        trainer.hyperparameter_search(
            space,
            n_trials=options.trials,
            direction="maximize",
            backend="optuna",
            sampler=optuna.samplers.RandomSampler(seed=0),
            **own,
        )
        seconds = time.perf_counter() - started
    warm = max(1, options.run)  # the first trial of each worker has the imports before it
    return {
        "seconds": seconds,
        "trials_per_hour": options.trials / seconds * 3600,
        "trials_per_hour_warm": (options.trials - warm) / (ended[-1] - ended[warm - 1]) * 3600,
        "host_mib": peak.host,
        "gpu_mib": peak.gpu,
        "rates": rates,
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
    parser.add_argument("--workers", type=int, nargs="+", default=[2], help="one search for each of these numbers")
    parser.add_argument("--workers-per-gpu", type=int, help="so many share a GPU; by default all GPUs get one first")
    parser.add_argument("--model", metavar="PATH", help="another checkpoint than the embedded one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)  # with so many workers; 0 is upstream's search
    options = parser.parse_args()
    if options.run is not None:
        print(json.dumps(measure(options)))
        return
    if options.trials <= max(options.workers):
        parser.error(f"--trials must be more than the {max(options.workers)} workers, but got {options.trials}")
    variants = {f"one process, {options.threads} threads": (1, options.threads), "one process, 1 thread": (1, 1)}
    variants |= {f"{count} workers": (count, options.threads) for count in options.workers if count > 1}
    variants[f"upstream, one process, {options.threads} threads"] = (0, options.threads)
    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        found = {}
        for name, (jobs, threads) in variants.items():
            command = [sys.executable, __file__, f"--run={jobs}", f"--threads={threads}"]
            for key in ("trials", "train-size", "dev-size", "model", "workers-per-gpu"):
                if (value := getattr(options, key.replace("-", "_"))) is not None:
                    command.append(f"--{key}={value}")
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}: {found[name]['seconds']:.1f} s, load {found[name]['load']:.1f}", file=sys.stderr)
        if len({tuple(run["rates"]) for run in found.values()}) > 1:
            raise SystemExit("The searches were proposed different values.")
        rounds.append(found)
    first = next(iter(variants))
    columns = ("", "trials an hour", "ratio, whole search", "ratio, once the workers have started")
    columns += ("peak memory, MiB", "of the GPU, MiB")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in variants:
        rates = [item[name]["trials_per_hour"] for item in rounds]
        whole = [item[name]["trials_per_hour"] / item[first]["trials_per_hour"] for item in rounds]
        warm = [item[name]["trials_per_hour_warm"] / item[first]["trials_per_hour_warm"] for item in rounds]
        host, gpu = (max(item[name][key] for item in rounds) for key in ("host_mib", "gpu_mib"))
        memory = f"{host:.0f} | {gpu:.0f}" if gpu else f"{host:.0f} |"
        print(f"| {name} | {statistics.median(rates):.0f} | {spread(whole)} | {spread(warm)} | {memory} |")
    if options.json is not None:
        options.json.write_text(json.dumps(rounds, indent=2))


if __name__ == "__main__":
    main()

"""Eight processes on one PostgreSQL study, with st_hpo and with Optuna's own ``study.optimize``, in turns.

It starts a server of its own on a free port of the loopback interface. The trainings are as short as can be (one step
of a tiny model), so that what is measured is the study that they share. The processes are forked once all is imported,
and begin together.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "backends"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import optuna
import torch
import transformers
from optuna.storages import BaseStorage, _CachedStorage
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import PrinterCallback

from st_hpo import SentenceTransformerHPOTrainer
from st_hpo.testing import build_tiny_model, scaled_loss, sentence_pairs

from postgres import running_postgres

fork = multiprocessing.get_context("fork")


class Constant(BaseEvaluator):
    """Evaluates nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {"constant": 0.5}


def parts(folder: Path, **values: Any) -> dict[str, Any]:
    """Returns what both kinds of trainers get: one step of two pairs, and next to no evaluation."""
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **values,
    )
    return {"args": args, "train_dataset": sentence_pairs(8), "evaluator": Constant()}


class StorageTime:
    """How long the process is in its storage, all threads together."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = threading.local()
        for name in BaseStorage.__abstractmethods__:
            setattr(_CachedStorage, name, self._timed(getattr(_CachedStorage, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "now", False):
                return method(*args, **kwargs)
            self._inside.now, began = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._inside.now = False
                self.seconds += time.perf_counter() - began

        return timed


def proposing(numbers: list[int]) -> Callable[[Any], dict[str, float]]:
    """Returns a space that notes which trials are run."""

    def hp_space(trial: Any) -> dict[str, float]:
        numbers.append(trial.number)
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}

    return hp_space


def with_st_hpo(url: str, model: str, folder: Path, trials: int, numbers: list[int]) -> Callable[[], Any]:
    """Returns a search that takes part in the study until it has that many trials."""
    trainer = SentenceTransformerHPOTrainer(
        **parts(folder), model_init=lambda: SentenceTransformer(model, device="cpu"), loss_init=scaled_loss
    )
    return lambda: trainer.hyperparameter_search(
        proposing(numbers),
        compute_objective="eval_constant",
        direction="maximize",
        n_trials=trials,
        backend="optuna",
        baseline=False,
        sampler=optuna.samplers.RandomSampler(),
        storage=url,
        study_name="study",
        resume=True,
    )


def with_optuna(url: str, model: str, folder: Path, trials: int, numbers: list[int]) -> Callable[[], Any]:
    """Returns the same by Optuna's own means: a callback that ends the loop once there are enough trials."""
    hp_space = proposing(numbers)

    def objective(trial: optuna.Trial) -> float:
        own = parts(folder, **hp_space(trial))
        transformers.set_seed(own["args"].seed)
        begun = SentenceTransformer(model, device="cpu")
        trainer = SentenceTransformerTrainer(model=begun, loss=scaled_loss(begun), **own)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        value: float = trainer.evaluate()["eval_constant"]
        return value

    def run() -> None:
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        sampler = optuna.samplers.RandomSampler()
        study = optuna.load_study(study_name="study", storage=storage, sampler=sampler)
        enough = optuna.study.MaxTrialsCallback(trials, states=(optuna.trial.TrialState.COMPLETE,))
        study.optimize(objective, callbacks=[enough])

    return run


KINDS = {"st_hpo": with_st_hpo, "optuna": with_optuna}


def take_part(kind: str, url: str, model: str, trials: int, together: Any, results: Any) -> None:
    """Runs one of the processes."""
    numbers: list[int] = []
    clock = StorageTime()
    with tempfile.TemporaryDirectory() as folder:
        run = KINDS[kind](url, model, Path(folder), trials, numbers)
        together.wait()
        began = time.time()
        run()
        results.put({"numbers": numbers, "storage": clock.seconds, "began": began, "ended": time.time()})


def measure(server: Any, model: str, kind: str, processes: int, trials: int) -> dict[str, Any]:
    """Runs one study with so many processes; returns its times and counts."""
    url = server.new_database(f"study{time.time_ns()}")
    optuna.create_study(study_name="study", storage=url, direction="maximize")
    together, results = fork.Barrier(processes), fork.Queue()
    running = [
        fork.Process(target=take_part, args=(kind, url, model, trials, together, results)) for _ in range(processes)
    ]
    for process in running:
        process.start()
    found = [results.get(timeout=1800) for _ in running]
    for process in running:
        process.join()
    states = Counter(trial.state.name for trial in optuna.load_study(study_name="study", storage=url).trials)
    run = Counter(number for item in found for number in item["numbers"])
    seconds = max(item["ended"] for item in found) - min(item["began"] for item in found)
    return {
        "kind": kind,
        "processes": processes,
        "wanted": trials,
        "seconds": seconds,
        "trials_per_second": sum(run.values()) / seconds,
        "completed": states["COMPLETE"],
        "not_completed": sum(states.values()) - states["COMPLETE"],
        "run_twice": sum(count > 1 for count in run.values()),
        "storage_ms": sum(item["storage"] for item in found) / sum(run.values()) * 1e3,
        "trials_of_each": sorted(len(item["numbers"]) for item in found),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measures all, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--alone", type=int, default=25, help="how many trials one process runs")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    variants = [(kind, *what) for what in ((1, options.alone), (options.processes, options.trials)) for kind in KINDS]
    rounds: list[list[dict[str, Any]]] = []
    with running_postgres() as server, tempfile.TemporaryDirectory() as folder:
        model = build_tiny_model(Path(folder))
        for _ in range(options.rounds):
            rounds.append([measure(server, model, *variant) for variant in variants])
            print(json.dumps(rounds[-1]), file=sys.stderr)
    print("| | seconds | trials/s | trials/s, ratio | completed | run twice | storage, ms a trial | storage, ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for index, (kind, processes, trials) in enumerate(variants):
        of_it = [found[index] for found in rounds]
        beside = [found[index | 1] for found in rounds]  # Optuna, with as many processes
        rate, storage = (
            [one[key] / other[key] for one, other in zip(of_it, beside, strict=True)]
            for key in ("trials_per_second", "storage_ms")
        )
        shown = [statistics.median(item[key] for item in of_it) for key in ("seconds", "trials_per_second")]
        print(
            f"| {kind}, {processes} process{'es' * (processes > 1)} | {shown[0]:.1f} | {shown[1]:.2f} "
            f"| {statistics.median(rate):.2f} | {', '.join(str(item['completed']) for item in of_it)} of {trials} "
            f"| {', '.join(str(item['run_twice']) for item in of_it)} "
            f"| {statistics.median(item['storage_ms'] for item in of_it):.0f} | {statistics.median(storage):.2f} |"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(rounds, indent=2))


if __name__ == "__main__":
    main()

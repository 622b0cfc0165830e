"""One search in a process of its own, measured from outside: what ``same_search.py`` starts, in turns.

Nothing of torch is imported before a function here runs, so that the parent, which imports this module too, stays
small: Linux hands a parent's peak memory down to the processes that it starts.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))  # for `embedded`

UPSTREAM, OURS, OURS_WITHOUT_BASELINE = LIBRARIES = ("upstream", "st_hpo", "st_hpo-no-baseline")
MIB = 2**20


class Stopwatch:
    """Adds up the seconds spent in functions; a timed call inside of another one belongs to the outer one.

    Args:
        clock: Returns seconds: of the wall, or of this process's CPU.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}
        self._running = False

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, with its time added to ``seconds[name]``."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            self._running, started = True, self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - started
                self._running = False

        return call


class AliveModels:
    """Counts the models alive when one has just been built, and when a training begins."""

    def __init__(self) -> None:
        self.models: weakref.WeakSet[Any] = weakref.WeakSet()
        self.at_build: list[int] = []
        self.at_train_begin: list[int] = []

    def count(self) -> int:
        """Returns how many of the models are still alive."""
        gc.collect()
        return len(self.models)

    def counting(self, model_init: Callable[[], Any]) -> Callable[[], Any]:
        """Returns a ``model_init`` that counts."""

        def call() -> Any:
            model = model_init()
            self.models.add(model)
            self.at_build.append(self.count())
            return model

        return call

    def callback(self) -> Any:
        """Returns a callback that counts; a copy of it, as every trial of st_hpo gets, writes into the same lists."""
        from transformers import TrainerCallback

        alive = self

        class CountAtTrainBegin(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                alive.at_train_begin.append(alive.count())

        return CountAtTrainBegin()


def resident() -> float:
    """Returns the resident memory of this process, in MiB."""
    import psutil

    return psutil.Process().memory_info().rss / MIB


def import_trainer(library: str, threads: int) -> tuple[type, float]:
    """Imports what a library needs, and no more; returns its trainer, and the seconds it took."""
    started = time.perf_counter()
    import datasets
    import optuna
    import torch
    import transformers

    if library == UPSTREAM:
        from sentence_transformers import SentenceTransformerTrainer as Trainer
    else:
        from st_hpo import SentenceTransformerHPOTrainer as Trainer

    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return Trainer, time.perf_counter() - started


def model_init_from(path: str | None) -> Callable[[], Any]:
    """Returns a function that loads the checkpoint, by default the embedded one."""
    from sentence_transformers import SentenceTransformer

    from embedded import model_path

    where = path or model_path()
    return lambda: SentenceTransformer(where)


def shape(triplets: str | None, train_size: int | None, dev_size: int | None) -> dict[str, Any]:
    """Returns the parts of a trainer that make the two shapes: STS pairs, or the official example's triplets."""
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss

    from embedded import sts_benchmark

    dev = sts_benchmark("dev", dev_size)
    evaluator = EmbeddingSimilarityEvaluator(
        list(dev["sentence1"]), list(dev["sentence2"]), list(dev["score"]), name="sts-dev", write_csv=False
    )
    if triplets is None:
        return {"train_dataset": sts_benchmark("train", train_size), "evaluator": evaluator, "loss": CoSENTLoss}
    with open(triplets, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:train_size]
    dataset = Dataset.from_list([{name: row[name] for name in ("anchor", "positive", "negative")} for row in rows])
    return {"train_dataset": dataset, "evaluator": evaluator, "loss": MultipleNegativesRankingLoss}


def arguments(output_dir: str, **changes: Any) -> Any:
    """Returns the training arguments of both libraries."""
    from sentence_transformers import SentenceTransformerTrainingArguments

    # NOTE: warmup_steps is a float here because upstream casts what is searched to the type that it finds: with the
    # default of 0 it would train without any warmup, and the two searches would not be the same.
    values: dict[str, Any] = {"output_dir": output_dir, "num_train_epochs": 1, "warmup_steps": 0.1, "seed": 12}
    values |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    return SentenceTransformerTrainingArguments(**{**values, **changes})


def measure_search(options: argparse.Namespace) -> dict[str, Any]:
    """Runs one whole search of ``options.run`` and returns all that was measured."""
    trainer_class, import_s = import_trainer(options.run, options.threads)
    import optuna
    import torch
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers

    parts = shape(options.triplets, options.train_size, options.dev_size)
    clock = time.process_time if getattr(options, "cpu", False) else time.perf_counter
    watch = Stopwatch(clock)
    steps: list[int] = []
    training_loop = SentenceTransformerTrainer._inner_training_loop

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = training_loop(*args, **kwargs)
        steps.append(output.global_step)
        return output

    # On upstream's class for both: ours inherits them
    SentenceTransformerTrainer._inner_training_loop = watch.timed("train", counted)
    SentenceTransformerTrainer.evaluate = watch.timed("evaluate", SentenceTransformerTrainer.evaluate)
    parts["model_init"] = watch.timed("model", model_init_from(options.model))
    loss = parts.pop("loss")
    loss_init = watch.timed("loss", lambda model: loss(model))
    extra: dict[str, Any] = {} if options.triplets is None else {"batch_sampler": BatchSamplers.NO_DUPLICATES}
    if getattr(options, "max_steps", None) is not None:
        extra["max_steps"] = options.max_steps
    proposals: list[dict[str, Any]] = []
    unaccounted: list[float] = []  # at each proposal, the seconds so far that no timer has counted
    objectives: list[float] = []

    def hp_space(trial: optuna.Trial) -> dict[str, Any]:
        highest = 1e-3 if options.triplets is None else 3e-3
        proposal = {
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, highest, log=True),
            "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [32, 64]),
            "warmup_steps": trial.suggest_float("warmup_steps", 0.0, 0.3),
        }
        proposals.append(proposal)
        unaccounted.append(clock() - sum(watch.seconds.values()))
        return proposal

    def compute_objective(metrics: dict[str, float]) -> float:
        objectives.append(metrics["eval_sts-dev_spearman_cosine"])
        return objectives[-1]

    search: dict[str, Any] = {"hp_space": hp_space, "compute_objective": compute_objective, "direction": "maximize"}
    search |= {"n_trials": options.trials, "backend": "optuna", "sampler": optuna.samplers.TPESampler(seed=0)}
    if options.run == OURS_WITHOUT_BASELINE:
        search["baseline"] = False
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, **extra)
        before, cpu_before, started = resident(), time.process_time(), clock()
        trainer = trainer_class(args=args, loss=loss_init, **parts)
        constructed = clock()
        watch.seconds.clear()  # the constructor's model is part of construct_s
        best = trainer.hyperparameter_search(**search)
        ended, cpu = clock(), time.process_time() - cpu_before
    search_s, timed = ended - constructed, watch.seconds
    outside = search_s - timed["train"] - timed["evaluate"]
    # From one proposal to the next lies one trial of either library, without what is done once a search
    machinery = [after - before for before, after in itertools.pairwise(unaccounted)]
    once = search_s - sum(timed.values()) - statistics.median(machinery) * options.trials
    measured = {
        "import_s": import_s,
        "construct_s": constructed - started,
        "search_s": search_s,
        "wall_s": ended - started,
        "cpu_s": cpu,
        "timed_s": timed,
        "outside_per_trial_s": outside / options.trials,
        "machinery_s": statistics.median(machinery),
        "machinery_of_trials_s": machinery,
        "once_s": once,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rss_before_mib": before,
        "proposals": proposals,
        "steps": steps,
        "objectives": objectives,
        "best": best.objective,
    }
    if torch.cuda.is_available():
        measured["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / MIB
    if options.run != UPSTREAM:
        trials = best.run_summary.trials
        measured["phases_ms"] = {key: [trial.phases[key] * 1e3 for trial in trials] for key in trials[0].phases}
    return measured


def measure_models(options: argparse.Namespace) -> dict[str, Any]:
    """Counts the models alive in a short search, which is not timed."""
    trainer_class, _ = import_trainer(options.run, options.threads)
    alive = AliveModels()
    parts = shape(options.triplets, 64, 32)
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, max_steps=2, per_device_train_batch_size=8)
        model_init, callback = alive.counting(model_init_from(options.model)), alive.callback()
        trainer = trainer_class(args=args, model_init=model_init, callbacks=[callback], **parts)
        trainer.hyperparameter_search(
            hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True)},
            compute_objective=lambda metrics: metrics["eval_sts-dev_spearman_cosine"],
            direction="maximize",
            n_trials=4,
            backend="optuna",
        )
    # What came before the first trial, in the constructor, is left out
    return {"at_build": alive.at_build[-4:], "at_train_begin": alive.at_train_begin[-4:]}


def run(options: argparse.Namespace) -> None:
    """Measures one part in this process, and prints it as one line of JSON."""
    from many_trials import measure_machinery

    measure = {"search": measure_search, "models": measure_models, "machinery": measure_machinery}[options.part]
    print(json.dumps(measure(options)))

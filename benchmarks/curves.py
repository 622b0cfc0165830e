"""Records learning curves of random configurations: what ``rungs.py record`` runs.

A configuration is trained by upstream's own trainer, and a callback evaluates it on the way: at fractions of its own
training, and after equal numbers of examples. Every such point keeps the score on the whole evaluation data and on
random parts of it, the time of training up to there and the time of the evaluation.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from one_search import UPSTREAM, arguments, import_trainer, model_init_from, shape

FRACTIONS = (0.033, 0.065, 0.09, 0.13, 0.2, 0.26, 0.4, 0.52, 0.7, 1.0)
EXAMPLES = (192, 384, 768, 1536, 2943)
SHARES = (0.1, 0.25, 0.5)  # of the evaluation data
DRAWS = 3  # random parts of each share
METRIC = "eval_sts-dev_spearman_cosine"


def draw(number: int, seed: int, with_scale: bool) -> dict[str, Any]:
    """Returns a random configuration's values; the same number and seed always give the same.

    Args:
        number: Which configuration, from 0.
        seed: Of the whole recording.
        with_scale: Also draw the scale of the loss, 5..50.
    """
    rng = np.random.default_rng([seed, number])
    values: dict[str, Any] = {
        "learning_rate": float(f"{math.exp(rng.uniform(math.log(1e-5), math.log(5e-3))):.4g}"),
        "per_device_train_batch_size": int(rng.choice([32, 64, 128])),
        "num_train_epochs": int(rng.choice([1, 2])),
        "warmup_steps": round(float(rng.uniform(0.0, 0.3)), 3),
    }
    if with_scale:
        values["scale"] = round(math.exp(rng.uniform(math.log(5), math.log(50))), 2)
    return values


class Clock:
    """Seconds of this process's CPU, and on the wall, since it was made."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Returns the two."""
        return time.process_time() - self.cpu, time.perf_counter() - self.wall


class Judge:
    """Scores a model on the whole evaluation data and on parts of it, from one pass over the data.

    Args:
        evaluator: An ``EmbeddingSimilarityEvaluator``.
        seed: Of the parts.
    """

    def __init__(self, evaluator: Any, seed: int) -> None:
        kind = type(evaluator)
        kept = self._kept = []

        class Keeping(kind):
            def embed_inputs(self, *args: Any, **kwargs: Any) -> Any:
                kept.append(super().embed_inputs(*args, **kwargs))
                return kept[-1]

        def over(cls: type, rows: Any) -> Any:
            parts = [[column[i] for i in rows] for column in (evaluator.sentences1, evaluator.sentences2)]
            return cls(*parts, [evaluator.scores[i] for i in rows], name=evaluator.name, write_csv=False)

        size = len(evaluator.scores)
        rng = np.random.default_rng(seed)
        self._labels = np.array(evaluator.scores)
        self._parts = [
            [np.sort(rng.permutation(size)[: round(size * share)]) for _ in range(DRAWS)] for share in SHARES
        ]
        self._whole = over(Keeping, range(size))
        self._small = [over(kind, draws[0]) for draws in self._parts]

    def score(self, model: Any) -> dict[str, Any]:
        """Returns the score on all the data, those on the parts, and the seconds for the whole."""
        from scipy.stats import spearmanr
        from sentence_transformers.util import pairwise_cos_sim

        self._kept.clear()
        clock = Clock()
        full = self._whole(model)[f"{self._whole.name}_spearman_cosine"]
        cpu, wall = clock.read()
        cosines = np.asarray(pairwise_cos_sim(*self._kept))
        parts = [
            [round(float(spearmanr(self._labels[rows], cosines[rows])[0]), 5) for rows in draws]
            for draws in self._parts
        ]
        return {"full": round(float(full), 5), "parts": parts, "eval_s": round(cpu, 3), "eval_wall_s": round(wall, 3)}

    def seconds_of_parts(self, model: Any) -> list[float]:
        """Returns what evaluators over one part of each share take: CPU seconds."""
        found = []
        for evaluator in self._small:
            clock = Clock()
            evaluator(model)
            found.append(round(clock.read()[0], 3))
        return found


def random_states() -> Callable[[], None]:
    """Returns a function that brings all random generators back to where they are now."""
    import torch

    here, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def restore() -> None:
        random.setstate(here)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)

    return restore


def recorder(judge: Judge, model: Any, batch: int, limit: int) -> Any:
    """Returns a callback that evaluates on the way, without any trace in the training.

    Args:
        judge: What evaluates.
        model: The model in training.
        batch: Examples of a step.
        limit: Examples of an epoch.
    """
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.points: list[dict[str, Any]] = []
            self.of_fractions: list[int] = []
            self.of_examples: list[int | None] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            total = state.max_steps
            a_epoch = math.ceil(limit / batch)
            fractions = [min(total, math.ceil(fraction * total)) for fraction in FRACTIONS]
            # In steps, so the last one of an epoch holds what is left; None is beyond the end of this training
            examples = [
                (count // limit) * a_epoch + math.ceil(count % limit / batch) if count <= limit else total + 1
                for count in (min(count, limit) for count in EXAMPLES)
            ]
            steps = sorted({*fractions, *(step for step in examples if step <= total)})
            self._wanted = set(steps)
            self.of_fractions = [steps.index(step) for step in fractions]
            self.of_examples = [steps.index(step) if step <= total else None for step in examples]
            self._clock, self._spent = Clock(), (0.0, 0.0)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step not in self._wanted:
                return
            cpu, wall = (now - spent for now, spent in zip(self._clock.read(), self._spent, strict=True))
            evaluation, restore, training = Clock(), random_states(), model.training
            found = judge.score(model)
            model.train(training)
            restore()
            times = {"train_s": round(cpu, 3), "train_wall_s": round(wall, 3)}
            self.points.append({"step": state.global_step, **times, **found})
            self._spent = tuple(old + new for old, new in zip(self._spent, evaluation.read(), strict=True))

    return Recorder()


def record_one(options: argparse.Namespace, number: int, watched: bool = True) -> dict[str, Any]:
    """Trains one configuration and returns all that was recorded of it.

    Args:
        options: The command line.
        number: Which configuration.
        watched: Evaluate on the way; False only trains, to show that evaluating changes nothing.
    """
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers
    from transformers import set_seed

    gc.collect()
    values = draw(number, options.seed, options.scale)
    parts = shape(options.triplets if options.task == "triplets" else None, options.train_size, options.dev_size)
    clock = Clock()
    changes = {name: value for name, value in values.items() if name != "scale"}
    if options.task == "triplets":
        changes["batch_sampler"] = BatchSamplers.NO_DUPLICATES
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, logging_strategy="no", **{**changes, "seed": options.train_seed})
        set_seed(args.seed)
        model = model_init_from(options.model)()
        loss = parts["loss"](model, **{name: values[name] for name in ("scale",) if name in values})
        trainer = SentenceTransformerTrainer(
            model=model, args=args, train_dataset=parts["train_dataset"], evaluator=parts["evaluator"], loss=loss
        )
        size = len(parts["train_dataset"])
        judge = Judge(parts["evaluator"], options.seed)
        watcher = recorder(judge, model, args.per_device_train_batch_size, size)
        if watched:
            trainer.add_callback(watcher)
        setup_s = clock.read()[0]
        trainer.train()
        final = round(float(trainer.evaluate()[METRIC]), 5)
    if watched and watcher.points[-1]["full"] != final:
        raise SystemExit(f"Configuration {number}: {final} at the end, but {watcher.points[-1]['full']} on the way.")
    result = {"number": number, "values": values, "seed": options.train_seed, "setup_s": round(setup_s, 3)}
    if watched:
        result |= {"of_fractions": watcher.of_fractions, "of_examples": watcher.of_examples}
        result |= {"part_eval_s": judge.seconds_of_parts(model), "points": watcher.points}
    return {**result, "final": final}


def record(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Records one configuration after the other, and writes the file after each.

    Args:
        options: The command line.
        facts: The machine and the versions.

    Raises:
        SystemExit: If the file is there already and was recorded with other options.
    """
    import_trainer(UPSTREAM, options.threads)
    own = ("task", "seed", "train_seed", "scale", "train_size", "dev_size", "threads")
    head = {
        "options": {name: getattr(options, name) for name in own},
        "fractions": FRACTIONS,
        "examples": EXAMPLES,
        "shares": SHARES,
    }
    head = json.loads(json.dumps(head))
    data: dict[str, Any] = {**head, "machine": facts, "configurations": []}
    if options.output.exists():
        data = json.loads(options.output.read_text(encoding="utf-8"))
        if {name: data.get(name) for name in head} != head:
            raise SystemExit(f"{options.output} was recorded with other options: {data.get('options')}.")
    for number in range(len(data["configurations"]), options.configurations):
        clock = Clock()
        found = record_one(options, number)
        data["configurations"].append(found)
        write(data, options.output)
        cpu, wall = clock.read()
        print(f"{number}: {found['values']} {found['final']:.4f}, {cpu:.0f} s CPU, {wall:.0f} s", file=sys.stderr)


def write(data: dict[str, Any], path: Path) -> None:
    """Writes a recording: one line a configuration, and never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {name: value for name, value in data.items() if name != "configurations"}
    lines = [json.dumps(item, separators=(",", ":")) for item in data["configurations"]]
    text = json.dumps(head, separators=(",", ":"))[:-1] + ',\n"configurations":[\n' + ",\n".join(lines) + "\n]}\n"
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

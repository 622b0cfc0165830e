"""What the trials of a search have in common, what it costs, and what sharing it gives.

STS-B pairs with CoSENTLoss, the same with a model of static embeddings, and with ``--triplets`` also
triplets with MultipleNegativesRankingLoss and the NO_DUPLICATES sampler. For each of them the same search runs with
``share_work=False`` and ``share_work=True`` in turns (A B A B). Times are CPU times of the process, in trials after
the first one, which fills the cache. It ends with an error if an objective differs.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

spent: dict[str, float] = defaultdict(float)


def timed(owner: Any, name: str, part: str) -> None:
    """Adds the CPU time of a function of upstream to a part."""
    raw = vars(owner)[name]
    function = raw.__func__ if isinstance(raw, classmethod) else raw

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.process_time() - started

    setattr(owner, name, classmethod(wrapper) if isinstance(raw, classmethod) else wrapper)


def timed_batches(sampler: Any) -> None:
    """Adds the CPU time of drawing batches to the part "sampler"."""
    original = sampler.__iter__

    def iterate(self: Any) -> Iterator[list[int]]:
        batches = original(self)
        while True:
            started = time.process_time()
            batch = next(batches, None)
            spent["sampler"] += time.process_time() - started
            if batch is None:
                return
            yield batch

    sampler.__iter__ = iterate


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs the searches of one training; returns the CPU seconds of each trial, by part."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    from st_hpo import SentenceTransformerHPOTrainer

    from embedded import model_path, sts_benchmark

    def model_init() -> SentenceTransformer:
        started = time.process_time()
        if name == "static":
            tokenizer = AutoTokenizer.from_pretrained(model_path())
            model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=256)], device="cpu")
        else:
            model = SentenceTransformer(model_path(), device="cpu")
        spent["model_init"] += time.process_time() - started
        return model

    if name.startswith("triplets"):
        lines = Path(options.triplets).read_text(encoding="utf-8").splitlines()[: options.train_size]
        train, loss = Dataset.from_list([json.loads(line) for line in lines]), MultipleNegativesRankingLoss
    else:
        train, loss = sts_benchmark("train", options.train_size), CoSENTLoss
    sampler = {"triplets": "no_duplicates", "triplets, hashed": "no_duplicates_hashed"}.get(name, "batch_sampler")
    dev = sts_benchmark("dev")
    evaluator = EmbeddingSimilarityEvaluator(dev["sentence1"], dev["sentence2"], dev["score"], name="sts-dev")
    trials: list[dict[str, float]] = []

    def hp_space(trial: Any) -> dict[str, Any]:
        trials.append({"whole": time.process_time(), **spent})
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True)}

    import optuna

    found: dict[str, Any] = {"name": name, "shared": [], "alone": [], "first": []}
    objectives = []
    for _ in range(options.rounds):
        for share in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                args = SentenceTransformerTrainingArguments(
                    folder,
                    num_train_epochs=1,
                    per_device_train_batch_size=options.batch_size,
                    per_device_eval_batch_size=options.batch_size,
                    batch_sampler=sampler,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                )
                trainer = SentenceTransformerHPOTrainer(
                    args=args, train_dataset=train, evaluator=evaluator, model_init=model_init, loss_init=loss
                )
                trials.clear()
                best = trainer.hyperparameter_search(
                    hp_space,
                    n_trials=options.trials,
                    baseline=False,
                    share_work=share,
                    backend="optuna",
                    sampler=optuna.samplers.RandomSampler(seed=0),
                )
            trials.append({"whole": time.process_time(), **spent})
            each = [
                {part: after[part] - before.get(part, 0.0) for part in after}
                for before, after in itertools.pairwise(trials)
            ]
            objectives.append([trial.objective for trial in best.run_summary.trials])
            found["shared" if share else "alone"] += each[1:]
            found["first"] += each[:1] if share else []
    if any(item != objectives[0] for item in objectives):
        raise SystemExit(f"The objectives differ: {objectives}")
    return found


def report(found: dict[str, Any]) -> None:
    """Prints the medians of one training."""
    alone = {part: statistics.median(trial[part] for trial in found["alone"]) for part in found["alone"][0]}
    shared = {part: statistics.median(trial.get(part, 0.0) for trial in found["shared"]) for part in alone}
    first = statistics.median(trial["tokens"] for trial in found["first"])
    print(f"\n{found['name']}: {alone['whole']:.2f} s a trial alone, {shared['whole']:.2f} s shared")
    print("| part | ms alone | % of the trial | ms shared | ratio |\n|---|---|---|---|---|")
    for part in alone:
        share = f"{alone[part] / alone['whole']:.1%}"
        print(f"| {part} | {alone[part] * 1e3:.0f} | {share} | {shared[part] * 1e3:.0f} | ", end="")
        print(f"{shared[part] / alone[part]:.2f} |" if alone[part] else "|")
    print(f"tokens in the first trial, shared: {first * 1e3:.0f} ms")


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train-size", type=int, default=1800)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--triplets", help="lines of JSON with anchor, positive and negative")
    parser.add_argument("--json", help="keep the raw numbers in this file")
    options = parser.parse_args()

    import torch
    import transformers
    from sentence_transformers.base.model import BaseModel
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler
    from transformers import AutoProcessor, PreTrainedModel

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    timed(PreTrainedModel, "from_pretrained", "weights and modules")
    timed(AutoProcessor, "from_pretrained", "parsing the tokenizer")
    timed(BaseModel, "preprocess", "tokens")  # around what sharing wraps, so both are measured alike
    timed_batches(NoDuplicatesBatchSampler)
    names = ["pairs", "static", *(["triplets", "triplets, hashed"] if options.triplets else [])]
    found = []
    for name in names:
        found.append(measure(name, options))
        report(found[-1])
    if options.json:
        Path(options.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

"""What the trials of a search have in common, what it costs, and what sharing it gives.

STS-B pairs with CoSENTLoss, the same with a model of static embeddings, and with ``--triplets`` also
triplets with MultipleNegativesRankingLoss and the NO_DUPLICATES sampler. For each of them the same search runs with
``share_work=False`` and ``share_work=True`` in turns (A B A B). Times are CPU times of the process, in trials after
the first one, which fills the cache. It ends with an error if an objective differs.

``--places`` measures instead where tokens come from: the tokenizer, memory, or the file that processes share; and how
much each of three ``model_init`` reads from the disk, the first after the model was put out of the system's memory.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from embedded import model_path, sts_benchmark

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


def places(options: argparse.Namespace) -> None:
    """Prints the CPU time of tokenising all of STS-B once, by where the tokens come from."""
    from sentence_transformers import SentenceTransformer

    from st_hpo.sharing import SharedWork

    columns = [sts_benchmark(split)[column] for split in ("train", "dev") for column in ("sentence1", "sentence2")]
    texts = [text for column in columns for text in column]

    def passed(work: SharedWork, batch: int) -> float:
        model = SentenceTransformer(model_path(), device="cpu")
        with work.trial():
            started = time.process_time()
            for start in range(0, len(texts), batch):
                model.preprocess(texts[start : start + batch])
            return time.process_time() - started

    print(f"{len(texts)} texts, {len(set(texts))} different ones")
    print("| batch | from the tokenizer, s | to memory | from memory | to the file | from the file |")
    print("|---|---|---|---|---|---|")
    for batch in (options.batch_size, 16):
        rounds: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.rounds):
            rounds["alone"].append(passed(SharedWork(0), batch))
            with SharedWork() as work:
                rounds["to memory"].append(passed(work, batch))
                rounds["from memory"].append(passed(work, batch))
            with SharedWork.with_others() as work:
                rounds["to the file"].append(passed(work, batch))
                size = work.tokens.file.size
                rounds["from the file"].append(passed(SharedWork(1, work.place), batch))  # memory holds nothing
        alone = statistics.median(rounds.pop("alone"))
        ratios = " | ".join(f"{statistics.median(times) / alone:.2f}" for times in rounds.values())
        print(f"| {batch} | {alone:.2f} | {ratios} |")
    print(f"the file has {size / 2**20:.1f} MiB, {size / len(set(texts)):.0f} bytes a text")


def weights_from_disk() -> None:
    """Prints how much each of three ``model_init`` reads from the disk; from a file system in memory it is nothing."""
    from sentence_transformers import SentenceTransformer

    def read_bytes() -> int:
        lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = shutil.copytree(model_path(), f"{folder}/model")
        for file in Path(path).iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found = []
        for _ in range(3):
            before = read_bytes()
            SentenceTransformer(path, device="cpu")
            found.append(f"{(read_bytes() - before) / 2**20:.1f}")
        size = Path(path, "model.safetensors").stat().st_size / 2**20
    print(f"MiB from disk in three model_init: {', '.join(found)}; the weights have {size:.1f}")


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train-size", type=int, default=1800)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--triplets", help="lines of JSON with anchor, positive and negative")
    parser.add_argument("--places", action="store_true", help="measure where tokens come from")
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
    if options.places:
        places(options)
        return weights_from_disk()
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

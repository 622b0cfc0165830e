"""What an evaluation on a sample costs, and how well it ranks models: several trainings, several samples of each size.

Six models are trained on STS-B with different learning rates. Each is evaluated by the whole evaluator and by samples
of it, with several seeds each: STS-B dev (1,500 pairs), and retrieval of 500 docstrings of networkx with 250 queries.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
import transformers
from scipy.stats import kendalltau
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from sentence_transformers.sentence_transformer.losses import CoSENTLoss

from st_hpo import subsample_evaluator

from embedded import documentation, model_path, sts_benchmark

RATES = [3e-5, 1e-4, 2e-4, 4e-4, 1e-3, 2e-3]


def trained(rate: float, size: int) -> SentenceTransformer:
    args = SentenceTransformerTrainingArguments(
        "checkpoints",
        learning_rate=rate,
        per_device_train_batch_size=32,
        warmup_steps=0.1,
        num_train_epochs=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=1,
    )
    transformers.set_seed(1)
    model = SentenceTransformer(model_path(), device="cpu")
    SentenceTransformerTrainer(model, args, sts_benchmark("train", size), loss=CoSENTLoss(model)).train()
    return model


def similarity() -> EmbeddingSimilarityEvaluator:
    dev = sts_benchmark("dev")
    return EmbeddingSimilarityEvaluator(list(dev["sentence1"]), list(dev["sentence2"]), list(dev["score"]))


def retrieval() -> InformationRetrievalEvaluator:
    """Every second docstring has its query; the others are there to be mistaken for an answer."""
    rows = documentation(limit=500)
    queries = {f"q{place}": rows[place]["query"] for place in range(0, len(rows), 2)}
    corpus = {f"d{place}": text for place, text in enumerate(rows["document"])}
    return InformationRetrievalEvaluator(queries, corpus, {query: {f"d{query[1:]}"} for query in queries})


def measure(evaluator: Any, models: list[SentenceTransformer], shares: list[float], seeds: int) -> None:
    scores: dict[tuple[float, int], list[float]] = defaultdict(list)
    seconds: dict[float, list[float]] = defaultdict(list)
    for model in models:
        for share in shares:
            for seed in range(seeds if share < 1 else 1):
                sample = subsample_evaluator(evaluator, share, seed=seed)
                start = time.process_time()
                metrics = sample(model)
                seconds[share].append(time.process_time() - start)
                scores[share, seed].append(metrics[sample.primary_metric])
    whole = scores[1.0, 0]
    print(f"\n{type(evaluator).__name__}, {sample.primary_metric}: {', '.join(f'{score:.4f}' for score in whole)}")
    print("share  CPU s (of whole)  best model's score (least..greatest)  Kendall's tau (least)  same best  lost")
    for share in shares:
        samples = [scores[share, seed] for seed in range(seeds if share < 1 else 1)]
        best = [sample[whole.index(max(whole))] for sample in samples]
        taus = [kendalltau(whole, sample).statistic for sample in samples]
        chosen = [whole[sample.index(max(sample))] for sample in samples]
        took = statistics.median(seconds[share])
        print(
            f"{share:5}  {took:5.2f} ({took / statistics.median(seconds[1.0]):.2f})  {statistics.mean(best):.4f} "
            f"({min(best):.4f}..{max(best):.4f})  {statistics.mean(taus):.2f} ({min(taus):.2f})  "
            f"{sum(item == max(whole) for item in chosen)}/{len(samples)}  {max(whole) - min(chosen):.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train-size", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models = [trained(rate, options.train_size) for rate in RATES]
    shares = sorted({*options.shares, 1.0})
    for evaluator in (similarity(), retrieval()):
        measure(evaluator, models, shares, options.seeds)


if __name__ == "__main__":
    main()

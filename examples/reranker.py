"""Searches a cross-encoder that reranks what TF-IDF has found, judged by the nDCG@10 of its order.

The corpus is all sentences of a split of the STS benchmark; a sentence is a query if people have given one of its
pairs a score of at least 4 of 5, and the other sentence of that pair is relevant for it. TF-IDF, the first stage,
finds the candidates, for the dev queries and (as hard negatives) for the training pairs. What it ranks too low for the
reranker to see counts as missed.

Run it with::

    python examples/reranker.py [--trials 8] [--queries 500]
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np
import optuna
import torch
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers.utils import logging as transformers_logging

from st_hpo import Categorical, CrossEncoderHPOTrainer, Float, SearchSpace

from embedded import model_path, sts_benchmark

METRIC = "eval_dev_ndcg@10"


def first_stage(split: str, candidates: int, limit: int | None = None) -> list[dict[str, Any]]:
    """Returns queries with their relevant sentences (``positive``) and what TF-IDF finds for them (``documents``)."""
    relevant: dict[str, list[str]] = {}
    pairs = sts_benchmark(split)
    for query, document, score in zip(pairs["sentence1"], pairs["sentence2"], pairs["score"], strict=True):
        if score >= 0.8 and query != document:
            relevant.setdefault(query, []).append(document)
    queries = list(relevant)[:limit]
    corpus = sorted({*pairs["sentence1"], *pairs["sentence2"]})
    words = TfidfVectorizer(sublinear_tf=True).fit(corpus)
    order = np.argsort(-(words.transform(queries) @ words.transform(corpus).T).toarray(), axis=1, kind="stable")
    found = [[corpus[index] for index in row[: candidates + 1]] for row in order]
    return [
        {"query": query, "positive": relevant[query], "documents": [text for text in texts if text != query]}
        for query, texts in zip(queries, found, strict=True)
    ]


def labelled(samples: list[dict[str, Any]]) -> Dataset:
    """Turns queries into pairs with a label: 1 for the relevant sentences, 0 for the other candidates."""
    rows = []
    for sample in samples:
        rows += [(sample["query"], text, 1.0) for text in sample["positive"]]
        rows += [(sample["query"], text, 0.0) for text in sample["documents"] if text not in sample["positive"]]
    queries, documents, labels = zip(*rows, strict=True)
    return Dataset.from_dict({"query": queries, "document": documents, "label": labels})


def loss_init(model: CrossEncoder, pos_weight: float = 1.0) -> BinaryCrossEntropyLoss:
    """Weighs the relevant pairs, which are rarer than the others."""
    return BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(pos_weight))


def main() -> None:
    """Searches, prints all trials beside the first stage, and trains with the best once more."""
    parser = argparse.ArgumentParser(description="Search the hyperparameters of a reranker.")
    parser.add_argument("--trials", type=int, default=8, help="how many trials to run (default: 8)")
    parser.add_argument("--queries", type=int, default=500, help="how many training queries (default: 500)")
    parser.add_argument("--output", default=None, help="where to save the result as JSON")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    train = labelled(first_stage("train", candidates=6, limit=options.queries))
    dev = first_stage("dev", candidates=20, limit=150)
    with tempfile.TemporaryDirectory() as folder:
        trainer = CrossEncoderHPOTrainer(
            args=CrossEncoderTrainingArguments(
                output_dir=folder,
                num_train_epochs=2,
                warmup_steps=0.1,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                dataloader_pin_memory=False,
            ),
            train_dataset=train,
            evaluator=CrossEncoderRerankingEvaluator(dev, at_k=10, always_rerank_positives=False, name="dev"),
            model_init=lambda: CrossEncoder(model_path(), num_labels=1, max_length=64),
            loss_init=loss_init,
        )
        best = trainer.hyperparameter_search(
            SearchSpace(
                {
                    "learning_rate": Float(3e-5, 3e-3, log=True),
                    "per_device_train_batch_size": Categorical([8, 16, 32]),
                    "loss.pos_weight": Float(0.5, 8.0, log=True),
                }
            ),
            METRIC,
            n_trials=options.trials,
            sampler=optuna.samplers.TPESampler(seed=0),
        )
        result = best.run_summary
        if options.output:
            result.save(options.output)

        print(f"\nnDCG@10 of {len(dev)} queries; trained on {len(train)} pairs.")
        print(f"TF-IDF alone: {result.baseline.metrics['eval_dev_base_ndcg@10']:.4f}")
        print(f"Untrained reranker: {result.baseline.objective:.4f}\n")
        print("trial  nDCG@10  MRR@10  learning rate  batch  pos_weight  seconds")
        for trial in sorted(result.completed, key=lambda trial: -trial.objective):
            values = trial.hyperparameters
            print(
                f"{trial.number:>5} {trial.objective:>8.4f} {trial.metrics['eval_dev_mrr@10']:>7.4f} "
                f"{values['learning_rate']:>14.2e} {values['per_device_train_batch_size']:>6} "
                f"{values['loss.pos_weight']:>11.2f} {trial.seconds:>8.1f}"
            )

        trainer.apply_best_run(best)
        trainer.train()
        retrained = trainer.evaluate()[METRIC]
        print(f"\nBest: trial {best.run_id} with {best.objective!r}: {best.hyperparameters}")
        print(f"Retrained: {retrained!r}, {'the same' if retrained == best.objective else 'NOT the same'}.")


if __name__ == "__main__":
    main()

"""Searches which base model to train, with which pooling: the choices of ``model_init`` are hyperparameters.

Three bases that differ in cost: the embedded BERT of two layers, its first layer alone, and its word embeddings
without any layer (a ``StaticEmbedding``, which has no pooling of its own to choose). The space is a function of
Optuna's trial, because the pooling depends on the base. Every trial loads what its values say, with the tokenizer that
belongs to it.

Run it with::

    python examples/base_model.py [--trials 12] [--pairs 2000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import optuna
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from transformers.utils import logging as transformers_logging

from st_hpo import SentenceTransformerHPOTrainer

from embedded import model_path, sts_benchmark

METRIC = "eval_sts-dev_spearman_cosine"
LAYERS = {"two layers": 2, "one layer": 1}  # the words alone have none


def model_init(base: str = "two layers", pooling: str = "mean") -> SentenceTransformer:
    """Makes a model of one of the bases. For models of a hub, ``base`` would be their name."""
    if base in LAYERS:
        transformer = Transformer(model_path(), config_kwargs={"num_hidden_layers": LAYERS[base]})
        return SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), pooling)])
    transformer = Transformer(model_path())
    words = transformer.model.get_input_embeddings().weight.detach().clone()
    return SentenceTransformer(modules=[StaticEmbedding(transformer.tokenizer, embedding_weights=words)])


def hp_space(trial: optuna.Trial) -> dict[str, Any]:
    """The base, a learning rate, and a pooling for those that pool."""
    values = {"model.base": trial.suggest_categorical("model.base", [*LAYERS, "words"])}
    values["learning_rate"] = trial.suggest_float("learning_rate", 1e-4, 2e-2, log=True)
    if values["model.base"] in LAYERS:
        values["model.pooling"] = trial.suggest_categorical("model.pooling", ["mean", "cls", "max"])
    return values


def main() -> None:
    """Searches, prints the best trial of each base, and trains with the best of all once more."""
    parser = argparse.ArgumentParser(description="Search the base model and its pooling.")
    parser.add_argument("--trials", type=int, default=12, help="how many trials to run (default: 12)")
    parser.add_argument("--pairs", type=int, default=2000, help="how many training pairs (default: 2000)")
    parser.add_argument("--output", default=None, help="where to save the result as JSON, and the model beside it")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    dev = sts_benchmark("dev")
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerHPOTrainer(
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=32,
                warmup_steps=0.1,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                dataloader_pin_memory=False,
            ),
            train_dataset=sts_benchmark("train", limit=options.pairs),
            evaluator=EmbeddingSimilarityEvaluator(dev["sentence1"], dev["sentence2"], dev["score"], name="sts-dev"),
            model_init=model_init,
            loss_init=CoSENTLoss,
        )
        best = trainer.hyperparameter_search(
            hp_space, METRIC, n_trials=options.trials, sampler=optuna.samplers.TPESampler(seed=3)
        )
        result = best.run_summary
        if options.output:
            result.save(options.output)

        print(f"\nUntrained, two layers and mean pooling: {result.baseline.objective:.4f}\n")
        print("best of        Spearman  pooling  learning rate  trials  texts per second")
        for base in [*LAYERS, "words"]:
            trials = [trial for trial in result.completed if trial.hyperparameters["model.base"] == base]
            if not trials:
                print(f"{base:<13} (no trial)")
                continue
            top = max(trials, key=lambda trial: trial.objective)
            model, texts = model_init(base), list(dev["sentence1"])
            begin = time.perf_counter()
            model.encode(texts)
            speed = len(texts) / (time.perf_counter() - begin)
            values = top.hyperparameters
            print(
                f"{base:<13} {top.objective:>9.4f} {values.get('model.pooling', '-'):>8} "
                f"{values['learning_rate']:>14.2e} {len(trials):>7} {speed:>17.0f}"
            )

        trainer.apply_best_run(best)
        trainer.train()
        retrained = trainer.evaluate()[METRIC]
        print(f"\nBest: trial {best.run_id} with {best.objective!r}: {best.hyperparameters}")
        print(f"Retrained: {retrained!r}, {'the same' if retrained == best.objective else 'NOT the same'}.")
        if options.output:
            trainer.save_model(f"{options.output}.model")


if __name__ == "__main__":
    main()

"""Searches learning rate, batch size, warmup and the loss's scale, and retrains with the best of them.

By default on the embedded model (BERT-tiny) and the STS benchmark, without any download from a hub: 8 trials with
CoSENTLoss, a few minutes on two cores. With ``--hub``, the workload of the sentence-transformers guide: distilbert on
10,000 AllNLI triplets with MultipleNegativesRankingLoss, which wants a GPU.

Run it with::

    python examples/hpo_nli.py [--trials 8] [--hub]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from typing import Any

import optuna
from datasets import load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers.utils import logging as transformers_logging

from st_hpo import Categorical, Float, SearchSpace, SentenceTransformerHPOTrainer

from embedded import model_path, sts_benchmark


def embedded_workload() -> dict[str, Any]:
    """STS-B pairs with scores, CoSENTLoss, and a model of 4.4M parameters."""
    return {
        "train": sts_benchmark("train"),
        "dev": sts_benchmark("dev"),
        "model_init": lambda: SentenceTransformer(model_path()),
        "loss_init": lambda model, scale=20.0: losses.CoSENTLoss(model, scale=scale),
        "batch_sizes": [32, 64, 128],
        "learning_rate": Float(1e-5, 3e-3, log=True),
        "arguments": {},
    }


def hub_workload() -> dict[str, Any]:
    """The workload of the guide: AllNLI triplets, distilbert, MultipleNegativesRankingLoss."""
    dev = load_dataset("sentence-transformers/stsb", split="validation")
    return {
        "train": load_dataset("sentence-transformers/all-nli", "triplet", split="train[:10000]"),
        "dev": dev,
        "model_init": lambda: SentenceTransformer("distilbert/distilbert-base-uncased"),
        "loss_init": lambda model, scale=20.0: losses.MultipleNegativesRankingLoss(model, scale=scale),
        "batch_sizes": [32, 64, 128],
        "learning_rate": Float(1e-6, 1e-4, log=True),
        "arguments": {"fp16": True, "batch_sampler": BatchSamplers.NO_DUPLICATES},
    }


def main() -> None:
    """Searches, prints what was found, and checks it by training once more."""
    parser = argparse.ArgumentParser(description="Search hyperparameters of an embedding model.")
    parser.add_argument("--trials", type=int, default=8, help="how many trials to run (default: 8)")
    parser.add_argument("--hub", action="store_true", help="the guide's workload, from the Hugging Face hub")
    parser.add_argument("--output", default=None, help="where to save the result as JSON")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    workload = hub_workload() if options.hub else embedded_workload()
    dev = workload["dev"]
    evaluator = EmbeddingSimilarityEvaluator(dev["sentence1"], dev["sentence2"], dev["score"], name="sts-dev")

    with tempfile.TemporaryDirectory() as folder:
        args = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
            **workload["arguments"],
        )
        trainer = SentenceTransformerHPOTrainer(
            args=args,
            train_dataset=workload["train"],
            evaluator=evaluator,
            model_init=workload["model_init"],
            loss_init=workload["loss_init"],
        )
        best = trainer.hyperparameter_search(
            hp_space=SearchSpace(
                {
                    "learning_rate": workload["learning_rate"],
                    "per_device_train_batch_size": Categorical(workload["batch_sizes"]),
                    "warmup_steps": Float(0.0, 0.3),
                    "loss.scale": Float(5.0, 50.0),
                }
            ),
            compute_objective="eval_sts-dev_spearman_cosine",
            n_trials=options.trials,
            sampler=optuna.samplers.TPESampler(seed=0),
        )
        result = best.run_summary

        print(f"\nUntrained model: {result.baseline.objective:.4f}\n")
        print("trial  Spearman  learning rate  batch  warmup  scale  seconds")
        for trial in result.trials:
            values = trial.hyperparameters
            print(
                f"{trial.number:>5} {trial.objective:>9.4f} {values['learning_rate']:>14.2e} "
                f"{values['per_device_train_batch_size']:>6} {values['warmup_steps']:>7.3f} "
                f"{values['loss.scale']:>6.1f} {trial.seconds:>8.1f}"
            )
        print(f"\nBest: trial {best.run_id} with {best.objective!r}")
        for name, value in best.hyperparameters.items():
            print(f"    {name} = {value!r}")
        if options.output:
            result.save(options.output)

        trainer.apply_best_run(best)
        trainer.train()
        retrained = trainer.evaluate()["eval_sts-dev_spearman_cosine"]
        same = "the same, to the last bit" if retrained == best.objective else "NOT the same"
        print(f"\nRetrained with these: {retrained!r}, {same}.")


if __name__ == "__main__":
    main()

"""Searches with two workers, and goes on where an earlier run of this script has stopped.

``--trials`` is the total. Run it with 4, then with 8: the second run adds four trials to the four that are there, and
finds the best of all. The same happens after Ctrl-C or a power cut. The study is in ``<folder>/study.db``.

Run it with::

    python examples/resume.py --folder search --trials 4
    python examples/resume.py --folder search --trials 8
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path

import optuna
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers.utils import logging as transformers_logging

from st_hpo import Categorical, Float, SearchSpace, SentenceTransformerHPOTrainer

from embedded import model_path, sts_benchmark

METRIC = "eval_sts-dev_spearman_cosine"


def model_init(trial: optuna.Trial | None) -> SentenceTransformer:
    """Makes the model, in the process that trains it, and notes in the study which one that is."""
    if trial is not None:
        trial.set_user_attr("process", os.getpid())
    return SentenceTransformer(model_path())


def main() -> None:
    """Searches until there are as many trials as asked for, prints who ran them, and trains with the best."""
    parser = argparse.ArgumentParser(description="Search with workers, and resume.")
    parser.add_argument("--folder", default="search", help="where the study is kept (default: search)")
    parser.add_argument("--trials", type=int, default=8, help="how many trials in total (default: 8)")
    parser.add_argument("--workers", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--pairs", type=int, default=2000, help="how many training pairs (default: 2000)")
    parser.add_argument("--output", default=None, help="where to save the result as JSON")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = Path(options.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # as many as each worker has: the last digits depend on it

    dev = sts_benchmark("dev")
    trainer = SentenceTransformerHPOTrainer(
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=sts_benchmark("train", limit=options.pairs),
        evaluator=EmbeddingSimilarityEvaluator(
            dev["sentence1"], dev["sentence2"], dev["score"], name="sts-dev", write_csv=False
        ),
        model_init=model_init,
        loss_init=lambda model, scale=20.0: CoSENTLoss(model, scale=scale),
    )
    best = trainer.hyperparameter_search(
        SearchSpace(
            {
                "learning_rate": Float(1e-5, 3e-3, log=True),
                "per_device_train_batch_size": Categorical([16, 32, 64]),
                "loss.scale": Float(5.0, 50.0, log=True),
            }
        ),
        METRIC,
        n_trials=options.trials,
        n_jobs=options.workers,
        resume=True,
        storage=f"sqlite:///{folder / 'study.db'}",
        study_name="sts",
        sampler=optuna.samplers.TPESampler(seed=0),
    )
    result = best.run_summary
    if options.output:
        result.save(options.output)

    print(f"\nUntrained: {result.baseline.objective:.4f}\n")
    print("trial  state      Spearman  learning rate  batch  scale  seconds  process")
    processes = {trial.number: trial.user_attrs.get("process") for trial in result.native.trials}
    for trial in result.trials:
        values = trial.hyperparameters
        objective = "-" if trial.objective is None else f"{trial.objective:.4f}"
        print(
            f"{trial.number:>5}  {trial.state:<9} {objective:>9} {values['learning_rate']:>14.2e} "
            f"{values['per_device_train_batch_size']:>6} {values['loss.scale']:>6.1f} {trial.seconds or 0:>8.1f}  "
            f"{processes[trial.number]}"
        )
    for process, count in Counter(processes.values()).items():
        print(f"process {process}: {count} trials")
    print(f"(this script: process {os.getpid()})")

    trainer.apply_best_run(best)
    trainer.train()
    retrained = trainer.evaluate()[METRIC]
    print(f"\nBest: trial {best.run_id} with {best.objective!r}: {best.hyperparameters}")
    print(f"Retrained: {retrained!r}, {'the same' if retrained == best.objective else 'NOT the same'}.")


if __name__ == "__main__":
    main()

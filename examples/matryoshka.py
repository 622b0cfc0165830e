"""Searches Matryoshka training: at which dimensions, and with which weights, so that short embeddings are good too.

The first 16 of the model's 128 dimensions are to serve as an embedding of their own, an eighth of the storage. So
there are two objectives, the score of the whole embedding and that of its first 16 dimensions. Dimensions and weights
go by names, which stand for lists in ``loss_init``.

Run it with::

    python examples/matryoshka.py [--trials 10] [--pairs 2000]
"""

from __future__ import annotations

import argparse
import tempfile

import optuna
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, SequentialEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MatryoshkaLoss
from transformers.utils import logging as transformers_logging

from st_hpo import Categorical, Float, SearchSpace, SentenceTransformerHPOTrainer

from embedded import model_path, sts_benchmark

WHOLE, SHORT = "eval_sts-128_spearman_cosine", "eval_sts-16_spearman_cosine"
DIMENSIONS = {"whole only": [128], "both ends": [128, 16], "halves": [128, 64, 32, 16]}
WEIGHTS = {"equal": lambda dimension: 1.0, "short first": lambda dimension: (128 / dimension) ** 0.5}


def loss_init(
    model: SentenceTransformer, dimensions: str = "halves", weights: str = "equal", scale: float = 20.0
) -> MatryoshkaLoss:
    """Makes CoSENTLoss at each of the dimensions, and adds them up with the weights."""
    chosen = DIMENSIONS[dimensions]
    return MatryoshkaLoss(
        model, CoSENTLoss(model, scale=scale), chosen, [WEIGHTS[weights](dimension) for dimension in chosen]
    )


def evaluator() -> SequentialEvaluator:
    """Scores the whole embedding, and its first 16 dimensions."""
    dev = sts_benchmark("dev")
    return SequentialEvaluator(
        [
            EmbeddingSimilarityEvaluator(
                dev["sentence1"], dev["sentence2"], dev["score"], name=f"sts-{dimension}", truncate_dim=dimension
            )
            for dimension in (128, 16)
        ]
    )


def main() -> None:
    """Searches, prints all trials, and trains the run of the front with the best short embeddings once more."""
    parser = argparse.ArgumentParser(description="Search the dimensions of Matryoshka training.")
    parser.add_argument("--trials", type=int, default=10, help="how many trials to run (default: 10)")
    parser.add_argument("--pairs", type=int, default=2000, help="how many training pairs (default: 2000)")
    parser.add_argument("--output", default=None, help="where to save the result as JSON")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

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
            evaluator=evaluator(),
            model_init=lambda: SentenceTransformer(model_path()),
            loss_init=loss_init,
        )
        front = trainer.hyperparameter_search(
            SearchSpace(
                {
                    "learning_rate": Float(1e-4, 3e-3, log=True),
                    "loss.dimensions": Categorical(list(DIMENSIONS)),
                    "loss.weights": Categorical(list(WEIGHTS)),
                    "loss.scale": Float(5.0, 50.0, log=True),
                }
            ),
            [WHOLE, SHORT],
            n_trials=options.trials,
            direction=["maximize", "maximize"],
            sampler=optuna.samplers.TPESampler(seed=0),
        )
        result = front[0].run_summary
        if options.output:
            result.save(options.output)

        whole, short = result.baseline.objective
        print(f"\nUntrained: Spearman {whole:.4f} with 128 dimensions, {short:.4f} with 16\n")
        print("trial     128      16  dimensions  weights      learning rate  scale")
        on_front = {trial.number for trial in result.best_trials}
        for trial in sorted(result.completed, key=lambda trial: -trial.objective[1]):
            values = trial.hyperparameters
            print(
                f"{trial.number:>5} {trial.objective[0]:>7.4f} {trial.objective[1]:>7.4f}  "
                f"{values['loss.dimensions']:<10}  {values['loss.weights']:<11} {values['learning_rate']:>14.2e} "
                f"{values['loss.scale']:>6.1f}{'  front' if trial.number in on_front else ''}"
            )

        best = max(front, key=lambda run: run.objective[1])
        trainer.apply_best_run(best)
        trainer.train()
        metrics = trainer.evaluate()
        retrained = [metrics[WHOLE], metrics[SHORT]]
        print(f"\nBest short embeddings: trial {best.run_id} with {best.objective}: {best.hyperparameters}")
        print(f"Retrained: {retrained}, {'the same' if retrained == best.objective else 'NOT the same'}.")


if __name__ == "__main__":
    main()

"""Searches a SPLADE model for two objectives at once: good retrieval, with few active dimensions a document.

What a document costs in an inverted index is its number of active dimensions, which the regularizers of the loss press
down, at the price of retrieval. A search for both gives the Pareto front: the models of which no other is better in
both. Which of them to take is up to you.

The corpus is the documentation of networkx, which comes with PyTorch: a docstring's first sentence is a query, the
rest of it the one document that answers it. Every eighth query is held out for the evaluation, over all documents.
(These pairs are made of the docstrings, not judged by people; other documents may answer a query as well.)

Run it with::

    python examples/splade.py [--trials 8] [--pairs 240] [--documents 500]
"""

from __future__ import annotations

import argparse
import tempfile

import optuna
from datasets import Dataset
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sparse_encoder import SparseEncoder, SparseEncoderTrainingArguments
from sentence_transformers.sparse_encoder.evaluation import SparseInformationRetrievalEvaluator
from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
from transformers.utils import logging as transformers_logging

from st_hpo import Float, SearchSpace, SparseEncoderHPOTrainer

from embedded import documentation, model_path

QUALITY, SIZE = "eval_docs_dot_ndcg@10", "eval_docs_corpus_active_dims"


def model_init() -> SparseEncoder:
    """Makes the embedded model, a small SPLADE: its masked-language-model head says which words a text is about."""
    model = SparseEncoder(model_path())
    model.max_seq_length = 32  # the head has 30,522 outputs for every token: on a CPU, short texts pay off
    return model


def loss_init(model: SparseEncoder, document_weight: float = 3e-3, query_weight: float = 3e-3) -> SpladeLoss:
    """Ranks in the batch, and presses the activations of documents and queries down."""
    ranking = SparseMultipleNegativesRankingLoss(model)
    return SpladeLoss(
        model, ranking, document_regularizer_weight=document_weight, query_regularizer_weight=query_weight
    )


def retrieval(pairs: Dataset) -> SparseInformationRetrievalEvaluator:
    """Retrieves every eighth query's document from all documents."""
    documents = {str(number): text for number, text in enumerate(pairs["document"])}
    queries = {str(number): text for number, text in enumerate(pairs["query"]) if number % 8 == 0}
    return SparseInformationRetrievalEvaluator(
        queries, documents, {number: {number} for number in queries}, name="docs", batch_size=32
    )


def main() -> None:
    """Searches, prints the Pareto front, and trains the run of the front with the best retrieval once more."""
    parser = argparse.ArgumentParser(description="Search a SPLADE model for quality against sparsity.")
    parser.add_argument("--trials", type=int, default=8, help="how many trials to run (default: 8)")
    parser.add_argument("--pairs", type=int, default=240, help="how many training pairs (default: 240)")
    parser.add_argument("--documents", type=int, default=500, help="how large a corpus (default: 500)")
    parser.add_argument("--output", default=None, help="where to save the result as JSON")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    pairs = documentation("networkx", limit=options.documents)
    train = pairs.filter(lambda row, number: number % 8 != 0, with_indices=True).shuffle(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SparseEncoderHPOTrainer(
            args=SparseEncoderTrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=16,
                batch_sampler=BatchSamplers.NO_DUPLICATES,
                warmup_steps=0.1,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                dataloader_pin_memory=False,
            ),
            train_dataset=train.select(range(min(options.pairs, len(train)))),
            evaluator=retrieval(pairs),
            model_init=model_init,
            loss_init=loss_init,
        )
        front = trainer.hyperparameter_search(
            SearchSpace(
                {
                    "learning_rate": Float(5e-5, 2e-3, log=True),
                    "loss.document_weight": Float(1e-4, 1e-1, log=True),
                    "loss.query_weight": Float(1e-4, 1e-1, log=True),
                }
            ),
            [QUALITY, SIZE],
            n_trials=options.trials,
            direction=["maximize", "minimize"],
            sampler=optuna.samplers.TPESampler(seed=0),
        )
        result = front[0].run_summary
        if options.output:
            result.save(options.output)

        quality, size = result.baseline.objective
        print(f"\nUntrained: nDCG@10 {quality:.4f} with {size:.1f} active dimensions a document\n")
        print("trial  nDCG@10  dims (document)  dims (query)  learning rate  document weight  query weight")
        on_front = {trial.number for trial in result.best_trials}
        for trial in sorted(result.completed, key=lambda trial: -trial.objective[0]):
            values = trial.hyperparameters
            print(
                f"{trial.number:>5} {trial.objective[0]:>8.4f} {trial.objective[1]:>16.1f} "
                f"{trial.metrics['eval_docs_query_active_dims']:>13.1f} {values['learning_rate']:>14.2e} "
                f"{values['loss.document_weight']:>16.2e} {values['loss.query_weight']:>13.2e}"
                f"{'  front' if trial.number in on_front else ''}"
            )

        best = max(front, key=lambda run: run.objective[0])
        trainer.apply_best_run(best)
        trainer.train()
        metrics = trainer.evaluate()
        retrained = [metrics[QUALITY], metrics[SIZE]]
        print(f"\nBest retrieval: trial {best.run_id} with {best.objective}: {best.hyperparameters}")
        print(f"Retrained: {retrained}, {'the same' if retrained == best.objective else 'NOT the same'}.")


if __name__ == "__main__":
    main()

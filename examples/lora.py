"""Searches rank, scaling and dropout of LoRA adapters, which ``model_init`` adds to the model with peft.

Every trial trains a new adapter on the same frozen base. Beside the score, what matters is how many parameters are
trained and stored for each task, so the table shows both.

It needs peft (``pip install peft``). Run it with::

    python examples/lora.py [--trials 8] [--pairs 2000]
"""

from __future__ import annotations

import argparse
import tempfile

import optuna
from peft import LoraConfig, TaskType
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers.utils import logging as transformers_logging

from st_hpo import Categorical, Float, SearchSpace, SentenceTransformerHPOTrainer

from embedded import model_path, sts_benchmark

METRIC = "eval_sts-dev_spearman_cosine"
# Which linear layers of BERT get an adapter. "dense" are those of the feed-forward blocks and attention outputs.
TARGETS = {"attention": ["query", "value"], "all": ["query", "key", "value", "dense"]}


def model_init(
    rank: int = 8, scaling: float = 2.0, dropout: float = 0.0, targets: str = "attention"
) -> SentenceTransformer:
    """Makes the frozen base with a new adapter; its update is multiplied by ``scaling`` (alpha / rank)."""
    model = SentenceTransformer(model_path())
    model.add_adapter(
        LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION,
            r=rank,
            lora_alpha=scaling * rank,
            lora_dropout=dropout,
            target_modules=TARGETS[targets],
        )
    )
    return model


def trained_parameters(**values: float | str) -> int:
    """Counts the parameters that a training with these values of ``model_init`` changes."""
    return sum(weight.numel() for weight in model_init(**values).parameters() if weight.requires_grad)


def main() -> None:
    """Searches, prints what each trial scored for how many parameters, and trains with the best once more."""
    parser = argparse.ArgumentParser(description="Search the LoRA adapter of an embedding model.")
    parser.add_argument("--trials", type=int, default=8, help="how many trials to run (default: 8)")
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
            SearchSpace(
                {
                    "learning_rate": Float(3e-4, 3e-2, log=True),  # adapters want more than the whole model does
                    "model.rank": Categorical([2, 4, 8, 16, 32]),
                    "model.scaling": Float(0.5, 8.0, log=True),
                    "model.dropout": Float(0.0, 0.2),
                    "model.targets": Categorical(list(TARGETS)),
                }
            ),
            METRIC,
            n_trials=options.trials,
            sampler=optuna.samplers.TPESampler(seed=0),
        )
        result = best.run_summary
        if options.output:
            result.save(options.output)

        whole = sum(weight.numel() for weight in SentenceTransformer(model_path()).parameters())
        print(f"\nUntrained: {result.baseline.objective:.4f}. The whole model has {whole:,} parameters.\n")
        print("trial  Spearman  rank  targets    scaling  dropout  learning rate  trained parameters")
        for trial in sorted(result.completed, key=lambda trial: -trial.objective):
            v = trial.hyperparameters
            count = trained_parameters(rank=v["model.rank"], targets=v["model.targets"])
            print(
                f"{trial.number:>5} {trial.objective:>9.4f} {v['model.rank']:>5}  {v['model.targets']:<9} "
                f"{v['model.scaling']:>8.2f} {v['model.dropout']:>8.2f} {v['learning_rate']:>14.2e} "
                f"{count:>11,} ({count / whole:.2%})"
            )

        trainer.apply_best_run(best)
        trainer.train()
        retrained = trainer.evaluate()[METRIC]
        print(f"\nBest: trial {best.run_id} with {best.objective!r}: {best.hyperparameters}")
        print(f"Retrained: {retrained!r}, {'the same' if retrained == best.objective else 'NOT the same'}.")
        if options.output:
            trainer.save_model(f"{options.output}.model")  # the adapter alone


if __name__ == "__main__":
    main()

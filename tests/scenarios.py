"""What is trained in the tests of the sentence: for each trainer family its model, loss, data, and the trials' values.

Everything here is used twice: by a search, and by :mod:`by_hand`, which trains once in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Dense
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderCorrelationEvaluator
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.multi_vector_encoder import (
    MultiVectorEncoder,
    MultiVectorEncoderTrainer,
    MultiVectorEncoderTrainingArguments,
)
from sentence_transformers.multi_vector_encoder.evaluation import MultiVectorTripletEvaluator
from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, TripletEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, SoftmaxLoss
from sentence_transformers.sparse_encoder import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
from sentence_transformers.sparse_encoder.evaluation import SparseEmbeddingSimilarityEvaluator
from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss

from embedded import model_path, sts_benchmark

SMALL_MODEL = "ST_HPO_TESTS_SMALL_MODEL"


@cache
def pairs(split: str, count: int) -> Dataset:
    return sts_benchmark(split, count)


@cache
def labelled(count: int) -> Dataset:
    """Pairs with one of three classes, for a loss with a classifier of its own."""
    data = sts_benchmark("train", count)
    return data.map(lambda row: {"label": min(int(row["score"] * 3), 2)}, remove_columns="score")


@cache
def anchors(split: str, count: int) -> Dataset:
    """Pairs that mean the same, for losses with negatives from the batch."""
    return sts_benchmark(split).filter(lambda row: row["score"] > 0.7).select(range(count)).remove_columns("score")


def arguments(arguments_class: type, **values: Any) -> Any:
    fixed = {
        "output_dir": "output",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "num_train_epochs": 1,
        "learning_rate": 5e-4,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 12,
    }
    return arguments_class(**{**fixed, **values})


class ScaledCosineLoss(torch.nn.Module):
    """A regression loss with parameters of its own: a learnt scale, and a randomly initialized bias."""

    def __init__(self, model: SentenceTransformer, scale: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.bias = torch.nn.Parameter(torch.randn(()) * 0.1)

    def forward(self, features: Any, labels: torch.Tensor) -> torch.Tensor:
        left, right = [self.model(feature)["sentence_embedding"] for feature in features]
        score = torch.cosine_similarity(left, right) * self.scale + self.bias
        return torch.nn.functional.mse_loss(score, labels.float().view(-1))


def embedding_model(base: str = "embedded", head: bool = True) -> SentenceTransformer:
    """A model with dropout and, on the embedded base, a randomly initialized head: its weights depend on the seed."""
    if base == "small":
        return SentenceTransformer(os.environ[SMALL_MODEL], device="cpu")
    model = SentenceTransformer(model_path(), device="cpu")
    if head:
        model.append(Dense(128, 64, activation_function=torch.nn.Tanh()))
    return model


def embedding_evaluator(evaluator_class: type = EmbeddingSimilarityEvaluator) -> Any:
    dev = pairs("dev", 64)
    return evaluator_class(dev["sentence1"], dev["sentence2"], dev["score"], name="sts-dev")


def triplet_evaluator() -> Any:
    dev = pairs("dev", 17)
    return TripletEvaluator(dev["sentence1"][:-1], dev["sentence2"][:-1], dev["sentence2"][1:], name="triplets")


def cross_encoder_model(head_bias: float = 0.0) -> CrossEncoder:
    model = CrossEncoder(model_path(), num_labels=1, device="cpu")
    with torch.no_grad():
        model.model.classifier.bias.fill_(head_bias)
    return model


def cross_encoder_evaluator() -> Any:
    dev = pairs("dev", 64)
    texts = list(zip(dev["sentence1"], dev["sentence2"], strict=True))
    return CrossEncoderCorrelationEvaluator(sentence_pairs=texts, scores=list(dev["score"]), name="sts-dev")


def splade_loss(model: SparseEncoder, document_weight: float = 3e-5) -> torch.nn.Module:
    return SpladeLoss(
        model,
        SparseMultipleNegativesRankingLoss(model),
        document_regularizer_weight=document_weight,
        query_regularizer_weight=5e-5,
    )


def multi_vector_evaluator() -> Any:
    dev = anchors("dev", 33)
    negatives = list(dev["sentence2"])[1:]
    return MultiVectorTripletEvaluator(
        anchors=list(dev["sentence1"])[:-1], positives=list(dev["sentence2"])[:-1], negatives=negatives, name="dev"
    )


def dict_of_losses() -> dict[str, Callable[..., torch.nn.Module]]:
    def classes(model: SentenceTransformer) -> torch.nn.Module:
        return SoftmaxLoss(model, model.get_embedding_dimension(), num_labels=3)

    return {"scored": lambda model, scale=20.0: CoSENTLoss(model, scale=scale), "classes": classes}


@dataclass
class Scenario:
    """One training set-up.

    Attributes:
        trainer: The name of our trainer, that of upstream's with ``HPO`` in it.
        plain: Upstream's trainer.
        arguments: Its training arguments.
        model_init: Makes the model; its keywords are searched as ``model.<name>``.
        loss_init: Makes the loss; its keywords are searched as ``loss.<name>``.
        train: Makes the training data.
        evaluator: Makes the evaluator.
        metric: The objective.
        trials: The values of each trial.
        eval_data: Makes the evaluation data, or None.
        fixed: Training arguments that differ from the usual ones.
    """

    trainer: str
    plain: type
    arguments: type
    model_init: Callable[..., Any]
    loss_init: Any
    train: Callable[[], Any]
    evaluator: Callable[[], Any]
    metric: str
    trials: list[dict[str, Any]]
    eval_data: Callable[[], Any] | None = None
    fixed: Any = None


EMBEDDING = partial(
    Scenario,
    "SentenceTransformerHPOTrainer",
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    embedding_model,
    evaluator=embedding_evaluator,
    metric="eval_sts-dev_spearman_cosine",
)

SCENARIOS: dict[str, Scenario] = {
    "sentence_transformer": EMBEDDING(
        ScaledCosineLoss,
        lambda: pairs("train", 48),
        trials=[
            {"learning_rate": 1e-3, "warmup_steps": 0.4, "seed": 5, "loss.scale": 2.0, "model.head": False},
            {"warmup_ratio": 0.7, "weight_decay": 0.3, "model.base": "small", "seed": 6},
            {
                "batch_sampler": "no_duplicates",
                "learning_rate_mapping": {"scale|bias": 1e-2},
                "prompts": {"sentence1": "query: "},
                "per_device_train_batch_size": 12,
            },
            {"learning_rate": 2e-3, "warmup_steps": 2, "lr_scheduler_type": "cosine", "num_train_epochs": 2},
        ],
    ),
    "several_datasets": EMBEDDING(
        dict_of_losses(),
        lambda: {"scored": pairs("train", 40), "classes": labelled(40)},
        eval_data=lambda: {"scored": pairs("dev", 16)},
        fixed={"multi_dataset_batch_sampler": "round_robin"},
        metric="eval_scored_sts-dev_spearman_cosine",
        trials=[
            {"learning_rate": 1e-3, "loss.scale": 10.0},
            {"multi_dataset_batch_sampler": "proportional", "warmup_steps": 0.5},
            {"prompts": {"scored": "score: ", "classes": "class: "}, "loss.scale": 40.0, "model.head": False},
            {"weight_decay": 0.2, "seed": 4},
        ],
    ),
    "default_loss": EMBEDDING(
        None,
        lambda: pairs("train", 32),
        eval_data=lambda: pairs("dev", 16),
        fixed={"eval_strategy": "epoch", "num_train_epochs": 2},
        trials=[{"learning_rate": rate} for rate in (1e-4, 1e-3, 3e-3, 1e-5)],
    ),
    "cross_encoder": Scenario(
        "CrossEncoderHPOTrainer",
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        cross_encoder_model,
        BinaryCrossEntropyLoss,
        lambda: pairs("train", 48).rename_column("score", "label"),
        cross_encoder_evaluator,
        "eval_sts-dev_spearman",
        trials=[
            {"learning_rate": 1e-3, "warmup_steps": 0.3},
            {"seed": 3, "model.head_bias": 0.5},
            {"weight_decay": 0.3, "per_device_train_batch_size": 16},
            {"warmup_ratio": 0.5, "learning_rate": 2e-3},
        ],
    ),
    "sparse_encoder": Scenario(
        "SparseEncoderHPOTrainer",
        SparseEncoderTrainer,
        SparseEncoderTrainingArguments,
        lambda: SparseEncoder(model_path(), device="cpu"),
        splade_loss,
        lambda: anchors("train", 32),
        partial(embedding_evaluator, SparseEmbeddingSimilarityEvaluator),
        "eval_sts-dev_spearman_dot",
        trials=[
            {"learning_rate": 1e-4, "loss.document_weight": 1e-3},
            {"learning_rate": 1e-4, "warmup_steps": 0.3},
            {"batch_sampler": "no_duplicates", "seed": 2},
            {"weight_decay": 0.3, "per_device_train_batch_size": 4, "loss.document_weight": 1e-2},
        ],
    ),
    "multi_vector_encoder": Scenario(
        "MultiVectorEncoderHPOTrainer",
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
        lambda: MultiVectorEncoder(model_path(), device="cpu"),
        MultiVectorMultipleNegativesRankingLoss,
        lambda: anchors("train", 32),
        multi_vector_evaluator,
        "eval_loss",
        eval_data=lambda: anchors("dev", 16),
        trials=[
            {"learning_rate": 1e-3, "warmup_steps": 0.3},
            {"seed": 7},
            {"weight_decay": 0.4, "batch_sampler": "no_duplicates"},
            {"loss.scale": 3.0, "learning_rate": 2e-3},
        ],
    ),
}

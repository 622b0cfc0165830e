"""What the tests of backends train: a model of two thousand weights, its data, its losses, and training by hand."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

from st_hpo.space import Categorical, Float, Int, SearchSpace
from st_hpo.trainer import SentenceTransformerHPOTrainer

WORDS = ["a", "the", "old", "new", "cat", "dog", "bird", "sits", "runs", "on", "under", "near", "mat", "tree", "house"]
METRIC = "eval_probe_agreement"
SPACE = SearchSpace(
    {
        "learning_rate": Float(1e-4, 1e-2, log=True),
        "per_device_train_batch_size": Int(2, 6),
        "lr_scheduler_type": Categorical(["linear", "constant"]),
        "weight_decay": Categorical([0.0, 0.01]),
        "loss.scale": Float(5.0, 50.0),
    }
)
TYPES = {
    "learning_rate": float,
    "per_device_train_batch_size": int,
    "lr_scheduler_type": str,
    "weight_decay": float,
    "loss.scale": float,
}


def build_tiny_model(folder: Path) -> str:
    """Saves a random BERT of one layer, with a vocabulary of a few words, and returns where."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(vocab={token: index for index, token in enumerate(tokens)}).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    modules = [transformer, Pooling(transformer.get_embedding_dimension())]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return str(folder / "model")


def sentence_pairs(count: int) -> Dataset:
    """Returns pairs of sentences, with the share of words they have in common as their score."""
    columns: dict[str, list[Any]] = {"sentence1": [], "sentence2": [], "score": []}
    for index in range(count):
        one, two = ([WORDS[(index * step + shift * 3) % len(WORDS)] for shift in range(5)] for step in (5, 7))
        columns["sentence1"].append(" ".join(one))
        columns["sentence2"].append(" ".join(two))
        columns["score"].append(len({*one} & {*two}) / len({*one} | {*two}))
    return Dataset.from_dict(columns)


class ModelInit:
    """Loads the model, and takes note of it.

    Args:
        path: Where the model lies.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.alive: weakref.WeakSet[SentenceTransformer] = weakref.WeakSet()

    def __call__(self) -> SentenceTransformer:
        """Returns a new model."""
        model = SentenceTransformer(self.path, device="cpu")
        self.alive.add(model)
        return model

    def __reduce__(self) -> Any:
        """Goes to other processes without the models of this one."""
        return ModelInit, (self.path,)


class Probe(SentenceEvaluator):  # type: ignore[misc]
    """Measures how near similarities are to the scores, how large embeddings are, and how many models are alive.

    Args:
        model_init: What makes the models; None counts none.
    """

    def __init__(self, model_init: ModelInit | None = None) -> None:
        super().__init__()
        self.model_init = model_init
        self.pairs = sentence_pairs(24)
        self.primary_metric = "probe_agreement"
        self.greater_is_better = True

    def __call__(self, model: Any, output_path: Any = None, epoch: int = -1, steps: int = -1) -> dict[str, float]:
        """Returns the metrics."""
        gc.collect()
        one, two = (model.encode(self.pairs[name], convert_to_tensor=True) for name in ("sentence1", "sentence2"))
        similarities = model.similarity_pairwise(one, two).tolist()
        distance = sum(abs(s - score) for s, score in zip(similarities, self.pairs["score"], strict=True))
        return {
            "probe_agreement": 1.0 - distance / len(similarities),
            "probe_size": float(one.norm(dim=1).mean()),
            "probe_models_alive": float(len(self.model_init.alive)) if self.model_init else 0.0,
        }


def scaled_loss(model: SentenceTransformer, scale: float = 20.0) -> CoSENTLoss:
    """Returns a loss with a hyperparameter of its own."""
    return CoSENTLoss(model, scale=scale)


class FailingLoss:
    """A ``loss_init`` that raises, or whose loss becomes NaN, in some trials, counted over all processes.

    Args:
        folder: Where the count is kept.
        which: The trials that fail, the first being 0; the untrained model's evaluation counts as none.
        error: What to raise; None for NaN.
    """

    def __init__(self, folder: Path, which: set[int], error: Exception | None) -> None:
        self.folder = folder
        self.which = which
        self.error = error

    def __call__(self, model: SentenceTransformer, scale: float | None = None) -> CoSENTLoss:
        """Returns a loss, or raises."""
        if scale is None:  # no trial
            return CoSENTLoss(model)
        count = 0
        while True:
            try:
                (self.folder / str(count)).touch(exist_ok=False)
                break
            except FileExistsError:
                count += 1
        if count not in self.which:
            return CoSENTLoss(model, scale=scale)
        if self.error is not None:
            raise self.error
        return CoSENTLoss(model, scale=math.nan)


def make_trainer(path: str, folder: Path, **changes: Any) -> SentenceTransformerHPOTrainer:
    """Returns a trainer of the tiny model: two steps, then an evaluation."""
    model_init = ModelInit(path)
    parts = {
        "args": SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            max_steps=2,
            per_device_train_batch_size=4,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        "train_dataset": sentence_pairs(32),
        "evaluator": Probe(model_init),
        "model_init": model_init,
        "loss_init": scaled_loss,
    }
    return SentenceTransformerHPOTrainer(**{**parts, **changes})


def train_by_hand(path: str, folder: Path, hyperparameters: dict[str, Any]) -> dict[str, float]:
    """Trains once with upstream's own trainer and returns the metrics of the evaluation afterwards."""
    arguments = {name: value for name, value in hyperparameters.items() if "." not in name}
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **arguments,
        },
    )
    set_seed(args.seed)
    model = SentenceTransformer(path, device="cpu")
    options = {
        name.removeprefix("loss."): value for name, value in hyperparameters.items() if name.startswith("loss.")
    }
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=sentence_pairs(32),
        evaluator=Probe(),
        loss=scaled_loss(model, **options),
    )
    trainer.train()
    metrics: dict[str, float] = trainer.evaluate()
    return metrics

"""Where a checkpoint does not hold all that a training depends on: the trial is trained from its beginning."""

from __future__ import annotations

import random
from typing import Any

import optuna
import pytest
import torch
from packaging.version import Version
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import EarlyStoppingCallback, TrainerCallback

from st_hpo import ConfigurationError
from st_hpo.continuation import _SINCE, left_out
from st_hpo.records import COMPLETED, PRUNED

from embedded import model_path
from fast_trainer import METRIC, fast_arguments
from pausing_setup import AtFirst, check, scores_of, search, trainer_of, whole
from scenarios import embedding_evaluator, pairs


class Counting(TrainerCallback):
    """Changes the learning rate by what it has counted, which no checkpoint knows."""

    def __init__(self) -> None:
        self.count = 0

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.count += 1
        optimizer.param_groups[0]["weight_decay"] = 0.1 * self.count


class CountingLoss(CoSENTLoss):
    """Weighs every step by what it has counted."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.count = 0

    def forward(self, sentence_features: Any, labels: Any) -> torch.Tensor:
        self.count += 1
        return super().forward(sentence_features, labels) * self.count


class RememberingLoss(CoSENTLoss):
    """As above, with a list."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.seen: list[int] = []

    def forward(self, sentence_features: Any, labels: Any) -> torch.Tensor:
        self.seen.append(len(labels))
        return super().forward(sentence_features, labels) * len(self.seen)


class Smoothed(CoSENTLoss):
    """Keeps a mean in a buffer that no state has."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, sentence_features: Any, labels: Any) -> torch.Tensor:
        loss = super().forward(sentence_features, labels)
        self.mean.mul_(0.5).add_(0.5 * loss.detach())
        return loss * self.mean


class Annealed:
    """A similarity that becomes sharper with every batch."""

    def __init__(self) -> None:
        self.count = 0
        self.__name__ = "annealed"

    def __call__(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return torch.cosine_similarity(one, two) * self.count


class Never(optuna.pruners.BasePruner):
    """Prunes nothing."""

    def prune(self, study: Any, trial: Any) -> bool:
        return False


class DropWords(Transformer):
    """Leaves words out at random, where batches are made: one ahead of the training."""

    def preprocess(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        kept = [" ".join(word for word in text.split() if random.random() < 0.9) or "." for text in inputs]
        return super().preprocess(kept if self.training else inputs, *args, **kwargs)


class WithMore(Pooling):
    """Has more in its state than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"more": 1}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"more": 1}


def model_of(first: type = Transformer, last: type = Pooling) -> SentenceTransformer:
    transformer = first(model_path())
    return SentenceTransformer(modules=[transformer, last(transformer.get_embedding_dimension())], device="cpu")


def with_dropout() -> SentenceTransformer:
    """A model whose training draws at every step; the embedded one has no dropout."""
    model = SentenceTransformer(model_path(), device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    return model


EVALUATING = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "metric_for_best_model": METRIC,
    "greater_is_better": True,
}
BEST_MODEL = {**EVALUATING, "load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2}
EPOCHS = {"max_steps": -1, "num_train_epochs": 2}


def stopping(patience: int, threshold: float = 10.0) -> EarlyStoppingCallback:
    return EarlyStoppingCallback(early_stopping_patience=patience, early_stopping_threshold=threshold)


def unchanged(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"callbacks": [Counting()]}, id="callback"),
        pytest.param({"callbacks": [stopping(3), stopping(4)], "arguments": EVALUATING}, id="two of one kind"),
        pytest.param({"loss_init": CountingLoss}, id="count"),
        pytest.param({"loss_init": RememberingLoss}, id="list"),
        pytest.param({"loss_init": Smoothed}, id="buffer"),
        pytest.param({"loss_init": lambda model: CoSENTLoss(model, similarity_fct=Annealed())}, id="function"),
        pytest.param({"model_init": lambda: model_of(DropWords)}, id="tokenising at random"),
        pytest.param({"model_init": lambda: model_of(last=WithMore)}, id="more than tensors"),
        pytest.param({"train_dataset": pairs("train", 32).with_transform(unchanged)}, id="transform"),
        pytest.param({"arguments": BEST_MODEL}, id="best model"),
        pytest.param({"arguments": {"ignore_data_skip": True}}, id="no skipping"),
        pytest.param({"arguments": {"eval_on_start": True}}, id="evaluation at the start"),
        pytest.param({"arguments": {"accelerator_config": {"use_seedable_sampler": False}, **EPOCHS}}, id="sampler"),
        pytest.param({"arguments": EPOCHS}, id="end of epoch"),
        pytest.param({"arguments": {"save_strategy": "steps", "save_steps": 2}}, id="checkpoints"),
    ],
)
def test_what_a_checkpoint_does_not_hold_is_trained_from_its_beginning(changes, tmp_path):
    expected = whole(tmp_path, **changes)
    check(search(trainer_of(tmp_path, **changes)), expected.objective, continued=False)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"dataloader_persistent_workers": True, "dataloader_num_workers": 1}, "dataloader_persistent_workers=True"),
        ({"dataloader_num_workers": 1}, None),
    ],
)
def test_workers_that_persist_draw_once_which_no_checkpoint_knows(changes, name):
    assert left_out(fast_arguments(**changes)) == name


@pytest.mark.parametrize("package", ["transformers", "sentence-transformers"])
def test_an_older_host_library_goes_on_otherwise(package, monkeypatch):
    least, _ = _SINCE[package]
    monkeypatch.setitem(_SINCE, package, (least, Version("5.1")))
    assert left_out(fast_arguments()) == f"{package} 5.1, older than {least},"


@pytest.mark.parametrize("loss", [CountingLoss, Smoothed])
def test_an_evaluation_at_a_rung_leaves_what_a_loss_counts(loss, tmp_path):
    """Upstream computes the loss on evaluation data in training mode."""
    changes: dict[str, Any] = {"loss_init": loss, "eval_dataset": pairs("dev", 8)}
    expected = whole(tmp_path, **changes)
    result = search(trainer_of(tmp_path, **changes), pruner=Never(), rungs=[0.5])
    (trial,) = result.trials
    assert trial.rungs and trial.objective == expected.objective


def test_an_evaluation_at_a_rung_leaves_the_evaluation_workers_to_be_begun(tmp_path):
    """Workers that persist draw from torch's generator once, when they begin: in the training's own evaluation."""
    arguments = {
        "eval_strategy": "steps",
        "eval_steps": 6,
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
    }
    changes: dict[str, Any] = {"arguments": arguments, "eval_dataset": pairs("dev", 8), "model_init": with_dropout}
    (trial,) = search(trainer_of(tmp_path, **changes), pruner=Never(), rungs=[0.5]).trials
    assert trial.rungs and trial.objective == whole(tmp_path, **changes).objective


def test_what_a_model_remembers_of_an_evaluation_is_nothing_of_the_loss(tmp_path):
    """A model that was never saved chooses its similarity when it is first asked for it."""
    changes: dict[str, Any] = {"model_init": model_of, "eval_dataset": pairs("dev", 8)}
    result = search(trainer_of(tmp_path, **changes), pruner=Never(), rungs=[0.5], baseline=False, direction="maximize")
    assert [trial.state for trial in result.trials] == [COMPLETED] and result.trials[0].rungs


def test_what_an_evaluation_changes_inside_of_a_loss_cannot_be_given_back(tmp_path):
    trainer = trainer_of(tmp_path, loss_init=RememberingLoss, eval_dataset=pairs("dev", 8))
    with pytest.raises(ConfigurationError, match="has changed what the loss keeps beside its weights"):
        search(trainer, pruner=Never(), rungs=[0.5])
    (trial,) = search(trainer, pruner=Never(), rungs=[0.5], trial_evaluator=embedding_evaluator()).trials
    assert trial.objective == whole(tmp_path, loss_init=RememberingLoss, eval_dataset=pairs("dev", 8)).objective


def test_a_training_that_ends_at_the_rung_does_not_go_on_from_there(tmp_path):
    """By early stopping, in the evaluation right after that of the rung."""
    changes: dict[str, Any] = {"callbacks": [stopping(1)], "arguments": EVALUATING}
    expected = whole(tmp_path, **changes)
    assert scores_of(expected)[-1][0] == 4, "it must be early stopping that ends the training"
    for other in ({}, {"trial_evaluator": embedding_evaluator()}):
        result = search(trainer_of(tmp_path, **changes), **other)
        assert scores_of(result.trials[1])[-1] == scores_of(expected)[-1]


def test_epochs_that_are_shorter_than_they_seem_are_not_counted_wrongly(tmp_path):
    """The sampler drops what would be twice in a batch, so upstream would look for the place in another epoch."""
    data = pairs("train", 32).map(
        lambda row, index: {"sentence1": "the same"} if index < 26 else {}, with_indices=True
    )
    arguments = {
        "max_steps": -1,
        "num_train_epochs": 3,
        "batch_sampler": "no_duplicates",
        "dataloader_drop_last": True,
        "per_device_train_batch_size": 4,
    }
    changes: dict[str, Any] = {"train_dataset": data, "arguments": arguments}
    expected = whole(tmp_path, **changes)
    result = search(trainer_of(tmp_path, **changes), pruner=AtFirst(), rungs=[0.3])
    assert [trial.state for trial in result.trials] in ([PRUNED, COMPLETED], [COMPLETED])
    assert result.trials[-1].objective == expected.objective


def test_two_rungs_at_one_step_are_one_pause(tmp_path):
    result = search(trainer_of(tmp_path), pruner=AtFirst(), rungs=[0.45, 0.5])
    assert [[rung["at"] for rung in trial.rungs] for trial in result.trials] == [[45], []]
    assert result.trials[1].objective == whole(tmp_path).objective


def test_the_best_evaluation_may_lie_before_the_pause(tmp_path):
    changes: dict[str, Any] = {"arguments": {"eval_strategy": "steps", "eval_steps": 2}}
    best: dict[str, Any] = {"objective_from": "best"}
    (expected,) = search(trainer_of(tmp_path, **changes), pruner=None, rungs=None, **best).trials
    check(search(trainer_of(tmp_path, **changes), **best), expected.objective, continued=False)


def test_callbacks_of_upstreams_go_on_with_what_they_have_counted(tmp_path):
    arguments = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": METRIC, "greater_is_better": True}
    changes: dict[str, Any] = {"arguments": arguments, "callbacks": [EarlyStoppingCallback(early_stopping_patience=5)]}
    space = {"hp_space": lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-12, 1e-12)}}
    (expected,) = search(trainer_of(tmp_path, **changes), pruner=None, rungs=None, **space).trials
    assert expected.evaluations[-1]["step"] == 6, "it must be early stopping that ends the training"
    result = search(trainer_of(tmp_path, **changes), **space)
    assert scores_of(result.trials[1]) == scores_of(expected)

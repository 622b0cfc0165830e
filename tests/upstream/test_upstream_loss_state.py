"""Row 1 of the README's table of defects: upstream builds a loss once and trains it on, trial after trial."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from defect_setup import (
    MAX_STEPS,
    arguments,
    by_hand,
    in_turn,
    our_search,
    our_trainer,
    upstream_search,
    upstream_trainer,
)

SAME_THREE_TIMES = in_turn(learning_rate=[1e-3] * 3)
PEARSON = "eval_sts-dev_pearson_cosine"  # finer than a rank correlation: a slightly other loss shows in it


class ScaledCosineLoss(nn.Module):
    """The mean squared error between the labels and the cosine similarity times a learned scale, 1 at first.

    Args:
        model: The model to train.
        scales: Every scale that a training step has used is appended here.
    """

    def __init__(self, model: SentenceTransformer, scales: list[float]) -> None:
        super().__init__()
        self.model = model
        self.scale = nn.Parameter(torch.ones(1))
        self.scales = scales

    def forward(self, sentence_features, labels):
        first, second = (self.model(features)["sentence_embedding"] for features in sentence_features)
        if torch.is_grad_enabled():
            self.scales.append(self.scale.item())
        return nn.functional.mse_loss(torch.cosine_similarity(first, second) * self.scale, labels)


class Factory:
    """A ``loss_init`` that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.scales: list[float] = []

    def __call__(self, model: SentenceTransformer) -> ScaledCosineLoss:
        self.calls += 1
        return ScaledCosineLoss(model, self.scales)

    def first_scales(self) -> list[float]:
        """The scale that each training began with."""
        return self.scales[::MAX_STEPS]


def test_upstream_keeps_training_the_loss_from_trial_to_trial():
    """Three trials of the same hyperparameters: the factory ran once, so each trial began with the loss that the one
    before it had trained, 0.0025 further away from 1, and the models were trained against three different losses."""
    factory = Factory()
    _, objectives = upstream_search(upstream_trainer(loss=factory), SAME_THREE_TIMES, 3, key=PEARSON)

    assert factory.calls == 1
    assert factory.first_scales() == [1.0, pytest.approx(0.9975, abs=2e-4), pytest.approx(0.995, abs=4e-4)]
    assert len(set(objectives)) == 3


def test_ours_builds_a_new_loss_in_every_trial():
    """Three trials of the same hyperparameters each begin with an untrained loss, and report the same score: that of
    a training by hand."""
    factory, alone = Factory(), Factory()
    _, objectives = our_search(our_trainer(loss=factory), SAME_THREE_TIMES, 3, key=PEARSON, direction="maximize")
    _, metrics = by_hand(arguments(), loss_init=alone)

    assert factory.calls >= 3
    assert factory.first_scales() == [1.0, 1.0, 1.0]
    assert factory.scales == alone.scales * 3
    assert objectives == [metrics[PEARSON]] * 3

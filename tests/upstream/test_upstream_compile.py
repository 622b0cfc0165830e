"""Row 9 of the README's table of defects: with ``torch_compile``, upstream trains in the first trial only."""

from __future__ import annotations

import pytest
import torch

from defect_setup import (
    KEY,
    arguments,
    by_hand,
    in_turn,
    our_search,
    our_trainer,
    untrained_score,
    upstream_search,
    upstream_trainer,
)

SAME_THREE_TIMES = in_turn(learning_rate=[1e-3] * 3)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiling():
    """Arguments that compile the model; the "eager" backend wraps it like any other, and takes no time."""
    return arguments(torch_compile=True, torch_compile_backend="eager")


def test_upstream_reports_the_untrained_model_after_the_first_trial_when_compiling():
    """The loss still holds the compiled model of trial 0, so trials 1 and 2 train that one, and report exactly the
    score of the model that nobody trained (sentence-transformers 3240)."""
    _, objectives = upstream_search(upstream_trainer(args=compiling()), SAME_THREE_TIMES, 3)
    untrained = untrained_score()

    assert objectives[0] != untrained
    assert objectives[1:] == [untrained, untrained]


def test_ours_trains_the_model_of_every_trial_when_compiling():
    """Every trial has a model, a loss and a compiled wrapper of its own, and scores as a training by hand does."""
    _, objectives = our_search(our_trainer(args=compiling()), SAME_THREE_TIMES, 3)
    score = by_hand(compiling())[1][KEY]

    assert objectives == [score] * 3
    assert score != untrained_score()

"""Row 6 of the README's table of defects: upstream applies a searched seed only after the model is built."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from transformers import set_seed

from defect_setup import (
    KEY,
    Recorder,
    arguments,
    by_hand,
    fresh_model,
    in_turn,
    our_search,
    our_trainer,
    upstream_search,
    upstream_trainer,
)

SEEDS = [101, 202, 303]


def model_with_a_new_head() -> SentenceTransformer:
    """A ``model_init`` whose last module starts with random weights."""
    return SentenceTransformer(modules=[*fresh_model(), Dense(128, 16)], device="cpu")


def _first_weight(model: SentenceTransformer) -> float:
    return model[2].linear.weight[0, 0].item()


def head_of_seed(seed: int) -> float:
    set_seed(seed)
    return _first_weight(model_with_a_new_head())


def head_recorder() -> Recorder:
    return Recorder(
        head=lambda args, state, model, **_: _first_weight(model),
        seed=lambda args, state, **_: args.seed,
    )


def test_upstream_starts_each_trial_from_the_seed_of_the_trial_before():
    """The seed is set, the model is built, and only then does the trial's seed reach the arguments: trial 0's new
    head comes from the seed that the user gave, and trial k's from trial k-1's."""
    recorder = head_recorder()
    trainer = upstream_trainer(args=arguments(seed=12), model_init=model_with_a_new_head, callbacks=[recorder])
    upstream_search(trainer, in_turn(seed=SEEDS), 3)

    assert recorder.seen("seed") == SEEDS
    assert recorder.seen("head") == [head_of_seed(12), head_of_seed(101), head_of_seed(202)]


def test_ours_starts_each_trial_from_its_own_seed():
    """Each trial's new head comes from the trial's seed, and its score is that of a training by hand with it."""
    recorder = head_recorder()
    trainer = our_trainer(args=arguments(seed=12), model_init=model_with_a_new_head, callbacks=[recorder])
    _, objectives = our_search(trainer, in_turn(seed=SEEDS), 3)

    assert recorder.seen("seed") == SEEDS
    assert recorder.seen("head") == [head_of_seed(seed) for seed in SEEDS]
    assert objectives == [by_hand(arguments(seed=seed), model_with_a_new_head)[1][KEY] for seed in SEEDS]

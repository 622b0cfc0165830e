"""Rows 2 to 5 of the README's table of defects: what upstream does to the training arguments of a trial.

It casts a value to the type of the old value, sets it after the arguments' own conversions have run, keeps what an
earlier trial has set, and reports hyperparameters that it never used.
"""

from __future__ import annotations

import pytest
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from defect_setup import (
    KEY,
    Recorder,
    arguments,
    by_hand,
    in_turn,
    our_search,
    our_trainer,
    upstream_search,
    upstream_trainer,
)

WARMUP_STEPS = [0.22, 0.05, 0.3]
WARMUP_RATIOS = [0.5, 0.75, 0.9]
SCALES = [20.0, 1.0, 50.0]
WEIGHT_DECAYS = [0.3, None, None]


def warmup_recorder() -> Recorder:
    return Recorder(
        setting=lambda args, state, **_: args.warmup_steps,
        steps=lambda args, state, **_: args.get_warmup_steps(state.max_steps),
        first_learning_rate=lambda args, state, lr_scheduler, **_: lr_scheduler.get_last_lr()[0],
    )


def ranking_loss(model: SentenceTransformer, scale: float = 20.0) -> MultipleNegativesRankingLoss:
    return MultipleNegativesRankingLoss(model, scale=scale)


def test_upstream_casts_a_searched_warmup_to_zero_steps():
    """The space of the official example, 0.05 to 0.3: the default is the integer 0, so each value is cast to an
    integer. Every trial trains without a warmup, scores the same, and the best run reports a warmup of 0.22."""
    recorder = warmup_recorder()
    best, objectives = upstream_search(upstream_trainer(callbacks=[recorder]), in_turn(warmup_steps=WARMUP_STEPS), 3)

    assert recorder.seen("setting") == [0, 0, 0]
    assert recorder.seen("steps") == [0, 0, 0]
    assert recorder.seen("first_learning_rate") == [1e-3] * 3
    assert len(objectives) == 3
    assert len(set(objectives)) == 1
    assert best.hyperparameters == {"warmup_steps": 0.22}


def test_ours_warms_up_for_the_searched_share_of_the_steps():
    """The same space: each trial trains with the warmup that it reports, and scores as a training by hand does."""
    recorder = warmup_recorder()
    _, objectives = our_search(our_trainer(callbacks=[recorder]), in_turn(warmup_steps=WARMUP_STEPS), 3)

    assert recorder.seen("setting") == WARMUP_STEPS
    assert recorder.seen("steps") == [1, 1, 2]
    assert recorder.seen("first_learning_rate") == [0.0] * 3
    assert objectives == [by_hand(arguments(warmup_steps=value))[1][KEY] for value in WARMUP_STEPS]


def test_upstream_ignores_a_searched_warmup_ratio():
    """The arguments turn a ratio into steps when they are built; upstream sets the ratio on arguments built long
    before, where nothing reads it: no warmup in any trial."""
    recorder = warmup_recorder()
    best, objectives = upstream_search(upstream_trainer(callbacks=[recorder]), in_turn(warmup_ratio=WARMUP_RATIOS), 3)

    assert recorder.seen("steps") == [0, 0, 0]
    assert recorder.seen("first_learning_rate") == [1e-3] * 3
    assert len(set(objectives)) == 1
    assert best.hyperparameters == {"warmup_ratio": 0.5}


def test_ours_warms_up_for_the_searched_ratio():
    """Each trial's arguments are built with the ratio, so their own conversion runs."""
    recorder = warmup_recorder()
    _, objectives = our_search(our_trainer(callbacks=[recorder]), in_turn(warmup_ratio=WARMUP_RATIOS), 3)

    assert recorder.seen("steps") == [2, 3, 4]
    assert recorder.seen("first_learning_rate") == [0.0] * 3
    assert objectives == [by_hand(arguments(warmup_ratio=value))[1][KEY] for value in WARMUP_RATIOS]


def test_upstream_reports_a_hyperparameter_that_it_never_used(monkeypatch):
    """A ``scale`` meant for the loss: a warning a trial, three trials of the same training, and a best run that
    names a scale."""
    warnings: list[str] = []
    monkeypatch.setattr(transformers.trainer.logger, "warning", warnings.append)
    best, objectives = upstream_search(upstream_trainer(loss=ranking_loss), in_turn(scale=SCALES), 3)

    assert [warning for warning in warnings if "Trying to set scale" in warning] == [
        "Trying to set scale in the hyperparameter search but there is no corresponding field in `TrainingArguments`."
    ] * 3
    assert len(objectives) == 3
    assert len(set(objectives)) == 1
    assert best.hyperparameters == {"scale": 20.0}


def test_ours_refuses_a_hyperparameter_that_nothing_uses_and_names_the_right_one():
    """The same space is an error before any training, and the message says where a scale of the loss goes."""
    from st_hpo import UnknownHyperparameterError

    recorder = Recorder()
    trainer = our_trainer(loss=ranking_loss, callbacks=[recorder])
    with pytest.raises(UnknownHyperparameterError, match=r"loss\.scale"):
        our_search(trainer, in_turn(scale=SCALES), 3)

    assert recorder.begun == []


def test_ours_gives_the_scale_to_the_loss():
    """Under the name ``loss.scale``, each trial's loss is built with its own scale, as by hand."""
    _, objectives = our_search(our_trainer(loss=ranking_loss), in_turn(**{"loss.scale": SCALES}), 3)
    expected = [
        by_hand(arguments(), loss_init=lambda model, scale=scale: ranking_loss(model, scale))[1][KEY]
        for scale in SCALES
    ]

    assert objectives == expected
    assert len(set(expected)) == 3


def decay_recorder() -> Recorder:
    return Recorder(weight_decay=lambda args, state, **_: args.weight_decay)


def test_upstream_keeps_an_earlier_trials_value():
    """Only trial 0 suggests a weight decay. It stays set in the trials that suggest none, and when the search is
    over the trainer keeps the last trial's arguments."""
    recorder = decay_recorder()
    trainer = upstream_trainer(callbacks=[recorder])
    upstream_search(trainer, in_turn(weight_decay=WEIGHT_DECAYS, learning_rate=[1e-3, 2e-3, 5e-4]), 3)

    assert recorder.seen("weight_decay") == [0.3, 0.3, 0.3]
    assert (trainer.args.weight_decay, trainer.args.learning_rate) == (0.3, 5e-4)


def test_ours_starts_each_trial_from_the_users_arguments():
    """A trial that suggests no weight decay has the user's own, and after the search the trainer has them too."""
    recorder = decay_recorder()
    trainer = our_trainer(callbacks=[recorder])
    before = trainer.args.to_dict()
    our_search(trainer, in_turn(weight_decay=WEIGHT_DECAYS, learning_rate=[1e-3, 2e-3, 5e-4]), 3)

    assert recorder.seen("weight_decay") == [0.3, 0.0, 0.0]
    assert trainer.args.to_dict() == before
    assert (trainer.args.weight_decay, trainer.args.learning_rate) == (0.0, 1e-3)

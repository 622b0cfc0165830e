"""Row 20 of the README's table of defects: how many models are alive in a trial."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from defect_setup import MAX_STEPS, fresh_model, in_turn, our_search, our_trainer, upstream_search, upstream_trainer

SAME_THREE_TIMES = in_turn(learning_rate=[1e-3] * 3)


class CountingInit:
    """A ``model_init`` that notes how many of its models are alive when it has built another one."""

    def __init__(self) -> None:
        self.models: weakref.WeakSet[SentenceTransformer] = weakref.WeakSet()
        self.after_building: list[int] = []

    def __call__(self) -> SentenceTransformer:
        model = fresh_model()
        self.models.add(model)
        self.after_building.append(self.alive())
        return model

    def alive(self) -> int:
        gc.collect()
        return len(self.models)


class AliveAtEachStep(TrainerCallback):
    """Notes how many models are alive at the end of every training step, over all trials."""

    def __init__(self, model_init: CountingInit) -> None:
        self.model_init = model_init
        self.counts: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> AliveAtEachStep:
        return self

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.counts.append(self.model_init.alive())


def test_upstream_holds_three_models_when_a_trial_starts():
    """The constructor builds two models. When trial k has built its own, three are alive: the collator holds the first
    one, and the loss that of trial k-1 (in trial 0, the trainer its second one). The loss and the trainer let go
    before the training; the collator never does, so every step of every trial is trained beside a second model."""
    model_init = CountingInit()
    steps = AliveAtEachStep(model_init)
    trainer = upstream_trainer(model_init=model_init, callbacks=[steps])
    upstream_search(trainer, SAME_THREE_TIMES, 3)

    assert model_init.after_building == [1, 2, 3, 3, 3]
    assert steps.counts == [2] * 3 * MAX_STEPS
    assert model_init.alive() == 2


def test_ours_holds_one_model_in_every_trial():
    """Whatever a trial built is gone before the next one builds: one model, from its start to its end."""
    model_init = CountingInit()
    steps = AliveAtEachStep(model_init)
    trainer = our_trainer(model_init=model_init, callbacks=[steps])
    our_search(trainer, SAME_THREE_TIMES, 3)

    assert model_init.after_building[-3:] == [1, 1, 1]
    assert steps.counts == [1] * 3 * MAX_STEPS
    assert model_init.alive() <= 1

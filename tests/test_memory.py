"""At no time does a trial hold more than one model, whatever ended the trials before it, and memory does not grow."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import weakref

import optuna
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers import TrainerCallback

from fast_trainer import METRIC, RATES, FailIn, fast_arguments, fast_trainer, model_init


class AliveModels:
    """A ``model_init`` that knows which of its models are alive."""

    def __init__(self):
        self._models = weakref.WeakSet()

    def __call__(self):
        model = model_init()
        self._models.add(model)
        return model

    def count(self):
        gc.collect()
        return len(self._models)


class CountAlive(TrainerCallback):
    """Notes at the beginning of every training, and at each of its steps, how many models are alive."""

    def __init__(self, models):
        self.models = models
        self.counts = []

    def __deepcopy__(self, memo):
        return self

    def on_train_begin(self, args, state, control, **kwargs):
        self.counts.append(self.models.count())

    def on_step_end(self, args, state, control, **kwargs):
        self.counts.append(self.models.count())


class EveryThird(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number % 3 == 1


@pytest.mark.slow
def test_one_model_is_alive_in_every_one_of_20_trials_also_after_pruned_and_failed_ones():
    models = AliveModels()
    alive = CountAlive(models)
    failing = FailIn(set(range(2, 20, 3)), RuntimeError("boom"))
    trainer = fast_trainer(
        args=fast_arguments(max_steps=3, eval_strategy="steps", eval_steps=2),
        model_init=models,
        callbacks=[alive, failing],
    )
    result = trainer.hyperparameter_search(
        RATES, METRIC, n_trials=20, pruner=EveryThird(), catch=(RuntimeError,)
    ).run_summary
    assert [trial.state for trial in result.trials[:4]] == ["completed", "pruned", "failed", "completed"]
    assert set(alive.counts) == {1} and len(alive.counts) > 40
    assert models.count() == 0, "after the search none is left"
    trainer.train()
    assert models.count() == 1


class OutOfMemory(CoSENTLoss):
    """Has no memory for the forward pass, after that of the model."""

    def forward(self, sentence_features, labels):
        embeddings = [self.model(features) for features in sentence_features]
        raise torch.OutOfMemoryError(f"CUDA out of memory after {len(embeddings)} columns")


def test_after_out_of_memory_the_next_trial_has_the_memory_for_itself():
    models = AliveModels()
    alive = CountAlive(models)
    made = iter(range(-2, 1000))  # the trainer's own loss, and the baseline's

    def loss_init(model):
        return (OutOfMemory if next(made) in (0, 2) else CoSENTLoss)(model)

    trainer = fast_trainer(model_init=models, loss_init=loss_init, callbacks=[alive])
    result = trainer.hyperparameter_search(RATES, METRIC, n_trials=4).run_summary
    assert [trial.state for trial in result.trials] == ["failed", "completed"] * 2
    assert all(trial.error.startswith("Out of memory: OutOfMemoryError: ") for trial in result.trials[::2])
    assert alive.counts == [1] * (1 + 3) * 2  # a failed trial comes to no step
    assert models.count() == 0


def test_a_training_after_another_builds_its_model_when_the_first_is_gone():
    models = AliveModels()
    alive_when_built = []

    def counted():
        model = models()
        alive_when_built.append(models.count())
        return model

    trainer = fast_trainer(model_init=counted)
    trainer.train()
    trainer.train()
    assert alive_when_built == [1, 1, 1]


@pytest.mark.slow
def test_the_error_that_ends_a_search_does_not_keep_its_model():
    models = AliveModels()
    trainer = fast_trainer(model_init=models, callbacks=[FailIn({0}, RuntimeError("boom"))])
    with pytest.raises(RuntimeError) as kept:
        trainer.hyperparameter_search(RATES, METRIC, n_trials=1)
    assert models.count() == 0
    assert str(kept.value) == "boom"


FIFTY_TRIALS = """
import torch, transformers
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
import psutil
from fast_trainer import METRIC, RATES, fast_trainer, random_sampler
from transformers import TrainerCallback

sizes = []

class Measure(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        sizes.append(psutil.Process().memory_info().rss)

trainer = fast_trainer(callbacks=[Measure])
trainer.hyperparameter_search(RATES, METRIC, n_trials=50, sampler=random_sampler())
print(*sizes)
"""


@pytest.mark.slow
def test_resident_memory_does_not_grow_from_trial_5_to_trial_50():
    """In a process whose allocator gives back what is free: otherwise its arenas move by a model's size either way."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    run = subprocess.run(
        [sys.executable, "-c", FIFTY_TRIALS], env=environment, capture_output=True, text=True, timeout=580, check=True
    )
    sizes = [int(size) for size in run.stdout.splitlines()[-1].split()]
    assert len(sizes) == 50
    growth = statistics.median(sizes[-5:]) - statistics.median(sizes[5:10])
    # A model is 17 MiB; measured: 1 MiB in 95 trials
    assert growth < 4 * 2**20, f"grew by {growth / 2**20:.1f} MiB"

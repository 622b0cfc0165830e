"""Row 7 of the README's table of defects: a trial with another base model trains on the first model's token ids."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from sentence_transformers import SentenceTransformer

from defect_setup import (
    KEY,
    arguments,
    by_hand,
    dev_pairs,
    fresh_model,
    our_search,
    our_trainer,
    train_pairs,
    upstream_search,
    upstream_trainer,
)
from embedded import model_path
from small_model import build_small_model


@pytest.fixture(scope="module")
def small_model_path(tmp_path_factory) -> str:
    """Another base model: a random BERT of one layer, whose few hundred token ids are words of the data."""
    columns = [pairs[name] for pairs in (train_pairs(), dev_pairs()) for name in ("sentence1", "sentence2")]
    texts = [text for column in columns for text in column]
    return build_small_model(tmp_path_factory.mktemp("small"), texts)


def searching(first: str, searched: str) -> Callable[[optuna.Trial | None], SentenceTransformer]:
    """A ``model_init`` that builds ``first`` outside a trial, and picks ``searched`` in one."""

    def model_init(trial: optuna.Trial | None) -> SentenceTransformer:
        return fresh_model(first if trial is None else trial.suggest_categorical("base_model", [searched]))

    return model_init


def no_arguments(trial: optuna.Trial) -> dict[str, float]:
    return {}


def test_upstream_reads_beyond_the_vocabulary_of_a_smaller_base_model(small_model_path):
    """The collator still tokenizes for the first model: its ids go beyond the small model's few hundred."""
    trainer = upstream_trainer(model_init=searching(model_path(), small_model_path))

    with pytest.raises(IndexError, match="index out of range"):
        upstream_search(trainer, no_arguments, 1)


def test_upstream_trains_a_larger_base_model_on_the_wrong_ids(small_model_path):
    """The other way round nothing fails: the larger model trains on the small model's ids, which are other words in
    its vocabulary. The score is exactly that of a training with the small model's collator."""
    trainer = upstream_trainer(model_init=searching(small_model_path, model_path()))
    small_collator = trainer.data_collator
    _, objectives = upstream_search(trainer, no_arguments, 1)

    wrong = upstream_trainer(data_collator=small_collator)
    wrong.train()
    right = upstream_trainer()
    right.train()

    assert objectives == [wrong.evaluate()[KEY]]
    assert objectives != [right.evaluate()[KEY]]


@pytest.mark.parametrize("direction", ["to a smaller one", "to a larger one"])
def test_ours_trains_every_base_model_on_its_own_ids(small_model_path, direction):
    """Collator and processing class are the trial's own model's: the score is that of a training by hand."""
    first, searched = model_path(), small_model_path
    if direction == "to a larger one":
        first, searched = searched, first
    _, objectives = our_search(our_trainer(model_init=searching(first, searched)), no_arguments, 1)

    assert objectives == [by_hand(arguments(), lambda: fresh_model(searched))[1][KEY]]


def test_ours_takes_a_base_model_by_keyword(small_model_path):
    """The same search in the words of a space: ``model.<name>`` goes by keyword to ``model_init``."""
    from st_hpo import Categorical, SearchSpace

    def model_init(base: str = model_path()) -> SentenceTransformer:
        return fresh_model(base)

    space = SearchSpace({"model.base": Categorical([model_path(), small_model_path])})
    sampler = optuna.samplers.GridSampler({"model.base": [model_path(), small_model_path]}, seed=0)
    best, _ = our_search(our_trainer(model_init=model_init), space, 2, sampler=sampler)
    found = {trial.hyperparameters["model.base"]: trial.objective for trial in best.run_summary.trials}

    assert found == {
        path: by_hand(arguments(), lambda path=path: fresh_model(path))[1][KEY]
        for path in (model_path(), small_model_path)
    }

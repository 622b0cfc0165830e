"""Row 23 of the README's table of defects: the model card of a model that was trained through ``model_init``."""

from __future__ import annotations

from sentence_transformers.base.model_card import BaseModelCardData

from defect_setup import (
    arguments,
    by_hand,
    dev_pairs,
    in_turn,
    our_search,
    our_trainer,
    upstream_search,
    upstream_trainer,
)

ONE_TRIAL = in_turn(learning_rate=[1e-3])


def what_the_trainer_knows(card: BaseModelCardData) -> dict:
    """The facts of a model card that come from the trainer: its data, its loss, and that there was a trainer."""
    return {
        "tags": card.tags,
        "train_datasets": card.train_datasets,
        "eval_datasets": card.eval_datasets,
        "citations": card.citations,
        "widget": card.widget,
    }


def test_upstream_forgets_data_and_loss_on_the_card_of_a_model_it_initialised():
    """The card is filled when the trainer is built, on the model of that moment; the model that is trained later
    comes from another call of ``model_init``, and its card knows nothing."""
    trainer = upstream_trainer(eval_dataset=dev_pairs())
    upstream_search(trainer, ONE_TRIAL, 1)
    trainer.train()

    assert what_the_trainer_knows(trainer.model.model_card_data) == {
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense"],
        "train_datasets": [],
        "eval_datasets": [],
        "citations": {},
        "widget": [],
    }


def test_ours_writes_the_same_card_as_a_training_by_hand():
    """After a search, the model that ``trainer.train()`` made knows what it was trained on, and with which loss."""
    trainer = our_trainer(eval_dataset=dev_pairs())
    best, _ = our_search(trainer, ONE_TRIAL, 1)
    trainer.apply_best_run(best)
    trainer.train()
    plain, _ = by_hand(arguments(), eval_dataset=dev_pairs())

    card = trainer.model.model_card_data
    assert card.tags[-3:] == ["generated_from_trainer", "dataset_size:32", "loss:CosineSimilarityLoss"]
    assert [dataset["size"] for dataset in card.train_datasets + card.eval_datasets] == [32, 24]
    assert what_the_trainer_knows(card) == what_the_trainer_knows(plain.model.model_card_data)

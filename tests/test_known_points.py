"""The known points: each has a source, is one of a loss that exists, and lies in the default space of its model."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from pathlib import Path

import pytest
from sentence_transformers.sentence_transformer import losses as dense_losses
from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss

import st_hpo
from st_hpo import (
    Categorical,
    ConfigurationError,
    Float,
    Int,
    KnownPoint,
    SearchSpace,
    SearchSpaceError,
    default_search_space,
    known_good_points,
)
from st_hpo.factories import Factory
from st_hpo.known_points import DEFAULT_LOSSES, FAMILIES, KNOWN_POINTS
from st_hpo.points import checked_point, labelled
from st_hpo.warm_start import family_of, losses_of

PAGE = Path(__file__).parents[1] / "docs" / "warm-start.md"
TRAINERS = {
    "sentence_transformer": "SentenceTransformerHPOTrainer",
    "sparse_encoder": "SparseEncoderHPOTrainer",
    "cross_encoder": "CrossEncoderHPOTrainer",
    "multi_vector_encoder": "MultiVectorEncoderHPOTrainer",
}


def loss_class(family: str, name: str) -> type:
    return getattr(importlib.import_module(f"sentence_transformers.{family}.losses"), name)


@pytest.mark.parametrize("point", KNOWN_POINTS, ids=lambda point: f"{point.losses[-1]}-{point['learning_rate']}")
def test_a_known_point_lies_in_the_default_space_and_its_loss_exists(point):
    space = default_search_space(point.model)
    common = {name: value for name, value in point.items() if not name.startswith("loss.")}
    checked = checked_point(space, common, "point")
    assert checked == common and [type(checked[name]) for name in common] == [type(v) for v in common.values()]
    classes = [loss_class(point.family, name) for name in point.losses]
    parameters = {name for item in classes for name in inspect.signature(item).parameters}
    assert {name.removeprefix("loss.") for name in point if name.startswith("loss.")} <= parameters
    assert point.source.startswith("https://") or point.source == "docs/warm-start.md"


@pytest.mark.parametrize("family", FAMILIES)
def test_each_trainer_has_points_for_its_default_loss_in_the_default_space(family):
    assert all(loss_class(family, name) for name in DEFAULT_LOSSES[family])
    points = known_good_points(family=family, space=default_search_space())
    assert points and all(isinstance(point, KnownPoint) and point.model == "transformer" for point in points)
    assert all({"learning_rate", "num_train_epochs"} <= set(point) <= set(default_search_space()) for point in points)
    assert family_of(getattr(st_hpo, TRAINERS[family])) == family


def test_the_default_losses_are_those_that_the_trainers_take():
    for family, names in DEFAULT_LOSSES.items():
        trainer = getattr(st_hpo, TRAINERS[family])
        source = inspect.getsource(trainer.get_default_loss)
        assert set(re.findall(r"(\w+Loss)\(", source)) == set(names)


def test_the_learning_rate_of_the_space_says_which_recipes_are_meant():
    def models(space: SearchSpace) -> set[str]:
        found = known_good_points("MultipleNegativesRankingLoss", space=space)
        return {point.model for point in found}

    for model in ("transformer", "static", "tiny"):
        assert models(default_search_space(model)) == ({"transformer", "tiny"} if model == "tiny" else {model})
    assert models(SearchSpace({"warmup_steps": Float(0.0, 0.3)})) == {"transformer"}
    assert models(SearchSpace({"learning_rate": Float(1e-9, 1e-8)})) == set()


def test_what_the_space_does_not_allow_is_left_out_and_never_clipped():
    space = SearchSpace(
        {
            "learning_rate": Float(1e-6, 1e-4, log=True),
            "per_device_train_batch_size": Categorical([8, 32]),
            "num_train_epochs": Int(2, 3),
            "warmup_ratio": Float(0.0, 0.5),
            "weight_decay": Float(0.0, 0.1),
        }
    )
    points = known_good_points("CachedMultipleNegativesRankingLoss", family="cross_encoder", space=space)
    assert [dict(point) for point in points] == [
        {"learning_rate": 2e-5, "per_device_train_batch_size": 32, "warmup_ratio": 0.1}
    ]
    cosine = known_good_points("CosineSimilarityLoss", space=space)
    assert [dict(point) for point in cosine] == [{"learning_rate": 5e-5, "warmup_ratio": 0.1}]


def test_of_a_wrapper_around_another_loss_the_inner_one_decides():
    def weights(*losses: str) -> list[float]:
        points = known_good_points(losses, family="sparse_encoder")
        return [point.get("loss.query_regularizer_weight") for point in points]

    assert weights("SpladeLoss", "SparseMarginMSELoss") == [0.1]
    assert weights("SpladeLoss", "SparseMultipleNegativesRankingLoss") == [5e-5, 5e-5]
    assert len(weights("SpladeLoss")) == 4
    assert weights("CSRLoss", "SparseMultipleNegativesRankingLoss") == [None]


def test_an_unknown_loss_has_no_points_and_an_unknown_family_is_an_error():
    assert known_good_points("NoSuchLoss") == []
    with pytest.raises(ConfigurationError, match="cross_encoder"):
        known_good_points(family="reranker")
    with pytest.raises(SearchSpaceError, match="static"):
        default_search_space("large")


class OfOnesOwn(dense_losses.CoSENTLoss):
    """A loss class."""


class Callable:
    """A function as an object."""

    def __call__(self, model):
        return dense_losses.CoSENTLoss(model)


def nested(model, dims=(64,)):
    def inner():
        return dense_losses.MultipleNegativesRankingLoss(model)

    return dense_losses.MatryoshkaLoss(model, inner(), dims)


def splade(model, query_regularizer_weight=5e-5):
    return SpladeLoss(model, SparseMultipleNegativesRankingLoss(model), 3e-5, query_regularizer_weight)


@pytest.mark.parametrize(
    ("loss", "family", "names"),
    [
        (None, "cross_encoder", None),
        (dense_losses.CoSENTLoss, "sentence_transformer", ["CoSENTLoss"]),
        (OfOnesOwn, "sentence_transformer", ["CoSENTLoss"]),
        (lambda model: dense_losses.CoSENTLoss(model), "sentence_transformer", ["CoSENTLoss"]),
        (Callable(), "sentence_transformer", ["CoSENTLoss"]),
        (functools.partial(nested, dims=(32,)), "sentence_transformer", ["MultipleNegativesRankingLoss"]),
        (splade, "sparse_encoder", ["SparseMultipleNegativesRankingLoss", "SpladeLoss"]),
        (
            {"a": nested, "b": dense_losses.CoSENTLoss},
            "sentence_transformer",
            ["CoSENTLoss", "MultipleNegativesRankingLoss"],
        ),
        (lambda model: model.loss(), "sentence_transformer", []),
        (len, "sentence_transformer", []),
    ],
)
def test_the_losses_of_a_factory_are_seen_without_calling_it(loss, family, names):
    assert losses_of(loss, family) == names
    if loss is not None and not isinstance(loss, dict):
        assert losses_of(Factory(loss, "loss_init"), family) == names


def test_a_point_is_checked_value_by_value():
    space = SearchSpace(
        {"a": Float(0.1, 0.9, step=0.1), "b": Int(4, 64, step=4), "c": Categorical([1, 1.0, True, [1], None])}
    )
    assert checked_point(space, {"a": 0.3, "b": 8.0, "c": 1.0}, "p") == {"a": 0.3, "b": 8, "c": 1.0}
    assert type(checked_point(space, {"b": "8"}, "p")["b"]) is int
    assert type(checked_point(space, {"c": True}, "p")["c"]) is bool
    assert labelled(space, {"c": [1]}) != labelled(space, {"c": 1})
    assert checked_point(SearchSpace({"w": Categorical([0.0, 0.1])}), {"w": 0}, "p") == {"w": 0.0}
    for wrong in ({"a": 0.35}, {"a": 1.0}, {"b": 8.5}, {"b": 6}, {"c": "1"}, {"d": 1}):
        with pytest.raises(ConfigurationError, match=r"'[abcd]'"):
            checked_point(space, wrong, "p")


def test_the_page_has_every_point_with_its_source():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for point in KNOWN_POINTS:
        source = "measured" if point.model == "tiny" else f"({point.source})"
        numbers = [point.get(name, "") for name in default_search_space()]
        cells = f"| {point.model} | {numbers[0]:g} | {numbers[1]} | {numbers[2]} | {numbers[3]} |"
        of_loss = [f"`{name}` {value:g}" for name, value in point.items() if name.startswith("loss.")]
        wanted = [f"| {point.family} |", *(f"`{name}`" for name in point.losses), cells, *of_loss, source]
        assert [row for row in rows if all(text in row for text in wanted)], point
    assert len([row for row in rows if any(f"| {family} |" in row for family in FAMILIES)]) == len(KNOWN_POINTS)

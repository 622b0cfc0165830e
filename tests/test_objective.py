"""What a search optimizes, and in which direction: said by the caller or by the metric, never guessed."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.base.evaluation import SequentialEvaluator
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from st_hpo import DirectionError, MetricNotFoundError, ObjectiveError
from st_hpo.objective import Objective, check_direction, find_metric, metric_keys, primary_metric, resolve_objective

METRICS = {
    "eval_loss": 0.5,
    "eval_sts-dev_spearman_cosine": 0.8,
    "eval_sts-dev_pearson_cosine": 0.7,
    "eval_nli_loss": 1.5,
    "eval_runtime": 3.0,
    "eval_samples_per_second": 10.0,
    "eval_steps_per_second": 1.0,
    "eval_model_preparation_time": 0.1,
    "eval_mem_cpu_alloc_delta": 1024,
    "epoch": 1.0,
}
COSINE = "eval_sts-dev_spearman_cosine"


def similarity(name: str = "sts-dev", primary: str | None = None, greater: bool = True) -> Any:
    """A real evaluator, as it is before its first run; with ``primary``, as it is afterwards."""
    evaluator = EmbeddingSimilarityEvaluator(["a"], ["b"], [1.0], name=name)
    evaluator.greater_is_better = greater
    if primary is not None:
        evaluator.primary_metric = primary
    return evaluator


def directions_of(compute_objective: Any, direction: Any = None, evaluator: Any = None) -> list[str]:
    objective = resolve_objective(compute_objective, direction, evaluator)
    objective.settle(evaluator)
    return objective.directions


def settled(compute_objective: Any, direction: Any = None, evaluator: Any = None) -> Objective:
    objective = resolve_objective(compute_objective, direction, evaluator)
    objective.settle(evaluator)
    return objective


# -- the objective of no argument


def test_without_an_evaluator_the_loss_is_minimized():
    objective = settled(None)
    assert (objective.names, objective.directions) == (["eval_loss"], ["minimize"])
    assert objective.values(METRICS) == [0.5]


@pytest.mark.parametrize(("greater", "direction"), [(True, "maximize"), (False, "minimize")])
def test_an_evaluator_gives_its_primary_metric_and_its_direction(greater, direction):
    """Its full name exists only after the first run, so it is looked up in the metrics of every evaluation."""
    evaluator = similarity(greater=greater)
    objective = settled(None, None, evaluator)
    assert objective.directions == [direction]
    evaluator.primary_metric = "sts-dev_spearman_cosine"
    assert objective.values(METRICS) == [0.8]
    assert objective.names == [COSINE]


def test_a_direction_that_is_given_wins_over_the_evaluators():
    assert directions_of(None, "minimize", similarity()) == ["minimize"]
    assert directions_of(None, ["minimize"], similarity()) == ["minimize"]


def test_several_directions_for_the_one_primary_metric_are_refused():
    with pytest.raises(DirectionError) as caught:
        resolve_objective(None, ["minimize", "maximize"], similarity())
    assert str(caught.value) == (
        "Without `compute_objective` there is one objective, but `direction` has 2: ['minimize', 'maximize']."
    )
    assert caught.value.direction == ["minimize", "maximize"]


def test_an_evaluator_that_returns_one_number_is_found():
    """Upstream calls it ``eval_evaluator``."""

    class OneNumber:
        def __call__(self, model: Any) -> float:
            return 0.25

    objective = settled(None, None, OneNumber())
    assert objective.values({"eval_evaluator": 0.25, "eval_loss": 1.0}) == [0.25]
    assert (objective.names, objective.directions) == (["eval_evaluator"], ["maximize"])


def test_an_evaluator_without_a_primary_metric_must_be_told_which():
    class Several:
        primary_metric = None

    with pytest.raises(ObjectiveError) as caught:
        primary_metric(Several(), METRICS)
    assert str(caught.value) == (
        "Several names no `primary_metric`. Pass `compute_objective=` with one of: eval_loss, eval_nli_loss, "
        "eval_sts-dev_pearson_cosine, eval_sts-dev_spearman_cosine."
    )


def test_a_primary_metric_that_the_evaluation_does_not_give_is_named():
    with pytest.raises(MetricNotFoundError, match="'ndcg@10'"):
        primary_metric(similarity(primary="ndcg@10"), METRICS)


# -- evaluators that run others


def test_the_evaluators_inside_a_sequential_evaluator_give_its_direction():
    """Its own flag is always True."""
    losses = [similarity("a", greater=False), similarity("b", greater=False)]
    outer = SequentialEvaluator(losses)
    assert outer.greater_is_better is True
    assert directions_of(None, None, outer) == ["minimize"]
    assert directions_of(None, None, SequentialEvaluator([similarity("a"), similarity("b")])) == ["maximize"]


def test_evaluators_that_disagree_need_a_direction():
    outer = SequentialEvaluator([similarity("a"), similarity("b", greater=False)])
    with pytest.raises(DirectionError) as caught:
        resolve_objective(None, None, outer)
    assert str(caught.value) == (
        "The evaluators inside SequentialEvaluator disagree on `greater_is_better`, so `direction` must be given: "
        "'minimize' or 'maximize'."
    )
    assert directions_of(None, "maximize", outer) == ["maximize"]


def test_a_metric_of_one_of_several_evaluators_has_the_direction_of_that_one():
    outer = SequentialEvaluator(
        [similarity("a", primary="a_spearman_cosine"), similarity("b", primary="b_distance", greater=False)]
    )
    assert directions_of("eval_a_spearman_cosine", None, outer) == ["maximize"]
    assert directions_of("b_distance", None, outer) == ["minimize"]
    with pytest.raises(DirectionError):
        directions_of("sequential_score", None, outer)


def test_the_score_of_a_sequential_evaluator_that_has_run_has_the_direction_of_its_evaluators():
    outer = SequentialEvaluator([similarity("a", greater=False)])
    outer.primary_metric = "sequential_score"
    assert directions_of("eval_sequential_score", None, outer) == ["minimize"]


# -- metric keys


@pytest.mark.parametrize("key", ["loss", "eval_loss", "nli_loss", "eval_nli_loss"])
def test_a_loss_is_minimized(key):
    objective = settled(key)
    assert objective.directions == ["minimize"]
    full = "eval_" + key.removeprefix("eval_")
    assert objective.values(METRICS) == [METRICS[full]]
    assert objective.names == [full], "recorded under the name that the evaluation gives it"


@pytest.mark.parametrize("key", [COSINE, COSINE.removeprefix("eval_")])
@pytest.mark.parametrize("primary", ["sts-dev_spearman_cosine", "spearman_cosine"])
@pytest.mark.parametrize(("greater", "direction"), [(True, "maximize"), (False, "minimize")])
def test_the_key_of_the_primary_metric_has_the_evaluators_direction(key, primary, greater, direction):
    """Before the first run its name lacks the evaluator's, and ``eval_`` may be left out."""
    objective = settled(key, None, similarity(primary=primary, greater=greater))
    assert objective.directions == [direction] and objective.values(METRICS) == [0.8]


@pytest.mark.parametrize(
    "evaluator",
    [
        BinaryClassificationEvaluator(["a"], ["b"], [1], name="dev", similarity_fn_names=["cosine"]),
        InformationRetrievalEvaluator({"q": "a"}, {"d": "b"}, {"q": {"d"}}, name="dev", main_score_function="cosine"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_before_the_first_run_most_evaluators_know_no_primary_metric(evaluator):
    """So a key's direction stays open until then: ``settle`` runs after the baseline."""
    objective = resolve_objective("eval_dev_primary", None, evaluator)
    assert objective.directions == [""]
    evaluator.primary_metric = "dev_primary"
    objective.settle(evaluator)
    assert objective.directions == ["maximize"]


@pytest.mark.parametrize(("key", "evaluator"), [("eval_accuracy", None), ("eval_accuracy", similarity())])
def test_any_other_key_needs_a_direction(key, evaluator):
    with pytest.raises(DirectionError) as caught:
        directions_of(key, None, evaluator)
    assert str(caught.value) == (
        "`direction` must be given for the objective 'eval_accuracy': it is neither a loss nor the primary metric of "
        "the evaluator, so nothing says whether more or less of it is better. Pass 'minimize' or 'maximize'. (Many "
        "evaluators know their primary metric only after a first run, which `baseline=True` makes.)"
    )
    assert directions_of(key, "maximize", evaluator) == ["maximize"]


def test_a_direction_against_the_evaluators_is_followed_and_warned_of(caplog):
    evaluator = similarity(primary="sts-dev_spearman_cosine")
    with caplog.at_level(logging.WARNING, "st_hpo"):
        assert directions_of(COSINE, "maximize", evaluator) == ["maximize"]
        assert caplog.messages == []
        assert directions_of(COSINE, "minimize", evaluator) == ["minimize"]
    assert len(caplog.messages) == 1 and f"The search will minimize '{COSINE}'" in caplog.messages[0]


def test_a_list_of_keys_gives_one_value_and_one_direction_for_each():
    objective = settled([COSINE, "loss", "eval_nli_loss"], None, similarity(primary="sts-dev_spearman_cosine"))
    assert objective.is_multi and objective.directions == ["maximize", "minimize", "minimize"]
    assert objective.values(METRICS) == [0.8, 0.5, 1.5]
    assert not settled(["eval_loss"]).is_multi


def test_more_or_fewer_directions_than_keys_are_refused():
    with pytest.raises(DirectionError) as caught:
        resolve_objective(["eval_loss", COSINE], "minimize", None)
    assert str(caught.value) == (
        f"There are 2 objective(s), ['eval_loss', '{COSINE}'], but 1 direction(s), ['minimize']. Give one direction "
        "for each objective."
    )
    with pytest.raises(DirectionError, match=r"There are 1 objective\(s\)"):
        resolve_objective("eval_loss", ["minimize", "maximize"], None)


@pytest.mark.parametrize("nonsense", [[], [""], ["eval_loss", 3], [None], ""])
def test_what_is_no_key_list_or_callable_is_refused(nonsense):
    with pytest.raises(ObjectiveError, match=r"must be a metric key, a list of metric keys, a callable or None"):
        resolve_objective(nonsense, "minimize", None)


@given(st.dictionaries(st.text(min_size=1), st.floats(allow_nan=False), min_size=1))
def test_a_key_finds_itself_and_its_eval_name_whatever_it_is_called(metrics):
    prefixed = {f"eval_{key}": value for key, value in metrics.items()}
    for key in metrics:
        assert find_metric(metrics, key) == key
        assert find_metric({"other": 0.0, **prefixed}, f"eval_{key}") == f"eval_{key}"
        assert find_metric(prefixed, key) in (f"eval_{key}", key)


def test_a_missing_key_is_refused_with_those_that_exist_nearest_first():
    objective = settled("eval_sts_dev_spearman_cosine", "maximize")
    with pytest.raises(MetricNotFoundError) as caught:
        objective.values(METRICS)
    error = caught.value
    assert error.key == "eval_sts_dev_spearman_cosine"
    assert error.available[0] == COSINE and sorted(error.available) == sorted(metric_keys(METRICS))
    assert str(error).startswith(
        "The objective asks for the metric 'eval_sts_dev_spearman_cosine', which the evaluation does not give. Did "
        f"you mean '{COSINE}'"
    )
    assert isinstance(error, KeyError) and isinstance(error, ValueError)


def test_the_keys_of_an_empty_evaluation_are_said_to_be_none():
    with pytest.raises(MetricNotFoundError, match=r"It gives: no metrics\.$"):
        find_metric({"epoch": 1.0, "eval_runtime": 2.0}, "eval_loss")


def test_what_the_trainer_measures_of_itself_is_not_offered_as_an_objective():
    assert metric_keys(METRICS) == list(METRICS)[:4]


# -- directions as they are written


class Direction(Enum):
    UP = "maximize"


def test_a_direction_may_be_an_enum_member():
    assert check_direction(Direction.UP) == "maximize"


@pytest.mark.parametrize(
    ("direction", "hint"),
    [
        ("maximise", " Did you mean 'maximize' or 'minimize'?"),
        ("min", ""),
        ("MINIMIZE", ""),
        ("", ""),
        (1, ""),
        ({"eval_loss": "minimize"}, ""),
    ],
)
def test_a_misspelt_direction_is_refused_with_what_was_meant(direction, hint):
    with pytest.raises(DirectionError) as caught:
        resolve_objective("eval_loss", direction, None)
    assert str(caught.value) == (
        f"`direction` must be 'minimize' or 'maximize' (or a list of these), but got {direction!r}.{hint}"
    )
    assert caught.value.direction == direction


def test_an_empty_list_of_directions_is_refused():
    with pytest.raises(DirectionError, match="`direction` is an empty list: give one direction for each objective"):
        resolve_objective("eval_loss", [], None)


# -- callables


def test_a_callable_needs_a_direction():
    with pytest.raises(DirectionError, match="`direction` must be given with a callable `compute_objective`"):
        resolve_objective(lambda metrics: 1.0, None, similarity())


def test_a_callable_gets_a_copy_of_all_metrics_and_its_number_is_the_objective():
    def spoil(metrics: dict[str, Any]) -> float:
        return metrics.pop("eval_loss") + metrics["epoch"]

    metrics = dict(METRICS)
    objective = settled(spoil, "minimize")
    assert objective.values(metrics) == [1.5] and metrics == METRICS
    assert (objective.names, objective.directions, objective.is_multi) == (["objective"], ["minimize"], False)


@pytest.mark.parametrize("make", [tuple, list])
def test_a_callable_may_return_several_objectives(make):
    objective = settled(lambda metrics: make([metrics["eval_loss"], 2]), ["minimize", "maximize"])
    assert objective.values(METRICS) == [0.5, 2.0]
    assert objective.names == ["objective_0", "objective_1"] and objective.is_multi


@pytest.mark.parametrize(
    ("returned", "direction", "counts"),
    [
        ([1.0, 2.0], "minimize", "returned 2 value(s), but `direction` has 1: ['minimize']"),
        (1.0, ["minimize", "maximize"], "returned 1 value(s), but `direction` has 2: ['minimize', 'maximize']"),
        ([], "minimize", "returned 0 value(s), but `direction` has 1: ['minimize']"),
    ],
)
def test_a_wrong_count_of_objectives_is_refused(returned, direction, counts):
    with pytest.raises(DirectionError) as caught:
        settled(lambda metrics: returned, direction).values(METRICS)
    assert str(caught.value) == f"`compute_objective` {counts}. Give one direction for each objective."


def test_a_key_that_a_callable_misses_is_named_with_those_that_exist():
    with pytest.raises(MetricNotFoundError) as caught:
        settled(lambda metrics: metrics["eval_spearman_cosine"], "maximize").values(METRICS)
    assert caught.value.key == "eval_spearman_cosine"
    assert caught.value.available[:2] == [COSINE, "eval_sts-dev_pearson_cosine"]
    assert type(caught.value.__cause__) is KeyError


@pytest.mark.parametrize("error", [KeyError("eval_loss"), KeyError(3), KeyError(), ZeroDivisionError("by hand")])
def test_any_other_error_of_a_callable_stays_what_it_is(error):
    def fail(metrics: dict[str, Any]) -> float:
        raise error

    with pytest.raises(type(error)) as caught:
        settled(fail, "maximize").values(METRICS)
    assert caught.value is error


# -- numbers


@pytest.mark.parametrize(
    "number",
    [
        2,
        2.0,
        np.float32(2.0),
        np.float64(2.0),
        np.int64(2),
        np.array(2.0),
        torch.tensor(2.0),
        torch.tensor(2),
        torch.tensor(2.0, dtype=torch.bfloat16),
        Decimal("2"),
        Fraction(2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_of_every_library_become_plain_floats(number):
    for objective in (settled("accuracy", "maximize"), settled(lambda metrics: metrics["eval_accuracy"], "maximize")):
        (value,) = objective.values({"eval_accuracy": number})
        assert type(value) is float and value == 2.0


@pytest.mark.parametrize(
    "value", ["0.5", b"0.5", True, None, {"a": 1}, 1j, torch.ones(2), object()], ids=lambda value: type(value).__name__
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ObjectiveError) as caught:
        settled("eval_accuracy", "maximize").values({"eval_accuracy": value})
    assert str(caught.value) == (
        f"The objective 'eval_accuracy' must be a number, but is {value!r} of type {type(value).__name__}."
    )


numbers = st.floats()


@given(numbers, numbers, st.sampled_from(["minimize", "maximize"]))
def test_better_is_a_strict_order_in_which_nan_comes_last(a, b, direction):
    objective = Objective(["x"], [direction])
    better = objective.is_better(a, b)
    if math.isnan(a):
        assert better is False
    elif math.isnan(b):
        assert better is True
    else:
        assert better is (a > b if direction == "maximize" else a < b)
    assert not (better and objective.is_better(b, a))
    assert objective.is_nan([0.0, a]) is math.isnan(a)

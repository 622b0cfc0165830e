"""A search space that makes no sense is refused where it is written, with the value that was wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from st_hpo import (
    Categorical,
    ConfigurationError,
    Float,
    HyperparameterValueError,
    Int,
    SearchSpace,
    SearchSpaceError,
    default_search_space,
)


class Sampler(Enum):
    NO_DUPLICATES = "no_duplicates"


FINITE = "must be a finite number, but got"

REFUSED = [
    (lambda: Float(2.0, 1.0), "Float: `low` must be at most `high`, but got low=2.0, high=1.0."),
    (lambda: Float("1e-5", 1), f"Float: `low` {FINITE} '1e-5'."),
    (lambda: Float(0, None), f"Float: `high` {FINITE} None."),
    (lambda: Float(0, math.inf), f"Float: `high` {FINITE} inf."),
    (lambda: Float(math.nan, 1), f"Float: `low` {FINITE} nan."),
    (lambda: Float(False, 1), f"Float: `low` {FINITE} False."),
    (lambda: Float(0.0, 1.0, log=True), "Float: `log=True` needs a `low` above 0, but got low=0.0."),
    (lambda: Float(-1, 1, log=True), "Float: `log=True` needs a `low` above 0, but got low=-1.0."),
    (lambda: Float(0, 1, step=0), "Float: `step` must be above 0, but got step=0.0."),
    (lambda: Float(0, 1, step=-0.5), "Float: `step` must be above 0, but got step=-0.5."),
    (lambda: Float(0, 1, step="big"), f"Float: `step` {FINITE} 'big'."),
    (lambda: Float(1, 2, log=True, step=0.5), "Float: `log=True` and `step` exclude each other."),
    (lambda: Int(3, 1), "Int: `low` must be at most `high`, but got low=3, high=1."),
    (lambda: Int(1.5, 3), "Int: `low` must be an integer, but got 1.5."),
    (lambda: Int(1, 3.5), "Int: `high` must be an integer, but got 3.5."),
    (lambda: Int(1, math.inf), f"Int: `high` {FINITE} inf."),
    (lambda: Int(True, 3), f"Int: `low` {FINITE} True."),
    (lambda: Int(1, "3"), f"Int: `high` {FINITE} '3'."),
    (lambda: Int(1, 3, step=0.5), "Int: `step` must be an integer, but got 0.5."),
    (lambda: Int(1, 3, step=0), "Int: `step` must be above 0, but got step=0."),
    (lambda: Int(1, 3, step=None), f"Int: `step` {FINITE} None."),
    (lambda: Int(0, 3, log=True), "Int: `log=True` needs a `low` above 0, but got low=0."),
    (lambda: Int(1, 8, log=True, step=2), "Int: `log=True` and `step` exclude each other."),
    (lambda: Categorical([]), "Categorical: `choices` must have at least one choice, but got []."),
    (lambda: Categorical("abc"), "Categorical: `choices` must be a list, but got 'abc'."),
    (
        lambda: Categorical(
            {
                1,
            }
        ),
        "Categorical: `choices` must be a list, but got {1}.",
    ),
    (lambda: Categorical(3), "Categorical: `choices` must be a list, but got 3."),
    (lambda: Categorical([1, 2, 1]), "Categorical: the choice 1 is given twice."),
    (lambda: Categorical([{"a": 1}, {"a": 1}]), "Categorical: the choice {'a': 1} is given twice."),
    (
        lambda: Categorical(["no_duplicates", Sampler.NO_DUPLICATES]),
        "Categorical: the choice 'no_duplicates' is given twice.",
    ),
    (lambda: SearchSpace({}), "The search space is empty: give at least one hyperparameter."),
    (lambda: SearchSpace(["seed"]), "A SearchSpace is made from a dict, but got ['seed']."),
    (
        lambda: SearchSpace({3: Int(1, 2)}),
        "A hyperparameter's name must be a string such as 'loss.scale', got 3.",
    ),
    *(
        (
            lambda name=name: SearchSpace({name: Int(1, 2)}),
            f"A hyperparameter's name must be a string such as 'loss.scale', got {name!r}.",
        )
        for name in ("", ".", "loss.", ".scale", "loss..scale")
    ),
    (
        lambda: SearchSpace({"seed": Int(1, 2), "learning_rate": 1e-5}),
        "Hyperparameter 'learning_rate' must be Float(...), Int(...) or Categorical([...]), but got 1e-05. For one "
        "fixed value, set it in the training arguments, or use Categorical([value]).",
    ),
    (
        lambda: SearchSpace({"learning_rate": Float}),
        f"Hyperparameter 'learning_rate' must be Float(...), Int(...) or Categorical([...]), but got {Float!r}. For "
        "one fixed value, set it in the training arguments, or use Categorical([value]).",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_makes_no_sense_is_refused_with_its_value(make, message):
    with pytest.raises(SearchSpaceError) as caught:
        make()
    assert str(caught.value) == message
    assert isinstance(caught.value, ConfigurationError) and isinstance(caught.value, ValueError)


def test_a_choice_that_cannot_be_recorded_is_refused_with_a_way_out():
    with pytest.raises(HyperparameterValueError, match="let the search space choose a name, and turn the name into"):
        Categorical(["a", object()])


def test_bounds_become_the_type_of_their_dimension():
    assert [type(value) for value in (Float(1, 2).low, Float(0, 1, step=1).step)] == [float, float]
    dimension = Int(1.0, np.float64(8.0), step=2.0)
    assert (dimension.low, dimension.high, dimension.step) == (1, 8, 2)
    assert all(type(value) is int for value in (dimension.low, dimension.high, dimension.step))


@given(st.integers(), st.integers())
def test_integer_bounds_stay_exact_at_any_size(a, b):
    low, high = min(a, b), max(a, b)
    assert (Int(low, high).low, Int(low, high).high) == (low, high)


def test_a_range_of_one_value_is_allowed():
    assert Float(0.5, 0.5).low == Float(0.5, 0.5).high
    assert Int(3, 3, log=True).low == 3
    assert Categorical([None]).choices == (None,)


def test_choices_are_recorded_as_plain_values_in_their_order():
    choices = [Sampler.NO_DUPLICATES, np.int64(3), (1, 2), {"a": [np.float32(0.5)]}, None]
    assert Categorical(choices).choices == ("no_duplicates", 3, [1, 2], {"a": [0.5]}, None)


def test_one_and_true_and_one_point_zero_are_different_choices():
    choices = Categorical([1, True, 1.0, "1"]).choices
    assert [type(choice) for choice in choices] == [int, bool, float, str]


def test_changing_the_list_afterwards_changes_no_choice():
    prompts = {"anchor": "query: "}
    choices = [prompts]
    dimension = Categorical(choices)
    choices.append({})
    prompts["anchor"] = "changed"
    assert dimension.choices == ({"anchor": "query: "},)


@pytest.mark.parametrize("dimension", [Float(0, 1), Int(0, 1), Categorical([1])], ids=lambda item: type(item).__name__)
def test_a_dimension_cannot_be_changed_and_equals_another_with_the_same_bounds(dimension):
    with pytest.raises(AttributeError):
        dimension.low = 3
    same = Categorical(dimension.choices) if isinstance(dimension, Categorical) else type(dimension)(0, 1)
    assert dimension == same and dimension is not same


def test_a_space_is_a_mapping_in_the_order_in_which_it_was_written():
    dimensions = {"seed": Int(1, 2), "loss.scale": Float(1, 2), "model.pooling": Categorical(["cls", "mean"])}
    space = SearchSpace(dimensions)
    assert isinstance(space, Mapping) and len(space) == 3
    assert dict(space) == dimensions and list(space) == list(dimensions)
    assert "seed" in space and "scale" not in space and space.get("scale") is None
    assert dict(SearchSpace({**space, "seed": Int(5, 6)}))["seed"] == Int(5, 6)
    with pytest.raises(KeyError):
        space["scale"]
    del dimensions["seed"]
    assert "seed" in space, "changing the dict afterwards changes no space"


def test_a_space_shows_itself_as_the_code_that_makes_it():
    space = SearchSpace({"seed": Int(1, 2), "loss.scale": Float(5, 50, log=True), "prompts": Categorical([None, "q"])})
    assert repr(space).splitlines()[1] == "    'seed': Int(low=1, high=2, log=False, step=1),"
    assert dict(eval(repr(space))) == dict(space)


def test_the_default_space_searches_no_seed():
    """Searching a seed finds luck, not a better configuration; transformers' default spaces do it."""
    space = default_search_space()
    assert isinstance(space, SearchSpace)
    assert not [name for name in space if "seed" in name]
    assert space["learning_rate"].log and space["warmup_steps"] == Float(0.0, 0.3)
    assert default_search_space() is not space

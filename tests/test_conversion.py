"""A hyperparameter's value arrives as the type that its field declares, whole, or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any, Literal, Optional, Union

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from st_hpo import HyperparameterValueError
from st_hpo.conversion import convert, describe, plain


class Sampler(str, Enum):
    """As sentence-transformers' BatchSamplers: its members are strings."""

    BATCH = "batch_sampler"
    NO_DUPLICATES = "no_duplicates"


class Pooling(Enum):
    MEAN = "mean"
    LAYERS = 12


class Level(IntEnum):
    LOW = 1
    HIGH = 2


texts = st.text(max_size=8)
# Numbers as text come from SigOpt; most random text is no number
numerals = st.integers().map(str) | st.floats().map(repr)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | numerals


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
    )


proposals = nested(scalars)

# What each declared type holds, and values of exactly these types
DECLARED: dict[Any, tuple[set[type], st.SearchStrategy[Any]]] = {
    int: ({int}, st.integers()),
    float: ({float}, st.floats()),
    bool: ({bool}, st.booleans()),
    str: ({str}, texts),
    dict: ({dict}, st.dictionaries(texts, scalars, max_size=3)),
    dict[str, float]: ({dict}, st.dictionaries(texts, st.floats(), max_size=3)),
    list: ({list}, st.lists(scalars, max_size=3)),
    list[str]: ({list}, st.lists(texts, max_size=3)),
    Sampler: ({Sampler}, st.sampled_from(Sampler)),
    Level: ({Level}, st.sampled_from(Level)),
    Literal["end", "best"]: ({str}, st.sampled_from(["end", "best"])),
    Optional[int]: ({int, type(None)}, st.none() | st.integers()),  # noqa: UP045
    int | float: ({int, float}, st.integers() | st.floats()),
    float | None: ({float, type(None)}, st.none() | st.floats()),
    Union[str, None, dict[str, str]]: (  # noqa: UP007  (how sentence-transformers declares `prompts`)
        {str, dict, type(None)},
        texts | st.none() | st.dictionaries(texts, texts, max_size=3),
    ),
    Sampler | str: ({Sampler}, st.sampled_from(Sampler)),
}
declared_types = st.sampled_from(list(DECLARED))
declared_with_value = declared_types.flatmap(lambda declared: st.tuples(st.just(declared), DECLARED[declared][1]))


def refused(value: Any, declared: Any) -> HyperparameterValueError:
    with pytest.raises(HyperparameterValueError) as caught:
        convert("x", value, declared)
    return caught.value


@given(value=proposals, declared=declared_types)
@settings(max_examples=400, deadline=None)
def test_the_result_has_the_declared_type_or_there_is_an_error(value, declared):
    try:
        result = convert("x", value, declared)
    except HyperparameterValueError as exc:
        assert exc.name == "x" and exc.value is value
    else:
        assert type(result) in DECLARED[declared][0]


@given(declared_with_value)
@settings(max_examples=300, deadline=None)
def test_a_value_of_the_declared_type_comes_back_unchanged(pair):
    declared, value = pair
    result = convert("x", value, declared)
    assert type(result) is type(value) and repr(result) == repr(value)


@given(value=st.integers() | st.floats() | st.booleans(), declared=st.sampled_from([int, float, int | float]))
@example(value=2**53 + 1, declared=float)
@example(value=10**400, declared=float)
@example(value=math.inf, declared=int)
@example(value=math.nan, declared=int)
def test_no_conversion_of_a_number_loses_a_part_of_it(value, declared):
    """Python compares integers with floats exactly, so equality says that nothing was lost."""
    try:
        result = convert("x", value, declared)
    except HyperparameterValueError:
        return
    assert type(value) is not bool
    assert result == value or (math.isnan(value) and math.isnan(result))


@given(st.integers(-(2**53), 2**53))
def test_an_integer_survives_the_way_through_a_float_and_through_a_string(number):
    assert convert("x", convert("x", number, float), int) == number
    for value in (float(number), str(number), repr(float(number)), f" {number}\n"):
        result = convert("x", value, int)
        assert type(result) is int and result == number


@given(st.integers())
def test_an_integer_of_any_size_survives_the_way_through_a_string(number):
    assert convert("x", str(number), int) == number


@given(st.floats(allow_nan=False))
def test_a_float_survives_the_way_through_a_string(number):
    result = convert("x", repr(number), float)
    assert type(result) is float and result == number


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer()))
def test_a_fraction_is_never_cut_off(number):
    """Upstream's cast to the type of the old value makes 0 of a searched 0.22."""
    assert "The fraction would be lost." in str(refused(number, int))
    assert "The fraction would be lost." in str(refused(repr(number), int))


@given(st.integers(min_value=0))
def test_an_integer_with_more_digits_than_a_float_has_is_refused_as_a_float(half):
    refused(2**53 + 2 * half + 1, float)  # odd numbers above 2**53 lie between two floats


@pytest.mark.parametrize("declared", [int, float, int | None, float | None, int | float])
@pytest.mark.parametrize("value", [True, False])
def test_a_boolean_is_no_number(value, declared):
    error = refused(value, declared)
    assert str(error) == (
        f"Hyperparameter 'x' got {value} of type bool, expected {describe(declared)}. A boolean is no number."
    )


@pytest.mark.parametrize(
    ("value", "declared", "expected"),
    [
        ("16", int, 16),
        ("16.0", int, 16),
        ("1e3", int, 1000),
        ("-3", int, -3),
        ("0.1", float, 0.1),
        ("1e-05", float, 1e-5),
        ("5", float, 5.0),
        ("true", bool, True),
        ("True", bool, True),
        ("FALSE", bool, False),
        ("0", bool, False),
        ("1", bool, True),
        ("16", int | None, 16),
        ("0.1", float | None, 0.1),
        ("no_duplicates", Sampler, Sampler.NO_DUPLICATES),
        ('{"query": "q: "}', dict, {"query": "q: "}),
        ('{"scale": 0.1}', dict[str, float] | None, {"scale": 0.1}),
        ("[1, 2]", list[int], [1, 2]),
    ],
)
def test_strings_as_sigopt_gives_them_become_what_they_spell(value, declared, expected):
    result = convert("x", value, declared)
    assert type(result) is type(expected) and result == expected


@pytest.mark.parametrize(
    ("value", "declared", "why"),
    [
        ("0.5", int, "The fraction would be lost."),
        ("sixteen", int, "The string is no number."),
        ("", float, "The string is no number."),
        ("yes", bool, "Only True, False, 0, 1 and their strings are booleans."),
        (2, bool, "Only True, False, 0, 1 and their strings are booleans."),
        (0.5, bool, "Only True, False, 0, 1 and their strings are booleans."),
        (10**400, float, "It is too large for a float."),
        (2**53 + 1, float, "It has more digits than a float holds."),
        (None, int, "None is not allowed here."),
        ("{", dict, "The string is no JSON."),
        ("[1]", dict, ""),
        (16, str, ""),
        ([16], int, ""),
        ("best of all", Literal["end", "best"], "It is none of them."),
    ],
)
def test_the_message_says_the_name_the_value_its_type_the_declared_type_and_why(value, declared, why):
    error = refused(value, declared)
    expected = f"Hyperparameter 'x' got {value!r} of type {type(value).__name__}, expected {describe(declared)}."
    assert str(error) == f"{expected} {why}".rstrip()
    assert (error.name, error.value, error.expected) == ("x", value, describe(declared))


@pytest.mark.parametrize(
    ("value", "declared", "expected"),
    [
        (None, int | None, None),
        (None, Optional[dict], None),  # noqa: UP045
        (3, float | None, 3.0),
        (3.0, int | None, 3),
        (3.0, int | float, 3.0),
        (3, float | int, 3),
        ("3", int | float, 3),
        ("3", float | int, 3.0),
        ("0.5", int | float, 0.5),
        ("3", str | int, "3"),
        ("3", int | str, "3"),
        (1, bool | int, 1),
        (True, int | bool, True),
        ("true", bool | None, True),
        ({"a": "b"}, Union[str, None, dict[str, str]], {"a": "b"}),  # noqa: UP007
    ],
)
def test_in_a_union_the_exact_type_wins_and_then_the_first_that_fits(value, declared, expected):
    result = convert("x", value, declared)
    assert type(result) is type(expected) and result == expected


@pytest.mark.parametrize("declared", [object, Callable[..., int], int | Callable[..., int]])
def test_where_the_declaration_says_nothing_an_object_is_left_alone(declared):
    assert convert("x", print, declared) is print


@pytest.mark.parametrize(
    ("value", "declared", "member"),
    [
        ("no_duplicates", Sampler, Sampler.NO_DUPLICATES),
        ("no_duplicates", Sampler | str, Sampler.NO_DUPLICATES),
        (Sampler.BATCH, Sampler | str, Sampler.BATCH),
        ("mean", Pooling, Pooling.MEAN),
        (12, Pooling, Pooling.LAYERS),
        (2, Level, Level.HIGH),
    ],
)
def test_an_enum_member_is_found_by_its_value(value, declared, member):
    assert convert("x", value, declared) is member


def test_a_member_of_another_enum_with_the_same_value_is_taken_by_its_value():
    class Other(Enum):
        SAME = "no_duplicates"

    assert convert("x", Other.SAME, Sampler) is Sampler.NO_DUPLICATES
    assert convert("x", Other.SAME, str) == "no_duplicates"


@pytest.mark.parametrize("value", ["no_duplicate", "NO_DUPLICATES", 3, None, ["no_duplicates"]])
def test_a_value_that_spells_no_member_is_refused_with_the_choices(value):
    error = refused(value, Sampler)
    assert error.expected == "one of 'batch_sampler', 'no_duplicates'"
    assert f"got {value!r} of type {type(value).__name__}, expected {error.expected}." in str(error)


def test_a_string_for_an_enum_or_a_string_must_spell_a_member():
    """Training arguments declare ``SchedulerType | str``, and their constructor refuses every other string later."""
    refused("no_duplicate", Sampler | str)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (int, "int"),
        (Optional[float], "float or None"),  # noqa: UP045
        (Union[str, None, dict[str, str], dict[str, dict[str, str]]], "str or None or dict"),  # noqa: UP007
        (Literal["end", "best"], "one of 'end', 'best'"),
        (Level, "one of 1, 2"),
        (Sampler | str, "one of 'batch_sampler', 'no_duplicates'"),
    ],
)
def test_a_declared_type_is_described_in_words(declared, words):
    assert describe(declared) == words


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(16), 16),
        (np.uint8(3), 3),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("cosine"), "cosine"),
        (np.array(2.5), 2.5),
        (torch.tensor(3), 3),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(True), True),
        (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5),
        (Sampler.BATCH, "batch_sampler"),
        (Level.HIGH, 2),
        ((1, (2.0, None)), [1, [2.0, None]]),
        ({np.str_("a"): np.int32(1)}, {"a": 1}),
        ({"b": [Pooling.MEAN, torch.tensor(1)]}, {"b": ["mean", 1]}),
    ],
)
def test_numbers_of_numpy_and_torch_and_enums_are_recorded_as_plain_values(value, expected):
    result = plain("x", value)
    assert type(result) is type(expected) and repr(result) == repr(expected)


@pytest.mark.parametrize(
    ("value", "declared", "expected"),
    [
        (np.int64(16), int, 16),
        (np.float64(16.0), int, 16),
        (torch.tensor(16), int, 16),
        (np.int64(1), float, 1.0),
        (torch.tensor(0.5), float, 0.5),
        (np.bool_(False), bool, False),
        (np.str_("no_duplicates"), Sampler, Sampler.NO_DUPLICATES),
    ],
)
def test_what_is_plain_is_converted(value, declared, expected):
    result = convert("x", plain("x", value), declared)
    assert type(result) is type(expected) and result == expected


foreign = st.builds(np.float64, st.floats(allow_nan=False)) | st.builds(np.int64, st.integers(-(2**63), 2**63 - 1))
members = st.sampled_from([Sampler.BATCH, Level.LOW, Pooling.MEAN])


@given(nested(scalars.filter(lambda value: value == value) | foreign | members | st.tuples(scalars)))
@settings(max_examples=200, deadline=None)
def test_plain_values_are_json_and_plain_again(value):
    once = plain("x", value)
    assert repr(plain("x", once)) == repr(once)
    assert repr(json.loads(json.dumps(once))) == repr(once)


@given(proposals)
def test_what_is_plain_already_comes_back_as_it_is(value):
    assert repr(plain("x", value)) == repr(value)


def test_what_is_recorded_does_not_change_with_what_was_given():
    given_value = {"prompts": ["a"]}
    recorded = plain("x", given_value)
    given_value["prompts"].append("b")
    assert recorded == {"prompts": ["a"]}


@pytest.mark.parametrize(
    "value",
    [object(), print, int, b"bytes", 1j, {1, 2}, np.arange(3), np.array(["a", "b"]), torch.ones(2), range(3)],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"a": {"b": v}}], ids=["", "list", "dict"])
def test_an_object_that_cannot_be_recorded_is_refused_with_a_way_out(value, wrap):
    with pytest.raises(HyperparameterValueError) as caught:
        plain("loss.inner", wrap(value))
    assert str(caught.value) == (
        f"Hyperparameter 'loss.inner' got {value!r} of type {type(value).__name__}, expected None, a bool, a number, "
        "a string, or lists and dicts of these. Only such values can be recorded and set again: let the search space "
        "choose a name, and turn the name into the object in `model_init` or `loss_init`."
    )


def test_a_dict_whose_keys_are_no_strings_is_refused():
    with pytest.raises(HyperparameterValueError, match=r"expected a dict with string keys. The key 1 is none."):
        plain("x", {"a": {1: "b"}})

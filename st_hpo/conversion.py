"""Typed conversion of hyperparameter values: what is declared an int arrives as an int, or not at all.

Search backends hand values on as whatever their own format has (NumPy scalars, strings, floats for integers). Here a
value becomes exactly the type that its field declares. Whatever would lose a part of the value is an error. Pure
Python: no torch, no transformers.
"""

from __future__ import annotations

import collections.abc
import json
import math
import types
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from st_hpo.errors import HyperparameterValueError

_TRUE, _FALSE = frozenset({"true", "1"}), frozenset({"false", "0"})


class _Lossy(Exception):
    """The value does not fit; the argument says why."""


def plain(name: str, value: Any) -> Any:
    """Returns ``value`` in the types that JSON has, so that it can be recorded without loss.

    Args:
        name: The hyperparameter, for the error.
        value: None, a bool, int, float, string or enum member, a NumPy or torch scalar, or lists, tuples and dicts
            with string keys of these.

    Returns:
        The same value: enum members by their value, scalars of other libraries as Python numbers, tuples as lists.

    Raises:
        HyperparameterValueError: The value is something else, an object or a function for example.
    """
    if isinstance(value, Enum):
        return plain(name, value.value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, bool | int | float | str):  # subclasses, such as numpy.float64 and numpy.str_
        for base in (bool, int, float, str):
            if isinstance(value, base):
                return base(value)
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        item = value.item()
        if type(item) is not type(value):
            return plain(name, item)
        if float(value) == value:  # numpy.longdouble is its own item
            return float(value)
    if isinstance(value, collections.abc.Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise HyperparameterValueError(name, value, "a dict with string keys", f"The key {bad[0]!r} is none.")
        return {plain(name, key): plain(name, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(name, item) for item in value]
    raise HyperparameterValueError(
        name,
        value,
        "None, a bool, a number, a string, or lists and dicts of these",
        "Only such values can be recorded and set again: let the search space choose a name, and turn the name "
        "into the object in `model_init` or `loss_init`.",
    )


def convert(name: str, value: Any, declared: Any) -> Any:
    """Converts a value to the type that its field declares.

    Args:
        name: The hyperparameter, for the error.
        value: The value that the backend proposed.
        declared: A type as ``typing.get_type_hints`` gives it: a class, an enum, ``Optional``, ``Union``, ``Literal``
            or a container. ``Any`` and callables take everything.

    Returns:
        The value in the declared type; unchanged where it has that type already.

    Raises:
        HyperparameterValueError: The conversion is impossible or would lose a part of the value.
    """
    try:
        return _convert(value, declared)
    except _Lossy as exc:
        raise HyperparameterValueError(name, value, describe(declared), str(exc)) from None


def describe(declared: Any) -> str:
    """Returns a declared type in words, for messages: ``'int'``, ``"one of 'no', 'steps', 'epoch'"``, ..."""
    origin = get_origin(declared)
    if origin in (Union, types.UnionType):
        members = get_args(declared)
        if any(isinstance(member, type) and issubclass(member, Enum) for member in members):
            members = tuple(member for member in members if member is not str)  # see _convert_to_union
        return " or ".join(dict.fromkeys(describe(member) for member in members))
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(declared))
    if isinstance(declared, type) and issubclass(declared, Enum):
        return "one of " + ", ".join(repr(member.value) for member in declared)
    if declared is type(None):
        return "None"
    return str(getattr(origin or declared, "__name__", declared))


def _convert(value: Any, declared: Any) -> Any:
    if declared is Any:  # a class since Python 3.11
        return value
    origin = get_origin(declared)
    if origin in (Union, types.UnionType):
        return _convert_to_union(value, get_args(declared))
    if origin is Literal:
        return _convert_to_literal(value, get_args(declared))
    target = origin or declared
    if not isinstance(target, type) or target in (object, collections.abc.Callable):
        return value  # Any, type variables, callables: nothing to check
    if target is type(None):
        if value is None:
            return None
        raise _Lossy("")
    if value is None:
        raise _Lossy("None is not allowed here.")
    if issubclass(target, Enum):
        bare = value.value if isinstance(value, Enum) else value
        try:
            member = target(bare)
        except ValueError:
            raise _Lossy("It is none of them.") from None
        if isinstance(bare, bool) != isinstance(member.value, bool):  # True equals 1, but is another value
            raise _Lossy("It is none of them.")
        return member
    for base, to_base in _SCALARS.items():
        if issubclass(target, base):
            return to_base(value)
    if isinstance(value, target):
        return value
    if target in (dict, list) and isinstance(value, str):
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            raise _Lossy("The string is no JSON.") from None
        if isinstance(parsed, target):
            return parsed
    if target in (list, tuple) and isinstance(value, list | tuple):
        return target(value)
    raise _Lossy("")


def _convert_to_literal(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    for choice in choices:
        try:
            if _convert(value, type(choice)) == choice:
                return choice
        except _Lossy:
            continue
    raise _Lossy("It is none of them.")


def _convert_to_union(value: Any, members: tuple[Any, ...]) -> Any:
    """An exact type wins over a conversion, and the members are tried in their declared order.

    ``SchedulerType | str`` in training arguments means a string that spells a member of the enum, and no other string.
    """
    enums = tuple(member for member in members if isinstance(member, type) and issubclass(member, Enum))
    if enums and isinstance(value, str):
        members = enums
    for member in members:
        target = get_origin(member) or member
        if (isinstance(target, type) and type(value) is target) or (value is None and member is type(None)):
            return value
    reasons = []
    for member in members:
        try:
            return _convert(value, member)
        except _Lossy as exc:
            reasons.append(str(exc))
    raise _Lossy(next((reason for reason in reasons if reason), ""))


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise _Lossy("Only True, False, 0, 1 and their strings are booleans.")


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise _Lossy("A boolean is no number.")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value) and value.is_integer():
            return int(value)
        raise _Lossy("The fraction would be lost.")
    if isinstance(value, str):
        try:
            number = Decimal(value)
        except InvalidOperation:
            raise _Lossy("The string is no number.") from None
        if number.is_finite() and number == number.to_integral_value():
            return int(number)
        raise _Lossy("The fraction would be lost.")
    raise _Lossy("")


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise _Lossy("A boolean is no number.")
    if isinstance(value, int | float):
        try:
            converted = float(value)
        except OverflowError:
            raise _Lossy("It is too large for a float.") from None
        if isinstance(value, int) and int(converted) != value:
            raise _Lossy("It has more digits than a float holds.")
        return converted
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise _Lossy("The string is no number.") from None
    raise _Lossy("")


def _to_str(value: Any) -> str:
    if isinstance(value, Enum) and isinstance(value.value, str):
        return value.value
    if isinstance(value, str):
        return str(value)
    raise _Lossy("")


# bool before int: bool is a subclass of int
_SCALARS: dict[type, Callable[[Any], Any]] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}

"""Numbers, durations and texts of strangers in a form that can be shown. Pure Python."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from decimal import Decimal
from typing import Any, TypeGuard

from st_hpo.jsonable import to_jsonable

NONE = "\u2013"
# Characters that no text shows: controls, lone surrogates, unassigned ones, and those that turn the direction of text
_HIDDEN = {"Cc", "Cs", "Cn", "Co"}
_TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_PLAIN = re.compile(r"[\n\x20-\x7e]*\Z")


def clean(text: str, limit: int | None = None) -> str:
    """Returns a text that any UTF-8 file and any page can hold.

    Args:
        text: Whatever a script, a data set or an exception has put there.
        limit: How many characters to keep; a text that was cut ends in an ellipsis.

    Returns:
        The text. A character that cannot be shown is U+FFFD, a tab is a space, any line end is ``\\n``.
    """
    if limit is not None and len(text) > 4 * limit:
        text = text[: 4 * limit]
    if not _PLAIN.match(text):
        text = re.sub("\r\n?|[\u2028\u2029\x85\x0b\x0c]", "\n", text).replace("\t", " ")
        text = "".join(
            "\ufffd" if c in _TURNING or (c != "\n" and unicodedata.category(c) in _HIDDEN) else c for c in text
        )
    if limit is not None and len(text) > limit:
        text = text[: max(limit - 1, 1)] + "…"
    return text


def line(text: str, limit: int | None = None) -> str:
    """Returns :func:`clean` text on a single line."""
    return clean(" ".join(clean(text, None if limit is None else 2 * limit).split()), limit)


def label(text: str, limit: int = 40) -> str:
    """Returns a text for plotly, which takes ``<b>``, ``<a href=...>`` and ``$...$`` in any text for mark-up."""
    text = line(text, limit)
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;")):
        text = text.replace(char, entity)
    return text


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is an int or a float, and finite."""
    return type(value) in (int, float) and (type(value) is int or math.isfinite(value))


def number(value: Any) -> str:
    """Returns a number with up to five significant digits, an int of up to nine digits whole."""
    if type(value) is int:
        return str(value) if abs(value) < 10**9 else f"{Decimal(value):.5g}"  # a float may not hold it
    if not isinstance(value, float):
        return NONE
    return f"{value:.5g}"


def shown(value: Any, limit: int = 80) -> str:
    """Returns any value of a hyperparameter or metric in short: numbers rounded, text as it is, the rest as JSON."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if type(value) in (int, float):
        return number(value)
    return line(exact(value), limit)


def exact(value: Any) -> str:
    """Returns any value of a hyperparameter or metric in full: text as it is, lists and dicts as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and abs(value) > 10**1000:
        return hex(value)  # Python refuses to write integers of more than 4300 digits
    return json.dumps(to_jsonable(value), ensure_ascii=False) if isinstance(value, dict | list) else repr(value)


def duration(seconds: Any) -> str:
    """Returns seconds as hours, minutes and seconds: ``0.25 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if not is_number(seconds) or seconds < 0:
        return NONE
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(whole / 60)
    if minutes >= 60 * 10**6:
        return f"{minutes / 60:.3g} h"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def count(n: int, word: str, plural: str | None = None) -> str:
    """Returns ``"1 trial"``, ``"2 trials"``."""
    return f"{n} {word if n == 1 else plural or word + 's'}"

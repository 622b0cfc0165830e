"""Values to JSON and back, without loss: NaN and the infinities, and scalars of NumPy and torch."""

from __future__ import annotations

import math
from typing import Any

_FLOAT_TAG = "$float"


def recordable(value: Any) -> Any:
    """Returns a metric as a plain Python value: evaluators of one's own may return scalars of NumPy or torch.

    Arrays become lists; what is no number, string, list or dict becomes its text.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {str(key): recordable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [recordable(item) for item in value]
    for base in (int, float, str):
        if isinstance(value, base):
            return base(value)
    if callable(getattr(value, "tolist", None)):
        listed = value.tolist()
        return recordable(listed) if type(listed) is not type(value) else float(listed)
    return str(value)


def to_jsonable(value: Any) -> Any:
    """Returns ``value`` with NaN and the infinities, which JSON does not have, as ``{"$float": "nan"}``."""
    value = recordable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT_TAG: repr(value)}
    if isinstance(value, dict):
        # A dict that looks like the tag itself is wrapped, so that it comes back as a dict
        inner = {key: to_jsonable(item) for key, item in value.items()}
        return {_FLOAT_TAG: inner} if _FLOAT_TAG in value else inner
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    return value


def from_jsonable(value: Any) -> Any:
    """Returns the value that :func:`to_jsonable` was given."""
    if isinstance(value, dict):
        if set(value) == {_FLOAT_TAG}:
            tagged = value[_FLOAT_TAG]
            if isinstance(tagged, str):
                return float(tagged)
            return {key: from_jsonable(item) for key, item in tagged.items()}
        return {key: from_jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_jsonable(item) for item in value]
    return value

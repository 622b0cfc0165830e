"""Training arguments, taken apart and built anew: every trial's arguments come out of their own constructor.

Upstream sets a trial's values on the one arguments object with ``setattr`` and a cast to the old value's type
(transformers.Trainer._hp_search_setup): a searched ``warmup_steps`` of 0.22 becomes ``int(0.22) == 0``, a searched
``warmup_ratio`` is never converted, and what one trial sets stays set in the next.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import typing
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from st_hpo.conversion import convert
from st_hpo.errors import ConfigurationError

# Fields of which the constructor heeds one only: giving both would silently ignore the first.
_ONE_OF = {"warmup_ratio": "warmup_steps"}


class ArgumentSnapshot:
    """The constructor call that gives a training arguments object again, with or without other values.

    Args:
        args: Training arguments (any dataclass whose constructor takes its fields).

    Attributes:
        kwargs: The fields that the constructor must be given; those that it derives itself are left out, so that
            they are derived again from a trial's values.
    """

    def __init__(self, args: Any) -> None:
        self.args_class = type(args)
        self._types = _declared_types(self.args_class)
        with _silent():
            self.kwargs = self._minimal_kwargs(args)

    @property
    def names(self) -> list[str]:
        """The names of all fields that can be set."""
        return list(self._types)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns ``values`` in the declared types of their fields.

        Raises:
            HyperparameterValueError: A value does not fit, or only by losing a part of it.
            ConfigurationError: Two values are given of which the constructor would ignore one.
        """
        for name, other in _ONE_OF.items():
            if name in values and other in values:
                raise ConfigurationError(
                    f"The hyperparameters {name!r} and {other!r} set the same thing, and the training arguments would "
                    f"ignore {name!r}. Search one of them; {other!r} takes a share of all steps (0.1) as well."
                )
        return {name: convert(name, value, self._types[name]) for name, value in values.items()}

    def build(self, values: Mapping[str, Any] | None = None) -> Any:
        """Returns new training arguments: the originals plus ``values``, through the constructor.

        Args:
            values: Values that :meth:`convert` has returned.

        Raises:
            ValueError: The arguments' own validation refuses the combination.
        """
        kwargs = copy.deepcopy(self.kwargs)
        for name in values or {}:
            kwargs.pop(_ONE_OF.get(name, ""), None)
        return self.args_class(**{**kwargs, **copy.deepcopy(dict(values or {}))})

    def _minimal_kwargs(self, args: Any) -> dict[str, Any]:
        names = self._types
        wanted = _fields_of(args, names)
        required = {"output_dir": wanted["output_dir"]} if "output_dir" in wanted else {}
        defaults = _fields_of(self.args_class(**copy.deepcopy(required)), names)
        kwargs = {n: v for n, v in wanted.items() if n in required or not _same(v, defaults[n])}
        if not self._gives(kwargs, wanted):
            # Something was changed after construction that the constructor would not leave as it is
            return wanted if self._gives(wanted, wanted) else kwargs
        for name in list(kwargs):
            without = {n: v for n, v in kwargs.items() if n != name}
            if name not in required and self._gives(without, wanted):
                kwargs = without
        return kwargs

    def _gives(self, kwargs: dict[str, Any], wanted: dict[str, Any]) -> bool:
        try:
            built = self.args_class(**copy.deepcopy(kwargs))
        except Exception:
            return False
        return all(_same(value, getattr(built, name)) for name, value in wanted.items())


def _declared_types(args_class: type) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(args_class)
    except Exception:  # a forward reference that only type checkers can resolve
        hints = {}
    return {item.name: hints.get(item.name, Any) for item in dataclasses.fields(args_class) if item.init}


def _fields_of(args: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(getattr(args, name)) for name in names}


def _same(a: Any, b: Any) -> bool:
    """Equality that tells 0 from 0.0 and False: the constructor may treat them differently."""
    return type(a) is type(b) and bool(a == b)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The trial constructions of a snapshot would repeat every warning that the user's own construction has given."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)

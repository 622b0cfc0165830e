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
_OTHER = {**_ONE_OF, **{other: name for name, other in _ONE_OF.items()}}


class ArgumentSnapshot:
    """The constructor call that gives a training arguments object again, with or without other values.

    Args:
        args: Training arguments (any dataclass whose constructor takes its fields).

    Attributes:
        kwargs: The fields that the constructor must be given; those that it derives itself are left out, so that
            they are derived again from a trial's values.
        output_dir: The folder for everything that is written.
    """

    def __init__(self, args: Any) -> None:
        self.args_class = type(args)
        self.output_dir: str = args.output_dir
        self._types = _declared_types(self.args_class)
        with _silent():
            wanted = {name: _copied(getattr(args, name)) for name in self._types}
            self.kwargs = self._minimal_kwargs(wanted)
            built = self.args_class(**_copied(self.kwargs))
            # What was changed after construction, and the constructor would not leave as it is
            self._changed = {n: v for n, v in wanted.items() if not _same(v, getattr(built, n))}

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
        values = dict(values or {})
        replaced = {*values, *(_OTHER[name] for name in values if name in _OTHER)}
        kwargs = {name: value for name, value in self.kwargs.items() if name not in replaced}
        args = self.args_class(**_copied({**kwargs, **values}))
        for name, value in self._changed.items():
            if name not in replaced:
                setattr(args, name, _copied(value))
        return args

    def _minimal_kwargs(self, wanted: dict[str, Any]) -> dict[str, Any]:
        required = {n: wanted[n] for n in wanted if n in _required_fields(self.args_class) or n == "output_dir"}
        default = self.args_class(**_copied(required))
        kwargs = {n: v for n, v in wanted.items() if n in required or not _same(v, getattr(default, n))}
        differences = self._differences(kwargs, wanted)
        # From the last: a deprecated spelling stands behind the one that has replaced it
        for name in reversed(list(kwargs)):
            without = {n: v for n, v in kwargs.items() if n != name}
            if name not in required and self._differences(without, wanted) <= differences:
                kwargs = without
        return kwargs

    def _differences(self, kwargs: dict[str, Any], wanted: dict[str, Any]) -> set[str]:
        """The fields in which arguments built from ``kwargs`` differ from the wanted ones; all if there are none."""
        try:
            built = self.args_class(**_copied(kwargs))
        except Exception:
            return set(wanted)
        return {name for name, value in wanted.items() if not _same(value, getattr(built, name))}


def _required_fields(args_class: type) -> set[str]:
    missing = dataclasses.MISSING
    fields = dataclasses.fields(args_class)
    return {f.name for f in fields if f.init and f.default is missing and f.default_factory is missing}


def _declared_types(args_class: type) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(args_class)
    except Exception:  # a forward reference that only type checkers can resolve: of all others the type is known
        hints = {}
        for base in reversed(args_class.__mro__):
            for name, annotation in vars(base).get("__annotations__", {}).items():
                alone = type("Alone", (), {"__annotations__": {name: annotation}, "__module__": base.__module__})
                with contextlib.suppress(Exception):
                    hints.update(typing.get_type_hints(alone))
    return {item.name: hints.get(item.name, Any) for item in dataclasses.fields(args_class) if item.init}


def _copied(value: Any) -> Any:
    """A copy of containers and dataclasses, which an owner may change; functions and other objects stay the same."""
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_copied(item) for item in value)
    return copy.deepcopy(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _same(a: Any, b: Any) -> bool:
    """Equality that tells 0 from 0.0 and False: the constructor may treat them differently."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) is dict:
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    try:
        return bool(a == b)
    except (TypeError, ValueError, RuntimeError):  # arrays compare by element
        return False


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

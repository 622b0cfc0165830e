"""Search spaces that know nothing of any backend: ``SearchSpace`` of ``Float``, ``Int`` and ``Categorical``.

Pure Python: no torch, no transformers. Each backend turns a space into its own format.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from st_hpo.conversion import convert, plain
from st_hpo.errors import SearchSpaceError


def _number(value: Any, what: str) -> float:
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        value = value.item()  # a scalar of NumPy or torch
    with contextlib.suppress(OverflowError):  # an integer beyond every float
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    raise SearchSpaceError(f"{what} must be a finite number, but got {value!r:.50}.")


def _check_range(kind: str, low: float, high: float, step: float | None, log: bool) -> None:
    if low > high:
        raise SearchSpaceError(f"{kind}: `low` must be at most `high`, but got low={low!r}, high={high!r}.")
    if log and low <= 0:
        raise SearchSpaceError(f"{kind}: `log=True` needs a `low` above 0, but got low={low!r}.")
    if step is not None and step <= 0:
        raise SearchSpaceError(f"{kind}: `step` must be above 0, but got step={step!r}.")


@dataclass(frozen=True)
class Float:
    """A float between two bounds, both included.

    Args:
        low: The lower bound.
        high: The upper bound.
        log: Draw on a logarithmic scale; needs ``low > 0``.
        step: Draw only ``low``, ``low + step``, ...; not together with ``log``.

    Raises:
        SearchSpaceError: A bound is no finite number, or the arguments contradict each other.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        for bound in ("low", "high"):
            object.__setattr__(self, bound, float(_number(getattr(self, bound), f"Float: `{bound}`")))
        if self.step is not None:
            object.__setattr__(self, "step", float(_number(self.step, "Float: `step`")))
            if self.log:
                raise SearchSpaceError("Float: `log=True` and `step` exclude each other.")
        _check_range("Float", self.low, self.high, self.step, self.log)


@dataclass(frozen=True)
class Int:
    """An integer between two bounds, both included.

    Args:
        low: The lower bound.
        high: The upper bound.
        log: Draw on a logarithmic scale; needs ``low > 0``.
        step: Draw only ``low``, ``low + step``, ...; not together with ``log``, unless it is 1.

    Raises:
        SearchSpaceError: A bound is no integer, or the arguments contradict each other.
    """

    low: int
    high: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            value = _number(getattr(self, name), f"Int: `{name}`")
            if value != int(value):
                raise SearchSpaceError(f"Int: `{name}` must be an integer, but got {value!r}.")
            object.__setattr__(self, name, int(value))
        if self.log and self.step != 1:
            raise SearchSpaceError("Int: `log=True` and `step` exclude each other.")
        _check_range("Int", self.low, self.high, self.step, self.log)


@dataclass(frozen=True)
class Categorical:
    """One of several choices, without an order.

    Args:
        choices: None, bools, numbers, strings, or lists and dicts of these (prompts, a learning-rate mapping);
            enum members stand for their value.

    Raises:
        SearchSpaceError: There is no choice, or the same one twice.
        HyperparameterValueError: A choice is an object that cannot be recorded.
    """

    choices: tuple[Any, ...]

    def __init__(self, choices: Sequence[Any]) -> None:
        if isinstance(choices, str) or not isinstance(choices, Sequence):
            raise SearchSpaceError(f"Categorical: `choices` must be a list, but got {choices!r}.")
        values = [plain("choices", choice) for choice in choices]
        if not values:
            raise SearchSpaceError("Categorical: `choices` must have at least one choice, but got [].")
        # 1, 1.0 and True are equal for Python, yet different choices: their JSON text tells them apart
        seen = [json.dumps(value, sort_keys=True) for value in values]
        if twice := [values[index] for index, text in enumerate(seen) if text in seen[:index]]:
            raise SearchSpaceError(f"Categorical: the choice {twice[0]!r} is given twice.")
        object.__setattr__(self, "choices", tuple(values))

    def labels(self, as_text: bool = False) -> dict[Any, Any]:
        """Returns a label for each choice: backends know None, bools, numbers and strings, but no lists and dicts.

        Args:
            as_text: Whether every label must be a string.

        Returns:
            Labels and the choices they stand for, in the order of the choices. A scalar is its own label, a list or a
            dict goes by its JSON text.
        """

        def label(choice: Any) -> Any:
            needs_text = isinstance(choice, list | dict) or (as_text and not isinstance(choice, str))
            return json.dumps(choice, sort_keys=True) if needs_text else choice

        labels = {label(choice): choice for choice in self.choices}
        if len(labels) < len(self.choices):  # 1 and True, or 1 and 1.0, are one key of a dict
            labels = {f"{type(choice).__name__} {json.dumps(choice)}": choice for choice in self.choices}
        return labels


Dimension = Float | Int | Categorical


class SearchSpace(Mapping[str, Dimension]):
    """A search space for any backend: names and what each may be.

    A plain name is a training argument; ``loss.<name>`` and ``model.<name>`` go by keyword to ``loss_init`` and
    ``model_init``.

    Args:
        dimensions: ``{name: Float(...) | Int(...) | Categorical(...)}``.

    Raises:
        SearchSpaceError: The space is empty, a name is no string, or a value is no dimension.

    Example::

        SearchSpace({
            "learning_rate": Float(1e-6, 1e-4, log=True),
            "per_device_train_batch_size": Categorical([16, 32, 64]),
            "loss.scale": Float(5.0, 50.0),
        })
    """

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        if not isinstance(dimensions, Mapping):
            raise SearchSpaceError(f"A SearchSpace is made from a dict, but got {dimensions!r}.")
        if not dimensions:
            raise SearchSpaceError("The search space is empty: give at least one hyperparameter.")
        for name, dimension in dimensions.items():
            if not isinstance(name, str) or not name or not all(part for part in name.split(".")):
                raise SearchSpaceError(f"A hyperparameter's name must be a string such as 'loss.scale', got {name!r}.")
            if not isinstance(dimension, Float | Int | Categorical):
                raise SearchSpaceError(
                    f"Hyperparameter {name!r} must be Float(...), Int(...) or Categorical([...]), but got "
                    f"{dimension!r}. For one fixed value, set it in the training arguments, or use "
                    f"Categorical([value])."
                )
        self._dimensions = dict(dimensions)

    def __getitem__(self, name: str) -> Dimension:
        return self._dimensions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dimensions)

    def __len__(self) -> int:
        return len(self._dimensions)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Draws every hyperparameter from a trial with Optuna's ``suggest_float``, ``suggest_int`` and
        ``suggest_categorical``."""
        values: dict[str, Any] = {}
        for name, item in self.items():
            if isinstance(item, Float):
                values[name] = trial.suggest_float(name, item.low, item.high, step=item.step, log=item.log)
            elif isinstance(item, Int):
                values[name] = trial.suggest_int(name, item.low, item.high, step=item.step, log=item.log)
            else:
                labels = item.labels()
                values[name] = labels[trial.suggest_categorical(name, list(labels))]
        return values

    def decode(self, proposed: Mapping[str, Any]) -> dict[str, Any]:
        """Returns proposed values in the types that their dimensions declare, and choices for their labels.

        Args:
            proposed: A value for each name: 3.0 may stand for 3, ``"16"`` for 16, a label for a list or a dict.

        Raises:
            SearchSpaceError: A name is missing, or a value is no choice.
            HyperparameterValueError: A value would lose a part of itself.
        """
        if missing := [name for name in self if name not in proposed]:
            raise SearchSpaceError(f"No value was proposed for {missing}; there are values for {sorted(proposed)}.")
        return {name: _decoded(name, dimension, proposed[name]) for name, dimension in self.items()}

    def __repr__(self) -> str:
        lines = "".join(f"    {name!r}: {dimension!r},\n" for name, dimension in self._dimensions.items())
        return f"SearchSpace({{\n{lines}}})"


def _decoded(name: str, dimension: Dimension, value: Any) -> Any:
    value = plain(name, value)
    if isinstance(dimension, Float | Int):
        return convert(name, value, float if isinstance(dimension, Float) else int)
    for choice in dimension.choices:
        if type(choice) is type(value) and choice == value:
            return choice
    if not isinstance(value, list | dict):
        for labels in (dimension.labels(), dimension.labels(as_text=True)):
            if value in labels:
                return labels[value]
    raise SearchSpaceError(f"The value {value!r} proposed for {name!r} is none of {list(dimension.choices)}.")


def default_search_space(model: str = "transformer") -> SearchSpace:
    """Returns the space that is searched when none is given: the one of the sentence-transformers guide, widened.

    Source: "Hyperparameter Optimization" in the sentence-transformers documentation (``hpo_nli.py``), which searches
    batch sizes of 32 to 128 and 1 or 2 epochs. Most of that documentation's own recipes train with a batch size of 16,
    those with cached losses with 256, those for STS for 4 epochs: the bounds are such that every recipe of
    :func:`~st_hpo.known_good_points` lies between them, for each of the four trainers. Both are on a logarithmic
    scale. It has no ``seed``: searching a seed finds luck, not a better configuration.

    Args:
        model: ``"transformer"``; ``"static"``, for static embeddings, whose learning rates are a thousand times
            higher; or ``"tiny"``, for transformers of a few million weights. A search without a space takes the first.

    Raises:
        SearchSpaceError: There is no such kind of model.
    """
    if model not in _DEFAULT_RANGES:
        raise SearchSpaceError(f"`model` must be one of {list(_DEFAULT_RANGES)}, but got {model!r}.")
    rates, sizes = _DEFAULT_RANGES[model]
    return SearchSpace(
        {
            "learning_rate": Float(*rates, log=True),
            "per_device_train_batch_size": Int(*sizes, log=True),
            "num_train_epochs": Int(1, 4, log=True),
            "warmup_steps": Float(0.0, 0.3),
        }
    )


# Learning rates and batch sizes. Static: around the recipe's 2e-1 and 2048, from the 1e-2 of a model that was trained
# before. Tiny: from rates at which a large transformer learns to where one of 4.4 million weights has got worse again.
_DEFAULT_RANGES: dict[str, tuple[tuple[float, float], tuple[int, int]]] = {
    "transformer": ((1e-6, 1e-4), (16, 256)),
    "static": ((1e-2, 1.0), (256, 4096)),
    "tiny": ((1e-5, 3e-3), (16, 256)),
}


def described(space: Any) -> dict[str, str]:
    """Returns a text for every hyperparameter of a space; empty where only a trial can tell what there is."""
    if isinstance(space, SearchSpace):
        return {name: repr(dimension) for name, dimension in space.items()}
    if isinstance(space, Mapping):
        texts = {str(name): str(value) for name, value in space.items()}
        return {name: text for name, text in texts.items() if " object at 0x" not in text}
    return {}

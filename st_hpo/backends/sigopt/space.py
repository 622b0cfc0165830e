"""A SearchSpace in SigOpt's format, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from st_hpo.backends.sigopt.format import VALUE_LENGTH, check_name, is_value
from st_hpo.errors import SearchSpaceError
from st_hpo.space import Categorical, Dimension, Float, Int, SearchSpace

MAX_GRID = 100


class EncodedSpace:
    """A :class:`~st_hpo.SearchSpace` in SigOpt's format, and the way back.

    A dimension that has one value only is none for SigOpt; it is left out and comes back in :meth:`decode`.

    Args:
        space: The space.

    Attributes:
        parameters: SigOpt's format.

    Raises:
        SearchSpaceError: SigOpt cannot express a dimension; naming it.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._fixed: dict[str, Any] = {}
        self._choices: dict[str, dict[str, Any]] = {}
        self.parameters: list[dict[str, Any]] = []
        for name, dimension in space.items():
            check_name(name)
            values = _values(name, dimension)
            if values is not None and len(values) == 1:
                self._fixed[name] = values[0]
            else:
                self.parameters.append({"name": name, **self._encoded(name, dimension, values)})
        if not self.parameters:
            raise SearchSpaceError(
                f"There is nothing to search: {', '.join(map(repr, space))} can have one value only. Give at least "
                "one hyperparameter several."
            )

    def _encoded(self, name: str, dimension: Dimension, values: list[Any] | None) -> dict[str, Any]:
        if isinstance(dimension, Categorical):
            labels = dimension.labels(as_text=True)
            choices = {_short(label, index): choice for index, (label, choice) in enumerate(labels.items())}
            if len(choices) < len(labels):
                choices = {f"choice {index}": choice for index, choice in enumerate(labels.values())}
            self._choices[name] = choices
            return {"type": "categorical", "categorical_values": list(choices)}
        kind = {"type": "double" if isinstance(dimension, Float) else "int"}
        if values is not None:
            return {**kind, "grid": values}
        bounds = {**kind, "bounds": {"min": dimension.low, "max": dimension.high}}
        return {**bounds, "transformation": "log"} if dimension.log else bounds

    def decode(self, assignments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the hyperparameters that SigOpt's assignments stand for, in their declared types.

        Raises:
            SearchSpaceError: An assignment is missing, or none of the choices.
        """
        chosen = {name: self._choices.get(name, {}).get(value, value) for name, value in assignments.items()}
        return self._space.decode({**chosen, **self._fixed})


def _short(label: str, index: int) -> str:
    """The label, or what SigOpt takes in its place: a prompt, say, is too long for a categorical value."""
    if is_value(label):
        return label
    printable = "".join(character for character in " ".join(label.split()) if ord(character) >= 32)
    return f"{index}: {printable[: VALUE_LENGTH - 10]}".strip()


def _values(name: str, dimension: Dimension) -> list[Any] | None:
    """The values of a dimension that has few; None of one between two bounds."""
    if isinstance(dimension, Categorical):
        return list(dimension.choices)
    if dimension.low == dimension.high:
        return [dimension.low]
    if isinstance(dimension, Int) and dimension.log:
        raise SearchSpaceError(
            f"Hyperparameter {name!r}: SigOpt has no logarithmic integers, but got {dimension!r}. Leave out "
            f"`log=True`, give the values themselves (Categorical([32, 64, 128])), or use another backend."
        )
    if dimension.step is None or (isinstance(dimension, Int) and dimension.step == 1):
        return None
    low, high, step = (Decimal(str(number)) for number in (dimension.low, dimension.high, dimension.step))
    count = int((high - low) // step) + 1
    if count > MAX_GRID:
        raise SearchSpaceError(
            f"Hyperparameter {name!r}: SigOpt has no steps, only a grid of values, and {dimension!r} has {count} of "
            f"them, more than {MAX_GRID}. Choose a larger `step`, or none."
        )
    kind = float if isinstance(dimension, Float) else int
    return [kind(low + index * step) for index in range(count)]

"""Where a hyperparameter goes, by its name: to a training argument, to ``model_init`` or to ``loss_init``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from st_hpo.arguments import ArgumentSnapshot
from st_hpo.conversion import plain
from st_hpo.errors import UnknownHyperparameterError
from st_hpo.factories import LOSS_PREFIX, MODEL_PREFIX, Factory, TrialView
from st_hpo.space import Categorical, Dimension, Float, SearchSpace


@dataclass
class Routed:
    """The hyperparameters of one trial, sorted by where they go.

    Attributes:
        arguments: Training arguments, in their declared types.
        model: Keywords of ``model_init``.
        loss: Keywords of ``loss_init``.
        free: Plain names that are no training argument: right if ``model_init`` or ``loss_init`` reads them.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)

    def all(self) -> dict[str, Any]:
        """Every value under its full name, as it was set."""
        return {
            **{name: plain(name, value) for name, value in self.arguments.items()},
            **{MODEL_PREFIX + name: value for name, value in self.model.items()},
            **{LOSS_PREFIX + name: value for name, value in self.loss.items()},
            **self.free,
        }


class Router:
    """Sorts hyperparameters by their names, and refuses those that nothing would use.

    Args:
        snapshot: The training arguments, for their names and types.
        model_init: The model's factory.
        loss_init: The loss's factory, several by dataset name, or None for the trainer's default loss.
    """

    def __init__(
        self, snapshot: ArgumentSnapshot, model_init: Factory, loss_init: Factory | Mapping[str, Factory] | None
    ) -> None:
        self.snapshot = snapshot
        self._model_init = model_init
        self._loss_inits = (
            list(loss_init.values()) if isinstance(loss_init, Mapping) else [loss_init] if loss_init else []
        )

    def choices(self) -> list[str]:
        """All names that would be used."""
        losses = dict.fromkeys(name for factory in self._loss_inits for name in factory.keywords)
        return (
            self.snapshot.names
            + [MODEL_PREFIX + name for name in self._model_init.keywords]
            + [LOSS_PREFIX + name for name in losses]
        )

    def check_names(self, names: Iterable[str]) -> None:
        """Refuses names that nothing can use, as far as their spelling tells.

        Raises:
            UnknownHyperparameterError: For all of them at once.
            FactoryError: ``model_init`` or ``loss_init`` has parameters that nothing fills.
        """
        names = list(names)
        reads_trial = self.reads_trial(names)
        unknown = [name for name in names if not self._may_be_used(name, reads_trial)]
        self._refuse(unknown)

    def reads_trial(self, names: Iterable[str]) -> bool:
        """Whether ``model_init`` or ``loss_init`` gets the trial of hyperparameters with these names.

        Raises:
            FactoryError: They have parameters that nothing fills.
        """
        names = list(names)
        model = {name.removeprefix(MODEL_PREFIX): None for name in names if name.startswith(MODEL_PREFIX)}
        loss = {name.removeprefix(LOSS_PREFIX): None for name in names if name.startswith(LOSS_PREFIX)}
        readers = [self._model_init.trial_parameter(model)] + [f.trial_parameter(loss) for f in self._loss_inits]
        return any(reader is not None for reader in readers)

    def check_space(self, space: SearchSpace) -> None:
        """Refuses names that nothing can use, and dimensions whose values do not fit their training argument.

        Raises:
            UnknownHyperparameterError: For all unknown names at once.
            HyperparameterValueError: A dimension has values that do not fit, a ``Float`` for an integer for example.
        """
        self.check_names(space)
        for name, dimension in space.items():
            if name in self.snapshot.names:
                for value in _probes(dimension):
                    self.snapshot.convert({name: value})

    def route(self, values: Mapping[str, Any], strict: bool = True) -> Routed:
        """Sorts the values of a trial and converts those of training arguments to their declared types.

        Args:
            values: The hyperparameters by name.
            strict: Whether names that nothing can use are refused; otherwise they are kept in ``free``.

        Raises:
            UnknownHyperparameterError: A name that nothing can use.
            HyperparameterValueError: A value that does not fit its training argument, or cannot be recorded.
        """
        values = {name: plain(name, value) for name, value in values.items()}
        if strict:
            self.check_names(values)
        routed = Routed()
        arguments = {}
        for name, value in values.items():
            if name in self.snapshot.names:
                arguments[name] = value
            elif name.startswith(MODEL_PREFIX):
                routed.model[name.removeprefix(MODEL_PREFIX)] = value
            elif name.startswith(LOSS_PREFIX):
                routed.loss[name.removeprefix(LOSS_PREFIX)] = value
            else:
                routed.free[name] = value
        routed.arguments = self.snapshot.convert(arguments)
        return routed

    def check_read(self, routed: Routed, trial: TrialView) -> None:
        """Refuses names that could have been read from the trial, but were not.

        Called after ``model_init`` and ``loss_init``, before any training.

        Args:
            routed: The hyperparameters.
            trial: What the two were given.

        Raises:
            UnknownHyperparameterError: For all of them at once.
        """
        self._refuse([name for name in routed.free if name not in trial.names_read])

    def _may_be_used(self, name: str, reads_trial: bool) -> bool:
        if name in self.snapshot.names:
            return True
        if name.startswith(MODEL_PREFIX):
            return self._model_init.accepts(name.removeprefix(MODEL_PREFIX))
        if name.startswith(LOSS_PREFIX):
            return any(factory.accepts(name.removeprefix(LOSS_PREFIX)) for factory in self._loss_inits)
        return reads_trial

    def _refuse(self, unknown: list[str]) -> None:
        if unknown:
            raise UnknownHyperparameterError(
                unknown,
                self.choices(),
                "A plain name is a field of the training arguments; 'loss.<name>' and 'model.<name>' are keyword "
                "parameters of `loss_init` and `model_init`.",
            )


def _probes(dimension: Dimension) -> tuple[Any, ...]:
    """Values of a dimension that show whether all of them fit; for a float one between its bounds as well.

    It lies at the golden section: a rounder share of the range might be an integer by chance.
    """
    if isinstance(dimension, Categorical):
        return dimension.choices
    if isinstance(dimension, Float) and dimension.low < dimension.high:
        inner = dimension.low + (dimension.step or (dimension.high - dimension.low) * 0.6180339887498949)
        return (dimension.low, inner, dimension.high)
    return (dimension.low, dimension.high)

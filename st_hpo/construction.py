"""A trainer that can be built again: from new model and loss for every training, and let go of during a search.

Upstream builds the model anew in ``train()`` (``model_init``), but keeps everything else that was made from the first
one: the loss with its weights, the collator with its tokenizer, the model card without datasets. Here the whole
upstream constructor runs again.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from st_hpo.errors import ConfigurationError, FactoryError
from st_hpo.factories import Factories, Factory, TrialView, make_loss, make_model_and_loss
from st_hpo.recipe import (
    REPLACEABLE,
    CallbackLedger,
    CallbackPlan,
    TrialParts,
    apply_callbacks,
    current_parts,
    isolated,
)
from st_hpo.results import SearchResult
from st_hpo.routing import Routed

logger = logging.getLogger(__name__)

# Attributes that stay when the trainer lets go of its model: none of them refers to it.
_KEPT = {"args", "model_init", "train_dataset", "eval_dataset", "evaluator"}


def loss_instances(loss: Any, where: str = "loss") -> list[tuple[str, str]]:
    """Returns where losses are given as instances, and of which class."""
    if isinstance(loss, nn.Module):
        return [(where, type(loss).__name__)]
    if isinstance(loss, Mapping):
        return [found for name, item in loss.items() for found in loss_instances(item, f"{where}[{name!r}]")]
    return []


def loss_factories(loss: Any) -> Factory | dict[str, Factory]:
    """Returns the factory of a loss, or a dict of them by dataset name."""
    if isinstance(loss, Mapping):
        return {name: Factory(item, "loss_init") for name, item in loss.items()}
    return Factory(loss, "loss_init")


class RebuildableTrainer:
    """The part of a trainer that knows what it was made of, over an upstream trainer."""

    if TYPE_CHECKING:  # what the upstream trainer brings
        args: Any
        model_class: type
        training_args_class: type
        override_model_in_loss: Any

    _of_trial: TrialParts | None
    _released: bool
    _only_model: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Shows the signature of ``__init__``, which ``__new__`` would hide from help() and editors."""
        super().__init_subclass__(**kwargs)
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keeps the constructor call, subclasses' own arguments included: a trial repeats it."""
        trainer = super().__new__(cls)
        if kwargs.get("model_init") is not None:  # a model beside it trains nothing, and would be kept alive
            args = (None, *args[1:]) if args and isinstance(args[0], nn.Module) else args
            kwargs = {name: value for name, value in kwargs.items() if name != "model"}
        vars(trainer).update(_call=(args, kwargs), _of_trial=None, _released=False)
        return trainer

    def _set_up(self, given: dict[str, Any]) -> None:
        """Builds the trainer for the first time.

        Args:
            given: The constructor's arguments, ``loss`` being a loss, a factory, or a dict of these.
        """
        if given["model_init"] is not None:
            if given["model"] is not None:
                logger.warning("Both `model` and `model_init` are given: `train()` and a search use `model_init`.")
            if any(item is not None for item in given["optimizers"]):
                raise ConfigurationError(
                    "`optimizers` belong to one model, but `model_init` makes a new one for every training. Pass "
                    "`optimizer_cls_and_kwargs`, or override `create_optimizer` in a subclass."
                )
        model = given.pop("model")
        self._given = given
        self._applied = Routed()
        self._built: dict[str, int] = {}
        self._ledger = CallbackLedger(given["callbacks"])
        self._plan: CallbackPlan | None = None
        self._upstream_attributes: set[str] = set()
        self.last_search: SearchResult | None = None
        self._construct(model)

    def _construct(self, model: Any = None) -> None:
        """Runs the upstream constructor on a new model and a new loss, as one would by hand."""
        given = self._given
        parts = current_parts(self, given, self._built)
        if not self._released and self._built:
            self._plan = self._ledger.plan(self)
        args = vars(self).get("args") or given["args"] or self.training_args_class(output_dir="tmp_trainer")
        loss = parts["loss"]
        if model is None and given["model_init"] is not None:
            applied = self._applied.all()
            trial = TrialView(applied) if applied else None
            factories = self._factories(loss, allow_instances=True)
            model, made = make_model_and_loss(args, factories, self._applied, trial, must_be_new=False)
            loss = made if factories.loss_init is not None else self._bound(loss, model)
        elif model is None:
            model = self._only_model
        elif loss is not None and not loss_instances(loss):
            loss = make_loss(loss_factories(loss), model, {}, None)
        if given["model_init"] is None:
            self._only_model = model
        before = set(vars(self))
        self._released = False
        datasets = {name: isolated(parts[name]) for name in ("train_dataset", "eval_dataset")}
        callbacks = self._ledger.instances if self._plan is None else self._ledger.instances_of(self._plan)
        built = {**given, **parts, **datasets, "args": args, "loss": loss, "callbacks": callbacks, "model_init": None}
        super().__init__(model=model, **built)  # type: ignore[call-arg]
        self._upstream_attributes |= set(vars(self)) - before
        self._ledger.constructed(self)
        if self._plan is not None:
            apply_callbacks(self, self._plan)
        self.model_init = given["model_init"]
        given.update(parts)
        self._built = {name: id(vars(self).get(name)) for name in REPLACEABLE}

    def _bound(self, loss: Any, model: Any) -> Any:
        """A loss instance made for another model, bound to this one as upstream does it."""
        if isinstance(loss, Mapping):
            return {name: self._bound(item, model) for name, item in loss.items()}
        return self.override_model_in_loss(loss, model) if isinstance(loss, nn.Module) else loss

    def _factories(self, loss: Any, allow_instances: bool = False) -> Factories:
        """Returns the factories of model and loss; with ``allow_instances`` none of the loss where it is an instance.

        Raises:
            FactoryError: There is no ``model_init``, or the loss is an instance.
        """
        if self._given["model_init"] is None:
            raise FactoryError(
                "A search needs a new model for every trial: pass `model_init` instead of `model`, for example "
                f"model_init=lambda: {self.model_class.__name__}('...')."
            )
        if found := loss_instances(loss):
            where, kind = found[0]
            if not allow_instances:
                raise FactoryError(
                    f"A search needs a new loss for every trial, but `{where}` is an instance of {kind}, which would "
                    "keep its weights and its model from trial to trial. Pass a function that makes it: "
                    f"loss_init=lambda model: {kind}(model, ...), or the class: loss_init={kind}."
                )
            loss = None
        losses = None if loss is None else loss_factories(loss)
        return Factories(Factory(self._given["model_init"], "model_init"), losses, self.model_class)

    def _current_plan(self) -> CallbackPlan:
        return self._plan if self._released and self._plan is not None else self._ledger.plan(self)

    def _release(self) -> None:
        """Lets go of the model and all that refers to it. What is missed afterwards is built again when it is used."""
        if self._released:
            return
        self._plan = self._current_plan()
        self._given.update(current_parts(self, self._given, self._built))
        for name in self._upstream_attributes - _KEPT:
            vars(self).pop(name, None)
        self._built = {name: value for name, value in self._built.items() if name in _KEPT}
        self._released = True

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process: everything but the model and what was made from it, which is built there."""
        gone = self._upstream_attributes - _KEPT
        state = {name: value for name, value in vars(self).items() if name not in gone}
        return {**state, "_released": True, "_plan": self._current_plan(), "last_search": None}

    def __getattr__(self, name: str) -> Any:
        state = vars(self)
        if state.get("_released") and name in state.get("_upstream_attributes", ()):
            self._construct()
            return getattr(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

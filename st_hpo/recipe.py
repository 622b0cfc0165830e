"""What a trainer is made of, apart from the trainer that is made of it.

A trial does not reset the user's trainer: it builds a new one, of the same class, from the same parts, with a new
model and a new loss. What "by hand" means is then what the code does, and nothing can leak from trial to trial.
"""

from __future__ import annotations

import contextlib
import copy
import random
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from st_hpo.console import no_bars_on_stderr
from st_hpo.errors import ConfigurationError

# Constructor arguments that a user may also replace on the finished trainer, as in `trainer.evaluator = other`.
REPLACEABLE = ("train_dataset", "eval_dataset", "evaluator", "data_collator", "processing_class", "loss")


def isolated(dataset: Any) -> Any:
    """Returns a copy of a dataset that shares its data, but not its format.

    Upstream adds a ``dataset_name`` column to the datasets of a multi-dataset training by setting a transform on the
    user's own objects (BaseTrainer.add_dataset_name_column); it would be found there by every later trainer.
    """
    from datasets import Dataset, DatasetDict

    if isinstance(dataset, DatasetDict):
        return DatasetDict({name: isolated(part) for name, part in dataset.items()})
    if isinstance(dataset, dict):
        return {name: isolated(part) for name, part in dataset.items()}
    return copy.copy(dataset) if isinstance(dataset, Dataset) else dataset


@dataclass
class CallbackPlan:
    """Which callbacks a trainer has beside those that its constructor makes, and which of those were removed.

    Attributes:
        given: The constructor's ``callbacks`` that are still there, instances or classes.
        added: What ``add_callback`` has added since.
        removed: Types of callbacks that the constructor had made and ``remove_callback`` has taken away.
    """

    given: list[Any] = field(default_factory=list)
    added: list[TrainerCallback] = field(default_factory=list)
    removed: list[type] = field(default_factory=list)

    def check(self) -> None:
        """Refuses callbacks that belong to one model.

        Raises:
            ConfigurationError: A callback holds a model or a loss, which is not the one that a trial trains.
        """
        for callback in [*self.given, *self.added]:
            for name, value in getattr(callback, "__dict__", {}).items():
                if isinstance(value, nn.Module):
                    raise ConfigurationError(
                        f"The callback {type(callback).__name__} holds a {type(value).__name__} as `{name}`, which is "
                        "not what a trial trains: every trial has a new model and a new loss. Take them from the "
                        "callback's own arguments (`kwargs['model']`), or pass the callback's class."
                    )

    def copies(self, originals: Any, new: Any, shared: tuple[Any, ...]) -> CallbackPlan:
        """Returns the plan with callbacks of a trial's own, in the state they have now.

        Args:
            originals: The trainer to which the callbacks belong; a reference to it becomes one to ``new``.
            new: The trial's trainer.
            shared: Objects that are not copied but shared (datasets, the evaluator).

        Raises:
            ConfigurationError: A callback cannot be copied.
        """
        memo = {id(originals): new, **{id(item): item for item in shared}}
        return CallbackPlan(
            [_copied(callback, memo) for callback in self.given],
            [_copied(callback, memo) for callback in self.added],
            list(self.removed),
        )


def _copied(callback: Any, memo: dict[int, Any]) -> Any:
    if isinstance(callback, type):
        return callback
    try:
        return copy.deepcopy(callback, memo)
    except Exception as exc:
        raise ConfigurationError(
            f"The callback {type(callback).__name__} cannot be copied ({type(exc).__name__}: {exc}), but every trial "
            "needs one of its own: what it remembers of one trial must not reach the next. Pass its class, or give it "
            "a `__deepcopy__`; one that returns `self` shares it between trials."
        ) from exc


class CallbackLedger:
    """Tells a trainer's own callbacks from those of its user.

    Args:
        given: The ``callbacks`` that the constructor got.
    """

    def __init__(self, given: list[Any] | None) -> None:
        self._given = list(given or [])
        # Classes become instances here, so that they can be found again among the trainer's callbacks
        self.instances = [item() if isinstance(item, type) else item for item in self._given]
        # A training leaves its mark on some (EarlyStoppingCallback's counter is never reset); trials start without it
        self._pristine = [copy.deepcopy(item) if isinstance(item, ExportableState) else item for item in self._given]
        self._builtin: weakref.WeakSet[TrainerCallback] = weakref.WeakSet()
        self._builtin_types: list[type] = []

    def constructed(self, trainer: Any) -> None:
        """To be called at the end of the constructor: what is there and not the user's is the trainer's own."""
        theirs = {id(item) for item in self.instances}
        builtin = [item for item in trainer.callback_handler.callbacks if id(item) not in theirs]
        self._builtin = weakref.WeakSet(builtin)
        self._builtin_types = [type(item) for item in builtin]

    def plan(self, trainer: Any) -> CallbackPlan:
        """Returns the trainer's callbacks as they are now."""
        present = trainer.callback_handler.callbacks
        ids = {id(item) for item in present}
        theirs = {id(item) for item in self.instances}
        types = [type(item) for item in present]
        return CallbackPlan(
            [item for item, instance in zip(self._pristine, self.instances, strict=True) if id(instance) in ids],
            [item for item in present if id(item) not in theirs and item not in self._builtin],
            [kind for kind in self._builtin_types if kind not in types],
        )

    def instances_of(self, plan: CallbackPlan) -> list[TrainerCallback]:
        """The instances behind the ``given`` callbacks of a plan, for the user's own trainer."""
        wanted = {id(item) for item in plan.given}
        return [i for item, i in zip(self._pristine, self.instances, strict=True) if id(item) in wanted]


def apply_callbacks(trainer: Any, plan: CallbackPlan) -> None:
    """Gives a newly built trainer what the plan says beyond the constructor's ``callbacks``."""
    for kind in plan.removed:
        trainer.remove_callback(kind)
    for callback in plan.added:
        trainer.add_callback(callback)


class ModelCardMemo:
    """Does the model card's work at a trainer's construction once for each random state, with the same effect on it.

    Upstream computes statistics and widget examples of the datasets whenever a trainer is built (30 ms on 5,749
    pairs), and draws from Python's ``random`` for it. A trial writes no model card, so this work is left out; but what
    comes later in the trial must find ``random`` where the full constructor would have left it.

    Args:
        quiet: Whether to hide upstream's progress bar of this work.
    """

    def __init__(self, quiet: bool = True) -> None:
        self._quiet = quiet
        self._after: dict[tuple[Any, ...], Any] = {}

    def run(self, trainer: Any, full: Callable[[], None]) -> None:
        """Runs ``full``, or, where the same was run before from the same random state, only moves that state on."""
        before = random.getstate()
        key = (before, type(trainer.model), bool(getattr(trainer.model.model_card_data, "widget", None)))
        if key in self._after:
            random.setstate(self._after[key])
            return
        torch_before = torch.get_rng_state()
        self.in_full(full)
        if torch.equal(torch_before, torch.get_rng_state()):  # a dataset's transform may draw from torch as well
            self._after[key] = random.getstate()

    def in_full(self, full: Callable[[], None]) -> None:
        """Runs ``full``, as for a card that is written."""
        with no_bars_on_stderr() if self._quiet else contextlib.nullcontext():
            full()


@dataclass
class TrialParts:
    """What a trial's trainer has instead of what its user's constructor call says.

    Attributes:
        parts: Constructor arguments of the upstream trainer.
        evaluations: The recorder of its evaluations.
        card_memo: Stands in for the work on a model card that is never written.
        writes_card: Whether the model's card may be written.
        ranks: The ranks that train together, None for one process.
    """

    parts: dict[str, Any]
    evaluations: Any
    card_memo: ModelCardMemo
    writes_card: bool = False
    ranks: Any = None

    def fenced(self, step: Callable[[], Any]) -> Any:
        """Runs what may fail on one rank before all ranks exchange something, and waits for the others."""
        found = step()
        if self.ranks is not None:
            self.ranks.fence()
        return found


@dataclass
class TrainerRecipe:
    """How to build trainers like the user's.

    Attributes:
        trainer_class: The class of the user's trainer.
        call: The positional and keyword arguments with which the user constructed it.
        parts: Constructor arguments that replace those of the call.
        callbacks: Its callbacks.
        owner: The user's trainer.
        card_memo: Does the work on model cards that are never written.
        writes_cards: Whether the cards of trials may be written.
    """

    trainer_class: Any
    call: tuple[tuple[Any, ...], dict[str, Any]]
    parts: dict[str, Any]
    callbacks: CallbackPlan
    owner: Any
    card_memo: ModelCardMemo = field(default_factory=ModelCardMemo)
    writes_cards: bool = False

    def _shared(self) -> tuple[Any, ...]:
        return tuple(self.parts[name] for name in REPLACEABLE if self.parts.get(name) is not None)

    def check_callbacks(self) -> None:
        """Refuses callbacks that cannot be copied or belong to one model.

        Raises:
            ConfigurationError: Naming the callback and the fix.
        """
        self.callbacks.check()
        self.callbacks.copies(self.owner, object(), self._shared())

    def build(self, args: Any, model: Any, loss: Any, evaluations: Any) -> Any:
        """Builds a trainer from these arguments, this model and this loss, as its user would by hand.

        Args:
            args: Training arguments.
            model: The model to train.
            loss: A loss, a dict of losses, or None for the trainer's default.
            evaluations: The :class:`~st_hpo.evaluations.EvaluationRecorder` of its evaluations.

        Returns:
            A trainer of the user's own class.
        """
        trainer: Any = self.trainer_class.__new__(self.trainer_class)
        plan = self.callbacks.copies(self.owner, trainer, self._shared())
        datasets = {name: isolated(self.parts[name]) for name in ("train_dataset", "eval_dataset")}
        parts = {**self.parts, **datasets, "model": model, "args": args, "loss": loss, "callbacks": plan.given}
        vars(trainer)["_of_trial"] = TrialParts(parts, evaluations, self.card_memo, self.writes_cards)
        positional, keywords = self.call
        trainer.__init__(*positional, **keywords)
        apply_callbacks(trainer, plan)
        return trainer


def current_parts(trainer: Any, given: Mapping[str, Any], built: Mapping[str, int]) -> dict[str, Any]:
    """Returns the replaceable constructor arguments of a trainer as they are now.

    Args:
        trainer: The trainer.
        given: What its constructor was given.
        built: The ``id`` of what the constructor made of each; what is something else by now, its user has replaced.
    """
    parts = {}
    for name in REPLACEABLE:
        current = vars(trainer).get(name, _MISSING)
        untouched = current is _MISSING or id(current) == built.get(name)
        parts[name] = given.get(name) if untouched else current
    return parts


_MISSING = object()

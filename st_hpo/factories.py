"""Calling ``model_init`` and ``loss_init``: who gets which hyperparameter by keyword, and who gets the trial."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import enable_full_determinism, set_seed

from st_hpo.errors import ConfigurationError, FactoryError

if TYPE_CHECKING:
    from st_hpo.routing import Routed

MODEL_PREFIX, LOSS_PREFIX = "model.", "loss."


# What functions tell Optuna's trial, and what it answers where there is none
_NOTES = {"set_user_attr": None, "set_system_attr": None, "report": None, "should_prune": False}


class TrialView(Mapping[str, Any]):
    """What ``model_init(trial)`` and ``loss_init(model, trial)`` receive: the trial, and what was read from it.

    Reads like the dict of values that other backends hand on (``trial["a"]``), and like Optuna's trial
    (``trial.suggest_int(...)``, ``trial.params["a"]``, ``trial.number``). Without a backend's trial, after
    ``apply_best_run``, every ``suggest_*`` gives the value recorded under its name, and what is noted with the trial
    (``set_user_attr``) is dropped.

    Args:
        values: The hyperparameters of the trial.
        native: The backend's own trial, or None.
    """

    def __init__(self, values: Mapping[str, Any], native: Any = None) -> None:
        self._values = dict(values)
        self._native = native
        self.names_read: set[str] = set()

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance(trial, optuna.Trial) holds, as it does upstream
        return TrialView if self._native is None else type(self._native)

    @property
    def params(self) -> Mapping[str, Any]:
        """The hyperparameters, suggestions made so far included."""
        return self

    @property
    def assignments(self) -> Mapping[str, Any]:
        """The same, as SigOpt's runs name them."""
        return self

    def __getitem__(self, name: str) -> Any:
        values = self._all()
        if name in values:
            self.names_read.add(name)
        return values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        return True  # `if trial:` asks whether there is a trial, not whether it has suggested anything yet

    def _all(self) -> dict[str, Any]:
        return {**(getattr(self._native, "params", None) or {}), **self._values}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_native" not in self.__dict__:
            raise AttributeError(name)
        if name.startswith("suggest_"):
            return functools.partial(self._suggest, name)
        if self._native is not None:
            return getattr(self._native, name)
        if name in _NOTES:  # nobody keeps them outside of a search
            return lambda *args, **kwargs: _NOTES[name]
        raise AttributeError(f"There is no running trial, so it has no attribute {name!r}.")

    def _suggest(self, method: str, name: str, *args: Any, **kwargs: Any) -> Any:
        self.names_read.add(name)
        if self._native is not None:
            return getattr(self._native, method)(name, *args, **kwargs)
        if name not in self._values:
            raise ConfigurationError(
                f"`model_init` or `loss_init` suggests {name!r}, but the applied run has no such hyperparameter: it "
                f"has {sorted(self._values)}."
            )
        return self._values[name]


class Factory:
    """A function of the user's that makes a model or a loss, and what its parameters say.

    Args:
        function: ``model_init``, ``loss_init``, or a loss class.
        role: ``"model_init"`` or ``"loss_init"``, for messages.
    """

    def __init__(self, function: Callable[..., Any], role: str) -> None:
        if not callable(function):
            raise FactoryError(f"`{role}` must be a function, but got {function!r}.")
        self.function = function
        self.role = role
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # some built-in callables have no signature
            parameters = []
        self.accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        self._first = named[0].name if role == "loss_init" and named else None  # the model
        if role == "loss_init":
            named = named[1:]
        self._named = named
        self.keywords = [p.name for p in named if p.kind is not p.POSITIONAL_ONLY]

    def accepts(self, name: str) -> bool:
        """Whether a hyperparameter of this name can be passed by keyword."""
        return (self.accepts_any and name != self._first) or name in self.keywords

    def trial_parameter(self, given: Mapping[str, Any]) -> str | None:
        """Returns the parameter that gets the trial: one that no hyperparameter names.

        It is the one without a default, as in transformers, or one that is called ``trial``. Another parameter with a
        default keeps its default.

        Raises:
            FactoryError: There are several parameters without a default.
        """
        free = [p for p in self._named if p.name not in given]
        required = [p.name for p in free if p.default is p.empty]
        if len(required) > 1:
            prefix = MODEL_PREFIX if self.role == "model_init" else LOSS_PREFIX
            what = "at most the trial" if self.role == "model_init" else "the model and at most the trial"
            raise FactoryError(
                f"`{self.role}` takes too much: {', '.join(map(repr, required))} have no default and no "
                f"hyperparameter gives them a value. It gets {what}; give the others defaults, and search them as "
                f"{', '.join(repr(prefix + name) for name in required)} if they are hyperparameters."
            )
        if required:
            return required[0]
        return next((p.name for p in free if p.name == "trial"), None)

    def __call__(self, *first: Any, keywords: Mapping[str, Any], trial: TrialView | None) -> Any:
        """Calls the function.

        Args:
            first: Nothing for ``model_init``, the model for ``loss_init``.
            keywords: The hyperparameters that go by keyword, those it does not accept are left out.
            trial: What the trial parameter gets; None outside of a trial.
        """
        given = {name: value for name, value in keywords.items() if self.accepts(name)}
        name = self.trial_parameter(given)
        positional = list(first)
        if name is not None:
            index = next(i for i, p in enumerate(self._named) if p.name == name)
            if self._named[index].kind is inspect.Parameter.POSITIONAL_ONLY:
                positional += [*(p.default for p in self._named[:index]), trial]
            else:
                given[name] = trial
        return self.function(*positional, **given)


# What `model_init` and `loss_init` have returned and is still alive: to be trained once.
_made: weakref.WeakSet[Any] = weakref.WeakSet()


def _note(made: Any, role: str, must_be_new: bool) -> None:
    if must_be_new and made in _made:
        what = "model" if role == "model_init" else "loss"
        raise FactoryError(
            f"`{role}` returned the same {what} again, which would be trained on from trial to trial. It must make a "
            f"new one at every call; to start from a model in memory, return copy.deepcopy({what})."
        )
    _made.add(made)


def make_model(
    factory: Factory,
    keywords: Mapping[str, Any],
    trial: TrialView | None,
    model_class: type,
    must_be_new: bool = False,
) -> Any:
    """Calls ``model_init``.

    Raises:
        FactoryError: It returned None, something that is no model of the trainer's kind, or, with ``must_be_new``, a
            model that it has returned before.
    """
    model = factory(keywords=keywords, trial=trial)
    if not isinstance(model, model_class):
        what = "None: did it forget its `return`?" if model is None else f"{model!r} of type {type(model).__name__}."
        raise FactoryError(f"`model_init` must return a {model_class.__name__}, but returned {what}")
    _note(model, factory.role, must_be_new)
    return model


def make_loss(
    factories: Factory | Mapping[str, Factory],
    model: Any,
    keywords: Mapping[str, Any],
    trial: TrialView | None,
    must_be_new: bool = False,
) -> Any:
    """Calls ``loss_init``, or each of several by dataset name.

    Raises:
        FactoryError: One of them returned something that is no loss, or, with ``must_be_new``, one that it has
            returned before.
    """
    if isinstance(factories, Mapping):
        return {name: make_loss(item, model, keywords, trial, must_be_new) for name, item in factories.items()}
    loss = factories(model, keywords=keywords, trial=trial)
    if not callable(getattr(loss, "named_parameters", None)) or isinstance(loss, type):
        what = "None: did it forget its `return`?" if loss is None else f"{loss!r} of type {type(loss).__name__}."
        raise FactoryError(f"`loss_init` must return a loss (a torch.nn.Module), but returned {what}")
    _note(loss, factories.role, must_be_new)
    return loss


@dataclass
class Factories:
    """The user's functions that make what a trial trains.

    Attributes:
        model_init: Makes the model.
        loss_init: Makes the loss; several by dataset name; None for the trainer's default loss.
        model_class: What ``model_init`` must return.
    """

    model_init: Factory
    loss_init: Factory | Mapping[str, Factory] | None
    model_class: type


def seed_everything(args: Any) -> None:
    """Seeds as upstream's trainer does at its construction (transformers.Trainer.__init__)."""
    if args.full_determinism:
        enable_full_determinism(args.seed)
    else:
        set_seed(args.seed)


def make_model_and_loss(
    args: Any,
    factories: Factories,
    routed: Routed,
    trial: TrialView | None,
    phase: Callable[[str], contextlib.AbstractContextManager[None]] = lambda name: contextlib.nullcontext(),
    must_be_new: bool = True,
) -> tuple[Any, Any]:
    """Seeds, then calls ``model_init`` and ``loss_init``: the first line of training by hand.

    Args:
        args: The training arguments, for the seed.
        factories: The two functions.
        routed: The hyperparameters that go to them.
        trial: What their trial parameter gets.
        phase: Times what runs inside of it.
        must_be_new: Whether to refuse a model or a loss that was trained before.

    Returns:
        The model, and the loss (None for the trainer's default).
    """
    with phase("seed"):
        seed_everything(args)
    with phase("model"):
        model = make_model(factories.model_init, routed.model, trial, factories.model_class, must_be_new)
    with phase("loss"):
        loss = None
        if factories.loss_init is not None:
            loss = make_loss(factories.loss_init, model, routed.loss, trial, must_be_new)
    return model, loss

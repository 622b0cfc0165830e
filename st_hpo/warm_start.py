"""The first trials of a search, if the user gives them: which points they are, and whether the space has them."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

from st_hpo.backends import SearchBackend
from st_hpo.conversion import plain
from st_hpo.errors import ConfigurationError, UnknownHyperparameterError
from st_hpo.known_points import FAMILIES, KNOWN_POINTS, KnownPoint, known_good_points, usable_points
from st_hpo.points import checked_point
from st_hpo.routing import Router
from st_hpo.space import SearchSpace

logger = logging.getLogger(__name__)

KNOWN = "known"


def enqueue_points(
    enqueue: Any,
    backend: SearchBackend,
    space: Any,
    n_trials: int,
    router: Router,
    loss: Any,
    trainer_class: type,
    kwargs: Mapping[str, Any],
) -> None:
    """Tells the backend which points its first trials have.

    Args:
        enqueue: As given to the search.
        backend: The backend, not run yet.
        space: The search space, as the backend has opened it.
        n_trials: How many trials to run.
        router: Where hyperparameters go.
        loss: The loss's factory, several by dataset name, or None for the trainer's default.
        trainer_class: The trainer's class.
        kwargs: The backend's own arguments.

    Raises:
        ConfigurationError: What a point has and the space has not, or that there are more points than trials.
        NotSupportedError: The backend cannot begin with given points.
    """
    if enqueue is None:
        return
    if isinstance(enqueue, str):
        points = _known(enqueue, space, loss, trainer_class)[:n_trials]
    else:
        points = _given(enqueue, space)
    if len(points) > n_trials:
        raise ConfigurationError(
            f"`enqueue` has {len(points)} points, but there are {n_trials} trials, and the points count in them. "
            "Raise `n_trials`, or leave some out."
        )
    if not points and not isinstance(enqueue, str):
        return
    unknown = backend.enqueue(points, space, kwargs)
    if unknown and not router.reads_trial([]):
        raise UnknownHyperparameterError(unknown, backend.space_names(space) or router.choices(), _NEVER_ASKED)


_NEVER_ASKED = (
    "`enqueue` has it, but `hp_space` does not ask for it in a trial with the other values of the point. If that "
    "depends on a value that the point leaves open, give that as well."
)


def _given(enqueue: Any, space: Any) -> list[dict[str, Any]]:
    if isinstance(enqueue, Mapping) or not hasattr(enqueue, "__iter__"):
        raise ConfigurationError(
            "`enqueue` must be a list of dicts such as [{'learning_rate': 2e-5}], 'known', or None, but got "
            f"{enqueue!r}."
        )
    points: list[dict[str, Any]] = []
    for index, point in enumerate(enqueue):
        where = f"enqueue[{index}]"
        if not isinstance(point, Mapping) or not point:
            raise ConfigurationError(f"`{where}` must be a dict of hyperparameters, but got {point!r}.")
        if isinstance(point, KnownPoint) and isinstance(space, SearchSpace):
            if not (usable := usable_points([point], space)):
                logger.warning(f"`{where}` is not tried, since the search space does not allow it: {dict(point)}.")
                continue
            point = usable[0]
        if isinstance(space, SearchSpace):
            checked = checked_point(space, point, where)
        else:
            checked = {name: plain(name, value) for name, value in point.items()}
        if _text(checked) in map(_text, points):
            if isinstance(point, KnownPoint):
                continue
            raise ConfigurationError(f"`{where}` is given twice: {checked!r}.")
        points.append(checked)
    return points


def _text(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def _known(enqueue: str, space: Any, loss: Any, trainer_class: type) -> list[dict[str, Any]]:
    if enqueue != KNOWN:
        raise ConfigurationError(f"`enqueue` must be a list of dicts, {KNOWN!r} or None, but got {enqueue!r}.")
    if not isinstance(space, SearchSpace):
        raise ConfigurationError(
            "`enqueue='known'` needs a SearchSpace, which says what of the known points it allows. For another kind "
            "of space, choose yourself from st_hpo.known_good_points(...) and pass a list."
        )
    family = family_of(trainer_class)
    names = losses_of(loss, family)
    if names is not None and not names:
        raise ConfigurationError(
            "`enqueue='known'` looks up what is known for the loss, but `loss_init` does not name one of "
            f"{_losses_known(family)}. Name it: enqueue=st_hpo.known_good_points('...', family={family!r}, "
            "space=space)."
        )
    points = known_good_points(names, family=family, space=space)
    if not points:
        logger.warning("`enqueue='known'`: the search space allows none of the known learning rates.")
    for point in points:
        logger.info(f"Enqueued {dict(point)}, from {point.source}")
    return [dict(point) for point in points]


def _losses_known(family: str) -> list[str]:
    return sorted({name for point in KNOWN_POINTS if point.family == family for name in point.losses})


def family_of(trainer_class: type) -> str:
    """Returns the kind of trainer, by the package of sentence-transformers that its class comes from."""
    for base in trainer_class.__mro__:
        package, _, rest = base.__module__.partition(".")
        if package == "sentence_transformers" and rest.partition(".")[0] in FAMILIES:
            return rest.partition(".")[0]
    raise ConfigurationError(f"{trainer_class.__name__} is none of sentence-transformers' trainers.")


def losses_of(loss: Any, family: str) -> list[str] | None:
    """Returns the names of the losses with known points that a search trains with, as far as they can be seen.

    A class says its name, and so do its base classes. Of a function, the names that its code uses count, so that
    ``lambda model: MatryoshkaLoss(model, CoSENTLoss(model), dims)`` is one of ``CoSENTLoss``. It is not called: that
    would need a model.

    Args:
        loss: A loss class, a function, several by dataset name, or None.
        family: The kind of trainer.

    Returns:
        The names; empty where none is seen; None for the trainer's default loss.
    """
    if loss is None:
        return None
    known = set(_losses_known(family))
    return sorted({name for item in _functions(loss) for name in _names_in(item) if name in known})


def _functions(loss: Any) -> Iterator[Any]:
    if isinstance(loss, Mapping):
        for item in loss.values():
            yield from _functions(item)
    else:
        yield getattr(loss, "function", loss)  # of a Factory


def _names_in(function: Any) -> Iterator[str]:
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        yield from (base.__name__ for base in function.__mro__)
        return
    if not hasattr(function, "__code__"):
        function = vars(type(function)).get("__call__")
    code = getattr(function, "__code__", None)
    if code is not None:
        yield from _names_of(code)


def _names_of(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of(constant)

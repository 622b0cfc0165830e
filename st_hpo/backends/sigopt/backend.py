"""The SigOpt backend: a self-hosted sigopt-server where one is configured, the same spaces locally where none is."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from st_hpo.backends.base import SearchBackend, called_space, caught_exceptions, check_known
from st_hpo.backends.sigopt.client import PUBLIC_SERVICE, TOKEN_VARIABLE, URL_VARIABLE, SigOptServer, server_url
from st_hpo.backends.sigopt.format import (
    check_local,
    check_name,
    decode_parameters,
    read_conditionals,
    read_parameters,
)
from st_hpo.backends.sigopt.local import checked_point, search_locally, suggest_parameters
from st_hpo.backends.sigopt.space import EncodedSpace
from st_hpo.backends.target import SearchTarget
from st_hpo.errors import ConfigurationError, NotSupportedError
from st_hpo.points import labelled
from st_hpo.space import Categorical, Int, SearchSpace, default_search_space

logger = logging.getLogger(__name__)

# The name and the project that transformers 4 gave its experiments
DEFAULT_NAME, DEFAULT_PROJECT = "huggingface-tune", "huggingface"
_ARGUMENTS = ("name", "project", "catch", "seed", "conditionals")
_EXAMPLE = "a list of SigOpt's parameters ([{'name': ..., 'type': 'double', 'bounds': {'min': ..., 'max': ...}}])"


class SigOptBackend(SearchBackend):
    """SigOpt: spaces in its format, one or two objectives, no pruning.

    The public service has closed. With ``SIGOPT_API_URL`` and ``SIGOPT_API_TOKEN`` of a self-hosted sigopt-server,
    SigOpt's own client asks that; without, Optuna's Gaussian-process sampler searches the same space in this process.
    Its arguments are ``name`` and ``project`` of the experiment, its ``conditionals``, ``catch``, and ``seed`` for the
    local search.
    """

    name = "sigopt"

    def __init__(self) -> None:
        self._native: Any = None
        self._points: list[dict[str, Any]] = []

    @staticmethod
    def is_available() -> bool:
        """Whether what this search needs is installed: the package sigopt, if a server is configured."""
        return server_url() is None or importlib.util.find_spec("sigopt") is not None

    def open_space(self, hp_space: Any) -> Any:
        """See :meth:`SearchBackend.open_space`; a list is copied, never changed."""
        space = called_space(hp_space, list, _EXAMPLE)
        return space if isinstance(space, SearchSpace) else read_parameters(space)

    def space_names(self, space: Any) -> list[str]:
        """See :meth:`SearchBackend.space_names`."""
        return list(space) if isinstance(space, SearchSpace) else [parameter["name"] for parameter in space]

    def default_hp_space(self, trial: Any) -> SearchSpace:
        """st_hpo's default space, with integers that SigOpt can express: it has no logarithmic ones."""
        sizes = Categorical([16, 32, 64, 128, 256])
        return SearchSpace(
            {**default_search_space(), "per_device_train_batch_size": sizes, "num_train_epochs": Int(1, 4)}
        )

    def check(self, space: Any, n_trials: int, directions: list[str], kwargs: Mapping[str, Any]) -> None:
        """See :meth:`SearchBackend.check`; a configured server is asked whether it is there.

        Raises:
            ConfigurationError: Naming what was wrong and the choices.
            BackendUnavailableError: The server cannot be reached, or refuses the token.
        """
        check_known(self.name, kwargs, _ARGUMENTS, "these")
        if len(directions) > 2:
            raise NotSupportedError(
                f"SigOpt optimizes one or two objectives, but got {len(directions)}. Leave some out, or use the "
                "backend 'optuna'."
            )
        caught_exceptions(kwargs.get("catch", ()))
        check_name(_text("name", kwargs.get("name", DEFAULT_NAME)), "Experiment")
        project = _project(kwargs)
        seed = kwargs.get("seed")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32):
            raise ConfigurationError(f"`seed` must be an integer from 0 to {2**32 - 1}, or None, but got {seed!r}.")
        parameters, _ = _parameters(space, kwargs)
        url = server_url()
        if url is None:
            check_local(parameters)
            logger.warning(_why_locally())
            return
        self.ensure_available()
        if seed is not None:
            logger.warning(f"`seed` is for the local search; the SigOpt server at {url} draws from its own generator.")
        SigOptServer(url, project).check()

    def check_rungs(self, kwargs: Mapping[str, Any]) -> None:
        """See :meth:`SearchBackend.check_rungs`.

        Raises:
            NotSupportedError: In any case.
        """
        raise NotSupportedError(
            "SigOpt knows a trial by its objective alone and prunes nothing, so `rungs` and `trial_evaluator` would "
            "have no effect. Leave them out, or use backend='optuna' with pruner='asha'."
        )

    def enqueue(self, points: list[dict[str, Any]], space: Any, kwargs: Mapping[str, Any]) -> list[str]:
        """See :meth:`SearchBackend.enqueue`.

        Raises:
            NotSupportedError: With a server, whose runs take no values from the client.
        """
        if server_url() is not None:
            return super().enqueue(points, space, kwargs)
        if isinstance(space, SearchSpace):
            self._points = [labelled(space, point) for point in points]
            return []
        conditionals = _parameters(space, kwargs)[1]
        self._points = [
            checked_point(space, conditionals, point, f"enqueue[{index}]") for index, point in enumerate(points)
        ]
        return []

    def run(self, trainer: SearchTarget, n_trials: int, direction: str | list[str], **kwargs: Any) -> None:
        """See :meth:`SearchBackend.run`.

        Raises:
            BackendUnavailableError: The server has gone; the trials until then are recorded.
        """
        directions = direction if isinstance(direction, list) else [direction]
        catch = caught_exceptions(kwargs.get("catch", ()))
        parameters, conditionals = _parameters(trainer.hp_space, kwargs)
        space, url = trainer.hp_space, server_url()
        if url is None:

            def suggest(trial: Any) -> Mapping[str, Any]:
                if isinstance(space, SearchSpace):
                    return space.suggest(trial)
                return suggest_parameters(parameters, conditionals, trial)

            search_locally(
                trainer, suggest, n_trials, directions, kwargs.get("seed"), catch, self._set_native, self._points
            )
            return

        def decode(assignments: Mapping[str, Any]) -> Mapping[str, Any]:
            if isinstance(space, SearchSpace):
                return EncodedSpace(space).decode(assignments)
            return decode_parameters(parameters, assignments)

        server = SigOptServer(url, _project(kwargs))
        names = metric_names(len(directions))
        experiment = server.create_experiment(
            name=kwargs.get("name", DEFAULT_NAME),
            type="offline",
            parameters=parameters,
            metrics=[
                {"name": name, "objective": objective, "strategy": "optimize"}
                for name, objective in zip(names, directions, strict=True)
            ],
            parallel_bandwidth=1,
            budget=n_trials,
            **({"conditionals": conditionals} if conditionals else {}),
        )
        logger.info(f"Created the SigOpt experiment {experiment.id} in the project {server.project!r} at {url}.")
        self._set_native(experiment)
        server.search(trainer, experiment, decode, n_trials, names, catch)

    def _set_native(self, native: Any) -> None:
        self._native = native

    @property
    def native(self) -> Any:
        """The experiment of SigOpt's client; locally the :class:`optuna.study.Study`."""
        return self._native


def metric_names(count: int) -> list[str]:
    """Returns what the objectives are called on a server: ``objective``, as transformers 4 named it, or a number each.

    Args:
        count: How many there are.
    """
    return ["objective"] if count == 1 else [f"objective_{number}" for number in range(1, count + 1)]


def _parameters(space: Any, kwargs: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The space in SigOpt's format, which refuses what that cannot express; and the conditionals."""
    if not isinstance(space, SearchSpace):
        return space, read_conditionals(kwargs.get("conditionals"), space)
    if kwargs.get("conditionals") is not None:
        raise ConfigurationError("`conditionals` belong to a list in SigOpt's format, but the space is a SearchSpace.")
    return EncodedSpace(space).parameters, []


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"`{name}` must be a string, but got {value!r}.")
    return value


def _project(kwargs: Mapping[str, Any]) -> str:
    project = kwargs.get("project")
    project = _text("project", os.environ.get("SIGOPT_PROJECT") or DEFAULT_PROJECT if project is None else project)
    if not re.fullmatch(r"[a-z0-9._-]{1,32}", project):
        raise ConfigurationError(
            f"`project` must be 1 to 32 lowercase letters, digits, '-', '_' and '.', but got {project!r}. It comes "
            "from the argument, or from SIGOPT_PROJECT."
        )
    return project


def _why_locally() -> str:
    if os.environ.get(URL_VARIABLE):
        reason = f"The public service at {PUBLIC_SERVICE} ({URL_VARIABLE}) has closed"
    elif os.environ.get(TOKEN_VARIABLE):
        reason = (
            f"{TOKEN_VARIABLE} is a token for SigOpt's public service, which has closed, as long as {URL_VARIABLE} "
        )
        reason += "names no other server"
    else:
        reason = f"No SigOpt server is configured ({URL_VARIABLE}, {TOKEN_VARIABLE})"
    return f"{reason}: this search runs locally, on Optuna's Gaussian-process sampler."

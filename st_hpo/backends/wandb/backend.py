"""The W&B backend: sweeps. The trials run here, one after the other; the server proposes. Imports no wandb itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from st_hpo.backends.base import SearchBackend, caught_exceptions, check_known
from st_hpo.backends.target import SearchTarget
from st_hpo.backends.wandb import client as wandb_client
from st_hpo.backends.wandb import space as wandb_space
from st_hpo.backends.wandb.agent import Agent
from st_hpo.backends.wandb.trial import logged_name, run_trial
from st_hpo.errors import BackendNotInstalledError, ConfigurationError
from st_hpo.records import Baseline
from st_hpo.space import SearchSpace, default_search_space

logger = logging.getLogger(__name__)

# The tests pass with 0.29.0 and later. Needed are the settings `finish_timeout` and `stop_fn`, without which a server
# that goes away blocks the end of a run for hours, and a run that the server stops interrupts the whole process; and a
# client whose requests all go through its own service.
MINIMUM_VERSION = (0, 29)
_ARGUMENTS = ("project", "name", "entity", "metric", "sweep_id", "method", "early_terminate", "catch")
_OF_NEW_SWEEPS = ("name", "method", "early_terminate")


class WandbBackend(SearchBackend):
    """W&B sweeps with the methods random, grid and bayes, and with Hyperband; also several agents on one sweep.

    The search engine is the server's, so ``set_seed`` in a trial does not reach it.
    """

    name = "wandb"

    def __init__(self) -> None:
        self._sweep: wandb_client.WandbSweep | None = None
        self._default_space: SearchSpace | None = None
        self._project: str | None = None
        self._stops_early = False

    @staticmethod
    def is_available() -> bool:
        """Whether wandb is installed; a folder ``./wandb`` with its runs is not the package."""
        spec = importlib.util.find_spec("wandb")
        return spec is not None and spec.origin is not None

    def ensure_available(self) -> None:
        """See :meth:`SearchBackend.ensure_available`; a version that is too old is none."""
        super().ensure_available()
        version = importlib.metadata.version("wandb")
        if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
            needed = ".".join(map(str, MINIMUM_VERSION))
            raise BackendNotInstalledError(
                f"The backend 'wandb' needs wandb {needed} or newer, but {version} is installed. Run "
                f"`pip install --upgrade 'wandb>={needed}'`."
            )

    def default_hp_space(self, trial: Any) -> SearchSpace:
        """The space that is searched when none is given; with ``sweep_id``, that of the sweep."""
        self._default_space = default_search_space()
        return self._default_space

    def open_space(self, hp_space: Any) -> Any:
        """See :meth:`SearchBackend.open_space`; a function is called once, with None."""
        space = wandb_space.open_sweep(hp_space)
        self._stops_early = not isinstance(space, SearchSpace) and bool(space.get("early_terminate"))
        return space

    def space_names(self, space: Any) -> list[str]:
        """See :meth:`SearchBackend.space_names`."""
        return wandb_space.space_names(space)

    def check(self, space: Any, n_trials: int, directions: list[str], kwargs: Mapping[str, Any]) -> None:
        """See :meth:`SearchBackend.check`; asks the server whether it answers, and has the sweep."""
        check_known(self.name, kwargs, _ARGUMENTS, "those of transformers and of sweep configs")
        caught_exceptions(kwargs.get("catch", ()))
        for name in ("project", "name", "entity", "metric", "sweep_id"):
            if not isinstance(kwargs.get(name, ""), str | None):
                raise ConfigurationError(f"`{name}` must be a string, but got {kwargs[name]!r}.")
        self._check_sweep(space, directions, kwargs)
        self._project = kwargs.get("project")
        with wandb_client.session():
            client = wandb_client.connect()
            if kwargs.get("sweep_id"):
                _check_joined(client.find(*_place(kwargs))[1], directions)

    def _check_sweep(self, space: Any, directions: list[str], kwargs: Mapping[str, Any]) -> None:
        if kwargs.get("sweep_id"):
            if given := [name for name in _OF_NEW_SWEEPS if kwargs.get(name) is not None]:
                raise ConfigurationError(
                    f"{', '.join(f'`{name}`' for name in given)} cannot be set for the sweep {kwargs['sweep_id']!r}, "
                    "which exists. Leave it out, or leave `sweep_id` out to start a new sweep."
                )
            return
        if kwargs.get("method") is not None:
            wandb_space.check_method(kwargs["method"])
            if not isinstance(space, SearchSpace):
                raise ConfigurationError(
                    f"`method` is for a SearchSpace, but got method={kwargs['method']!r} and a sweep config that says "
                    f"{space['method']!r}. Set it there."
                )
        config = wandb_space.to_config(space, kwargs.get("method"), kwargs.get("early_terminate"))
        wandb_space.check_early_terminate(config.get("early_terminate"))
        if config["method"] == "grid":
            wandb_space.check_grid(space)
        if len(directions) > 1 and kwargs.get("metric"):
            raise ConfigurationError("`metric` is the one metric of a sweep, but there are several objectives.")
        _check_several(config, directions)

    def check_rungs(self, kwargs: Mapping[str, Any]) -> None:
        """See :meth:`SearchBackend.check_rungs`; whether a sweep that exists ends runs early, its server knows."""
        if self.needs_evaluations(kwargs) is None and not kwargs.get("sweep_id"):
            raise ConfigurationError(
                "`rungs` and `trial_evaluator` are for a sweep that ends runs early, but this one has no "
                "`early_terminate`. Pass early_terminate={'type': 'hyperband', 'min_iter': 1}: an iteration is a rung."
            )

    def needs_evaluations(self, kwargs: Mapping[str, Any]) -> str | None:
        """See :meth:`SearchBackend.needs_evaluations`."""
        return "early_terminate" if kwargs.get("early_terminate") or self._stops_early else None

    def study_id(self, kwargs: Mapping[str, Any]) -> str | None:
        """See :meth:`SearchBackend.study_id`."""
        return kwargs.get("sweep_id")

    def run_baseline(self, trainer: SearchTarget) -> tuple[Baseline, list[str], list[str]]:
        """See :meth:`SearchBackend.run_baseline`; transformers' W&B callback may open a run of its own for it."""
        import wandb

        with wandb_client.session(trainer.verbose, self._project):
            try:
                return super().run_baseline(trainer)
            finally:
                if wandb.run is not None:
                    wandb.run.finish()

    def run(self, trainer: SearchTarget, n_trials: int, direction: str | list[str], **kwargs: Any) -> None:
        """See :meth:`SearchBackend.run`.

        Args:
            trainer: The search.
            n_trials: How many trials to run here; other agents of the sweep run more.
            direction: ``"minimize"`` or ``"maximize"``; a list for several objectives.
            kwargs: ``project``, ``entity`` and ``name`` of the sweep; ``sweep_id`` of one to join; ``metric``, what
                the sweep optimizes, by default the objective under its logged name; ``method`` and
                ``early_terminate`` as in a sweep config; ``catch``, exceptions that fail a trial but not the search.

        Raises:
            ConfigurationError: There is no key, or no such sweep.
            BackendUnavailableError: The server does not answer, or the sweep was deleted.
        """
        directions = direction if isinstance(direction, list) else [direction]
        catch = caught_exceptions(kwargs.get("catch", ()))
        with wandb_client.session(trainer.verbose, kwargs.get("project")):
            client = wandb_client.connect()
            names: list[str] | None = self.space_names(trainer.hp_space)
            if kwargs.get("sweep_id"):
                sweep, config = client.find(*_place(kwargs))
                _check_joined(config, directions)
                if trainer.hp_space is self._default_space:
                    names = None
            else:
                config = _named(trainer, directions, kwargs)
                sweep = client.create(config, kwargs.get("project") or config.get("project"), kwargs.get("entity"))
            self._sweep = sweep
            agent = Agent(client, sweep)
            metric = (config.get("metric") or {}).get("name")

            def waiting() -> None:
                if (ending := trainer.ending) is not None:
                    raise ending
                trainer.waiting()

            for number in range(n_trials):
                if (no_more := trainer.no_more) is not None:
                    raise no_more
                command = agent.next_run(waiting)
                if command is None:
                    logger.warning(f"The sweep {sweep.path} has ended after {number} of {n_trials} trials.")
                    break
                run_trial(trainer, agent, number, command, names, metric, catch)

    @property
    def native(self) -> wandb_client.WandbSweep | None:
        """The :class:`~st_hpo.backends.wandb.client.WandbSweep`; its ``fetch()`` gives wandb's own object."""
        return self._sweep


def _place(kwargs: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    return kwargs["sweep_id"], kwargs.get("project"), kwargs.get("entity")


def _check_several(config: Mapping[str, Any], directions: list[str]) -> None:
    if len(directions) < 2:
        return
    if config["method"] == "bayes":
        raise ConfigurationError(
            f"A sweep with the method 'bayes' optimizes one metric, but there are {len(directions)} objectives. "
            "Choose the method 'random' or 'grid', or one objective."
        )
    if config.get("early_terminate"):
        raise ConfigurationError(
            f"`early_terminate` compares runs by one metric, but there are {len(directions)} objectives. Leave it "
            "out, or choose one objective."
        )


def _check_joined(config: Mapping[str, Any], directions: list[str]) -> None:
    """Refuses to join a sweep that would search in the other direction."""
    _check_several(config, directions)
    metric = config.get("metric") or {}
    goal = metric.get("goal", "minimize")
    guided = config["method"] == "bayes" or config.get("early_terminate")
    if guided and len(directions) == 1 and directions[0] not in ("", goal):
        raise ConfigurationError(
            f"The sweep exists and will {goal} {metric.get('name')!r}, this search {directions[0]}. Choose another "
            "`sweep_id`, or the same direction."
        )


def _named(trainer: SearchTarget, directions: list[str], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a new sweep, with its name and its metric: the objective under the name that is logged."""
    config = wandb_space.to_config(trainer.hp_space, kwargs.get("method"), kwargs.get("early_terminate"))
    if kwargs.get("name"):
        config["name"] = kwargs["name"]
    given = config.pop("metric", None)
    if len(directions) == 1:
        name = kwargs.get("metric") or logged_name((trainer.objective_names or ["objective"])[0])
        extra = {key: value for key, value in (given or {}).items() if key not in ("name", "goal")}
        config["metric"] = {**extra, "name": name, "goal": directions[0]}
    return config

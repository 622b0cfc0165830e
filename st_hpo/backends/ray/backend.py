"""The Ray Tune backend: trials in the worker processes of one machine or of a cluster."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from st_hpo.backends.base import SearchBackend, called_space, caught_exceptions, check_known
from st_hpo.backends.ray.holder import held
from st_hpo.backends.ray.monitor import Monitor, scope_of_best, worker_lost
from st_hpo.backends.ray.scheduling import (
    check_scheduler_at_rungs,
    check_scheduling,
    checkpoint_needs,
    scheduler_of_pruner,
    schedules,
)
from st_hpo.backends.ray.settings import (
    ProcessState,
    environment,
    run_argument_names,
    sigterm_kept,
    task_defaults,
    task_resources,
    tune_generator,
    with_objective,
)
from st_hpo.backends.ray.space import check_tune_point, open_tune_space, tune_space
from st_hpo.backends.ray.worker import OBJECTIVE, Shipment, TrialFailed, remote_baseline, remote_default, run_trial
from st_hpo.backends.target import SearchTarget
from st_hpo.errors import ConfigurationError, NotSupportedError
from st_hpo.faults import describe
from st_hpo.points import check_names, labelled
from st_hpo.records import FAILED, Baseline, TrialRecord
from st_hpo.rung_points import PRUNERS
from st_hpo.shipping import pack
from st_hpo.space import SearchSpace

logger = logging.getLogger(__name__)

# How often a trial is begun again whose worker or node has died; an exception in a trial is no such case
NODE_FAILURES = 3
_POLL_SECONDS = 0.5


class RayBackend(SearchBackend):
    """Ray Tune: parallel trials, on one machine or on a cluster, with its schedulers and search algorithms."""

    name = "ray"
    pip_package = "'ray[tune]'"
    in_process = False

    def __init__(self) -> None:
        self._analysis: Any = None
        self._connected = self._started_ray = False
        self._resources: Any = None
        self._before: ProcessState | None = None
        self._monitor: Monitor | None = None
        self._points: list[dict[str, Any]] = []

    @staticmethod
    def is_available() -> bool:
        """Whether ray is installed."""
        return importlib.util.find_spec("ray") is not None

    def open_space(self, hp_space: Any) -> Any:
        """See :meth:`SearchBackend.open_space`."""
        space = called_space(hp_space, Mapping, "a dict such as {'learning_rate': tune.loguniform(1e-6, 1e-4)}")
        return space if isinstance(space, SearchSpace) else open_tune_space(space)

    def check(self, space: Any, n_trials: int, directions: list[str], kwargs: Mapping[str, Any]) -> None:
        """See :meth:`SearchBackend.check`."""
        import ray

        if isinstance(space, SearchSpace):
            tune_space(space)
        known = [*run_argument_names(), "catch", "pruner"]
        check_known(self.name, kwargs, known, "`catch`, `pruner`, and those of ray.tune.run")
        check_scheduling(kwargs)
        caught_exceptions(kwargs.get("catch", ()))
        scope_of_best()
        self._resources = kwargs.get("resources_per_trial")
        if ray.is_initialized() and ray.util.client.ray.is_connected():
            raise NotSupportedError(
                "This script is connected through Ray Client (an address 'ray://...'), which cannot report the trials "
                "back. Run it on a node of the cluster with ray.init(address='auto'), or submit it as a Ray job."
            )
        if len(directions) > 1 and (self.needs_evaluations(kwargs) or kwargs.get("pruner") is not None):
            which = "scheduler" if kwargs.get("pruner") is None else "pruner"
            raise ConfigurationError(
                f"`{which}` compares trials by one objective, but there are {len(directions)}. Leave it out."
            )
        for role in ("scheduler", "search_alg"):
            mode = getattr(kwargs.get(role), "_mode", None)
            if isinstance(mode, str) and directions != [""] and mode != directions[0][:3]:
                raise ConfigurationError(
                    f"The `{role}` has mode={mode!r}, but the direction of the search is {directions[0]!r}. Leave out "
                    "its `metric` and `mode`: the search sets them."
                )

    def enqueue(self, points: list[dict[str, Any]], space: Any, kwargs: Mapping[str, Any]) -> list[str]:
        """See :meth:`SearchBackend.enqueue`; a search algorithm of the user's has points of its own.

        Raises:
            NotSupportedError: With ``search_alg``.
        """
        if kwargs.get("search_alg") is not None:
            raise NotSupportedError(
                "`enqueue` is for Ray Tune's own search, at random or over a grid, but `search_alg` is given as well. "
                "Most algorithms take the points themselves: pass points_to_evaluate=[...] to it, and leave out "
                "`enqueue`."
            )
        if not isinstance(space, SearchSpace):
            for index, point in enumerate(points):
                check_names(point, space, f"enqueue[{index}]")
                check_tune_point(space, point, f"enqueue[{index}]")
            self._points = [dict(point) for point in points]
            return []
        self._points = [labelled(space, point) for point in points]
        return []

    def needs_evaluations(self, kwargs: Mapping[str, Any]) -> str | None:
        """See :meth:`SearchBackend.needs_evaluations`."""
        return "scheduler" if kwargs.get("pruner") is None and schedules(kwargs.get("scheduler")) else None

    def default_rungs(self, kwargs: Mapping[str, Any]) -> tuple[float, ...] | None:
        """See :meth:`SearchBackend.default_rungs`."""
        return PRUNERS[kwargs["pruner"]] if kwargs.get("pruner") in PRUNERS else None

    def check_rungs(self, kwargs: Mapping[str, Any]) -> None:
        """See :meth:`SearchBackend.check_rungs`."""
        check_scheduler_at_rungs(kwargs)

    def run_baseline(self, trainer: SearchTarget) -> tuple[Baseline, list[str], list[str]]:
        """Evaluates the untrained model in a worker: the driver's node may have no accelerator."""
        found: tuple[Baseline, list[str], list[str]] = self._in_a_worker(trainer, remote_baseline, "the baseline")
        return found

    def run_default(self, trainer: SearchTarget, record: TrialRecord) -> None:
        """Trains with the user's own arguments in a worker."""
        try:
            data = self._in_a_worker(trainer, remote_default, "the training with your own arguments")
        except BaseException as exc:
            record.state, record.error = FAILED, describe(exc)
            raise
        vars(record).update(vars(TrialRecord.from_dict(data)))

    def _in_a_worker(self, trainer: SearchTarget, function: Callable[[Any], Any], what: str) -> Any:
        import ray

        with self._running(trainer):
            remote = ray.remote(max_retries=NODE_FAILURES, **task_resources(self._resources))(function)
            task = remote.remote(self._ship(trainer, None))
            try:
                while not ray.wait([task], timeout=_POLL_SECONDS)[0]:
                    if (ending := trainer.ending) is not None:
                        raise ending
                return ray.get(task)
            except ray.exceptions.RayError as exc:
                cause = getattr(exc, "cause", None)
                if isinstance(cause, TrialFailed):
                    error = cause.error()
                    raise error from error.__cause__
                raise worker_lost(what, NODE_FAILURES + 1, exc) from exc
            except BaseException:
                ray.cancel(task, force=True)
                raise

    def run(self, trainer: SearchTarget, n_trials: int, direction: str | list[str], **kwargs: Any) -> None:
        """See :meth:`SearchBackend.run`."""
        from ray import tune

        mode = direction[:3] if isinstance(direction, str) else None
        monitor = self._monitor = Monitor(
            trainer, mode, caught_exceptions(kwargs.pop("catch", ())), retries_all="max_failures" in kwargs
        )
        with self._running(trainer), monitor.watching():
            arguments = self._run_arguments(trainer, mode, kwargs, monitor)
            space = trainer.hp_space
            try:
                with held(self._ship(trainer, arguments["scheduler"])) as holder:
                    self._analysis = tune.run(
                        functools.partial(run_trial, holder=holder),
                        config=tune_space(space) if isinstance(space, SearchSpace) else dict(space),
                        num_samples=n_trials,
                        **arguments,
                    )
            except Exception as exc:
                monitor.crashed(exc)
                monitor.raise_error()
                raise
            if mode is not None:
                self._analysis.default_metric, self._analysis.default_mode = OBJECTIVE, mode
            monitor.finish(self._analysis.trials)
        monitor.raise_error()

    def _run_arguments(
        self, trainer: SearchTarget, mode: str | None, given: Mapping[str, Any], monitor: Monitor
    ) -> dict[str, Any]:
        arguments = {
            "verbose": 3 if trainer.verbose else 0,
            "raise_on_failed_trial": False,
            "reuse_actors": True,
            "resources_per_trial": task_defaults(),
            **({} if given.get("fail_fast") else {"max_failures": NODE_FAILURES}),
            **given,
        }
        if (pruner := arguments.pop("pruner", None)) is not None:
            arguments["scheduler"] = scheduler_of_pruner(pruner, len(trainer.rungs))
        arguments["callbacks"] = [*(given.get("callbacks") or []), monitor.callback()]
        arguments["stop"] = monitor.stopper(given.get("stop"))
        arguments["scheduler"] = with_objective(arguments.get("scheduler"), "scheduler", mode)
        arguments["search_alg"] = with_objective(given.get("search_alg"), "search_alg", mode)
        if arguments["search_alg"] is None:
            concurrent = arguments.pop("max_concurrent_trials", None)
            # A generator of its own: NumPy's global one, which is Ray Tune's default, is seeded by every trainer
            arguments["search_alg"] = tune_generator(concurrent or 0, self._points)
        return arguments

    def _ship(self, trainer: SearchTarget, scheduler: Any) -> Any:
        """Puts what the workers need into Ray's object store."""
        import ray

        space = trainer.hp_space if isinstance(trainer.hp_space, SearchSpace) else None
        needs, mutates = checkpoint_needs(scheduler)
        if mutates:
            logger.warning(
                f"{type(scheduler).__name__} changes hyperparameters in the middle of trainings. The objective of a "
                "trial is then that of its whole history, and training once with its last values gives another one."
            )
        shipment = Shipment(trainer.portable, space, len(trainer.directions), needs, mutates, trainer.rungs)
        # A cluster that was there before may have other nodes, now or later, without this machine's files
        return ray.put(pack(shipment, whole_datasets=not self._started_ray))

    @contextlib.contextmanager
    def _running(self, trainer: SearchTarget) -> Iterator[None]:
        """Connects to Ray, or starts it on this machine; keeps its log lines quiet."""
        import ray

        tune_logger = logging.getLogger("ray.tune")
        level = tune_logger.level
        variables = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
        if not trainer.verbose:
            variables["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints tables at any verbosity
        with environment(variables):
            if not ray.is_initialized():
                self._before = ProcessState()
                with sigterm_kept():
                    ray.init(
                        log_to_driver=trainer.verbose,
                        logging_level=logging.INFO if trainer.verbose else logging.ERROR,
                        **({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}),
                    )
                # Without an address, Ray first looks for a cluster that was started on this machine
                self._started_ray = ray._private.worker._global_node.is_head()
                self._connected = True
            if not trainer.verbose:
                tune_logger.setLevel(logging.CRITICAL)
            try:
                yield
            finally:
                tune_logger.setLevel(level)

    @property
    def native(self) -> Any:
        """The :class:`ray.tune.ExperimentAnalysis`."""
        return self._analysis

    def best(self, records: list[TrialRecord]) -> TrialRecord | None:
        """The best trial as the environment variable ``RAY_SCOPE`` says, None where that is the objective."""
        return None if self._monitor is None else self._monitor.best(records)

    def close(self) -> None:
        """Ends Ray, if this search has started it or connected to it."""
        if self._connected:
            import ray

            ray.shutdown()
            if self._before is not None:
                self._before.restore()
            self._connected = self._started_ray = False

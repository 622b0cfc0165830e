"""The arguments of ``ray.tune.run`` that a search completes: resources, schedulers, search algorithms."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from st_hpo.backends.ray.worker import OBJECTIVE

# Arguments of `ray.tune.run` that the search itself sets
_OURS = ("run_or_experiment", "config", "num_samples", "metric", "mode")


def run_argument_names() -> list[str]:
    """Returns the arguments of ``ray.tune.run`` that a user may give."""
    from ray import tune

    names = inspect.signature(tune.run).parameters
    return [name for name in names if name not in _OURS and not name.startswith("_")]


def task_defaults() -> dict[str, float]:
    """Returns the resources of a trial where none are given: one CPU, and one GPU if the cluster has any."""
    import ray

    return {"cpu": 1, "gpu": 1} if ray.cluster_resources().get("GPU", 0) else {"cpu": 1}


def task_resources(given: Any) -> dict[str, Any]:
    """Returns ``resources_per_trial`` as options of a Ray task.

    Args:
        given: A dict as for ``tune.run``; anything else (None, a PlacementGroupFactory) means the default.
    """
    resources = dict(given) if isinstance(given, Mapping) else task_defaults()
    options = {"num_cpus": resources.pop("cpu", 1), "num_gpus": resources.pop("gpu", 0), "resources": resources}
    return {**options, "memory": resources.pop("memory")} if "memory" in resources else options


def tune_generator(max_concurrent: int, points: list[dict[str, Any]]) -> Any:
    """Returns Ray Tune's default search algorithm, random or grid, with a random generator of its own.

    Args:
        max_concurrent: How many trials run at a time; 0 for no limit.
        points: The points of the first trials.
    """
    import numpy
    from ray.tune.search import BasicVariantGenerator

    generator = numpy.random.default_rng()
    return BasicVariantGenerator(points_to_evaluate=points, max_concurrent=max_concurrent, random_state=generator)


def with_objective(given: Any, role: str, mode: str | None) -> Any:
    """Returns a scheduler or search algorithm that follows the search's objective, unless it follows another metric.

    Args:
        given: An instance, a name such as ``"asha"``, or None.
        role: ``"scheduler"`` or ``"search_alg"``.
        mode: ``"min"`` or ``"max"``; None for several objectives.
    """
    from ray.tune.schedulers import create_scheduler
    from ray.tune.search import create_searcher

    metric = {} if mode is None else {"metric": OBJECTIVE, "mode": mode}
    if isinstance(given, str):
        return create_scheduler(given, **metric) if role == "scheduler" else create_searcher(given, **metric)
    if given is not None and metric and getattr(given, "metric", "") is None:
        # The space follows in tune.run, which could not set the metric of the one without that of the other
        given.set_search_properties(OBJECTIVE, mode, **({} if role == "scheduler" else {"config": {}}))
    return given


@contextlib.contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables that are not set, and takes them away again."""
    added = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def sigterm_kept() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which ``ray.init`` replaces: whoever has set one still wants it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@dataclass
class ProcessState:
    """What ``ray.init`` changes in this process, and ``ray.shutdown`` leaves as it is.

    Attributes:
        level: The level of Ray's logger.
        variables: The names of environment variables; Ray lets ``breakpoint()`` wait for its own debugger, for one.
    """

    level: int = field(default_factory=lambda: logging.getLogger("ray").level)
    variables: set[str] = field(default_factory=lambda: set(os.environ))

    def restore(self) -> None:
        """Makes it what it was."""
        logging.getLogger("ray").setLevel(self.level)
        for name in [name for name in os.environ if name not in self.variables]:
            if name == "PYTHONBREAKPOINT" or name.startswith("RAY_"):
                del os.environ[name]

"""Search backends by name: st_hpo's own, and those that other packages register. Looking one up imports no backend's
package."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from transformers.hyperparameter_search import ALL_HYPERPARAMETER_SEARCH_BACKENDS

from st_hpo.backends.base import SearchBackend
from st_hpo.errors import ConfigurationError, did_you_mean

__all__ = ["BACKENDS", "ENTRY_POINT_GROUP", "SearchBackend", "backend_names", "get_backend"]

BACKENDS: dict[str, str] = {
    "optuna": "st_hpo.backends.optuna.backend:OptunaBackend",
    "ray": "st_hpo.backends.ray.backend:RayBackend",
    "wandb": "st_hpo.backends.wandb.backend:WandbBackend",
    "sigopt": "st_hpo.backends.sigopt.backend:SigOptBackend",
}
ENTRY_POINT_GROUP = "st_hpo.backends"


def backend_names() -> list[str]:
    """Returns the names of all backends: st_hpo's own, and those that installed packages have registered."""
    return sorted({*BACKENDS, *_registered()})


def get_backend(name: Any = None) -> SearchBackend:
    """Returns a new backend.

    Args:
        name: Its name; transformers' ``HPSearchBackend``; a :class:`SearchBackend`, or a class of one; or None for
            transformers' own default, the first that is installed of Optuna, Ray Tune and W&B.

    Raises:
        ConfigurationError: There is no such backend, or what another package registered is none.
        BackendNotInstalledError: Its package is not installed.
    """
    backend = name() if isinstance(name, type) else name
    if not isinstance(backend, SearchBackend):
        backend = _class_named(_default_name() if name is None else getattr(name, "value", name))()
    backend.ensure_available()
    return backend


def _default_name() -> str:
    """transformers' own default, without importing all of them to see which is there, as transformers does."""
    names = [name.value for name in ALL_HYPERPARAMETER_SEARCH_BACKENDS]
    return next((name for name in names if name in BACKENDS and _class_named(name).is_available()), "optuna")


def _class_named(name: Any) -> type[SearchBackend]:
    if not isinstance(name, str):
        raise ConfigurationError(
            f"`backend` must be the name of a backend, one of {backend_names()}, but got {name!r}."
        )
    if name in BACKENDS:
        module, _, attribute = BACKENDS[name].partition(":")
        found: type[SearchBackend] = getattr(importlib.import_module(module), attribute)
        return found
    registered = _registered()
    if name not in registered:
        raise ConfigurationError(
            f"There is no backend {name!r}.{did_you_mean(name, backend_names())} Choose one of {backend_names()}."
        )
    loaded = registered[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, SearchBackend)):
        raise ConfigurationError(
            f"The entry point {registered[name].value!r} of the backend {name!r} must name a subclass of "
            f"st_hpo.backends.SearchBackend, but it is {loaded!r}."
        )
    return loaded


def _registered() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}

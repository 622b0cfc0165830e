"""Search backends by name. Looking one up imports no backend's package."""

from __future__ import annotations

from typing import Any

from st_hpo.backends.base import SearchBackend
from st_hpo.backends.optuna import OptunaBackend
from st_hpo.errors import ConfigurationError, NotSupportedError, did_you_mean

__all__ = ["BACKENDS", "SearchBackend", "get_backend"]

BACKENDS: dict[str, type[SearchBackend]] = {backend.name: backend for backend in (OptunaBackend,)}
# Backends of transformers' guides that this version does not run: refused, never run wrongly.
_NOT_YET = ("ray", "wandb", "sigopt")


def get_backend(name: Any = None) -> SearchBackend:
    """Returns a new backend.

    Args:
        name: Its name or transformers' ``HPSearchBackend``; None for the default, Optuna.

    Raises:
        NotSupportedError: transformers' guides name it, but this version does not run it.
        ConfigurationError: There is no such backend.
        BackendNotInstalledError: Its package is not installed.
    """
    name = "optuna" if name is None else getattr(name, "value", name)
    if not isinstance(name, str):
        raise ConfigurationError(
            f"`backend` must be the name of a backend, one of {sorted(BACKENDS)}, but got {name!r}."
        )
    if name in _NOT_YET:
        raise NotSupportedError(
            f"backend={name!r} is not supported by this version of st_hpo. Choose one of {sorted(BACKENDS)}."
        )
    if name not in BACKENDS:
        raise ConfigurationError(
            f"There is no backend {name!r}.{did_you_mean(name, BACKENDS)} Choose one of {sorted(BACKENDS)}."
        )
    backend = BACKENDS[name]()
    backend.ensure_available()
    return backend

"""The W&B client: sessions, credentials and sweeps. Imports wandb inside its functions.

Read in wandb 0.29.0 to 0.31.0.
"""

from __future__ import annotations

import contextlib
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from st_hpo.errors import BackendUnavailableError, ConfigurationError

REQUEST_SECONDS = 10.0


@dataclass(frozen=True)
class WandbSweep:
    """A sweep on a W&B server.

    Attributes:
        id: Its id, as ``wandb.agent`` and the argument ``sweep_id`` take it.
        project: Its project.
        entity: The user or team that owns the project.
        url: Its page.
    """

    id: str
    project: str
    entity: str
    url: str = ""

    @property
    def path(self) -> str:
        """``entity/project/id``."""
        return f"{self.entity}/{self.project}/{self.id}"

    def fetch(self) -> Any:
        """Returns the sweep as wandb's public API has it, with its runs: ``wandb.Api().sweep(path)``."""
        import wandb

        return wandb.Api().sweep(self.path)


@contextlib.contextmanager
def session(verbose: bool = False, project: str | None = None) -> Iterator[None]:
    """Uses wandb, and leaves behind what was there before: environment variables, threads and processes.

    Args:
        verbose: Whether wandb prints its lines about every run.
        project: The project of runs that other code opens meanwhile, transformers' callback for example.
    """
    import wandb
    from wandb.sdk import wandb_setup

    running_before = getattr(wandb_setup, "_singleton", None) is not None
    try:
        with _environment_kept():
            if project:
                os.environ["WANDB_PROJECT"] = project
            if not running_before:
                _set_up(silent=not verbose)
            yield
    finally:
        if not running_before:
            wandb.teardown()


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    theirs = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("WANDB_") and name not in theirs]:
            del os.environ[name]
        os.environ.update(theirs)


def _set_up(silent: bool) -> None:
    import wandb

    try:
        # First without its global state, which would keep a thread if it failed
        wandb.Settings().update_from_env_vars(dict(os.environ))
        # Silent also means that it does not ask for a key at the terminal
        wandb.setup(settings=wandb.Settings(silent=True) if silent else None)
    except (ValueError, wandb.errors.Error) as exc:
        raise ConfigurationError(
            f"wandb refuses its own settings, which are those in WANDB_* variables and in its files: {exc}"
        ) from exc


def connect() -> WandbClient:
    """Returns a client that has been heard by the server.

    Raises:
        ConfigurationError: wandb is configured in a way in which no sweep can run.
        BackendUnavailableError: The server does not answer.
    """
    import wandb

    settings = wandb.setup().settings
    if wandb.run is not None:
        raise ConfigurationError(
            f"The W&B run {wandb.run.name!r} ({wandb.run.id}) is open, but every trial is a run of its own. Call "
            "wandb.finish() before the search."
        )
    if settings.sweep_id:
        raise ConfigurationError(
            f"This process already belongs to an agent of the sweep {settings.sweep_id!r} (WANDB_SWEEP_ID), but the "
            "search is an agent itself. Start the script without `wandb agent`, and pass sweep_id= to join the sweep."
        )
    if settings.mode != "online" and settings.mode != "run":
        raise ConfigurationError(
            f"W&B is in the mode {settings.mode!r} (WANDB_MODE), but it is the server that proposes hyperparameters. "
            "Set WANDB_MODE=online, or choose the backend 'optuna', which needs no server."
        )
    url = str(settings.base_url)
    check_reachable(url)
    try:
        api = wandb.Api(timeout=int(REQUEST_SECONDS))
    except Exception as exc:
        cause = exc.__cause__
        if cause is not None and status_of(cause) not in (401, 403):
            raise silent(url, cause) from exc
        raise ConfigurationError(
            f"W&B has no API key that the server {url} accepts ({exc}). Set WANDB_API_KEY, or run `wandb login`."
        ) from exc
    return WandbClient(api, url)


def check_reachable(url: str) -> None:
    """Refuses a server that nothing listens on: the client itself would try again for a long time, without a word.

    Raises:
        BackendUnavailableError: It cannot be connected to.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # only the client knows how its proxy is reached
    try:
        with socket.create_connection((host, parts.port or (443 if parts.scheme == "https" else 80)), timeout=5):
            pass
    except OSError as exc:
        raise silent(url, exc) from exc


def silent(url: str, exc: BaseException) -> BackendUnavailableError:
    """Returns the error that says that the server does not answer."""
    return BackendUnavailableError(
        f"The W&B server {url} does not answer ({type(exc).__name__}: {exc}). Check the network, and WANDB_BASE_URL "
        "if the server is your own; or choose the backend 'optuna', which needs no server."
    )


def status_of(exc: BaseException | None) -> int | None:
    """Returns the HTTP status with which the server refused a request, None if it did not answer."""
    status = getattr(getattr(exc, "response", None), "http_status", None)
    return int(status) if status else None


class WandbClient:
    """Sweeps on one server.

    Args:
        api: The client's public API.
        url: The server.
    """

    def __init__(self, api: Any, url: str) -> None:
        self.api = api
        self.url = url

    def create(self, config: Mapping[str, Any], project: str | None, entity: str | None) -> WandbSweep:
        """Creates a sweep.

        Raises:
            BackendUnavailableError: The server refused it, or does not answer.
        """
        import wandb
        from wandb import env

        # `wandb.sweep` returns the id only, and leaves the names that the server answered in the environment
        with _environment_kept():
            try:
                sweep_id = wandb.sweep(dict(config), entity=entity, project=project)
            except Exception as exc:
                raise BackendUnavailableError(
                    f"The W&B server {self.url} did not create the sweep: {exc}. Check project={project!r} and "
                    f"entity={entity!r}, and that your key may write there."
                ) from exc
            found = env.get_entity() or entity or self.api.default_entity
            return self._sweep(sweep_id, env.get_project() or project or "uncategorized", found)

    def find(self, sweep_id: str, project: str | None, entity: str | None) -> tuple[WandbSweep, dict[str, Any]]:
        """Returns an existing sweep and its config.

        Args:
            sweep_id: ``id``, ``project/id`` or ``entity/project/id``.
            project: The project, if ``sweep_id`` does not name it.
            entity: The entity, if ``sweep_id`` does not name it.

        Raises:
            ConfigurationError: There is no such sweep, or it has ended.
        """
        *above, name = sweep_id.strip("/").split("/")
        project = (above[-1:] or [project or self.api.settings["project"] or "uncategorized"])[0]
        entity = (above[-2:-1] or [entity or self.api.settings["entity"] or self.api.default_entity])[0]
        sweep = self._sweep(name, str(project), str(entity))
        try:
            found = self.api.sweep(sweep.path)
        except Exception as exc:
            raise ConfigurationError(
                f"There is no sweep {sweep.path!r} on the W&B server {self.url} ({exc}): it was deleted, or it is in "
                "another project. Pass sweep_id='entity/project/id', or leave `sweep_id` out to start a new sweep."
            ) from exc
        if str(found.state).upper() not in ("RUNNING", "PAUSED", "PENDING"):
            raise ConfigurationError(
                f"The sweep {sweep.path!r} has ended (its state is {found.state!r}), so it proposes nothing more. "
                "Resume it on its page, or leave `sweep_id` out to start a new sweep."
            )
        return sweep, dict(found.config)

    def _sweep(self, name: str, project: str, entity: str) -> WandbSweep:
        import wandb

        app = str(wandb.setup().settings.app_url).rstrip("/")
        return WandbSweep(name, project, entity, f"{app}/{entity}/{project}/sweeps/{name}")

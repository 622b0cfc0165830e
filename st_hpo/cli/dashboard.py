"""optuna-dashboard on a study, for reading only, until Ctrl-C."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from st_hpo.cli.sources import Source
from st_hpo.errors import BackendNotInstalledError, ConfigurationError

_READING = ("GET", "HEAD", "OPTIONS")
_REFUSAL = "st-hpo shows studies, and changes none. To change this one, start optuna-dashboard itself."


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # On Windows the address of another server could be taken over with it
    allow_reuse_address = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request."""


def dashboard_app(source: Source, study: str | None) -> tuple[Callable[..., Iterable[bytes]], str]:
    """Returns the dashboard as a WSGI application that refuses every change, and the path of the study in it.

    Args:
        source: A saved result, or a storage.
        study: The name of the study to show first.

    Raises:
        BackendNotInstalledError: optuna-dashboard is not installed.
        HPOError: The source cannot be read.
    """
    try:
        from optuna_dashboard import wsgi  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise BackendNotInstalledError(
            "The dashboard needs the package optuna-dashboard, which is not installed: `pip install optuna-dashboard`."
        ) from None
    from st_hpo.backends.optuna import reading

    if source.is_result:
        from st_hpo.backends.optuna.rebuilding import rebuilt_study

        path = Path(source.where)
        name = path.stem if path.stem != "result" else path.absolute().parent.name
        chosen: Any = rebuilt_study(source.read(study), name)
        storage = chosen._storage
    else:
        storage = reading.open_for_reading(source.where)
        several = study is None and len(reading.study_names(storage)) > 1
        chosen = None if several else reading.load_study(storage, study, source.where)
    shown = "/dashboard" if chosen is None else f"/dashboard/studies/{chosen._study_id}"
    return _read_only(wsgi(storage)), shown


def _read_only(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in _READING:
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [json.dumps({"reason": _REFUSAL}).encode()]

    return answer


def open_server(app: Callable[..., Iterable[bytes]], host: str, port: int) -> WSGIServer:
    """Returns a server that listens, and serves once it is told to.

    Args:
        app: The application.
        host: The address to listen at.
        port: The port; 0 for any that is free.

    Raises:
        ConfigurationError: The address or the port cannot be used.
    """
    try:
        return make_server(host, port, app, server_class=_Server, handler_class=_QuietHandler)
    except (OSError, OverflowError) as exc:
        number = getattr(exc, "errno", None)
        if number == errno.EADDRINUSE:
            text = f"Port {port} is in use: choose another with --port, or a free one with --port 0."
        elif number == errno.EACCES:
            text = f"Port {port} is not for every user: choose one above 1023."
        else:
            text = f"The dashboard cannot listen at {host}:{port}: {getattr(exc, 'strerror', None) or exc}."
        raise ConfigurationError(text) from None

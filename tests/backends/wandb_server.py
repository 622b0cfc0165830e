"""A stand-in for the W&B server on 127.0.0.1.

The real client talks to it: GraphQL for sweeps, agents and runs, the file stream for what a run logs. What it answers
is in ``wandb_service``.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wandb_service import KEY, Missing, WandbService


class WandbServer(WandbService):
    """The server."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._http: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> WandbServer:
        """Listens on a free port."""
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Goes away: later connections are refused, open ones are closed."""
        if self._http is not None:
            http, self._http = self._http, None
            http.shutdown()
            http.close_all()
            self._thread.join()

    def env(self) -> dict[str, str]:
        """The environment variables with which the client finds it."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_MODE": "online",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CONSOLE": "off",
            "WANDB__DISABLE_STATS": "true",
            "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",  # the shortest: the client takes whole seconds
            "NO_PROXY": "127.0.0.1",
        }


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_all(self) -> None:
        self.server_close()
        for request in list(self._open):
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client drops its connections when it ends."""


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            scheme, _, credentials = (self.headers.get("Authorization") or "").partition(" ")
            key = base64.b64decode(credentials).decode().partition(":")[2] if scheme == "Basic" else ""
            try:
                status, reply = server.answer(self.path, key, body)
            except Missing as exc:
                status, reply = 404, {"errors": [{"message": f"could not find {exc}"}]}
            except Exception as exc:
                server.errors.append(f"{self.path}: {type(exc).__name__}: {exc}")
                status, reply = 400, {"errors": [{"message": server.errors[-1]}]}
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST

    return Handler


@contextlib.contextmanager
def running_server(seed: int = 0) -> Iterator[WandbServer]:
    """A server for the length of a ``with`` block; ``env()`` of it must be in the environment of its clients."""
    server = WandbServer(seed).start()
    try:
        yield server
    finally:
        server.stop()

"""An agent of a W&B sweep: asks the server for runs, and keeps it informed while one runs.

``wandb.agent`` is not used: it runs its function in a thread that it ends by throwing exceptions into it, swallows
those of the function, stops without a word after three of them, and sleeps up to five seconds between runs. What an
agent says to the server are two GraphQL operations, CreateAgent and Heartbeat, which every released version of wandb
sends alike. Here they go through the client's own connection, with its credentials, proxies and certificates:
``_service_api.execute_graphql`` of ``wandb.Api``, read in wandb 0.29.0 to 0.31.0, is the one private name used for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from st_hpo.backends.wandb.client import REQUEST_SECONDS, WandbClient, WandbSweep, check_reachable, silent, status_of
from st_hpo.errors import BackendUnavailableError

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 10.0  # for a server that went away to come back before the next trial
UPLOAD_SECONDS = 30.0  # for a run to upload at its end, unless the setting `finish_timeout` says otherwise
HEARTBEAT_SECONDS = 5.0  # as wandb's own agents

_CREATE_AGENT = """
mutation CreateAgent($host: String!, $projectName: String, $entityName: String, $sweep: String!) {
    createAgent(input: {host: $host, projectName: $projectName, entityName: $entityName, sweep: $sweep}) {
        agent { id }
    }
}
"""
_HEARTBEAT = """
mutation Heartbeat($id: ID!, $metrics: JSONString, $runState: JSONString) {
    agentHeartbeat(input: {id: $id, metrics: $metrics, runState: $runState}) { agent { id } commands }
}
"""


class Agent:
    """An agent of a sweep: asks for runs, and keeps the server informed while one runs.

    Args:
        client: The client.
        sweep: The sweep.

    Raises:
        BackendUnavailableError: The sweep is gone, or the server.
    """

    def __init__(self, client: WandbClient, sweep: WandbSweep) -> None:
        self.sweep = sweep
        self.ended = False
        self._client = client
        self._lock = threading.Lock()
        self._commands: deque[dict[str, Any]] = deque()
        self._silent_since: float | None = None
        variables = {"projectName": sweep.project, "entityName": sweep.entity, "sweep": sweep.id}
        reply = self._request(_CREATE_AGENT, {"host": socket.gethostname(), **variables})
        self._id = reply["createAgent"]["agent"]["id"]

    def next_run(self, waiting: Callable[[], None]) -> dict[str, Any] | None:
        """Returns the server's command to start a run; None when the sweep has ended.

        Waits as long as the server has none: a sweep may be paused, and the runs of other agents be awaited.

        Args:
            waiting: Called again and again meanwhile. What it raises ends the wait.

        Raises:
            BackendUnavailableError: The sweep is gone, or the server.
        """
        pause, waiting_since = 0.2, time.monotonic()
        warned = False
        while not self.ended:
            if not self._commands:
                self._take(self._patient_heartbeat())
            while self._commands:
                command = self._commands.popleft()
                if command.get("type") in ("run", "resume"):
                    return command
            if self.ended:
                break
            if not warned and time.monotonic() - waiting_since > HEARTBEAT_SECONDS:
                warned = True
                logger.warning(
                    f"The sweep {self.sweep.path} has no run to give yet: it is paused, or waits for other agents. "
                    "Waiting for one; Ctrl-C ends the search."
                )
            waiting()
            time.sleep(pause)
            pause = min(2 * pause, HEARTBEAT_SECONDS)
        return None

    def _patient_heartbeat(self) -> list[dict[str, Any]]:
        while True:
            try:
                return self._heartbeat({})
            except BackendUnavailableError as exc:
                if self._silent_since is None or time.monotonic() - self._silent_since > PATIENCE_SECONDS:
                    raise
                logger.warning(f"{exc} Trying again for {PATIENCE_SECONDS:g} seconds.")
                time.sleep(1.0)

    def _take(self, commands: list[dict[str, Any]]) -> None:
        self._commands.extend(commands)
        self.ended = self.ended or any(command.get("type") == "exit" for command in commands)

    @contextlib.contextmanager
    def running(self, run_id: str, stop: threading.Event) -> Iterator[None]:
        """Tells the server that a run is alive, from a thread that ends with the block.

        Args:
            run_id: The run.
            stop: Set when the server wants the run, or the whole agent, to stop.
        """
        done = threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                self.ask(run_id, stop)

        thread = threading.Thread(target=beat, name="st_hpo W&B heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def ask(self, run_id: str, stop: threading.Event) -> None:
        """Asks whether a run is to stop; a server that does not answer is asked again before the next trial."""
        with contextlib.suppress(BackendUnavailableError):
            commands = self._heartbeat({run_id: True})
            if any(item.get("type") == "exit" or item.get("run_id") == run_id for item in commands):
                stop.set()
            self._take([item for item in commands if item.get("type") != "stop"])

    def check_silence(self) -> None:
        """Notes and says that the server does not answer, before a run waits for it."""
        try:
            check_reachable(self._client.url)
        except BackendUnavailableError as exc:
            self._silent_since = self._silent_since or time.monotonic()
            logger.warning(f"{exc} Waiting up to {UPLOAD_SECONDS:g} seconds for it to take what the run has logged.")

    def _heartbeat(self, runs: Mapping[str, bool]) -> list[dict[str, Any]]:
        reply = self._request(_HEARTBEAT, {"id": self._id, "metrics": "{}", "runState": json.dumps(dict(runs))})
        commands = json.loads(reply["agentHeartbeat"]["commands"])
        return [command for command in commands if isinstance(command, dict)]

    def _request(self, query: str, variables: Mapping[str, Any]) -> Any:
        try:
            with self._lock:
                check_reachable(self._client.url)
                reply = self._client.api._service_api.execute_graphql(
                    query, variables=variables, timeout=REQUEST_SECONDS
                )
        except BackendUnavailableError:
            self._silent_since = self._silent_since or time.monotonic()
            raise
        except Exception as exc:
            status = status_of(exc)
            if status is None:
                self._silent_since = self._silent_since or time.monotonic()
                raise silent(self._client.url, exc) from exc
            self._silent_since = None
            if status == 404:
                raise BackendUnavailableError(
                    f"The sweep {self.sweep.path!r} is no longer on the W&B server {self._client.url}: it was "
                    "deleted. Start a new search without `sweep_id`."
                ) from exc
            raise BackendUnavailableError(
                f"The W&B server {self._client.url} refused the agent of the sweep {self.sweep.path!r}: {exc}. "
                "Check that your key may write to this project."
            ) from exc
        self._silent_since = None
        return reply

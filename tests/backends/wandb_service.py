"""What the stand-in for the W&B server knows and answers, as far as sweeps need it. W&B's own search engine proposes.

It keeps what it received, for tests to read. What it does not know is noted in ``unknown``, and answered with a status
of 4xx: on 5xx, or a dropped connection, the client would try again for minutes.
"""

from __future__ import annotations

import base64
import json
import random
import re
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy
import sweeps
import yaml

KEY = "0123456789abcdef" * 3
ENTITY = "tester"


class Missing(Exception):
    """What was asked for does not exist: answered with status 404, as W&B does for a deleted sweep."""


@dataclass
class Run:
    """One run, as the server knows it."""

    id: str
    sweep: str | None = None
    project: str = ""
    name: str | None = None
    state: str = "pending"
    proposed: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    stopped: bool = False
    inits: int = 0

    @property
    def values(self) -> dict[str, Any]:
        """The run's config, without what the client adds."""
        return {name: item["value"] for name, item in self.config.items() if name != "_wandb"}

    def logged(self, name: str) -> list[Any]:
        """All that was logged under a name."""
        return [line[name] for line in self.history if name in line]

    def for_search(self) -> sweeps.SweepRun:
        """The run as the search engine wants it."""
        config = {name: {"value": value} for name, value in self.proposed.items()}
        config.update({name: item for name, item in self.config.items() if name in config})
        return sweeps.SweepRun(
            name=self.id,
            state=self.state,
            config=config,
            summaryMetrics=self.summary,
            sampledHistory=self.history,
        )


@dataclass
class Sweep:
    """One sweep."""

    id: str
    project: str
    config: dict[str, Any]
    state: str = "RUNNING"
    runs: list[str] = field(default_factory=list)


def encoded(text: str) -> str:
    """An id as W&B writes them."""
    return base64.b64encode(text.encode()).decode()


class WandbService:
    """What the server knows and answers. Every public attribute may be read, and changed, between requests.

    Attributes:
        sweeps: By id.
        runs: By id.
        heartbeats: How many came.
        agents: The sweep of each agent.
        unknown: Operations and paths that it does not know.
        errors: Errors inside of it.
        keys: The API keys that it accepts.
        before: Called with the name of each operation and its variables, before it is answered.
        url: Where clients reach it.
    """

    def __init__(self, seed: int = 0) -> None:
        self.sweeps: dict[str, Sweep] = {}
        self.runs: dict[str, Run] = {}
        self.agents: dict[str, str] = {}
        self.heartbeats = 0
        self.unknown: list[str] = []
        self.errors: list[str] = []
        self.keys = {KEY}
        self.before: Any = lambda operation, variables: None
        self.url = ""
        self._lock = threading.RLock()
        # `set_seed` in a trial seeds the global generators, which are those that the search engine draws from
        generators = random.Random(seed), numpy.random.RandomState(seed)
        self._states: tuple[Any, Any] = (generators[0].getstate(), generators[1].get_state())

    @property
    def sweep(self) -> Sweep:
        """The only sweep."""
        (only,) = self.sweeps.values()
        return only

    def runs_of(self, sweep: Sweep | None = None) -> list[Run]:
        """The runs of a sweep, by default of the only one, in the order of their proposals."""
        return [self.runs[run] for run in (sweep or self.sweep).runs]

    def delete_sweep(self, sweep_id: str) -> None:
        """Deletes a sweep, as its page on W&B can."""
        with self._lock:
            del self.sweeps[sweep_id]

    # ---- Requests ----

    def answer(self, path: str, key: str, body: bytes) -> tuple[int, Any]:
        """Answers one request with a status and what becomes JSON."""
        if path == "/graphql":
            request = json.loads(body)
            found = request.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            operation = found if isinstance(found, str) else found.group(1)
            variables = request.get("variables") or {}
            self.before(operation, variables)
            if key not in self.keys:
                return 401, {"errors": [{"message": "user is not logged in"}]}
            answer = getattr(self, f"on_{operation}", None)
            if answer is None:
                self.unknown.append(operation)
                return 400, {"errors": [{"message": f"unknown operation {operation}"}]}
            with self._lock:
                return 200, {"data": answer(variables)}
        if match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            with self._lock:
                return 200, self.on_file_stream(self.runs[match.group(1)], json.loads(body))
        if path.startswith("/upload/"):
            return 200, {}
        self.unknown.append(path)
        return 404, {}

    def on_file_stream(self, run: Run, body: dict[str, Any]) -> dict[str, Any]:
        for name, chunk in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                lines = [json.loads(line) for line in chunk["content"]]
                run.history[chunk["offset"] :] = lines
            elif name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if body.get("complete"):
            run.exit_code = body.get("exitcode", 0)
            run.state = "killed" if run.stopped else "finished" if run.exit_code == 0 else "failed"
        elif run.state == "running":
            self._stop_early(run)
        return {"exitcode": None, "limits": {}}

    def _stop_early(self, run: Run) -> None:
        sweep = self.sweeps.get(run.sweep or "")
        if sweep is not None and "early_terminate" in sweep.config:
            ended = sweeps.stop_runs(sweep.config, [self.runs[name].for_search() for name in sweep.runs])
            run.stopped = run.stopped or run.id in {item.name for item in ended}

    # ---- GraphQL: who asks ----

    def on_Viewer(self, variables: dict[str, Any]) -> Any:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": encoded("User:1"), "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**viewer, "name": ENTITY, "admin": False, "teams": teams, "apiKeys": {"edges": []}}}

    on_GetDefaultEntity = on_GetViewer = on_Viewer

    def on_ServerFeaturesQuery(self, variables: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def on_ServerInfo(self, variables: dict[str, Any]) -> Any:
        return {"serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}}

    def on_OrganizationCoreWeaveOrganizationID(self, variables: dict[str, Any]) -> Any:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    # ---- GraphQL: sweeps and agents ----

    def on_UpsertSweep(self, variables: dict[str, Any]) -> Any:
        config = yaml.safe_load(variables["config"])
        sweeps.SweepConfig(config)  # the server refuses what its schema does
        sweep = Sweep(uuid.uuid4().hex[:8], variables["projectName"] or "uncategorized", config)
        self.sweeps[sweep.id] = sweep
        return {"upsertSweep": {"sweep": {"name": sweep.id, "project": self._project(sweep.project)}}}

    def on_GetSweep(self, variables: dict[str, Any]) -> Any:
        sweep = self.sweeps.get(variables["name"])
        if sweep is None or sweep.project != variables["project"]:
            return {"project": {"sweep": None}}
        fields = {name: None for name in ("displayName", "description", "bestLoss", "updatedAt", "runCountExpected")}
        known = {"id": encoded(sweep.id), "name": sweep.id, "method": sweep.config["method"], "state": sweep.state}
        text = yaml.safe_dump(sweep.config)
        created = "2026-01-01T00:00:00"
        return {
            "project": {
                "sweep": {
                    "__typename": "Sweep",
                    **fields,
                    **known,
                    "config": text,
                    "createdAt": created,
                    "runCount": len(sweep.runs),
                }
            }
        }

    def on_CreateAgent(self, variables: dict[str, Any]) -> Any:
        if variables["sweep"] not in self.sweeps:
            raise Missing(f"sweep {variables['sweep']}")
        agent = encoded(f"Agent:{uuid.uuid4().hex[:8]}")
        self.agents[agent] = variables["sweep"]
        return {"createAgent": {"agent": {"id": agent}}}

    def on_Heartbeat(self, variables: dict[str, Any]) -> Any:
        self.heartbeats += 1
        sweep = self.sweeps.get(self.agents[variables["id"]])
        if sweep is None:
            raise Missing("the sweep of this agent")
        busy = json.loads(variables["runState"] or "{}")
        stops = [{"type": "stop", "run_id": run} for run in busy if self.runs[run].stopped]
        commands = stops if busy or sweep.state == "PAUSED" else [self._next(sweep)]
        return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}

    def _next(self, sweep: Sweep) -> dict[str, Any]:
        runs = self.runs_of(sweep)
        cap = sweep.config.get("run_cap")
        proposed = None
        if sweep.state == "RUNNING" and (cap is None or len(runs) < cap):
            proposed = self._propose(sweep.config, runs)
        if proposed is None:
            sweep.state = "FINISHED"
            return {"type": "exit"}
        arguments = json.loads(json.dumps(proposed, default=lambda value: value.item()))
        run = Run(uuid.uuid4().hex[:8], sweep=sweep.id, proposed={n: item["value"] for n, item in arguments.items()})
        self.runs[run.id] = run
        sweep.runs.append(run.id)
        return {"type": "run", "run_id": run.id, "args": arguments}

    def _propose(self, config: dict[str, Any], runs: list[Run]) -> Any:
        theirs = random.getstate(), numpy.random.get_state()
        random.setstate(self._states[0])
        numpy.random.set_state(self._states[1])
        try:
            known = {name: item for name, item in config.items() if name != "run_cap"}
            found = sweeps.next_run(known, [run.for_search() for run in runs])
        finally:
            self._states = random.getstate(), numpy.random.get_state()
            random.setstate(theirs[0])
            numpy.random.set_state(theirs[1])
        return None if found is None else found.config

    # ---- GraphQL: runs ----

    def on_RunResumeStatus(self, variables: dict[str, Any]) -> Any:
        return {"model": {**self._project(variables["project"]), "bucket": None}}

    def on_RunStoppedStatus(self, variables: dict[str, Any]) -> Any:
        return {"project": {"run": {"stopped": self.runs[variables["runId"]].stopped}}}

    def on_UpsertBucket(self, variables: dict[str, Any]) -> Any:
        name = variables.get("name") or variables.get("id") or uuid.uuid4().hex[:8]
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(name))
        run.inits += bool(variables.get("project") and variables.get("config") and run.state != "running")
        run.state = "running"
        run.sweep = variables.get("sweep") or run.sweep
        run.project = variables.get("project") or run.project
        run.name = variables.get("displayName") or run.name
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        bucket = {"id": encoded(f"Run:{name}"), "name": name, "displayName": run.name or name, "description": None}
        more = {"config": json.dumps(run.config), "sweepName": run.sweep, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": {**bucket, **more, "project": self._project(run.project)}, "inserted": new}}

    def on_CreateRunFiles(self, variables: dict[str, Any]) -> Any:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _project(self, name: str) -> dict[str, Any]:
        return {"id": encoded(f"Project:{name}"), "name": name, "entity": {"id": encoded("Entity:1"), "name": ENTITY}}

"""A stand-in for a self-hosted sigopt-server, on loopback: the routes that SigOpt's client calls for an experiment.

The standard library answers, Optuna proposes, from a generator of its own::

    with running_server() as server:
        ...  # with the environment variables of server.env()
    assert server.unknown == []
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import optuna

from sigopt_rules import Refused, check_parameter, draw_assignments

TOKEN = "A-TOKEN-OF-THE-TESTS"
CLIENT = "7"
FINISHED = ("completed", "failed")
# Keys by which an experiment and a run may be described; sigopt-server refuses all others
EXPERIMENT_KEYS = {
    *("name", "type", "parameters", "metrics", "budget", "parallel_bandwidth", "conditionals", "metadata"),
    *("linear_constraints", "num_solutions"),
}
RUN_KEYS = {
    *("assignments", "assignments_meta", "assignments_sources", "datasets", "deleted", "favorite", "logs", "metadata"),
    *("model", "name", "project", "source_code", "state", "values", "sys_metadata", "dev_metadata"),
}


class SigOptStandIn:
    """What the server knows, and what a test may tell it.

    Attributes:
        url: Where it listens.
        experiments: The experiments by id, as the client sees them.
        runs: The runs by id, as the client sees them.
        requests: Method and path of every request.
        unknown: Requests that it has no answer for, or that it cannot read.
        projects: The ids of the projects that exist.
        failing: A status to answer everything with, ``"silent"`` to leave every request without an answer for a few
            seconds, None to answer normally.
    """

    def __init__(self, projects: tuple[str, ...]) -> None:
        self.url = ""
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.projects = set(projects)
        self.failing: Any = None
        self._studies: dict[str, optuna.Study] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def env(self) -> dict[str, str]:
        """The environment variables that lead SigOpt's client here."""
        return {"SIGOPT_API_URL": self.url, "SIGOPT_API_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}

    @property
    def experiment(self) -> dict[str, Any]:
        """The only experiment."""
        (experiment,) = self.experiments.values()
        return experiment

    def start(self) -> None:
        """Listens on a free port of loopback."""
        handler = type("Handler", (_Handler,), {"stand_in": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Goes away: connections to it are refused from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    # ---- Answers ----

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> dict[str, Any]:
        """Returns what the server answers; called with the lock held."""
        match (method, *path):
            case ("GET", "tokens", "self"):
                return {"object": "token", "client": CLIENT}
            case ("POST", "clients", client, "projects") if client == CLIENT:
                self.projects.add(body["id"])
                return {"object": "project", "id": body["id"], "client": CLIENT, "name": body["name"]}
            case ("GET", "clients", client, "projects", project):
                self._check_project(client, project)
                return {"object": "project", "id": project, "client": CLIENT, "name": project}
            case ("POST", "clients", client, "projects", project, "aiexperiments"):
                self._check_project(client, project)
                return self._create_experiment(project, body)
            case ("GET", "aiexperiments", experiment):
                return self._known(self.experiments, experiment)
            case ("GET", "aiexperiments", experiment, "best_training_runs"):
                best = self._best_runs(self._known(self.experiments, experiment))
                return {"object": "pagination", "count": len(best), "data": best, "paging": {}}
            case ("POST", "aiexperiments", experiment, "training_runs"):
                return self._create_run(self._known(self.experiments, experiment), body)
            case ("GET", "training_runs", run):
                return self._known(self.runs, run)
            case ("MERGE", "training_runs", run):
                return self._merge(self._known(self.runs, run), body)
        self.unknown.append(f"{method} /{'/'.join(path)}")
        raise Refused(404, f"No such route: {method} /{'/'.join(path)}")

    def _check_project(self, client: str, project: str) -> None:
        if client != CLIENT or project not in self.projects:
            raise Refused(404, f"No project {project!r}")

    def _known(self, items: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        if key not in items:
            raise Refused(404, f"Nothing with the id {key!r}")
        return items[key]

    def _create_experiment(self, project: str, body: dict[str, Any]) -> dict[str, Any]:
        if unknown := set(body) - EXPERIMENT_KEYS:
            raise Refused(400, f"Unknown keys: {sorted(unknown)}")
        conditionals = {item["name"]: item["values"] for item in body.get("conditionals") or []}
        for parameter in body["parameters"]:
            check_parameter(parameter, conditionals)
        optimized = [metric for metric in body["metrics"] if metric["strategy"] == "optimize"]
        if not 1 <= len(optimized) <= 2:
            raise Refused(400, "AI Experiments must have one or two optimized metrics")
        experiment = {
            **body,
            "object": "aiexperiment",
            "id": str(next(self._ids)),
            "client": CLIENT,
            "project": project,
            "state": "active",
        }
        sampler = optuna.samplers.RandomSampler(seed=len(self.experiments))
        directions = [metric["objective"] for metric in optimized]
        self._studies[experiment["id"]] = optuna.create_study(sampler=sampler, directions=directions)
        self.experiments[experiment["id"]] = experiment
        return self._with_progress(experiment)

    def _with_progress(self, experiment: dict[str, Any]) -> dict[str, Any]:
        runs = [run for run in self.runs.values() if run["experiment"] == experiment["id"]]
        finished = sum(run["state"] in FINISHED for run in runs)
        experiment["progress"] = {
            "finished_run_count": finished,
            "active_run_count": len(runs) - finished,
            "total_run_count": len(runs),
            "remaining_budget": experiment["budget"] - finished,
        }
        return experiment

    def _create_run(self, experiment: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        study = self._studies[experiment["id"]]
        trial = study.ask()
        run = {
            "object": "training_run",
            "id": str(next(self._ids)),
            "client": CLIENT,
            "project": experiment["project"],
            "experiment": experiment["id"],
            "name": body["name"],
            "state": "active",
            "suggestion": str(trial.number),
            "assignments": draw_assignments(trial, experiment),
            "values": {},
            "metadata": {},
        }
        self.runs[run["id"]] = run
        self._with_progress(experiment)
        return run

    def _best_runs(self, experiment: dict[str, Any]) -> list[dict[str, Any]]:
        best = {str(trial.number) for trial in self._studies[experiment["id"]].best_trials}
        runs = [run for run in self.runs.values() if run["experiment"] == experiment["id"]]
        return [run for run in runs if run["suggestion"] in best]

    def _merge(self, run: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        if unknown := set(body) - RUN_KEYS:
            raise Refused(400, f"Unknown parameters: {sorted(unknown)}")
        if any(len(str(value)) > 500 for value in body.get("metadata", {}).values()):
            raise Refused(400, "A value of the metadata has more than 500 characters")
        was_finished = run["state"] in FINISHED
        for key, value in body.items():
            run[key] = {**run.get(key, {}), **value} if isinstance(value, dict) else value
        if run["state"] in FINISHED and not was_finished:
            self._observe(run)
        return run

    def _observe(self, run: dict[str, Any]) -> None:
        experiment = self.experiments[run["experiment"]]
        values = {name: value["value"] for name, value in run["values"].items()}
        names = [metric["name"] for metric in experiment["metrics"]]
        failed = run["state"] == "failed" or not set(names) <= set(values)
        state = optuna.trial.TrialState.FAIL if failed else None
        self._studies[experiment["id"]].tell(
            int(run["suggestion"]), None if failed else [values[name] for name in names], state=state
        )
        self._with_progress(experiment)

    def serve(self, handler: _Handler) -> tuple[int, dict[str, Any] | None]:
        """Returns the status and the body of the answer to a request."""
        with self._lock:
            version, *path = handler.path.partition("?")[0].strip("/").split("/")
            self.requests.append(f"{handler.command} /{'/'.join(path)}")
            length = int(handler.headers.get("Content-Length") or 0)
            body = json.loads(handler.rfile.read(length) or "null") or {}
            if self.failing == "silent":
                time.sleep(10)
            elif self.failing is not None:
                return self.failing, {"message": "told to fail"}
            user = base64.b64decode(handler.headers.get("Authorization", "").removeprefix("Basic ")).decode()
            if user != f"{TOKEN}:":
                return 401, {"message": "Invalid token"}
            try:
                answer = self.answer(handler.command, path, body) if version == "v1" else None
            except Refused as exc:
                return exc.status, {"message": str(exc)}
            except Exception as exc:
                self.unknown.append(f"{handler.command} /{'/'.join(path)} {body}: {exc!r}")
                return 400, {"message": f"{type(exc).__name__}: {exc}"}
            skip = handler.headers.get("X-Response-Content") == "skip"
            return (204, None) if skip else (200, json.loads(json.dumps(answer)))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: SigOptStandIn

    def _reply(self) -> None:
        status, body = self.stand_in.serve(self)
        payload = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        # Every connection ends with its answer, so that stop() is seen at once
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(payload)
        self.close_connection = True

    do_GET = do_POST = do_PUT = do_MERGE = do_DELETE = _reply

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def running_server(projects: tuple[str, ...] = ("huggingface",)) -> Iterator[SigOptStandIn]:
    """A stand-in that listens until the block ends.

    Args:
        projects: The ids of the projects that exist.
    """
    server = SigOptStandIn(projects)
    server.start()
    try:
        yield server
    finally:
        server.stop()

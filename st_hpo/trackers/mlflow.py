"""A trial as a run of MLflow. Imports mlflow inside its functions."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from st_hpo.records import COMPLETED, PRUNED, TrialRecord
from st_hpo.trackers.trial_run import TrialRun

# With these, upstream's callback opens a run inside of the trial's, or takes the user's for all trials
_MISLEADING = ("MLFLOW_NESTED_RUN", "MLFLOW_RUN_ID")
_STATUS = {COMPLETED: "FINISHED", PRUNED: "KILLED"}
_VALUE_LENGTH = 500  # what every version of MLflow takes


class MlflowTrialRun(TrialRun):
    """A run, inside of the one that the user may have open. Upstream's callback logs to the run that is active."""

    tracker = "MLflow"

    def open(self, args: Any, model: Any) -> None:
        """See :meth:`TrialRun.open`."""
        self._environment = {name: os.environ.pop(name) for name in _MISLEADING if name in os.environ}
        try:
            tags = {"st_hpo.group": self.facts.group, "st_hpo.trial": self.facts.number}
            self._logged = False
            self._run_id = _started(run_name=self.facts.name, nested=True, tags=tags).info.run_id
        except BaseException:
            os.environ.update(self._environment)
            raise

    def begun(self) -> None:
        """See :meth:`TrialRun.begun`: upstream's callback has logged all training arguments."""
        import mlflow

        self._logged = True
        mlflow.flush_async_logging()
        known = mlflow.MlflowClient().get_run(self._run_id).data.params
        own = {_allowed(name): str(value)[:_VALUE_LENGTH] for name, value in self.facts.hyperparameters.items()}
        # A parameter cannot be logged twice with different values
        missing = {name: value for name, value in own.items() if name not in known}
        differing = {f"trial.{name}": value for name, value in own.items() if known.get(name, value) != value}
        if missing or differing:
            mlflow.log_params({**missing, **differing})

    def close(self, record: TrialRecord) -> None:
        """See :meth:`TrialRun.close`."""
        import mlflow

        client = mlflow.MlflowClient()
        try:
            if not self._logged:  # the trial has ended before its training has begun
                self.begun()
            mlflow.flush_async_logging()
            for name, value in self.facts.final(record).items():
                client.log_metric(self._run_id, _allowed(name), value)
            client.set_tag(self._run_id, "st_hpo.state", record.state)
            if record.error:
                client.set_tag(self._run_id, "st_hpo.error", record.error[:_VALUE_LENGTH])
        finally:
            status = _STATUS.get(record.state, "FAILED")
            active = mlflow.active_run()
            try:
                if active is not None and active.info.run_id == self._run_id:
                    mlflow.end_run(status)
                else:  # the user's code has ended it, or left one of its own open
                    client.set_terminated(self._run_id, status)
            finally:
                os.environ.update(self._environment)


def _started(**arguments: Any) -> Any:
    import mlflow

    with _alone(mlflow.get_tracking_uri()):
        try:
            return mlflow.start_run(**arguments)
        except mlflow.MlflowException as exc:
            # Another machine has just created MLFLOW_EXPERIMENT_NAME, which mlflow.set_experiment alone expects
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return mlflow.start_run(**arguments)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """No other worker of this search on this machine is in here: MLflow makes its tables without a lock.

    Where the folder for temporary files has no locks, they do without, too.
    """
    with contextlib.ExitStack() as stack:
        if not uri.startswith(("http", "databricks")):  # of a server, which may be waited for for minutes
            with contextlib.suppress(OSError, NotImplementedError):
                user = os.getuid() if hasattr(os, "getuid") else ""
                name = hashlib.sha256(f"{user} {os.getcwd()} {uri}".encode()).hexdigest()[:16]
                path = Path(tempfile.gettempdir(), f"st_hpo-mlflow-{name}.lock")
                stack.enter_context(FileLock(path))
                stack.callback(_removed, path)
        yield


def _removed(path: Path) -> None:
    with contextlib.suppress(OSError):  # elsewhere than on Linux and macOS, where it is open
        path.unlink(missing_ok=True)


def _allowed(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z_\-\.\ :/]", "_", name)

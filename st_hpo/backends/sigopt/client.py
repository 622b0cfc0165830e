"""A self-hosted sigopt-server, asked through SigOpt's own client. Imports sigopt inside functions."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from st_hpo.backends.sigopt.local import SigOptTrial
from st_hpo.backends.target import SearchTarget
from st_hpo.errors import BackendUnavailableError, ConfigurationError
from st_hpo.records import COMPLETED, TrialRecord

logger = logging.getLogger(__name__)

URL_VARIABLE, TOKEN_VARIABLE = "SIGOPT_API_URL", "SIGOPT_API_TOKEN"
PUBLIC_SERVICE = "https://api.sigopt.com"
# The client waits 150 s for every answer, and repeats a request for as long while the server answers 429
CHECK_SECONDS, REQUEST_SECONDS = 10, 60
_METADATA_LENGTH = 500


def server_url() -> str | None:
    """Returns the URL of the configured server; None without one, or if it is the public service, which has closed."""
    url = os.environ.get(URL_VARIABLE, "").strip().rstrip("/")
    return url if url and url != PUBLIC_SERVICE else None


class SigOptServer:
    """A self-hosted sigopt-server, through SigOpt's own client.

    Nothing global of the client is set: the project and the connection are this object's own.

    Args:
        url: Its URL.
        project: The project's id.

    Raises:
        ConfigurationError: There is no token, or the client cannot be imported here.
    """

    def __init__(self, url: str, project: str) -> None:
        try:
            import sigopt
            from sigopt.config import config
            from sigopt.factory import SigOptFactory
        except ValueError as exc:  # it derives a project from the working directory when it is imported
            raise ConfigurationError(
                f"The sigopt client cannot be imported here: {exc} Set SIGOPT_PROJECT to lowercase letters, digits, "
                "'-', '_' and '.'."
            ) from exc
        token = os.environ.get(TOKEN_VARIABLE) or config.api_token
        if not token:
            raise ConfigurationError(
                f"{URL_VARIABLE} is {url!r}, but there is no token for it. Set {TOKEN_VARIABLE}; or unset "
                f"{URL_VARIABLE}, to search locally."
            )
        self.url, self.project = url, project
        self._connection = sigopt.Connection(client_token=token, api_url=url, timeout=CHECK_SECONDS)
        self._factory = SigOptFactory(project, connection=self._connection)

    def check(self) -> None:
        """Asks the server whether it takes the token, and for the project.

        Raises:
            BackendUnavailableError: It cannot be reached, or refuses the token.
            ConfigurationError: It has no such project.
        """
        from sigopt.exception import ProjectNotFoundException

        with self._asking("looking for the project"):
            try:
                self._factory.ensure_project_exists()
            except ProjectNotFoundException as exc:
                raise ConfigurationError(
                    f"The SigOpt server at {self.url} has no project {self.project!r}. Create it once, with "
                    f'`python -c "import sigopt; sigopt.create_project({self.project!r})"`, or choose another: '
                    "project='...'."
                ) from exc

    def create_experiment(self, **body: Any) -> Any:
        """Creates an experiment and returns the client's object.

        Raises:
            BackendUnavailableError: The server cannot be reached, or refuses the experiment.
        """
        self.check()
        self._connection.set_timeout(REQUEST_SECONDS)
        with self._asking("creating the experiment"):
            return self._factory.create_experiment(**body)

    def search(
        self,
        trainer: SearchTarget,
        experiment: Any,
        decode: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        n_trials: int,
        metric_names: list[str],
        catch: tuple[type[BaseException], ...],
    ) -> None:
        """Runs the trials of an experiment.

        Args:
            trainer: The search.
            experiment: What :meth:`create_experiment` returned.
            decode: Turns SigOpt's assignments into hyperparameters.
            n_trials: How many trials to run.
            metric_names: The experiment's metrics, one for each objective.
            catch: Exceptions that fail a trial, but not the search.

        Raises:
            BackendUnavailableError: The server has gone.
        """
        for number in range(n_trials):
            if (no_more := trainer.no_more) is not None:
                raise no_more
            with self._asking("asking for a run"):
                if experiment.is_finished():
                    logger.warning(
                        f"The SigOpt experiment {experiment.id} has used its budget, so the search ends after "
                        f"{number} of {n_trials} trials."
                    )
                    return
                run = experiment.create_run(name=f"trial-{number}")
            self._run_trial(trainer, number, run, decode, metric_names, catch)

    def _run_trial(
        self,
        trainer: SearchTarget,
        number: int,
        run: Any,
        decode: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        metric_names: list[str],
        catch: tuple[type[BaseException], ...],
    ) -> None:
        trial = SigOptTrial(number, lambda: decode(dict(run.run.assignments)), run)
        try:
            record = trainer.run_trial(number, trial.propose, trial, backend_id=run.id, catch=catch)
        except BaseException as exc:
            try:  # whatever the server says now, the trial's own exception is the one to raise
                _fail(run, f"{type(exc).__name__}: {exc}")
            except Exception as also:
                logger.warning(f"The SigOpt run {run.id} could not be marked as failed: {also}")
            raise
        with self._asking(f"telling the result of run {run.id}"):
            if record.state == COMPLETED:
                run.log_metrics(_metrics(record, metric_names))
                run.end()
            else:
                _fail(run, record.error)

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        from sigopt.exception import ApiException, ConnectionException, SigOptException

        try:
            yield
        except ConnectionException as exc:
            raise BackendUnavailableError(
                f"The SigOpt server at {self.url} ({URL_VARIABLE}) cannot be reached ({what}): "
                f"{exc.__cause__ or exc}. Start it, or unset {URL_VARIABLE}, to search locally."
            ) from exc
        except ApiException as exc:
            refused = exc.status_code in (401, 403)
            raise BackendUnavailableError(
                f"The SigOpt server at {self.url} answered {exc.status_code} ({what}): "
                f"{exc.message or 'without a message'}."
                + (f" It refuses the token: check {TOKEN_VARIABLE}." if refused else "")
            ) from exc
        except SigOptException as exc:
            raise BackendUnavailableError(f"The sigopt client failed ({what}): {exc}") from exc


def _metrics(record: TrialRecord, names: list[str]) -> dict[str, float]:
    """The objectives, and beside them every number that the evaluation gave."""
    metrics = {
        name: float(value)
        for name, value in (record.metrics or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return {**metrics, **dict(zip(names, record.values, strict=True))}


def _fail(run: Any, error: str | None) -> None:
    run.log_metadata("error", (error or "")[:_METADATA_LENGTH])
    run.log_failure()

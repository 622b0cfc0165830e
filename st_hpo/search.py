"""One search from start to end: baseline, trials, result."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping
from typing import Any

from transformers.trainer_utils import BestRun

from st_hpo._version import __version__
from st_hpo.backends import SearchBackend
from st_hpo.backends.target import Report
from st_hpo.best_run import best_run
from st_hpo.checkpoints import TrialCheckpoints
from st_hpo.console import SearchProgress
from st_hpo.duplicates import trained_before
from st_hpo.faults import SIGTERM, FaultPolicy, SearchStopped, StopSignal, describe
from st_hpo.objective import Objective
from st_hpo.plan import Plan
from st_hpo.records import COMPLETED, FAILED, Baseline, TrialRecord
from st_hpo.release import KeptOutOfCollections
from st_hpo.results import SearchResult
from st_hpo.space import described
from st_hpo.stopping import Limits
from st_hpo.trial import DEFAULT, TrialRunner

logger = logging.getLogger(__name__)


class Search:
    """One search. A backend sees it as its :class:`~st_hpo.backends.target.SearchTarget`.

    Args:
        backend: The backend, not run yet.
        runner: Runs one trial.
        hp_space: The search space.
        n_trials: How many trials to run.
        baseline: Whether to evaluate the untrained model first.
        show_progress: Whether to show the progress bar.
        on_progress: Called with the result so far whenever it has grown.
        faults: Which failures end the search.
        stop: Whether the search is to end, by a timeout or SIGTERM.
        backend_arguments: The backend's own arguments.
    """

    def __init__(
        self,
        backend: SearchBackend,
        runner: TrialRunner,
        hp_space: Any,
        n_trials: int,
        baseline: bool,
        show_progress: bool,
        on_progress: Callable[[SearchResult], None],
        faults: FaultPolicy,
        stop: StopSignal,
        backend_arguments: Mapping[str, Any],
    ) -> None:
        self.backend = backend
        self.runner = runner
        self.hp_space = hp_space
        self.n_trials = n_trials
        self.verbose = runner.verbose
        self._with_baseline = baseline
        self._show_progress = show_progress
        self._on_progress = on_progress
        self._faults = faults
        self._stop = stop
        self._arguments = dict(backend_arguments)
        self._records: dict[int, TrialRecord] = {}
        self._baseline: Baseline | None = None
        self.default_trial = False
        self.limits = Limits()
        self.plan: Plan | None = None
        self._looked = False
        self._default: TrialRecord | None = None
        self._best: TrialRecord | None = None
        self._progress: SearchProgress | None = None
        self._kept_out = KeptOutOfCollections()
        self._interrupts = False
        self._stopped_by: str | None = None

    @property
    def objective(self) -> Objective:
        """What is optimized."""
        return self.runner.objective

    @property
    def objective_names(self) -> list[str]:
        """See :class:`st_hpo.backends.target.SearchTarget`."""
        return list(self.objective.names) if self.objective.is_named else []

    def run(self) -> BestRun | list[BestRun]:
        """Runs the search.

        Returns:
            The best run; for several objectives a list of them, the Pareto front.

        Raises:
            NoFinishedTrialError: No trial gave an objective.
            KeyboardInterrupt: Ctrl-C before the first trial was finished; later, what is done so far is returned.
            SystemExit: SIGTERM, once the search has ended in good order.
            TooManyFailuresError: So many trials have failed in a row that none may work.
            Exception: What a trial raised, unless ``on_error`` or ``catch`` say otherwise.
        """
        interrupted: KeyboardInterrupt | None = None
        self._kept_out.freeze()
        try:
            self._run_baseline()
            self._settle()
            self._progress = SearchProgress(self.n_trials, not self._show_progress, self.plan)
            self._progress.begin(self.objective.names, self.objective.directions)
            with self._stop.watching(self._interrupts):
                if self.default_trial:
                    self._run_default()
                self._run_backend()
        except KeyboardInterrupt as exc:
            interrupted = exc
        except SearchStopped as exc:
            self._stopped_by = exc.reason
            logger.warning(f"The search has ended early: {exc.reason}.")
        finally:
            if self._progress is not None:
                self._progress.end(list(self._records.values()))
            self._kept_out.unfreeze()
            self.backend.close()
            result = self.result(interrupted is not None)
            self._on_progress(result)
            self._write_card(result)
        if self._stopped_by == SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        chosen = self.backend.best(result.completed) if result.completed else None
        return best_run(result, chosen, interrupted)

    def _write_card(self, result: SearchResult) -> None:
        if self.runner.best_model is None or not self.runner.decides:
            return
        try:
            self.runner.best_model.write_card(result)
        except Exception as exc:  # the search has its result, and must not lose it to a full disk
            logger.warning(f"The search is not in the best model's card: {describe(exc)}")

    def _run_baseline(self) -> None:
        if not self._with_baseline:
            return
        self._baseline, self.objective.names, self.objective.directions = self.backend.run_baseline(self)

    def _run_default(self) -> None:
        record = self._default = TrialRecord(DEFAULT)
        try:
            self.backend.run_default(self, record)
        except BaseException as exc:
            if not self.survives(exc):
                raise
        if record.state == FAILED:
            logger.warning(f"The training with your own arguments failed, and the search goes on: {record.error}")

    def run_default(self, record: TrialRecord) -> None:
        """See :meth:`st_hpo.backends.target.SearchTarget.run_default`."""
        self.runner.run_default(record, self._stop)

    def _settle(self) -> None:
        self.objective.settle(self.runner.recipe.parts["evaluator"])

    def _run_backend(self) -> None:
        directions = self.objective.directions
        direction: str | list[str] = directions if self.objective.is_multi else directions[0]
        self.backend.run(self, self.n_trials, direction, **self._arguments)

    @property
    def directions(self) -> list[str]:
        """See :class:`st_hpo.backends.target.SearchTarget`."""
        return list(self.objective.directions)

    @property
    def rungs(self) -> list[int]:
        """See :class:`st_hpo.backends.target.SearchTarget`."""
        return [] if self.runner.rungs is None else self.runner.rungs.resources

    @property
    def portable(self) -> TrialRunner:
        """See :class:`st_hpo.backends.target.SearchTarget`."""
        return self.runner

    def run_trial(
        self,
        number: int,
        propose: Callable[[], Mapping[str, Any]],
        native: Any = None,
        report: Callable[[float, int], bool] | None = None,
        *,
        checkpoints: TrialCheckpoints | None = None,
        backend_id: str | None = None,
        catch: tuple[type[BaseException], ...] = (),
        continues: int | None = None,
    ) -> TrialRecord:
        """See :meth:`st_hpo.backends.target.SearchTarget.run_trial`."""
        if (no_more := self.no_more) is not None:
            raise no_more
        self._announce(number, backend_id, report)
        record = self._records[number] = TrialRecord(number, backend_id=backend_id, continues=continues)
        try:
            self.runner.run(record, propose, native, report, checkpoints, stop=self._stop, trained=self._trained)
        except BaseException as exc:
            if not self.survives(exc, catch):
                raise
            logger.warning(f"Trial {number} failed, and the search goes on: {record.error}")
        finally:
            self._trial_ended(record)
            if len(self._records) == 1:
                self._kept_out.freeze()
        if (too_many := self._faults.too_many) is not None:
            raise too_many
        return record

    def _trained(self, values: Mapping[str, Any]) -> TrialRecord | None:
        return trained_before(values, self._records.values()) if self.runner.reuses else None

    def take_over(self, record: TrialRecord, values: Mapping[str, Any], native: Any = None) -> bool:
        """See :meth:`st_hpo.backends.target.SearchTarget.take_over`."""
        return self.runner.take_over(record, values, native, self._trained)

    def _announce(self, number: int, backend_id: str | None, report: Report | None) -> None:
        """Lets other ranks run the trial along, where there are any."""

    def survives(self, exc: BaseException, catch: tuple[type[BaseException], ...] = ()) -> bool:
        """See :class:`st_hpo.backends.target.SearchTarget`."""
        return self._faults.survives(exc, catch)

    @property
    def ending(self) -> BaseException | None:
        """See :class:`st_hpo.backends.target.SearchTarget`."""
        if (reason := self._stop.reason) is not None:
            return SearchStopped(reason)
        return self._faults.too_many

    @property
    def no_more(self) -> BaseException | None:
        """See :class:`st_hpo.backends.target.SearchTarget`."""
        if (ending := self.ending) is not None:
            return ending
        if not self._looked:  # a study that is continued may have enough already
            self._look()
        return None if self.limits.reason is None else SearchStopped(self.limits.reason)

    def enough(self, reason: str) -> None:
        """See :meth:`st_hpo.backends.target.SearchTarget.enough`."""
        self.limits.enough(reason)

    def waiting(self) -> None:
        """See :meth:`st_hpo.backends.target.SearchTarget.waiting`."""

    def _look(self) -> None:
        self._looked = True
        self.limits.look(self._all_records, self.objective)

    @property
    def output_dir(self) -> str:
        """See :class:`st_hpo.backends.target.SearchTarget`."""
        return self.runner.snapshot.output_dir

    def record_of(self, number: int) -> TrialRecord | None:
        """See :meth:`st_hpo.backends.target.SearchTarget.record_of`."""
        return self._records.get(number)

    def add_record(self, record: TrialRecord, objective_names: list[str] | None = None) -> None:
        """See :meth:`st_hpo.backends.target.SearchTarget.add_record`."""
        if objective_names is not None:
            self.objective.names = list(objective_names)
        self._records[record.number] = record
        self._trial_ended(record)

    def _trial_ended(self, record: TrialRecord) -> None:
        self._faults.note(record)
        if record.state == COMPLETED and not self.objective.is_multi:
            value = record.values[0]
            if self._best is None or self.objective.is_better(value, self._best.values[0]):
                self._best = record
        self._look()
        if self._progress is not None:
            best = self._best.objective if self._best else None
            self._progress.trial_ended(record, best, list(self._records.values()), self._all_records)

    def result(self, interrupted: bool = False) -> SearchResult:
        """Returns what has been found so far."""
        return SearchResult(
            trials=self._all_records(),
            objective_names=list(self.objective.names),
            directions=list(self.objective.directions),
            backend=self.backend.name,
            baseline=self._baseline,
            default=self._default,
            space=described(self.hp_space),
            interrupted=interrupted,
            ended_early=self._stopped_by,
            st_hpo_version=__version__,
            native=self.backend.native,
        )

    def _all_records(self) -> list[TrialRecord]:
        own = sorted(self._records.values(), key=lambda record: record.number)
        if self.backend.native is None:
            return own
        try:
            known = self.backend.records(self)
        except Exception as exc:  # a storage that has gone away must not take this search's own trials with it
            logger.warning(
                f"The study cannot be read ({type(exc).__name__}: {exc}); the result has this search's trials."
            )
            return own
        return own if known is None else known

"""One search from start to end: preflight, trials, result."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from transformers.trainer_utils import BestRun

from st_hpo._version import __version__
from st_hpo.backends import SearchBackend, get_backend
from st_hpo.console import SearchProgress, quiet
from st_hpo.errors import ConfigurationError, NoFinishedTrialError, NotSupportedError
from st_hpo.objective import Objective
from st_hpo.results import COMPLETED, FAILED, Baseline, SearchResult, TrialRecord
from st_hpo.space import SearchSpace
from st_hpo.trial import TrialRunner

logger = logging.getLogger(__name__)


class Search:
    """One search. A backend sees it as its :class:`~st_hpo.backends.base.SearchTarget`.

    Args:
        backend: The backend, not run yet.
        runner: Runs one trial.
        hp_space: The search space.
        n_trials: How many trials to run.
        baseline: Whether to evaluate the untrained model first.
        show_progress: Whether to show the progress bar.
        on_progress: Called with the result so far whenever it has grown.
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
        self._arguments = dict(backend_arguments)
        self._records: dict[int, TrialRecord] = {}
        self._baseline: Baseline | None = None
        self._best: TrialRecord | None = None
        self._progress: SearchProgress | None = None
        self._may_freeze = False

    @property
    def objective(self) -> Objective:
        """What is optimized."""
        return self.runner.objective

    @property
    def objective_names(self) -> list[str]:
        """See :class:`st_hpo.backends.base.SearchTarget`."""
        return list(self.objective.names) if self.objective.is_named else []

    def run(self) -> BestRun | list[BestRun]:
        """Runs the search.

        Returns:
            The best run; for several objectives a list of them, the Pareto front.

        Raises:
            NoFinishedTrialError: No trial gave an objective.
            KeyboardInterrupt: Ctrl-C before the first trial was finished; later, what is done so far is returned.
            Exception: What a trial raised, unless ``catch`` names it.
        """
        interrupted: KeyboardInterrupt | None = None
        self._may_freeze = gc.get_freeze_count() == 0  # otherwise the user has frozen, and unfreezing would undo it
        self._freeze()
        try:
            self._run_baseline()
            self.objective.settle(self.runner.recipe.parts["evaluator"])
            self._progress = SearchProgress(self.n_trials, disable=not self._show_progress)
            self._run_backend()
        except KeyboardInterrupt as exc:
            interrupted = exc
        finally:
            if self._progress is not None:
                self._progress.close()
            if self._may_freeze:
                gc.unfreeze()
            result = self.result(interrupted is not None)
            self._on_progress(result)
        return self._best_run(result, interrupted)

    def _freeze(self) -> None:
        """Takes what exists by now out of every later garbage collection: a trial's own cycles are all it has to find.

        Measured: 6 ms a collection, most of it freeing the model, instead of 250. Done before the first trial, and
        once more after it, when what a training imports has been imported.
        """
        gc.collect()
        if self._may_freeze:
            gc.freeze()

    def _run_baseline(self) -> None:
        if not self._with_baseline:
            return
        if self.verbose:
            self._baseline = self.runner.baseline()
        else:
            with quiet(logging.WARNING):
                self._baseline = self.runner.baseline()

    def _run_backend(self) -> None:
        directions = self.objective.directions
        direction: str | list[str] = directions if self.objective.is_multi else directions[0]
        self.backend.run(self, self.n_trials, direction, **self._arguments)

    def run_trial(
        self,
        number: int,
        propose: Callable[[], Mapping[str, Any]],
        native: Any = None,
        report: Callable[[float, int], bool] | None = None,
    ) -> TrialRecord:
        """See :meth:`st_hpo.backends.base.SearchTarget.run_trial`."""
        record = self._records[number] = TrialRecord(number)
        try:
            if self.verbose:
                self.runner.run(record, propose, native, report)
            else:
                # Warnings are seen once: in the baseline and the first trial
                with quiet(logging.WARNING if len(self._records) == 1 else logging.ERROR):
                    self.runner.run(record, propose, native, report)
        finally:
            self._trial_ended(record)
            if len(self._records) == 1:
                self._freeze()
        return record

    def record_of(self, number: int) -> TrialRecord | None:
        """See :meth:`st_hpo.backends.base.SearchTarget.record_of`."""
        return self._records.get(number)

    def _trial_ended(self, record: TrialRecord) -> None:
        if record.state == COMPLETED and not self.objective.is_multi:
            value = record.values[0]
            if self._best is None or self.objective.is_better(value, self._best.values[0]):
                self._best = record
        if self._progress is not None:
            if record.state == FAILED:
                self._progress.say(f"Trial {record.number} failed: {record.error}")
            self._progress.trial_ended(self._best.objective if self._best else None)

    def result(self, interrupted: bool = False) -> SearchResult:
        """Returns what has been found so far."""
        return SearchResult(
            trials=self._all_records(),
            objective_names=list(self.objective.names),
            directions=list(self.objective.directions),
            backend=self.backend.name,
            baseline=self._baseline,
            interrupted=interrupted,
            st_hpo_version=__version__,
            native=self.backend.native,
        )

    def _all_records(self) -> list[TrialRecord]:
        own = list(self._records.values())
        if self.backend.native is None:
            return own
        try:
            return self.backend.records(self)
        except Exception as exc:  # a storage that has gone away must not take this search's own trials with it
            logger.warning(
                f"The study cannot be read ({type(exc).__name__}: {exc}); the result has this search's trials."
            )
            return own

    def _best_run(self, result: SearchResult, interrupted: KeyboardInterrupt | None) -> BestRun | list[BestRun]:
        best = result.best_trials
        if not best:
            if interrupted is not None:
                raise interrupted
            errors = dict.fromkeys(trial.error for trial in result.trials if trial.error)
            raise NoFinishedTrialError(
                f"None of the {len(result.trials)} trials was finished, so there is no best run. "
                + ("The causes:\n" + "\n".join(f"- {error}" for error in list(errors)[:5]) if errors else ""),
                result,
            )
        if interrupted is not None:
            logger.warning(
                f"The search was interrupted after {len(result.completed)} finished trials; their best is returned."
            )
        runs = [BestRun(str(trial.number), trial.objective, dict(trial.hyperparameters), result) for trial in best]
        return runs if self.objective.is_multi else runs[0]


def process_count(args: Any) -> int:
    """Returns how many processes this training would have.

    The arguments' own ``world_size`` is 1 on a machine without accelerators unless ``use_cpu=True``, also under
    torchrun, so the launcher's environment and the process group are asked as well.
    """
    import torch.distributed

    group = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        group = torch.distributed.get_world_size()
    launched = os.environ.get("WORLD_SIZE", "1")
    return max(int(args.world_size), group, int(launched) if launched.isdigit() else 1)


def check_search(
    backend: Any,
    hp_space: Any,
    n_trials: Any,
    objective: Objective,
    objective_from: Any,
    args: Any,
    backend_arguments: Mapping[str, Any],
) -> tuple[SearchBackend, Any]:
    """Checks what needs no model to be checked.

    Returns:
        The backend and the search space.

    Raises:
        ConfigurationError: Naming what was wrong, the value, the choices and the fix.
        NotSupportedError: Several processes or another backend.
    """
    processes = process_count(args)
    if processes > 1:
        raise NotSupportedError(
            f"This search runs in {processes} processes, but this version of st_hpo searches in one process: "
            "start the script with `python`, not with `torchrun` or `accelerate launch`."
        )
    found = get_backend(backend)
    if isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1:
        raise ConfigurationError(f"`n_trials` must be an integer of at least 1, but got {n_trials!r}.")
    space = found.default_hp_space(None) if hp_space is None else hp_space
    if isinstance(space, Mapping) and not isinstance(space, SearchSpace) and not space:
        space = SearchSpace(space)  # refuses the empty space in its own words
    if backend_arguments.get("pruner") is not None and args.eval_strategy == "no":
        logger.warning(
            "`pruner` is given, but nothing is evaluated during the training (eval_strategy='no'), so no trial "
            "will be pruned. Set eval_strategy='steps' or 'epoch' in the training arguments."
        )
    if objective_from not in ("end", "best"):
        raise ConfigurationError(f"`objective_from` must be 'end' or 'best', but got {objective_from!r}.")
    if objective_from == "best":
        if objective.is_multi:
            raise ConfigurationError("`objective_from='best'` needs a single objective: of several none is the best.")
        if args.eval_strategy == "no":
            raise ConfigurationError(
                "`objective_from='best'` takes the best evaluation during training, but there is none: "
                "eval_strategy='no'. Set eval_strategy='steps' or 'epoch' in the training arguments."
            )
    found.check(space, n_trials, objective.directions, backend_arguments)
    return found, space

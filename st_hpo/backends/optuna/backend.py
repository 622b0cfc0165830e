"""The Optuna backend: trials in this process, in several of this machine, or of several machines."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from st_hpo.backends.base import SearchBackend
from st_hpo.backends.optuna.opening import opened_study
from st_hpo.backends.optuna.settings import STUDY_NAME, Settings
from st_hpo.backends.optuna.terminators import asked
from st_hpo.backends.target import SearchTarget
from st_hpo.errors import ConfigurationError, SearchSpaceError
from st_hpo.records import TrialRecord
from st_hpo.rung_points import DEFAULT_RUNGS, PRUNERS, check_pruner_name
from st_hpo.space import SearchSpace

if TYPE_CHECKING:
    from st_hpo.backends.optuna.paused import PausedTrials
    from st_hpo.backends.optuna.shared import SharedStudy

_POLL_SECONDS = 0.2


class OptunaBackend(SearchBackend):
    """Optuna, with any sampler, pruner and storage that ``optuna.create_study`` takes.

    Optuna's samplers own their random generators, so ``set_seed`` in a trial does not reach them.
    """

    name = "optuna"

    def __init__(self) -> None:
        self._study: Any = None
        self._source: SharedStudy | None = None
        self._paused: PausedTrials | None = None
        self._points: list[dict[str, Any]] = []

    @staticmethod
    def is_available() -> bool:
        """Whether optuna is installed."""
        return importlib.util.find_spec("optuna") is not None

    def open_space(self, hp_space: Any) -> Any:
        """See :meth:`SearchBackend.open_space`; a function is called in every trial."""
        if not isinstance(hp_space, SearchSpace) and not callable(hp_space):
            raise SearchSpaceError(
                "`hp_space` must be a SearchSpace or a function of an Optuna trial that returns a dict, but got "
                f"{hp_space!r}." + (" Wrap the dict: SearchSpace({...})." if isinstance(hp_space, Mapping) else "")
            )
        return hp_space

    def check(self, space: Any, n_trials: int, directions: list[str], kwargs: Mapping[str, Any]) -> None:
        """See :meth:`SearchBackend.check`."""
        settings = Settings.of(self.name, kwargs)
        if kwargs.get("pruner") is not None and len(directions) > 1:
            raise ConfigurationError("`pruner` needs a single objective: Optuna does not prune with several.")
        if getattr(kwargs.get("pruner"), "pauses", False) and not settings.is_alone:
            raise ConfigurationError(
                "AshaPruner(pauses=True) needs a search that takes its trials up again, which one on a study with a "
                "`storage`, or with `resume`, does not. Pass pruner='asha' or AshaPruner()."
            )
        if kwargs.get("terminator") and len(directions) > 1:
            raise ConfigurationError("`terminator` needs a single objective: Optuna knows none for several.")

    def default_rungs(self, kwargs: Mapping[str, Any]) -> tuple[float, ...] | None:
        """See :meth:`SearchBackend.default_rungs`."""
        pruner = kwargs.get("pruner")
        if isinstance(pruner, str):
            return PRUNERS[check_pruner_name(pruner)]
        return DEFAULT_RUNGS if self._prunes(pruner) else None

    def check_rungs(self, kwargs: Mapping[str, Any]) -> None:
        """See :meth:`SearchBackend.check_rungs`."""
        if not self._prunes(kwargs.get("pruner")):
            raise ConfigurationError(
                "`rungs` and `trial_evaluator` are for a pruner, but there is none. Pass pruner='asha', 'hyperband', "
                "'median' or a pruner of Optuna's."
            )

    @staticmethod
    def _prunes(pruner: Any) -> bool:
        import optuna

        return pruner is not None and not isinstance(pruner, optuna.pruners.NopPruner)

    def enqueue(self, points: list[dict[str, Any]], space: Any, kwargs: Mapping[str, Any]) -> list[str]:
        """See :meth:`SearchBackend.enqueue`; a function is called once with every point, before the search."""
        from st_hpo.backends.optuna.points import names_never_asked

        self._points = [dict(point) for point in points]
        if isinstance(space, SearchSpace):
            return []
        with _optuna_logs(False):
            asked = [names_never_asked(space, point, f"enqueue[{index}]") for index, point in enumerate(points)]
        return list(dict.fromkeys(name for names in asked for name in names))

    def concurrency(self, kwargs: Mapping[str, Any]) -> int:
        """See :meth:`SearchBackend.concurrency`."""
        return Settings.of(self.name, kwargs).n_jobs

    def n_trials_is_total(self, kwargs: Mapping[str, Any]) -> bool:
        """See :meth:`SearchBackend.n_trials_is_total`."""
        return Settings.of(self.name, kwargs).resume

    def study_id(self, kwargs: Mapping[str, Any]) -> str | None:
        """See :meth:`SearchBackend.study_id`."""
        if kwargs.get("storage") is None and not kwargs.get("resume"):
            return None
        name = kwargs.get("study_name")
        return STUDY_NAME if name is None and kwargs.get("resume") else name

    def run(self, trainer: SearchTarget, n_trials: int, direction: str | list[str], **kwargs: Any) -> None:
        """See :meth:`SearchBackend.run`."""
        from st_hpo.backends.optuna.careful import careful_sampling
        from st_hpo.backends.optuna.parallel import ParallelTrials
        from st_hpo.backends.optuna.paused import PausedTrials
        from st_hpo.backends.optuna.points import enqueue
        from st_hpo.backends.optuna.pruners import make_pruner
        from st_hpo.backends.optuna.records import check_continued
        from st_hpo.backends.optuna.shared import SharedStudy
        from st_hpo.backends.optuna.steady import heed, impatient
        from st_hpo.backends.optuna.storage import in_memory

        settings = Settings.of(self.name, kwargs)
        directions = direction if isinstance(direction, list) else [direction]
        with (
            _optuna_logs(trainer.verbose),
            careful_sampling(),
            opened_study(settings, directions, trainer.output_dir) as (study, is_shared),
        ):
            self._study = study
            study.pruner = make_pruner(kwargs.get("pruner"), trainer.rungs, settings.is_alone and bool(trainer.rungs))
            heed(study, lambda: _ending_while_waiting(trainer))
            check_continued(study, directions, trainer.objective_names)
            source = SharedStudy(study, n_trials, settings.resume, settings.heartbeat_interval, is_shared)
            self._source = source
            keep = getattr(study.pruner, "keep", 0) if source.pauses and trainer.rungs else 0
            self._paused = PausedTrials(study, keep, trainer.output_dir)
            if self._points:
                enqueue(study, self._points, trainer.hp_space, settings.heartbeat_interval)
            after = self._after(settings, trainer)
            try:
                with source.running(), self._paused.kept():
                    if settings.n_jobs == 1:
                        self._run_here(trainer, source, settings, after, len(directions) == 1)
                    else:
                        ParallelTrials(
                            trainer,
                            source,
                            settings,
                            lambda trial: _propose(trainer.hp_space, trial),
                            after,
                            self.pruned_exceptions,
                            self._paused.folder,
                        ).run(n_trials)
            finally:
                impatient(study)
                if settings.n_jobs > 1 and not is_shared:
                    self._study = in_memory(study)

    def _run_here(
        self,
        trainer: SearchTarget,
        source: SharedStudy,
        settings: Settings,
        after: Callable[[Any], None],
        single: bool,
    ) -> None:
        while True:
            if (ending := trainer.ending) is not None:
                raise ending
            if source.is_done:
                return
            if (no_more := trainer.no_more) is not None:
                raise no_more
            trial = source.next()
            if trial is not None:
                after(self._run_trial(trainer, source, trial, single, settings.catch))
            elif source.is_done:
                return
            else:  # other processes run what is left
                trainer.waiting()
                time.sleep(_POLL_SECONDS)

    def _run_trial(
        self,
        trainer: SearchTarget,
        source: SharedStudy,
        trial: Any,
        single: bool,
        catch: tuple[type[BaseException], ...],
    ) -> Any:
        from st_hpo.backends.optuna.endings import is_lost, only_logged, says_nothing
        from st_hpo.backends.optuna.patience import in_trial
        from st_hpo.backends.optuna.paused import checkpoints_of
        from st_hpo.backends.optuna.promotion import Reporter, continued_number

        def propose() -> Mapping[str, Any]:
            return _propose(trainer.hp_space, trial)

        report = Reporter(trial) if single else None
        checkpoints = checkpoints_of(trial, None if self._paused is None else self._paused.folder)
        try:
            with in_trial():
                record = trainer.run_trial(
                    trial.number,
                    propose,
                    trial,
                    report,
                    checkpoints=checkpoints,
                    catch=catch,
                    continues=continued_number(trial),
                )
        except BaseException as exc:
            if isinstance(exc, self.pruned_exceptions):
                return source.tell(trial, trainer.record_of(trial.number))
            with only_logged(trial.number):
                source.tell(trial, trainer.record_of(trial.number), says_nothing(exc), is_lost(exc))
            raise
        return source.tell(trial, record)

    def _after(self, settings: Settings, trainer: SearchTarget) -> Callable[[Any], None]:
        terminates = asked(settings.terminator)

        def after(trial: Any) -> None:
            if self._paused is not None:
                self._paused.tidy()
            if settings.gc_after_trial:
                gc.collect()
            for callback in settings.callbacks:
                callback(self._study, trial)
            # Not before a trial is completed: the search would have no result
            ended = self._study.get_trials(deepcopy=False)
            if any(other.state.name == "COMPLETE" for other in ended) and terminates(self._study):
                trainer.enough("the terminator expects no better objective")

        return after

    @property
    def native(self) -> Any:
        """The :class:`optuna.study.Study`."""
        return self._study

    @property
    def pruned_exceptions(self) -> tuple[type[BaseException], ...]:
        """Code of the user's may raise ``optuna.TrialPruned`` itself."""
        import optuna

        return (optuna.TrialPruned,)

    def records(self, trainer: SearchTarget) -> list[TrialRecord]:
        """The records of all trials in the study, also of those that other processes have run, now or earlier."""
        from st_hpo.backends.optuna.records import record_from

        if self._study is None:
            return []
        disowned = set() if self._source is None else self._source.disowned
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            if self._source is not None and self._source.is_surplus(trial):
                continue
            own = None if trial.number in disowned else trainer.record_of(trial.number)
            record = record_from(trial, trainer.hp_space) if own is None else own
            if record is not None:
                found.append(record)
        return found


def _ending_while_waiting(trainer: SearchTarget) -> BaseException | None:
    trainer.waiting()
    return trainer.ending


@contextlib.contextmanager
def _optuna_logs(verbose: bool) -> Iterator[None]:
    """Optuna's line a trial says what the progress bar and the result say already."""
    import optuna

    previous = optuna.logging.get_verbosity()
    if not verbose:
        optuna.logging.set_verbosity(max(previous, optuna.logging.ERROR))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(previous)


def _propose(hp_space: Any, trial: Any) -> Mapping[str, Any]:
    if isinstance(hp_space, SearchSpace):
        return hp_space.suggest(trial)
    proposed = hp_space(trial)
    if not isinstance(proposed, Mapping):
        raise SearchSpaceError(
            f"`hp_space` must return a dict of hyperparameters, but returned {proposed!r} of type "
            f"{type(proposed).__name__}."
        )
    return proposed

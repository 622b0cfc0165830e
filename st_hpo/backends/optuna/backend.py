"""The Optuna backend. The only file that imports optuna, inside its functions."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from st_hpo.backends.base import SearchBackend, SearchTarget, caught_exceptions, check_known
from st_hpo.errors import ConfigurationError, NotSupportedError, SearchSpaceError
from st_hpo.results import COMPLETED, FAILED, PRUNED, RUNNING, WAITING, TrialRecord
from st_hpo.space import SearchSpace

RECORD_ATTRIBUTE = "st_hpo:record"
OBJECTIVE_ATTRIBUTE = "st_hpo:objective"
# Arguments of `Study.optimize` that transformers passes on; all others go to `optuna.create_study`.
_OPTIMIZE_ARGUMENTS = ("gc_after_trial", "callbacks")


class OptunaBackend(SearchBackend):
    """Optuna, in one process: any sampler, pruner and storage that ``optuna.create_study`` takes.

    Optuna's samplers own their random generators, so ``set_seed`` in a trial does not reach them.
    """

    name = "optuna"

    def __init__(self) -> None:
        self._study: Any = None

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
        if kwargs.get("n_jobs", 1) != 1:
            raise NotSupportedError(
                f"n_jobs={kwargs['n_jobs']!r} is not supported by this version of st_hpo: Optuna's threads would "
                "share one trainer, and every trial would report the same value. Leave it out."
            )
        known = [*_create_study_arguments(), *_OPTIMIZE_ARGUMENTS, "catch", "n_jobs"]
        check_known(self.name, kwargs, known, "those of optuna.create_study and Study.optimize")
        caught_exceptions(kwargs.get("catch", ()))
        pruner = kwargs.get("pruner")
        if pruner is not None and len(directions) > 1:
            raise ConfigurationError("`pruner` needs a single objective: Optuna does not prune with several.")

    def run(self, trainer: SearchTarget, n_trials: int, direction: str | list[str], **kwargs: Any) -> None:
        """See :meth:`SearchBackend.run`."""
        import optuna

        kwargs.pop("n_jobs", None)
        catch = caught_exceptions(kwargs.pop("catch", ()))
        optimize = {name: kwargs.pop(name) for name in _OPTIMIZE_ARGUMENTS if name in kwargs}
        directions = direction if isinstance(direction, list) else [direction]
        single = len(directions) == 1
        with _optuna_logs(trainer.verbose):
            study = optuna.create_study(directions=directions, **kwargs)  # type: ignore[arg-type]
            _check_continued(study, directions, trainer.objective_names)
            self._study = study

            def objective(trial: Any) -> Any:
                try:
                    return self._run_trial(trainer, trial, single, catch)
                except BaseException as exc:
                    if not isinstance(exc, Exception | KeyboardInterrupt):  # sys.exit(): Optuna would leave it running
                        study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    raise

            study.optimize(objective, n_trials=n_trials, **optimize)

    def _run_trial(
        self, trainer: SearchTarget, trial: Any, single: bool, catch: tuple[type[BaseException], ...]
    ) -> Any:
        import optuna

        def report(value: float, step: int) -> bool:
            trial.report(value, step)
            return bool(trial.should_prune())

        try:
            record = trainer.run_trial(
                trial.number,
                lambda: _propose(trainer.hp_space, trial),
                trial,
                report if single else None,
                catch=catch,
            )
        finally:
            if (ended := trainer.record_of(trial.number)) is not None:
                # As text: a thousand nested dicts would be walked by every garbage collection
                trial.set_user_attr(RECORD_ATTRIBUTE, json.dumps(ended.to_dict()))
        if record.state == PRUNED:
            raise optuna.TrialPruned(record.error)
        if record.state == FAILED:  # and the search goes on: Optuna records a failure
            return float("nan")
        return record.values[0] if single else record.values

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
        """The records of all trials in the study, also of those that an earlier search left in its storage."""
        if self._study is None:
            return []
        return [
            trainer.record_of(trial.number) or _record_from(trial) for trial in self._study.get_trials(deepcopy=False)
        ]


def _create_study_arguments() -> list[str]:
    import optuna

    names = inspect.signature(optuna.create_study).parameters
    return [name for name in names if name not in ("direction", "directions")]


def _check_continued(study: Any, directions: list[str], names: list[str]) -> None:
    """Refuses to continue a study that optimizes something else: its values would be mixed with others.

    Optuna itself takes no notice of the directions when it loads a study.
    """
    earlier = [direction.name.lower() for direction in study.directions]
    if earlier != directions:
        raise ConfigurationError(
            f"The study {study.study_name!r} exists and optimizes in the direction(s) {earlier}, this search in "
            f"{directions}. Choose another `study_name`, or the same direction."
        )
    stored = study.user_attrs.get(OBJECTIVE_ATTRIBUTE)
    if not names:
        return
    if stored is not None and stored != names:
        raise ConfigurationError(
            f"The study {study.study_name!r} exists and optimizes {stored}, this search {names}. Choose another "
            "`study_name`, or the same objective."
        )
    if stored is None:
        study.set_user_attr(OBJECTIVE_ATTRIBUTE, names)


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


def _record_from(trial: Any) -> TrialRecord:
    """The record that an earlier search left with its trial; as much as the trial says, if another program ran it."""
    stored = trial.user_attrs.get(RECORD_ATTRIBUTE)
    if stored is not None:
        return TrialRecord.from_dict(json.loads(stored))
    import optuna

    states = {
        optuna.trial.TrialState.COMPLETE: COMPLETED,
        optuna.trial.TrialState.PRUNED: PRUNED,
        optuna.trial.TrialState.FAIL: FAILED,
        optuna.trial.TrialState.RUNNING: RUNNING,
        optuna.trial.TrialState.WAITING: WAITING,
    }
    state = states[trial.state]
    values = trial.values if state == COMPLETED else None
    return TrialRecord(
        number=trial.number,
        state=state,
        objective=None if values is None else (values[0] if len(values) == 1 else list(values)),
        hyperparameters=dict(trial.params),
        seconds=trial.duration.total_seconds() if trial.duration is not None else None,
    )

"""The local engine of the SigOpt backend: Optuna's Gaussian-process sampler. Imports optuna inside functions."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from st_hpo.backends.sigopt.format import category_names, conditions_of
from st_hpo.backends.target import SearchTarget
from st_hpo.conversion import convert, plain
from st_hpo.errors import ConfigurationError, HyperparameterValueError
from st_hpo.points import check_names
from st_hpo.records import COMPLETED

MAX_RANDOM_TRIALS = 10


class SigOptTrial(Mapping[str, Any]):
    """A trial as scripts for SigOpt read it: ``trial.assignments["a"]``, ``trial.params["a"]``, ``trial["a"]``.

    Everything else is asked of SigOpt's run, where there is one.

    Args:
        number: The trial's number, from 0.
        propose: Gives the hyperparameters.
        run: The client's run of a server, None locally.
    """

    def __init__(self, number: int, propose: Callable[[], Mapping[str, Any]], run: Any = None) -> None:
        self.number = number
        self._propose = propose
        self._run = run
        self._values: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """The id of SigOpt's run; locally the trial's number."""
        return str(self.number) if self._run is None else str(self._run.id)

    @property
    def assignments(self) -> dict[str, Any]:
        """The hyperparameters by name."""
        return dict(self._values)

    @property
    def params(self) -> dict[str, Any]:
        """The same, as newer versions of SigOpt's client name them."""
        return dict(self._values)

    def propose(self) -> dict[str, Any]:
        """Returns the hyperparameters, which can be read from the trial from now on."""
        self._values = dict(self._propose())
        return dict(self._values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __bool__(self) -> bool:
        return True  # `if trial:` asks whether there is a trial

    def __getattr__(self, name: str) -> Any:
        run = self.__dict__.get("_run")
        if name.startswith("__") or run is None:
            raise AttributeError(f"A trial of the backend 'sigopt' has no attribute {name!r} without a server.")
        return getattr(run, name)


def search_locally(
    trainer: SearchTarget,
    suggest: Callable[[Any], Mapping[str, Any]],
    n_trials: int,
    directions: list[str],
    seed: int | None,
    catch: tuple[type[BaseException], ...],
    on_study: Callable[[Any], None],
    points: list[dict[str, Any]],
) -> None:
    """Runs the trials of a search on an in-memory study.

    Half of the trials, at most ten, are drawn at random; the Gaussian process proposes the others, none of them twice.
    The sampler owns its random generator, so ``set_seed`` in a trial does not reach it.

    Args:
        trainer: The search.
        suggest: Draws the hyperparameters from an Optuna trial.
        n_trials: How many trials to run.
        directions: One for each objective.
        seed: The sampler's seed; None for a different search every time.
        catch: Exceptions that fail a trial, but not the search.
        on_study: Gets the study before the first trial.
        points: What the first trials have.
    """
    import optuna

    with _optuna_logs(trainer.verbose):
        study = optuna.create_study(directions=directions, sampler=_sampler(seed, n_trials))  # type: ignore[arg-type]
        on_study(study)
        for point in points:
            study.enqueue_trial(point)
        for number in range(n_trials):
            if (no_more := trainer.no_more) is not None:
                raise no_more
            _run_trial(trainer, study, suggest, number, catch)


def _sampler(seed: int | None, n_trials: int) -> Any:
    import optuna

    class GaussianProcess(optuna.samplers.GPSampler):
        """A training with the same values gives the same number again, so a repeated proposal becomes a random one."""

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            values = super().sample_relative(study, trial, search_space)
            tried = [other.params for other in study.get_trials(deepcopy=False) if other.number != trial.number]
            return {} if values in tried else values

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return GaussianProcess(
            seed=seed, n_startup_trials=min(MAX_RANDOM_TRIALS, (n_trials + 1) // 2), deterministic_objective=True
        )


def _run_trial(
    trainer: SearchTarget,
    study: Any,
    suggest: Callable[[Any], Mapping[str, Any]],
    number: int,
    catch: tuple[type[BaseException], ...],
) -> None:
    import optuna

    asked = study.ask()
    trial = SigOptTrial(number, lambda: suggest(asked))
    values = None
    try:
        record = trainer.run_trial(number, trial.propose, trial, catch=catch)
        values = record.values if record.state == COMPLETED else None
    finally:
        study.tell(asked, values, state=None if values else optuna.trial.TrialState.FAIL)


def suggest_parameters(
    parameters: list[dict[str, Any]], conditionals: list[dict[str, Any]], trial: Any
) -> dict[str, Any]:
    """Draws parameters in SigOpt's format from an Optuna trial.

    Args:
        parameters: As :func:`~st_hpo.backends.sigopt.format.read_parameters` returns them.
        conditionals: The experiment's conditionals, which are drawn first.
        trial: The trial.

    Returns:
        A value for each conditional, and for each parameter whose conditions hold.
    """
    values: dict[str, Any] = {
        conditional["name"]: trial.suggest_categorical(conditional["name"], conditional["values"])
        for conditional in conditionals
    }
    for parameter in parameters:
        if all(values[name] in wanted for name, wanted in conditions_of(parameter).items()):
            values[parameter["name"]] = _suggest(parameter, trial)
    return values


def checked_point(
    parameters: list[dict[str, Any]], conditionals: list[dict[str, Any]], point: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Returns a point as :func:`suggest_parameters` draws its values.

    Args:
        parameters: As :func:`~st_hpo.backends.sigopt.format.read_parameters` returns them.
        conditionals: The experiment's conditionals.
        point: Some of both, or all.
        where: Which point it is, for messages.

    Raises:
        ConfigurationError: A name or a value is none of theirs, or the conditions of a parameter do not hold.
    """
    choices = {item["name"]: item["values"] for item in conditionals}
    named = {parameter["name"]: parameter for parameter in parameters}
    check_names(point, {*named, *choices}, where)
    values = {name: _value(name, named.get(name), choices.get(name), point[name], where) for name in point}
    for name in named.keys() & values.keys():
        for condition, wanted in conditions_of(named[name]).items():
            if values.get(condition) not in wanted:
                raise ConfigurationError(
                    f"`{where}` has {name!r}, which exists only where {condition!r} is one of {wanted}. Give that "
                    "as well, or leave it out."
                )
    return values


def _value(name: str, parameter: Mapping[str, Any] | None, choices: Any, given: Any, where: str) -> Any:
    value, why = plain(name, given), f"See `{where}`."
    if parameter is None or parameter["type"] == "categorical":
        choices = choices if parameter is None else category_names(parameter)
        if str(value) not in choices:
            raise HyperparameterValueError(name, given, f"one of {list(choices)}", why)
        return str(value)
    number = convert(name, value, float if parameter["type"] == "double" else int)
    if parameter.get("grid") is not None:
        if number not in parameter["grid"]:
            raise HyperparameterValueError(name, given, f"one of {list(parameter['grid'])}", why)
    elif not parameter["bounds"]["min"] <= number <= parameter["bounds"]["max"]:
        low, high = parameter["bounds"]["min"], parameter["bounds"]["max"]
        raise HyperparameterValueError(name, given, f"a number from {low!r} to {high!r}", why)
    return number


def _suggest(parameter: Mapping[str, Any], trial: Any) -> Any:
    name, kind = parameter["name"], parameter["type"]
    if kind == "categorical":
        return trial.suggest_categorical(name, category_names(parameter))
    if parameter.get("grid") is not None:
        return _suggest_grid(name, sorted(map(float if kind == "double" else int, parameter["grid"])), trial)
    low, high = parameter["bounds"]["min"], parameter["bounds"]["max"]
    if kind == "int":
        return trial.suggest_int(name, int(low), int(high))
    return trial.suggest_float(name, low, high, log=parameter.get("transformation") == "log")


def _suggest_grid(name: str, grid: list[Any], trial: Any) -> Any:
    steps = {following - value for value, following in itertools.pairwise(grid)}
    if len(steps) == 1 and isinstance(grid[0], int):  # a categorical parameter would hide the order of the values
        return trial.suggest_int(name, grid[0], grid[-1], step=steps.pop())
    return trial.suggest_categorical(name, grid)


@contextlib.contextmanager
def _optuna_logs(verbose: bool) -> Iterator[None]:
    """Optuna's own lines say what the progress bar and the result say already."""
    import optuna

    previous = optuna.logging.get_verbosity()
    if not verbose:
        optuna.logging.set_verbosity(max(previous, optuna.logging.ERROR))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(previous)

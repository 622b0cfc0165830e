"""Schedulers of Ray Tune: what they need of a trial, and those that stand for a pruner's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st_hpo.errors import ConfigurationError, NotSupportedError
from st_hpo.rung_points import PRUNERS, REDUCTION_FACTOR, check_pruner_name

# What `ray.tune.schedulers.create_scheduler` makes of these names pauses trials
_PAUSING_NAMES = ("hyperband", "hb_bohb", "pbt", "pbt_replay", "pb2", "resource_changing")
RUNG = "rung"  # in a report at a rung: 1, and REDUCTION_FACTOR times as much at each further one


def schedules(scheduler: Any) -> bool:
    """Whether a scheduler decides anything on a trial's reports."""
    return scheduler is not None and type(scheduler).__name__ != "FIFOScheduler"


def check_scheduling(kwargs: Mapping[str, Any]) -> None:
    """Refuses a ``pruner`` that is none of those with a name, or has a ``scheduler`` beside it.

    Raises:
        ConfigurationError: Naming the choices.
    """
    pruner = kwargs.get("pruner")
    if pruner is None:
        return
    if not isinstance(pruner, str):
        raise ConfigurationError(
            f"With backend='ray', `pruner` must be {', '.join(map(repr, PRUNERS))}, but got {pruner!r}. Ray Tune "
            "prunes by a scheduler: pass it as `scheduler`."
        )
    check_pruner_name(pruner)
    if schedules(kwargs.get("scheduler")):
        raise ConfigurationError(
            f"`pruner={pruner!r}` stands for a scheduler, but `scheduler` is given as well. Leave one of them out."
        )


def check_scheduler_at_rungs(kwargs: Mapping[str, Any]) -> None:
    """Refuses rungs without anything that compares trials there, or with what needs checkpoints there.

    Raises:
        ConfigurationError: There is neither a pruner nor a scheduler.
        NotSupportedError: The scheduler pauses trials.
    """
    scheduler = kwargs.get("scheduler")
    if kwargs.get("pruner") is None and not schedules(scheduler):
        raise ConfigurationError(
            "`rungs` and `trial_evaluator` are for a scheduler, but there is none. Pass pruner='asha', 'hyperband' or "
            "'median', or a `scheduler` of Ray Tune's."
        )
    is_name = isinstance(scheduler, str)
    if scheduler in _PAUSING_NAMES if is_name else checkpoint_needs(scheduler)[0]:
        name = scheduler if is_name else type(scheduler).__name__
        raise NotSupportedError(
            f"{name} pauses trials and needs a checkpoint at every report, which is written where the training "
            "evaluates, not at rungs. Leave `rungs` and `trial_evaluator` out and set eval_strategy and eval_steps in "
            "the training arguments; or take pruner='hyperband' or 'median', which pause nothing."
        )


def scheduler_of_pruner(name: str, n_rungs: int) -> Any:
    """Returns the scheduler that does at the rungs of a search what the pruner of that name does.

    Args:
        name: ``"asha"``, ``"hyperband"`` or ``"median"``.
        n_rungs: How many rungs there are.
    """
    from ray.tune import schedulers

    if name == "median":

        class MedianAtRungs(schedulers.MedianStoppingRule):  # type: ignore[misc]
            def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
                """The report at a trial's end is no rung, and has no step; Ray would look for it at the next one."""

        return MedianAtRungs(time_attr="step", grace_period=0, min_samples_required=5, hard_stop=True)
    return schedulers.AsyncHyperBandScheduler(
        time_attr=RUNG,
        grace_period=1,
        max_t=REDUCTION_FACTOR**n_rungs,
        reduction_factor=REDUCTION_FACTOR,
        brackets=1 if name == "asha" else n_rungs,
    )


def checkpoint_needs(scheduler: Any) -> tuple[bool, bool]:
    """Returns whether a scheduler pauses trials, and whether it goes on with other values: both need checkpoints."""
    from ray.tune import schedulers

    mutating = (schedulers.PopulationBasedTraining, schedulers.PopulationBasedTrainingReplay)
    pausing = (
        schedulers.HyperBandScheduler,
        schedulers.MedianStoppingRule,
        schedulers.ResourceChangingScheduler,
    )
    mutates = isinstance(scheduler, mutating)
    pauses = isinstance(scheduler, pausing) and getattr(scheduler, "_hard_stop", False) is not True
    return mutates or pauses, mutates

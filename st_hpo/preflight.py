"""What is checked before a search starts, as far as it needs no model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch.distributed

from st_hpo.backends import SearchBackend, get_backend
from st_hpo.distributed import Ranks
from st_hpo.errors import ConfigurationError, NotSupportedError
from st_hpo.objective import Objective
from st_hpo.routing import Router
from st_hpo.rung_points import RungPoints, RungRequest
from st_hpo.space import SearchSpace

logger = logging.getLogger(__name__)


def process_count(args: Any) -> int:
    """Returns how many processes this training would have.

    The arguments' own ``world_size`` is 1 on a machine without accelerators unless ``use_cpu=True``, also under
    torchrun, so the launcher's environment and the process group are asked as well.
    """
    group = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        group = torch.distributed.get_world_size()
    launched = os.environ.get("WORLD_SIZE", "1")
    return max(int(args.world_size), group, int(launched) if launched.isdigit() else 1)


def ranks_of(args: Any) -> Ranks | None:
    """Returns the ranks of this training, None where it is one process. All ranks must call it.

    Raises:
        NotSupportedError: There are several processes, but the training arguments know of one.
    """
    processes = process_count(args)
    if processes == 1:
        return None
    if not torch.distributed.is_initialized() or args.world_size != processes:
        raise NotSupportedError(
            f"The script was started in {processes} processes, but its training arguments know of {args.world_size}: "
            "each would train a model of its own. Without accelerators, pass use_cpu=True to the arguments; to search "
            "in one process, start the script with `python`."
        )
    return Ranks(float(args.ddp_timeout))


def check_timeout(timeout: Any) -> None:
    """Refuses a ``timeout`` that is no number of seconds.

    Raises:
        ConfigurationError: It is no number above 0.
    """
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0):
        raise ConfigurationError(f"`timeout` must be a number of seconds above 0, or None, but got {timeout!r}.")


def check_flag(name: str, value: Any) -> bool:
    """Returns an argument that is on or off.

    Raises:
        ConfigurationError: It is neither True nor False.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"`{name}` must be True or False, but got {value!r}.")
    return value


def check_search(
    backend: Any,
    hp_space: Any,
    n_trials: Any,
    objective: Objective,
    objective_from: Any,
    args: Any,
    router: Router,
    backend_arguments: Mapping[str, Any],
    rungs: RungRequest,
    ranks: Ranks | None = None,
) -> tuple[SearchBackend, Any, RungPoints | None]:
    """Checks what needs no model to be checked.

    Args:
        backend: As given to the search, and so on.
        hp_space: See there.
        n_trials: See there.
        objective: What is optimized.
        objective_from: See there.
        args: The training arguments.
        router: Where hyperparameters go.
        backend_arguments: The backend's own arguments.
        rungs: The rungs that were asked for.
        ranks: The ranks, None for one process.

    Returns:
        The backend, the search space as it searches it, and the rungs of its trials.

    Raises:
        ConfigurationError: Naming what was wrong, the value, the choices and the fix.
        NotSupportedError: Several processes, and a backend that runs trials in processes of its own.
    """
    found = get_backend(backend)
    if ranks is not None and (not found.in_process or backend_arguments.get("n_jobs", 1) != 1):
        what = f"backend={found.name!r}" if not found.in_process else f"n_jobs={backend_arguments['n_jobs']!r}"
        raise NotSupportedError(
            f"{what} runs trials in processes of its own, but this script was started in {ranks.size} processes that "
            "train one model together. Start it with `python` instead of `torchrun` or `accelerate launch`; or leave "
            "it to torchrun, and choose backend='optuna', 'wandb' or 'sigopt' with n_jobs=1."
        )
    if isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1:
        raise ConfigurationError(f"`n_trials` must be an integer of at least 1, but got {n_trials!r}.")
    space = found.default_hp_space(None) if hp_space is None else hp_space
    if isinstance(space, Mapping) and not isinstance(space, SearchSpace) and not space:
        space = SearchSpace(space)  # refuses the empty space in its own words
    space = found.open_space(space)
    needing = found.needs_evaluations(backend_arguments)
    if needing is not None and args.eval_strategy == "no" and rungs.points is None:
        raise ConfigurationError(
            f"`{needing}` decides on evaluations during the training, but there are none: eval_strategy='no'. Pass "
            "rungs=[0.2, 0.6] for evaluations at these parts of every trial's training, or set "
            "eval_strategy='steps' or 'epoch' in the training arguments."
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
    points = _rungs(found, rungs, objective, args, backend_arguments)
    if ranks is None or ranks.is_main:  # it may ask a server, and one rank is enough for that
        found.check(space, n_trials, objective.directions, backend_arguments)
    names = found.space_names(space)
    if isinstance(space, SearchSpace):
        router.check_space(space)
    elif names is not None:
        router.check_names(names)
    return found, space, points


def _rungs(
    found: SearchBackend, asked: RungRequest, objective: Objective, args: Any, backend_arguments: Mapping[str, Any]
) -> RungPoints | None:
    """The rungs of a search: those asked for, or else the backend's.

    Raises:
        ConfigurationError: They would have no effect, or could not be compared.
    """
    if asked.points is not None or asked.evaluator is not None:
        found.check_rungs(backend_arguments)
        if objective.is_multi:
            raise ConfigurationError(
                "`rungs` and `trial_evaluator` need a single objective: of several none compares trials."
            )
    default = found.default_rungs(backend_arguments)
    if asked.at_evaluations:
        if asked.evaluator is not None:
            raise ConfigurationError(
                "`trial_evaluator` is the evaluator of the rungs, but rungs='evaluations' takes the training's own "
                "evaluations. Leave one of them out."
            )
        if default is not None and not found.in_process and isinstance(backend_arguments.get("pruner"), str):
            raise ConfigurationError(
                f"With backend={found.name!r}, a pruner's name compares trials at fractions of their trainings, but "
                "rungs='evaluations' takes the training's own evaluations. Leave `rungs` out, or pass a `scheduler` "
                "instead of the `pruner`."
            )
        if default is not None and args.eval_strategy == "no":
            raise ConfigurationError(
                "rungs='evaluations' takes the training's own evaluations, but there are none: eval_strategy='no'. "
                "Leave `rungs` out, or set eval_strategy='steps' or 'epoch' in the training arguments."
            )
        return None
    if asked.points is None and default is not None:
        return RungPoints(default)
    if asked.points is None and asked.evaluator is not None:
        raise ConfigurationError("`trial_evaluator` is the evaluator of the rungs, but there are none: pass `rungs`.")
    return asked.points

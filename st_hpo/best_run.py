"""What a search returns: the best run, in the form that transformers gives it."""

from __future__ import annotations

import logging

from transformers.trainer_utils import BestRun

from st_hpo.errors import NoFinishedTrialError
from st_hpo.records import TrialRecord
from st_hpo.results import SearchResult

logger = logging.getLogger(__name__)


def best_run(
    result: SearchResult, chosen: TrialRecord | None = None, interrupted: KeyboardInterrupt | None = None
) -> BestRun | list[BestRun]:
    """Returns the best run of a search; for several objectives a list of them, the Pareto front.

    Args:
        result: What the search has found.
        chosen: The best trial, where the backend has a way of its own to choose it.
        interrupted: What has interrupted the search.

    Raises:
        NoFinishedTrialError: No trial gave an objective.
        KeyboardInterrupt: The same, and that is what has interrupted the search.
    """
    best = result.best_trials
    if best and chosen is not None:
        best = [chosen]
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
    runs = [
        BestRun(trial.backend_id or str(trial.number), trial.objective, dict(trial.hyperparameters), result)
        for trial in best
    ]
    return runs if len(result.directions) > 1 else runs[0]

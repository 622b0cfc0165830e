"""The part of a search that runs trials, without a backend."""

from __future__ import annotations

from typing import Any

from st_hpo.backends.base import SearchBackend
from st_hpo.space import Float, SearchSpace
from st_hpo.trial import TrialRunner


class Caught(Exception):
    """Ends a search once its runner is there."""


class Catching(SearchBackend):
    """Runs nothing: keeps what would run the trials."""

    name = "catching"
    found: Any = None

    @staticmethod
    def is_available() -> bool:
        return True

    def check(self, space, n_trials, directions, kwargs):
        pass

    def run_baseline(self, trainer):
        type(self).found = trainer.portable
        raise Caught

    def run(self, trainer, n_trials, direction, **kwargs):
        raise AssertionError("it has no trials")

    @property
    def native(self):
        return None


def runner_of(trainer: Any, **search: Any) -> TrialRunner:
    """Returns what would run the trials of a search, as a backend gets it."""
    try:
        trainer.hyperparameter_search(SearchSpace({"learning_rate": Float(1e-5, 1e-3)}), backend=Catching, **search)
    except Caught:
        return Catching.found
    raise AssertionError("the search has not asked for its baseline")

"""st_hpo: hyperparameter search for the trainers of sentence-transformers that people can trust."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from st_hpo._version import __version__
from st_hpo.confirmation import Confirmation, ConfirmedTrial
from st_hpo.errors import (
    BackendNotInstalledError,
    BackendUnavailableError,
    ConfigurationError,
    DirectionError,
    FactoryError,
    HPOError,
    HyperparameterValueError,
    MetricNotFoundError,
    NoFinishedTrialError,
    NotSupportedError,
    ObjectiveError,
    RankError,
    SearchSpaceError,
    TooManyFailuresError,
    UnknownHyperparameterError,
)
from st_hpo.known_points import KnownPoint, known_good_points
from st_hpo.records import Baseline, TrialRecord
from st_hpo.results import SearchResult
from st_hpo.space import Categorical, Float, Int, SearchSpace, default_search_space

if TYPE_CHECKING:  # they import torch and sentence-transformers, which takes seconds; the rest does not
    from st_hpo.after_search import Retrained
    from st_hpo.subsampling import subsample_evaluator
    from st_hpo.trainer import (
        CrossEncoderHPOTrainer,
        HPOTrainerMixin,
        MultiVectorEncoderHPOTrainer,
        SentenceTransformerHPOTrainer,
        SparseEncoderHPOTrainer,
    )

__all__ = [
    "BackendNotInstalledError",
    "BackendUnavailableError",
    "Baseline",
    "Categorical",
    "ConfigurationError",
    "Confirmation",
    "ConfirmedTrial",
    "CrossEncoderHPOTrainer",
    "DirectionError",
    "FactoryError",
    "Float",
    "HPOError",
    "HPOTrainerMixin",
    "HyperparameterValueError",
    "Int",
    "KnownPoint",
    "MetricNotFoundError",
    "MultiVectorEncoderHPOTrainer",
    "NoFinishedTrialError",
    "NotSupportedError",
    "ObjectiveError",
    "RankError",
    "Retrained",
    "SearchResult",
    "SearchSpace",
    "SearchSpaceError",
    "SentenceTransformerHPOTrainer",
    "SparseEncoderHPOTrainer",
    "TooManyFailuresError",
    "TrialRecord",
    "UnknownHyperparameterError",
    "__version__",
    "default_search_space",
    "known_good_points",
    "subsample_evaluator",
]

_ELSEWHERE = {"Retrained": "st_hpo.after_search", "subsample_evaluator": "st_hpo.subsampling"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_ELSEWHERE.get(name, "st_hpo.trainer")), name)
    raise AttributeError(f"module 'st_hpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

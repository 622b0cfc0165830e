"""The contract that every search backend keeps, as a suite of pytest tests; for backends of other packages, too.

Subclass :class:`BackendContract` in a test file of your own::

    from st_hpo.testing import BackendContract

    class TestMyBackend(BackendContract):
        backend = "mine"

The tests train a model of two thousand weights that is made on the spot: no download, a second or less a trial.
"""

from __future__ import annotations

from st_hpo.testing.contract import BackendContract
from st_hpo.testing.parts import (
    METRIC,
    SPACE,
    FailingLoss,
    ModelInit,
    Probe,
    build_tiny_model,
    make_trainer,
    scaled_loss,
    sentence_pairs,
    train_by_hand,
)

__all__ = [
    "METRIC",
    "SPACE",
    "BackendContract",
    "FailingLoss",
    "ModelInit",
    "Probe",
    "build_tiny_model",
    "make_trainer",
    "scaled_loss",
    "sentence_pairs",
    "train_by_hand",
]

"""What is noted of a trial while it runs: the time of its phases, its learning curve, how far it has come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from st_hpo.evaluations import EvaluationRecorder
from st_hpo.records import TrialRecord


@contextlib.contextmanager
def phase(record: TrialRecord, name: str) -> Iterator[None]:
    """Adds the time of a block to one of a trial's phases."""
    started = time.perf_counter()
    try:
        yield
    finally:
        record.phases[name] = record.phases.get(name, 0.0) + time.perf_counter() - started


def curve_point(trainer: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns an evaluation after the training's latest step as ``TrialRecord.evaluations`` has it."""
    epoch = trainer.state.epoch
    return {"step": trainer.state.global_step, "epoch": None if epoch is None else float(epoch), "metrics": metrics}


def account(record: TrialRecord, trainer: Any, evaluations: EvaluationRecorder, began_at: int = 0) -> None:
    """Takes the evaluations out of the time of the training, and notes what part of it has been done.

    Args:
        record: The trial's record.
        trainer: Its trainer, after the training or what ended it.
        evaluations: Its recorder.
        began_at: The step from which it has gone on; what came before is another trial's.
    """
    phases, state = record.phases, trainer.state
    if state.max_steps > 0:
        record.fraction = min(1.0, max(0, state.global_step - began_at) / state.max_steps)
    if "train" in phases:
        phases["train"] -= evaluations.seconds + phases.get("rungs", 0.0) + phases.get("pause", 0.0)
    if evaluations.seconds:
        phases["evaluate"] = phases.get("evaluate", 0.0) + evaluations.seconds

"""Proposals that equal a trial that was trained before: its value is taken over. Pure Python.

A trial is a function of its hyperparameters, so training the same ones again gives the same number, and costs a
training.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from st_hpo.jsonable import to_jsonable
from st_hpo.records import COMPLETED, TrialRecord

if TYPE_CHECKING:
    from st_hpo.factories import Factories
    from st_hpo.routing import Routed


def is_determined(factories: Factories, routed: Routed) -> bool:
    """Whether a trial's hyperparameters are all that ``model_init`` and ``loss_init`` get to know of it.

    One that is handed the trial may read its number, or suggest further values.

    Args:
        factories: The two functions.
        routed: The hyperparameters, as they are handed to them by keyword.
    """
    inits = factories.loss_init
    losses = list(inits.values()) if isinstance(inits, Mapping) else [] if inits is None else [inits]
    if factories.model_init.trial_parameter(routed.model) is not None:
        return False
    return all(loss.trial_parameter(routed.loss) is None for loss in losses)


def trained_before(values: Mapping[str, Any], records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Returns the first completed trial with the same hyperparameters; None where there is none.

    Args:
        values: All hyperparameters, converted to the types that they are trained with. 1, 1.0 and True differ.
        records: The trials that this search has run.
    """
    same = [item for item in records if item.state == COMPLETED and item.copied_from is None]
    alike = [item for item in same if _may_be_equal(item.hyperparameters, values)]  # which most are not
    key = _key(values) if alike else ""
    found = [item for item in alike if _key(item.hyperparameters) == key]
    return min(found, key=lambda item: item.number, default=None)


def _may_be_equal(some: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    if some.keys() != others.keys():
        return False
    return all(not isinstance(value, int | float | str) or others[name] == value for name, value in some.items())


def take_over(record: TrialRecord, earlier: TrialRecord) -> None:
    """Gives a trial what an earlier one with the same hyperparameters has ended with.

    Args:
        record: The trial's record, which is completed then without having trained anything.
        earlier: That of the earlier one.
    """
    for name in ("objective", "hyperparameters", "metrics", "evaluations"):
        setattr(record, name, copy.deepcopy(getattr(earlier, name)))
    record.state, record.fraction, record.copied_from = COMPLETED, 0.0, earlier.number


def taken_over(records: Iterable[TrialRecord]) -> str | None:
    """Returns how many values were taken over, in words; None where none were."""
    known = list(records)
    copies = sum(record.copied_from is not None for record in known)
    if not copies:
        return None
    theirs = "its value was" if copies == 1 else "their values were"
    return f"{copies} of {len(known)} proposals had been trained before; {theirs} taken over."


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps({name: to_jsonable(value) for name, value in values.items()}, sort_keys=True)

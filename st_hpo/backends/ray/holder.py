"""Keeps in Ray's object store what workers fetch for the length of a search, and no longer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def held(reference: Any) -> Iterator[Any]:
    """Gives the handle of an actor whose ``get`` returns a list with the reference.

    Ray keeps for ever what a reference inside of a pickled function refers to. A function may hold an actor's handle
    instead: with the actor, the reference goes.

    Args:
        reference: Ray's reference to an object.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Holder:  # local, so that it is sent by value: its process need not import st_hpo, and with it torch
        def __init__(self, references: list[Any]) -> None:
            self.references = references

        def get(self) -> list[Any]:
            return self.references

    # Beside the script, without which the search ends anyway: any other node may go away
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    holder = ray.remote(num_cpus=0, num_gpus=0, scheduling_strategy=here)(Holder).remote([reference])
    try:
        yield holder
    finally:
        ray.kill(holder)

"""What one rank alone has, for all ranks of a training: the backend's trial, and what the evaluator raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st_hpo.distributed import Ranks

# What is told to the backend's trial, and answers nothing
_NOTES = ("set_user_attr", "set_system_attr", "report")


class SharedTrial:
    """A backend's trial as all ranks see it: what is suggested inside ``model_init`` and ``loss_init`` is rank 0's.

    What is noted with the trial (``set_user_attr``) is noted by rank 0. Whatever else it has, rank 0 alone has.

    Args:
        ranks: The ranks.
        native: The backend's trial on rank 0, None on the others.
        names: What the trial is called, on all ranks: its ``number``, and its ``id`` where it has one.
        params: What rank 0's trial has suggested so far.
    """

    def __init__(self, ranks: Ranks, native: Any, names: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        self._ranks = ranks
        self._native = native
        self.params = dict(params)
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_native" not in self.__dict__:
            raise AttributeError(name)
        if name.startswith("suggest_"):

            def suggest(parameter: str, *args: Any, **kwargs: Any) -> Any:
                value = self._ranks.share(lambda: getattr(self._native, name)(parameter, *args, **kwargs))
                self.params[parameter] = value
                return value

            return suggest
        if name == "should_prune":
            return lambda: self._ranks.share(lambda: self._native.should_prune())
        if self._native is None and name in _NOTES:
            return lambda *args, **kwargs: None
        if self._native is None:
            raise AttributeError(f"Only rank 0 has the backend's trial, so there is no attribute {name!r} here.")
        return getattr(self._native, name)


class FencedEvaluator:
    """An evaluator that runs on rank 0 alone, while the others wait for its metrics in a collective operation.

    If it raises, the others get nothing, and the error is raised after that operation, on all ranks.

    Args:
        evaluator: The evaluator.
        ranks: The ranks.
    """

    def __init__(self, evaluator: Any, ranks: Ranks) -> None:
        self._evaluator = evaluator
        self.ranks = ranks
        self.error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs it, and keeps what it raises."""
        try:
            return self._evaluator(*args, **kwargs)
        except Exception as exc:
            self.error = exc
            self.ranks.announce_failure(exc)  # before another rank misses the metrics, and fails for that
            return {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_evaluator"], name)

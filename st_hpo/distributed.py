"""Several processes of one training (torchrun): every decision is rank 0's, and all ranks act on it alike.

Decisions travel through a key-value store of their own, as JSON, so that floats arrive as they are. No collective
operation is needed for them, so they also reach ranks that wait in one for a rank that will not come.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from st_hpo.errors import RankError
from st_hpo.faults import SearchStopped, StopSignal, describe
from st_hpo.jsonable import from_jsonable, to_jsonable

logger = logging.getLogger(__name__)

T = TypeVar("T")
_POLL_SECONDS = 0.005
_FENCE_SECONDS = 0.0005
# How long to wait for the others after a collective operation has run into its own timeout already
_GRACE_SECONDS = 10.0


class Pruned(Exception):
    """The backend has pruned the trial, on all ranks at the same step."""


class Ranks:
    """The ranks of one process group, in a search.

    Must be made by all ranks at the same point. Uses the default process group once, to find its store.

    Args:
        timeout: Seconds that a rank may take to come to a decision (``ddp_timeout``).
    """

    def __init__(self, timeout: float) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.timeout = timeout
        self.stop = StopSignal()
        self._decisions = 0
        self._sections = 0
        self._section = ""
        self._inside = False
        self._fences = 0
        self._store = self._open_store()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which decides."""
        return bool(self.rank == 0)

    def _open_store(self) -> Any:
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        limit = datetime.timedelta(seconds=self.timeout)
        store = dist.TCPStore(host, 0, None, True, limit, wait_for_workers=False) if self.is_main else None
        port = [None if store is None else store.port]
        dist.broadcast_object_list(port, src=0)
        return store or dist.TCPStore(host, port[0], None, False, limit, wait_for_workers=False)

    # ---- Decisions ----

    def share(self, decide: Callable[[], Any] | None = None) -> Any:
        """Lets rank 0 decide, and returns its decision on all ranks.

        Args:
            decide: Called on rank 0 alone; must return what JSON can hold. What it raises is raised on rank 0, and the
                other ranks leave with a :class:`RankError`, or as it did for :class:`SearchStopped`.

        Raises:
            RankError: Rank 0 could not decide, or has not within the timeout.
        """
        self._decisions += 1
        key = f"decision/{self._decisions}"
        if self.is_main:
            assert decide is not None
            try:
                value = decide()
            except SearchStopped as exc:
                self._set(key, {"stopped": exc.reason})
                raise
            except BaseException as exc:
                self._set(key, {"error": describe(exc)})
                raise
            self._set(key, {"value": value})
            return value
        reply = self._wait(key, self.timeout)
        if reply is None:
            raise RankError(f"Rank 0 has not decided within {self.timeout:g} s{self._in_section()}.")
        if "stopped" in reply:
            raise SearchStopped(reply["stopped"])
        if "error" in reply:
            raise RankError(f"Rank 0 failed{self._in_section()}: {reply['error']}")
        return reply["value"]

    def check_stop(self, step: int) -> None:
        """Ends the training on all ranks after the same step, once rank 0 has been asked to stop.

        Every step has a gradient exchange in which all ranks take part. So when rank 0 says after step k that the end
        comes after step k + 1, every other rank has heard of it when it is through with that step.

        Raises:
            SearchStopped: This was that step.
        """
        key = f"stop/{self._sections}"
        if self.is_main and self.stop.reason is not None and not self._store.check([key]):
            self._set(key, {"at": step + 1, "reason": self.stop.reason})
        if self._store.check([key]):
            found = self._get(key)
            if step >= found["at"]:
                raise SearchStopped(found["reason"])

    # ---- Sections that all ranks leave in the same way ----

    def together(self, name: str, function: Callable[[], T], agreed: tuple[type[BaseException], ...] = ()) -> T:
        """Runs a function on all ranks; if it fails on one, it fails on all.

        Args:
            name: What it is, for messages: ``"trial 3"``.
            function: What to run.
            agreed: What it may raise on all ranks at once, beside :class:`Pruned` and :class:`SearchStopped`.

        Raises:
            RankError: It has failed on another rank. ``fatal``, if a rank is gone, or a failure has left another one
                in a collective operation: neither can be mended.
            BaseException: It has failed on this rank.
        """
        self._sections += 1
        self._fences = 0
        self._section, self._inside = name, True
        error: BaseException | None = None
        result: Any = None
        try:
            result = function()
        except BaseException as exc:
            error = exc
        others = self._agree(error, (Pruned, SearchStopped, *agreed))
        self._inside = False
        if others is not None:
            raise others from error
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _agree(self, error: BaseException | None, agreed: tuple[type[BaseException], ...]) -> RankError | None:
        """Waits for all ranks. Returns what this rank is to raise instead of its own error, None for that."""
        section = self._sections
        text = describe(error) if error is not None else ""
        own = error is not None and not isinstance(error, (*agreed, RankError))
        fatal = own and _in_a_collective(text)
        if own and not self._store.check([f"failed/{section}"]):
            kinds = [kind.__name__ for kind in type(error).__mro__]
            self._set(f"failed/{section}", {"rank": self.rank, "error": text, "kinds": kinds, "fatal": fatal})
        self._set(f"outcome/{section}/{self.rank}", True)
        patience = _GRACE_SECONDS if fatal else self.timeout
        answers = [self._wait(f"outcome/{section}/{rank}", patience, hurry=True) for rank in range(self.size)]
        first = self._get(f"failed/{section}") if self._store.check([f"failed/{section}"]) else None
        if (missing := [rank for rank, answer in enumerate(answers) if answer is None]) or (first and first["fatal"]):
            who = f"rank(s) {missing} have died or hang" if missing else "the ranks have lost each other"
            why = f"; rank {first['rank']} says: {first['error']}" if first is not None else ""
            return RankError(
                f"In {self._section}, {who}{why}. The search has ended; with a storage, it can be continued.",
                fatal=True,
            )
        if first is None or (own and first["rank"] == self.rank):
            return None
        return RankError(f"Rank {first['rank']} failed in {self._section}: {first['error']}", kinds=first["kinds"])

    def fence(self) -> None:
        """Waits for the others, outside of any collective operation, so that none of them waits in one in vain.

        Raises:
            RankError: Another rank has failed in this section, or does not come.
        """
        self._fences += 1
        key = f"fence/{self._sections}/{self._fences}"
        self._store.add(key, 1)
        deadline = time.monotonic() + self.timeout
        while self._store.add(key, 0) < self.size:
            self._raise_failure_of_others()
            if time.monotonic() > deadline or self.stop.terminated:
                raise RankError(f"Another rank has died or hangs in {self._section}.", fatal=True)
            time.sleep(_FENCE_SECONDS)

    def _raise_failure_of_others(self) -> None:
        key = f"failed/{self._sections}"
        if self._store.check([key]):
            first = self._get(key)
            raise RankError(
                f"Rank {first['rank']} failed in {self._section}: {first['error']}", first["fatal"], first["kinds"]
            )

    def close(self) -> None:
        """Waits until all ranks are through: the store lives in rank 0's process, and the others may still read."""
        self._set(f"done/{self.rank}", True)
        if self.is_main:
            for rank in range(self.size):
                self._wait(f"done/{rank}", _GRACE_SECONDS, hurry=True)

    # ---- The store ----

    def _set(self, key: str, value: Any) -> None:
        self._store.set(key, json.dumps(to_jsonable(value)))

    def _get(self, key: str) -> Any:
        return from_jsonable(json.loads(self._store.get(key)))

    def _wait(self, key: str, seconds: float, hurry: bool = False) -> Any:
        """Waits for a value; None if none has come in time, or rank 0 and its store have gone."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self._store.check([key]):
                    return self._get(key)
            except dist.DistError as exc:  # rank 0, whose store it is, has gone
                logger.debug(f"The store of rank 0 does not answer: {exc}")
                return None
            if hurry and self.stop.terminated:  # the launcher ends the job: rather say why than wait
                deadline = min(deadline, time.monotonic() + 2.0)
            if self._inside and not hurry:
                self._raise_failure_of_others()
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)

    def _in_section(self) -> str:
        return f" in {self._section}" if self._section else ""


class SharedTrial:
    """A backend's trial as all ranks see it: what is suggested inside ``model_init`` and ``loss_init`` is rank 0's.

    Args:
        ranks: The ranks.
        native: The backend's trial on rank 0, None on the others.
        number: The trial's number.
        params: What rank 0's trial has suggested so far.
    """

    def __init__(self, ranks: Ranks, native: Any, number: int, params: dict[str, Any]) -> None:
        self._ranks = ranks
        self._native = native
        self.number = number
        self.params = dict(params)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("suggest_"):

            def suggest(parameter: str, *args: Any, **kwargs: Any) -> Any:
                value = self._ranks.share(lambda: getattr(self._native, name)(parameter, *args, **kwargs))
                self.params[parameter] = value
                return value

            return suggest
        if name.startswith("__") or self.__dict__.get("_native") is None:
            raise AttributeError(f"Only rank 0 has the backend's trial, so there is no attribute {name!r} here.")
        return getattr(self._native, name)


class FencedEvaluator:
    """An evaluator that runs on rank 0 alone, while the others wait for its metrics in a collective operation.

    If it raises, the others get nothing, and the error is raised after that operation, on all ranks.

    Args:
        evaluator: The evaluator.
    """

    def __init__(self, evaluator: Any) -> None:
        self._evaluator = evaluator
        self.error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs it, and keeps what it raises."""
        try:
            return self._evaluator(*args, **kwargs)
        except Exception as exc:
            self.error = exc
            return {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_evaluator"], name)


def _in_a_collective(text: str) -> bool:
    """Whether an error comes out of a collective operation, which leaves the process group unusable."""
    marks = ("gloo", "nccl", "process group", "timed out waiting", "connection closed by peer", "disterror")
    return any(mark in text.lower() for mark in marks)

"""Several processes of one training (torchrun): every decision is rank 0's, and all ranks act on it alike.

Decisions travel through a key-value store of their own, as JSON, so that floats arrive as they are. No collective
operation is needed for them, so they also reach ranks that wait in one for a rank that will not come.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from st_hpo.errors import RankError
from st_hpo.faults import SearchStopped, StopSignal, describe
from st_hpo.jsonable import from_jsonable, to_jsonable

T = TypeVar("T")
_POLL_SECONDS = 0.005
_FENCE_SECONDS = 0.0005
# How long to wait for the others once they have had their time, or once SIGTERM has come: torchrun kills 30 s later
_GRACE_SECONDS = 10.0
# How long then to wait for what takes them no training: all waits after a SIGTERM together must be below those 30 s
_HURRY_SECONDS = 5.0
_SIGNS = "signs"
_TERMINATED = "terminated"


class Pruned(Exception):
    """The backend has pruned the trial, on all ranks at the same step."""


class Ranks:
    """The ranks of one process group, in a search.

    Must be made by all ranks at the same point. Uses the default process group once, to find its store.

    Args:
        timeout: Seconds that a rank may take to come to a decision (``ddp_timeout``).

    Attributes:
        lost: Whether a rank is gone, or the process group is of no use any more, so that nothing can go on.
    """

    def __init__(self, timeout: float) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.timeout = timeout
        self.stop = StopSignal()
        self.lost = False
        self._missing: list[int] = []
        self._told_terminated = False
        self._decisions: Counter[int] = Counter()
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
            RankError: Rank 0 could not decide, has not within the timeout (nor said :meth:`still_deciding`), or is
                gone.
        """
        scope = self._sections if self._inside else 0  # a rank that leaves a section early asks for less in it
        self._decisions[scope] += 1
        key = f"decision/{scope}/{self._decisions[scope]}"
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
        signs, reply = self._signs(), self._wait(key, time.monotonic() + self.timeout)
        while reply is None:
            if (later := self._signs()) == signs:
                raise self._gone(f"rank 0 has not decided within {self.timeout:g} s")
            signs, reply = later, self._wait(key, time.monotonic() + self.timeout)
        if "stopped" in reply:
            raise SearchStopped(reply["stopped"])
        if "error" in reply:
            where = f" in {self._section}" if self._inside else ""
            raise RankError(f"Rank 0 failed{where}: {reply['error']}")
        return reply["value"]

    def still_deciding(self) -> None:
        """Lets the other ranks wait on for rank 0's decision: it waits itself, for other jobs on the same study."""
        self._ask("add", _SIGNS, 1)

    def _signs(self) -> int:
        return int(self._ask("add", _SIGNS, 0))

    def check_stop(self, step: int) -> None:
        """Ends the training on all ranks after the same step, once rank 0 has been asked to stop.

        Every step has a gradient exchange in which all ranks take part. So when rank 0 says after step k that the end
        comes after step k + 1, every other rank has heard of it when it is through with that step.

        Raises:
            SearchStopped: This was that step.
        """
        key = f"stop/{self._sections}"
        if not self.is_main and self.stop.terminated and not self._told_terminated:
            self._told_terminated = True
            self._set(_TERMINATED, self.rank)
        if self.is_main and self.size > 1 and not self.stop.terminated and self._has(_TERMINATED):
            self.stop.terminate()  # the launcher of another machine ends its ranks
        if self.is_main and self.stop.reason is not None and not self._has(key):
            self._set(key, {"at": step + 1, "reason": self.stop.reason})
        if self._has(key):
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
        others: RankError | None
        try:
            others = self._agree(error, (Pruned, SearchStopped, *agreed))
        except RankError as exc:  # rank 0, with which they would agree
            others = exc
        self._inside = False
        if others is not None:
            raise others from error
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _agree(self, error: BaseException | None, agreed: tuple[type[BaseException], ...]) -> RankError | None:
        """Waits for all ranks. Returns what this rank is to raise instead of its own error, None for that."""
        failed = f"failed/{self._sections}"
        own = error is not None and not isinstance(error, (*agreed, RankError))
        text = describe(error) if error is not None and own else ""
        broken = _in_a_collective(text) or (isinstance(error, RankError) and error.fatal)
        if error is not None and (broken or not isinstance(error, RankError)):
            self.announce_failure(error, broken)
        outcome = f"outcome/{self._sections}"
        self._set(f"{outcome}/{self.rank}", {"broken": broken})
        # The others may wait for this rank in a collective operation, and say so when that has run into its timeout
        deadline = time.monotonic() + _GRACE_SECONDS + (0.0 if broken else self.timeout)
        answers = [self._wait(f"{outcome}/{rank}", deadline, hurry=True) for rank in range(self.size)]
        first = self._get(failed) if self._has(failed) else None
        self._missing = [rank for rank, answer in enumerate(answers) if answer is None]
        if self._missing or any(answer["broken"] for answer in answers):
            who = f"rank(s) {self._missing} have died or hang" if self._missing else "the ranks have lost each other"
            why = f"; rank {first['rank']} says: {first['error']}" if first is not None and first["error"] else ""
            return self._gone(who + why, [] if first is None else first["kinds"])
        if first is None or isinstance(error, agreed) or (own and first["rank"] == self.rank):
            return None
        return RankError(f"Rank {first['rank']} failed in {self._section}: {first['error']}", kinds=first["kinds"])

    def announce_failure(self, error: BaseException, broken: bool = False) -> None:
        """Says that this rank leaves the section by an exception, unless another one has said so before.

        Also of what all ranks raise together, as a rule: were it raised on one alone, the others would wait for it.

        Args:
            error: The exception.
            broken: Whether the process group is of no use any more.
        """
        key = f"failed/{self._sections}"
        if self._has(key):
            return
        stopped = error.reason if isinstance(error, SearchStopped) else None
        says_nothing = broken or stopped is not None  # of the trial
        kinds = [] if says_nothing else [kind.__name__ for kind in type(error).__mro__]
        text = "" if isinstance(error, RankError) else describe(error)
        self._set(key, {"rank": self.rank, "error": text, "kinds": kinds, "fatal": broken, "stopped": stopped})

    def fence(self) -> None:
        """Waits for the others, outside of any collective operation, so that none of them waits in one in vain.

        Raises:
            RankError: Another rank has failed in this section, or does not come.
        """
        self._fences += 1
        key = f"fence/{self._sections}/{self._fences}"
        self._ask("add", key, 1)
        deadline = time.monotonic() + self.timeout

        def all_came() -> bool:
            return bool(self._ask("add", key, 0) >= self.size)

        while not all_came():
            self._raise_failure_of_others(all_came)
            deadline = self._hurried(deadline, _GRACE_SECONDS)
            if time.monotonic() > deadline:
                raise self._gone("another rank has died or hangs")
            time.sleep(_FENCE_SECONDS)

    def _raise_failure_of_others(self, came: Callable[[], bool]) -> None:
        """Raises, unless what this rank waits for came first: what failed after it may have begun an exchange."""
        key = f"failed/{self._sections}"
        if self._has(key) and not came():
            first = self._get(key)
            if first["stopped"] is not None:
                raise SearchStopped(first["stopped"])
            why = first["error"] or "another rank has died or hangs"
            raise RankError(f"Rank {first['rank']} failed in {self._section}: {why}", first["fatal"], first["kinds"])

    def _hurried(self, deadline: float, seconds: float) -> float:
        """The deadline; an earlier one, once the launcher ends the job: all ranks are to say how it ended for them."""
        return min(deadline, time.monotonic() + seconds) if self.stop.terminated else deadline

    def _gone(self, what: str, kinds: Sequence[str] = ()) -> RankError:
        """The error with which everything ends here."""
        self.lost = True
        if self._section:
            text = f"{'In' if self._inside else 'After'} {self._section}, {what}"
        else:
            text = what[0].upper() + what[1:]
        return RankError(f"{text}. The search has ended; with a storage, it can be continued.", True, kinds)

    def close(self) -> None:
        """Waits until all ranks are through: the store lives in rank 0's process, and the others may still read."""
        self._set(f"done/{self.rank}", True)
        if self.is_main:
            deadline = time.monotonic() + _GRACE_SECONDS
            for rank in set(range(self.size)) - set(self._missing):
                self._wait(f"done/{rank}", deadline, hurry=True)

    # ---- The store ----

    def _ask(self, operation: str, *arguments: Any) -> Any:
        try:
            return getattr(self._store, operation)(*arguments)
        except dist.DistError as exc:  # it lives in the process of rank 0
            raise self._gone("rank 0 has died") from exc

    def _has(self, key: str) -> bool:
        return bool(self._ask("check", [key]))

    def _set(self, key: str, value: Any) -> None:
        self._ask("set", key, json.dumps(to_jsonable(value)))

    def _get(self, key: str) -> Any:
        return from_jsonable(json.loads(self._ask("get", key)))

    def _wait(self, key: str, deadline: float, hurry: bool = False) -> Any:
        """Waits for a value; None if none has come in time."""
        while not self._has(key):
            if hurry:
                deadline = self._hurried(deadline, _HURRY_SECONDS)
            elif self._inside:
                self._raise_failure_of_others(lambda: self._has(key))
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)
        return self._get(key)


def _in_a_collective(text: str) -> bool:
    """Whether an error comes out of a collective operation, which leaves the process group unusable."""
    marks = ("gloo", "nccl", "process group", "timed out waiting", "closed by peer", "pair closure", "disterror")
    return any(mark in text.lower() for mark in marks)

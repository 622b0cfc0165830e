"""Whether the process that runs a trial of a shared study is still there. Pure Python."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

HEARTBEAT_SECONDS = 15.0
# So many intervals without a heartbeat, and a process is dead; one that lies still for less may be busy or swapped out
MISSED_BEATS = 4
# The ids of the trials that this process runs now. A search that has lost its storage leaves others behind
running_here: set[str] = set()


@functools.cache
def place() -> str | None:
    """What tells this process table from all others: the machine, since when it runs, and the container.

    None where the system does not say; then heartbeats alone decide.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def started_at(pid: int) -> str | None:
    """Returns when a process of this machine began, in the system's own unit; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def this_process(interval: float) -> dict[str, Any]:
    """Returns what a trial's user attribute says of the process that runs it.

    Args:
        interval: The seconds between two heartbeats.
    """
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "place": place(),
        "pid": os.getpid(),
        "started": started_at(os.getpid()),
        "interval": interval,
        "beat": time.time(),
    }


def describe_process(worker: Mapping[str, Any]) -> str:
    """Returns a process as a message names it."""
    return f"process {worker.get('pid')} on {worker.get('host')}"


class Watch:
    """Decides which processes are dead, by the process table of their machine, or by heartbeats that stand still.

    How long a heartbeat stands still is measured by this process's own clock, so that machines whose clocks differ
    take nobody for dead who is not.

    Args:
        interval: The seconds between two heartbeats of a trial that does not say.
        clock: Gives the seconds.
        mute_until: Gives the time until which nobody could give signs of life.
    """

    def __init__(
        self,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        mute_until: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        self._interval = interval
        self._clock = clock
        self._mute_until = mute_until
        self._seen: dict[Any, tuple[Any, float]] = {}

    def still_for(self, key: Any, beat: Any) -> float:
        """Returns for how many seconds something has been seen without a change."""
        now = self._clock()
        if key not in self._seen or self._seen[key][0] != beat:
            self._seen[key] = (beat, now)
        return now - max(self._seen[key][1], self._mute_until())

    def is_late(self, key: Any, beat: Any, interval: float | None = None) -> bool:
        """Whether something has stood still for so long that it is dead."""
        return self.still_for(key, beat) > MISSED_BEATS * (interval or self._interval)

    def death_of(self, key: Any, worker: Mapping[str, Any]) -> str | None:
        """Returns why a trial's process is taken for dead; None as long as it is not."""
        late = self.is_late(key, worker.get("beat"), worker.get("interval"))
        if worker.get("place") is not None and worker["place"] == place() and worker.get("started") is not None:
            if started_at(int(worker["pid"])) != worker["started"]:
                return f"{describe_process(worker)} has ended"
            left = worker["pid"] == os.getpid() and worker.get("id") not in running_here
            return f"an earlier search in {describe_process(worker)} has left it" if left else None
        return f"no heartbeat of {describe_process(worker)}" if late else None


class Heartbeat:
    """Calls a function every few seconds, in a thread that ends with this process.

    Args:
        beat: What to call.
        interval: The seconds between two calls.
    """

    def __init__(self, beat: Callable[[], None], interval: float) -> None:
        self._beat = beat
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="st_hpo-heartbeat", daemon=True)

    def start(self) -> None:
        """Starts."""
        self._thread.start()

    def stop(self) -> None:
        """Stops; a call that hangs is left alone."""
        self._ended.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            with contextlib.suppress(BaseException):  # a storage that is away, and its end, are the search's matter
                self._beat()


class OwnTrials:
    """The trials that this process runs now, and the signs of life for them.

    Args:
        interval: The seconds between two signs of life.
        say: Is called with a trial's id and with what its user attribute is to say of the process that runs it.

    Attributes:
        process: What that is for each of them, beside an id of its own.
    """

    def __init__(self, interval: float, say: Callable[[int, dict[str, Any]], None]) -> None:
        self.process = this_process(interval)
        self._interval = interval
        self._say = say
        self._owners: dict[int, dict[str, Any]] = {}

    def __contains__(self, trial_id: int) -> bool:
        return trial_id in self._owners

    def owner(self) -> dict[str, Any]:
        """Returns what a trial is to say that this process takes now."""
        return {**self.process, "id": uuid.uuid4().hex, "beat": time.time()}

    def add(self, trial_id: int, owner: dict[str, Any]) -> None:
        """Takes note of a trial that says so."""
        self._owners[trial_id] = owner
        running_here.add(owner["id"])

    def remove(self, trial_id: int) -> None:
        """Takes note that a trial has ended, if it was this process's own."""
        if (owner := self._owners.pop(trial_id, None)) is not None:
            running_here.discard(owner["id"])

    @contextlib.contextmanager
    def alive(self, signs: bool) -> Iterator[None]:
        """Gives signs of life in this block, after which no trial is this process's own.

        Args:
            signs: Whether anybody else looks for them.
        """
        heartbeat = Heartbeat(self._beat, self._interval) if signs else None
        if heartbeat is not None:
            heartbeat.start()
        try:
            yield
        finally:
            if heartbeat is not None:
                heartbeat.stop()
            for trial_id in list(self._owners):
                self.remove(trial_id)

    def _beat(self) -> None:
        for trial_id, owner in list(self._owners.items()):
            self._say(trial_id, {**owner, "beat": time.time()})

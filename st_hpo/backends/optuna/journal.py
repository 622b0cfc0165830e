"""A journal file whose lines are written whole or not at all.

Imports optuna: for the use of the backend's own functions only.
"""

from __future__ import annotations

import json
import os
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

_END = b"\n"


class FindableLock(JournalFileSymlinkLock):
    """Optuna's lock, a symbolic link beside the journal, which leads to it from wherever one looks.

    Optuna's own has the path as it was given, which a link reads from its own folder: with a relative path it leads
    nowhere. Then ``acquire`` cannot tell how old the link is, so that of a killed process stays, and is asked for
    without a pause for ever (``JournalFileSymlinkLock.acquire``, optuna 5.0.0).

    Args:
        path: The journal.
        grace_period: After how many seconds a link counts as left behind; None for never.
    """

    def __init__(self, path: str, grace_period: int | None = 30) -> None:
        super().__init__(os.path.abspath(path), grace_period)
        self._lock_target_file = os.path.basename(path)


class WholeLinesJournal(JournalFileBackend):
    """A journal file that nothing tears in its middle: neither a full disk, nor the death of a process that writes.

    Optuna's own (``JournalFileBackend.append_logs``) leaves the part of a line for which there was room. The next line
    follows it without a break, and from there on nobody can read the file.

    Args:
        path: The file.
        lock: The lock of Optuna's that all its writers take.
    """

    def __init__(self, path: str, lock: Any) -> None:
        self._path = os.path.abspath(path)
        super().__init__(self._path, lock_obj=lock)
        self._writers = lock

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds lines, all of them or none.

        Args:
            logs: One dict a line.

        Raises:
            OSError: They cannot be written.
        """
        text = b"".join(json.dumps(log, separators=(",", ":")).encode() + _END for log in logs)
        self._writers.acquire()
        try:
            with open(self._path, "ab+", buffering=0) as file:
                _cut_torn_line(file)
                before = written = file.seek(0, os.SEEK_END)
                try:
                    while written < before + len(text):
                        written += file.write(text[written - before :])
                    os.fsync(file.fileno())
                except BaseException:
                    # Unless another process has taken the lock for left behind, and written after it
                    if file.seek(0, os.SEEK_END) == written:
                        file.truncate(before)
                    raise
        finally:
            self._writers.release()


def _cut_torn_line(file: Any) -> None:
    """Takes off what a process has left that was killed while it wrote, or a power cut."""
    if (size := file.seek(0, os.SEEK_END)) == 0:
        return
    file.seek(size - 1)
    if file.read(1) != _END:
        file.seek(0)
        file.truncate(file.read().rfind(_END) + 1)


def with_whole_lines(storage: Any) -> Any:
    """Returns the storage on a journal file as one that writes whole lines; any other as it is."""
    backend = getattr(storage, "_backend", None)
    if type(backend) is not JournalFileBackend:
        return storage
    lock, path = backend._lock, backend._file_path
    if type(lock) is JournalFileSymlinkLock:
        lock = FindableLock(path, lock.grace_period)
    return JournalStorage(WholeLinesJournal(path, lock))

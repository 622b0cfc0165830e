"""Folders for as long as something runs; what processes have left that were killed is removed by the next one.

Where the file system has no locks, folders are made and removed all the same, but nothing is removed for others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

TOKENS = "st_hpo-tokens-"
WORKERS = "st_hpo-workers-"
_LOCK = ".lock"
_YOUNG_SECONDS = 60.0


@contextlib.contextmanager
def scratch_folder(prefix: str, parent: str | os.PathLike[str] | None = None) -> Iterator[str]:
    """Gives a folder in this block, and removes it afterwards, whatever happens.

    Args:
        prefix: What its name begins with. Folders beside it whose names do, and which no living process holds, are
            removed first.
        parent: Where it is made; the folder for temporary files by default, in which those of other machines are left
            alone.

    Raises:
        OSError: Nothing can be written there.
    """
    sweep(prefix, parent)
    where, name = _place(prefix, parent)
    with contextlib.ExitStack() as stack:
        while (folder := _held(tempfile.mkdtemp(prefix=name, dir=where), stack)) is None:
            pass  # a sweep has come between the folder and its lock
        yield folder


def sweep(prefix: str, parent: str | os.PathLike[str] | None = None) -> None:
    """Removes the folders of processes that are gone.

    Args:
        prefix: What their names begin with.
        parent: Where they are; the folder for temporary files by default.
    """
    where, name = _place(prefix, parent)
    for folder in where.glob(f"{name}*"):
        if parent is None and "-" in folder.name[len(name) :]:  # of a machine whose name begins with this one's
            continue
        # It is held, or another user's, or has just gone, or there are no locks
        with contextlib.suppress(Timeout, OSError, NotImplementedError):
            if not (folder / _LOCK).exists() and time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
                continue  # its process is about to lock it
            with FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


def _held(folder: str, stack: contextlib.ExitStack) -> str | None:
    """Returns a new folder, locked, and removed with the stack; None if it was swept before it could be locked."""
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    lock = FileLock(os.path.join(folder, _LOCK), timeout=0)
    try:
        stack.enter_context(lock)
        os.chmod(folder, 0o700)  # locking makes the folder anew where it was swept
    except Timeout:
        return None
    except (OSError, NotImplementedError):  # no locks here, or the folder is gone
        return folder if os.path.isdir(folder) else None
    return folder


def _place(prefix: str, parent: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Where such folders are, and what their names begin with: also temporary files may lie where machines share them,
    and a lock need not be seen by all of them.
    """
    if parent is not None:
        return Path(parent), prefix
    return Path(tempfile.gettempdir()), f"{prefix}{socket.gethostname()}-"

"""Token ids in a file, for the processes of one search on one machine, and for what does not fit in memory.

The file is an SQLite database that is read through a memory map. SQLite lets one process write while others read, and
a process that is killed while it writes leaves what was there before. Reading and writing do not wait for another
process: what cannot be had at once is tokenised, as it would be without the file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import threading
import time
import urllib.parse
import weakref
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b

from st_hpo.scratch import TOKENS, scratch_folder
from st_hpo.token_rows import Row

_NAME = "tokens.sqlite"
_PAGE_BYTES = 4096
_KEYS_AT_ONCE = 500
_ROWS_AT_ONCE = 2000
_JOURNAL_BYTES = 16 * 2**20
_PART_OF_DISK = 4  # a quarter of what is free
_PATIENCE_MILLISECONDS = 5000
_TABLES = """
CREATE TABLE spaces (id INTEGER PRIMARY KEY, name BLOB UNIQUE, used REAL, refused INTEGER DEFAULT 0);
CREATE TABLE tokens (space INTEGER, key BLOB, ids BLOB, types BLOB, PRIMARY KEY (space, key)) WITHOUT ROWID;
"""
_OLDEST = """
SELECT id FROM spaces WHERE used < ? AND EXISTS (SELECT 1 FROM tokens WHERE space = spaces.id) ORDER BY used LIMIT 1
"""
_REMOVE = "DELETE FROM tokens WHERE space = ? AND key IN (SELECT key FROM tokens WHERE space = ? LIMIT ?)"


class TokenFile:
    """Tokens by space (a tokenizer with one setting) and digest of a text.

    When it is full, spaces are dropped that trials have begun to use before this process began its own, the oldest
    first; if there is none, nothing more is written until the next trial.

    Args:
        max_bytes: How large the file may become, in bytes; SQLite's journal comes on top of it.
        path: A file that another process of this machine has made; None for one of its own, made by :meth:`make`.
        makes_own: Whether :meth:`make` makes one.

    Attributes:
        path: The file; None as long as there is none.
    """

    def __init__(self, max_bytes: int, path: str | None = None, makes_own: bool = True) -> None:
        self.max_bytes = max_bytes
        self.path = path
        self._makes_own = makes_own
        self._folder = contextlib.ExitStack()
        weakref.finalize(self, _close, self._folder, os.getpid())
        self._connection: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._usable = True
        self._full = False
        self._begun = time.time()
        self._ids: dict[bytes, int] = {}
        self._refused: set[bytes] = set()
        self._lock = threading.RLock()

    def make(self) -> str | None:
        """Makes the file, if there is none; returns its path, or None where nothing can be written."""
        if self.path is None and self._makes_own and self._usable and self._process == os.getpid():
            try:
                folder = self._folder.enter_context(scratch_folder(TOKENS))
                # The trials' own files may be on the same disk
                self.max_bytes = min(self.max_bytes, shutil.disk_usage(folder).free // _PART_OF_DISK)
                path = os.path.join(folder, _NAME)
                connection = self._connected(path)
                connection.executescript(f"PRAGMA journal_mode = WAL;{_TABLES}")
            except (OSError, sqlite3.Error):
                self.close()
                self._usable = False
            else:
                self.path, self._connection = path, connection
        return self.path

    @property
    def size(self) -> int:
        """Its size in bytes, with what was not yet written into its place."""
        if self.path is None:
            return 0
        files = (f"{self.path}{suffix}" for suffix in ("", "-wal", "-shm"))
        return sum(os.path.getsize(file) for file in files if os.path.exists(file))

    def begin_trial(self) -> None:
        """Notes that a trial begins in this process."""
        self._begun, self._full = time.time(), False
        self._ids.clear()

    def get(self, space: bytes, keys: Iterable[bytes]) -> dict[bytes, Row]:
        """Returns the tokens of those texts that are there.

        Args:
            space: Digest of the tokenizer and its setting.
            keys: Digests of texts.
        """
        found: dict[bytes, Row] = {}
        with self._using() as connection:
            if connection is not None and (number := self._number(connection, space)) is not None:
                asked = list(dict.fromkeys(keys))
                for start in range(0, len(asked), _KEYS_AT_ONCE):
                    part = asked[start : start + _KEYS_AT_ONCE]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT key, ids, types FROM tokens WHERE space = ? AND key IN ({marks})"
                    found.update(
                        (key, Row(ids, types)) for key, ids, types in connection.execute(query, [number, *part])
                    )
        return found

    def put(self, space: bytes, rows: Mapping[bytes, Row]) -> None:
        """Writes the tokens of texts; those that are there stay as they are.

        Args:
            space: Digest of the tokenizer and its setting.
            rows: The tokens by the texts' digests.
        """
        with self._using() as connection:
            if connection is None or not rows or self._full:
                return
            number = self._number(connection, space, create=True)
            if number is None:
                return
            values = ((number, key, row.ids, row.types) for key, row in rows.items())
            while part := list(itertools.islice(values, _ROWS_AT_ONCE)):  # the journal holds what one changes
                while not self._inserted(connection, part):
                    if not self._drop_oldest(connection):
                        self._full = True
                        return

    def _inserted(self, connection: sqlite3.Connection, values: list[tuple[int, bytes, bytes, bytes]]) -> bool:
        try:
            with connection:
                connection.executemany("INSERT OR IGNORE INTO tokens VALUES (?, ?, ?, ?)", values)
        except sqlite3.OperationalError as exc:
            if not _is_full(exc):
                raise
            return False
        return True

    def refuse(self, space: bytes) -> None:
        """Removes the tokens of a space, and takes no others: its tokenizer does not always give the same.

        Waits for a process that is just writing, for some seconds at most.
        """
        if space in self._refused:
            return
        self._refused.add(space)
        with self._using() as connection:
            if connection is not None:
                connection.execute(f"PRAGMA busy_timeout = {_PATIENCE_MILLISECONDS}")
                try:
                    with connection:
                        connection.execute("INSERT OR IGNORE INTO spaces (name, used) VALUES (?, 0)", [space])
                        connection.execute("UPDATE spaces SET refused = 1 WHERE name = ?", [space])
                    (number,) = connection.execute("SELECT id FROM spaces WHERE name = ?", [space]).fetchone()
                    _empty(connection, number)
                finally:
                    connection.execute("PRAGMA busy_timeout = 0")

    def close(self) -> None:
        """Lets go of the file, and removes it if this process has made it."""
        if self._process != os.getpid():
            return
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection, self.path = None, None
            self._ids.clear()
            self._folder.close()

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection | None]:
        """Gives the connection, None where there is no file; errors of the file end its use, or this use of it."""
        if self._process != os.getpid():  # not even the lock, which a thread of the other process may have held
            yield None
            return
        with self._lock:
            try:
                yield self._connection_here()
            except sqlite3.Error as exc:
                self._full = self._full or _is_full(exc)
                self._usable = _is_full(exc) or _is_busy(exc)

    def _connection_here(self) -> sqlite3.Connection | None:
        # Not in processes forked from this one: they must not use its connection, nor another one beside it
        if self.path is None or not self._usable:
            return None
        if self._connection is None:
            try:
                self._connection = self._connected(self.path)
            except sqlite3.Error:
                self._usable = False
        return self._connection

    def _connected(self, path: str) -> sqlite3.Connection:
        uri = f"file:{_quoted(path)}?mode={'rwc' if self.path is None else 'rw'}"
        connection = sqlite3.connect(uri, uri=True, timeout=0, check_same_thread=False)
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute(f"PRAGMA max_page_count = {max(self.max_bytes // _PAGE_BYTES, 1)}")
        connection.execute(f"PRAGMA mmap_size = {self.max_bytes}")
        connection.execute("PRAGMA cache_size = -1024")  # KiB
        connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        connection.execute("PRAGMA synchronous = OFF")  # the file does not outlive the search
        return connection

    def _number(self, connection: sqlite3.Connection, space: bytes, create: bool = False) -> int | None:
        """The number of a space, which is noted as used by this trial; None for none, or if it is refused."""
        if space in self._refused:
            return None
        if space in self._ids:
            return self._ids[space]
        with connection:
            if create:
                connection.execute("INSERT OR IGNORE INTO spaces (name, used) VALUES (?, ?)", [space, time.time()])
            found = connection.execute("SELECT id FROM spaces WHERE name = ? AND NOT refused", [space]).fetchone()
            if found is not None:
                connection.execute("UPDATE spaces SET used = ? WHERE id = ?", [time.time(), found[0]])
        if found is None:
            return None
        self._ids[space] = int(found[0])  # not before it was committed
        return self._ids[space]

    def _drop_oldest(self, connection: sqlite3.Connection) -> bool:
        oldest = connection.execute(_OLDEST, [self._begun]).fetchone()
        if oldest is not None:
            _empty(connection, oldest[0])
        return oldest is not None


def _empty(connection: sqlite3.Connection, space: int) -> None:
    """Removes the tokens of a space, in parts: the journal holds what one transaction changes."""
    removed = _ROWS_AT_ONCE
    while removed == _ROWS_AT_ONCE:
        with connection:
            removed = connection.execute(_REMOVE, [space, space, _ROWS_AT_ONCE]).rowcount


def _quoted(path: str) -> str:
    return urllib.parse.quote(path.replace(os.sep, "/"))


def _is_full(exc: sqlite3.Error) -> bool:
    return "is full" in str(exc)


def _is_busy(exc: sqlite3.Error) -> bool:
    return "locked" in str(exc)


def _close(folder: contextlib.ExitStack, process: int) -> None:
    if process == os.getpid():
        folder.close()


def digest_of(space: object) -> bytes:
    """Returns the digest of a tokenizer and its setting, the same in every process."""
    return blake2b(repr(space).encode("utf-8", "surrogatepass"), digest_size=16).digest()

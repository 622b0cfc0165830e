"""A MariaDB server of one's own: on the loopback interface, on a free port, in a folder that goes away with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pymysql

from postgres import PASSWORD, QUOTED_PASSWORD, USER, free_port

_SECONDS = 120.0
MISSING = (
    "These tests need MariaDB's server: there is no `mariadbd` on PATH or in /usr/sbin. On Debian and Ubuntu: "
    "apt-get install -y mariadb-server-core mariadb-client-core. On macOS: brew install mariadb."
)


def program(name: str) -> str:
    """Returns the path of one of MariaDB's programs.

    Raises:
        RuntimeError: They are not installed.
    """
    if (found := shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")) is None:
        raise RuntimeError(MISSING)
    return found


class MariaDBServer:
    """A server.

    Args:
        folder: An empty folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        # It refuses to run as root, as which CI runs, unless it is told to
        self._options = [f"--datadir={folder / 'data'}", *(["--user=root"] if os.geteuid() == 0 else [])]
        install = [program("mariadb-install-db"), "--no-defaults", *self._options]
        made = [*install, "--auth-root-authentication-method=normal", "--skip-test-db"]
        done = subprocess.run(made, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(f"mariadb-install-db has failed:\n{done.stdout}\n{done.stderr}")

    def start(self) -> None:
        """Starts it, and returns once it answers."""
        own = [
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self._folder / 'socket'}",
            f"--pid-file={self._folder / 'pid'}",
            "--innodb-flush-log-at-trx-commit=0",
            "--skip-name-resolve",
        ]
        with self._log.open("ab") as log:
            command = [program("mariadbd"), "--no-defaults", *self._options, *own]
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                self._as_root().close()
                return
            except pymysql.err.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"MariaDB does not answer:\n{self._log.read_text()}") from None
                time.sleep(0.1)

    def _as_root(self) -> pymysql.connections.Connection:
        return pymysql.connect(unix_socket=str(self._folder / "socket"), user="root", autocommit=True)

    def stop(self) -> None:
        """Ends it, with all connections."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def new_database(self, name: str) -> str:
        """Makes an empty database, and returns its URL."""
        with contextlib.closing(self._as_root()) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{name}`")
            cursor.execute(f"CREATE USER IF NOT EXISTS '{USER}'@'127.0.0.1' IDENTIFIED BY %s", (PASSWORD,))
            cursor.execute(f"GRANT ALL ON `{name}`.* TO '{USER}'@'127.0.0.1'")
        return f"mysql+pymysql://{USER}:{QUOTED_PASSWORD}@127.0.0.1:{self.port}/{name}"


@contextlib.contextmanager
def running_mariadb() -> Iterator[MariaDBServer]:
    """Runs a server."""
    folder = Path(tempfile.mkdtemp(prefix="st_hpo-mariadb-"))  # a socket's path must be short
    try:
        server = MariaDBServer(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

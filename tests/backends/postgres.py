"""A PostgreSQL server of one's own: on the loopback interface, on a free port, in a folder that goes away with it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2

USER, PASSWORD = "searcher", "correct horse/battery@staple"
QUOTED_PASSWORD = "correct%20horse%2Fbattery%40staple"
_NOBODY = 65534
MISSING = (
    "These tests need PostgreSQL's server: its `initdb` is neither on PATH nor in /usr/lib/postgresql/*/bin. On "
    "Debian and Ubuntu: apt-get install -y postgresql. On macOS: brew install postgresql."
)


def folder_of_programs() -> Path:
    """Returns where PostgreSQL's programs are.

    Raises:
        RuntimeError: They are not installed.
    """
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not versions:
        raise RuntimeError(MISSING)
    return versions[-1].parent


def free_port() -> int:
    """Returns a free port that the system gives to no connection: a server that was stopped needs it again."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with socket.socket() as trying, contextlib.suppress(OSError):
            trying.bind(("127.0.0.1", port))
            return port


class PostgresServer:
    """A server that can be stopped and started again.

    Args:
        folder: An empty folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._programs = folder_of_programs()
        self._data = folder / "data"
        self._log = folder / "server.log"
        self._folder = folder
        self.port = free_port()
        # It refuses to run as root, as which CI runs
        self._as = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            os.chown(folder, _NOBODY, _NOBODY)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        arguments = ["-D", str(self._data), "-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}"]
        self._run("initdb", *arguments, "--encoding=UTF8", "--no-locale", "--no-sync")
        secret.unlink()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            **self._as,
        )
        if done.returncode != 0:
            log = self._log.read_text() if self._log.exists() else ""
            raise RuntimeError(f"{program} has failed:\n{done.stdout}\n{log}")

    def start(self) -> None:
        """Starts it, and returns once it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        # A server that keeps the pipe of its output open would keep `subprocess.run` waiting: it has a log instead
        self._run("pg_ctl", "start", "-w", "-D", str(self._data), "-l", str(self._log), "-o", options)

    def stop(self) -> None:
        """Ends it at once, with all connections."""
        self._run("pg_ctl", "stop", "-w", "-D", str(self._data), "-m", "fast")

    def url(self, database: str = "postgres", password: str = QUOTED_PASSWORD) -> str:
        """Returns the URL of a database."""
        return f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self, name: str) -> str:
        """Makes an empty database, and returns its URL."""
        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname="postgres"
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f'CREATE DATABASE "{name}"')
        finally:
            connection.close()
        return self.url(name)


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Runs a server."""
    # Not pytest's own folder: it is closed to the user whom the server runs as
    folder = Path(tempfile.mkdtemp(prefix="st_hpo-postgres-"))
    try:
        server = PostgresServer(folder)
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(RuntimeError):  # a test may have stopped it
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""What a command reads: a saved result, a database, a journal file, or a folder with one of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_hpo.cli.group import UsageProblem
from st_hpo.errors import ConfigurationError, did_you_mean
from st_hpo.results import SearchResult

RESULT, JOURNAL = "result.json", "study.journal"
_SQLITE_HEADER = b"SQLite format 3\x00"
_LONGEST_LINE = 1 << 20


@dataclass
class Source:
    """Where a search is kept.

    Attributes:
        where: The URL of a database, or the path of a file.
        is_result: Whether it is a saved result.
        note: What the user may want to know about the choice, if there was one.
    """

    where: str | Path
    is_result: bool
    note: str | None = None

    def read(self, study: str | None = None) -> SearchResult:
        """Returns the result of the search.

        Args:
            study: The name of the study in a storage of several.

        Raises:
            HPOError: It cannot be read.
        """
        if isinstance(self.where, Path) and self.is_result:
            if study is not None:
                raise UsageProblem(f"--study chooses one of the studies in a storage, but {self.where} is one result.")
            try:
                return SearchResult.load(self.where)
            except ConfigurationError as exc:
                raise ConfigurationError(f"{self.where}: {exc}") from exc
        from st_hpo.backends.optuna.reading import read_study

        return read_study(self.where, study)


def find_source(text: str, live: bool = False) -> Source:
    """Finds out what a user has named.

    Args:
        text: A URL, or the path of a file or a folder.
        live: Whether a study is wanted, if a folder has both a study and a saved result.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigurationError: It is nothing that a search has left.
    """
    if "://" in text:
        return Source(text, is_result=False)
    path = Path(text).expanduser()
    if not path.exists():
        names = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigurationError(f"There is no file {text!r}.{did_you_mean(path.name, names)}")
    return _in_folder(path, live) if path.is_dir() else _of_file(path)


def _in_folder(folder: Path, live: bool) -> Source:
    found = [folder / name for name in ((JOURNAL, RESULT) if live else (RESULT, JOURNAL)) if (folder / name).exists()]
    if not found:
        others = sorted(
            item.name
            for item in folder.iterdir()
            if item.suffix in (".json", ".db", ".sqlite", ".sqlite3", ".journal")
        )
        also = f" It has {', '.join(others)}: name the file itself." if others else ""
        raise ConfigurationError(f"The folder {str(folder)!r} has neither a {RESULT} nor a {JOURNAL}.{also}")
    source = _of_file(found[0])
    if len(found) > 1 and found[1].stat().st_mtime > found[0].stat().st_mtime:
        source.note = f"{found[0]} is read; {found[1]} beside it is newer."
    return source


def _of_file(path: Path) -> Source:
    """By its content: a name says little."""
    with open(path, "rb") as file:
        line = file.readline(_LONGEST_LINE)
    if not line:
        raise ConfigurationError(f"{str(path)!r} is empty: no search has written to it yet.")
    if line.startswith(_SQLITE_HEADER) or _is_journal(line):
        return Source(path, is_result=False)
    if line.lstrip()[:1] in (b"{", b"[") or path.suffix == ".json":
        return Source(path, is_result=True)
    raise ConfigurationError(
        f"{str(path)!r} is nothing that a search has left: neither a saved result (JSON), nor a SQLite database, nor "
        "a journal of Optuna's."
    )


def _is_journal(line: bytes) -> bool:
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and "op_code" in entry

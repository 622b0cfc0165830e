"""The folder of a trial: emptied of what nobody asked for, and limited over the whole search.

Upstream's evaluators write a CSV file whenever they run, its trainers a checkpoint every 500 steps by default, and
``save_total_limit`` counts within one training. In a search of many trainings that fills a disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from st_hpo.errors import ConfigurationError
from st_hpo.records import COMPLETED, RUNNING, TrialRecord

MARKER = ".st_hpo-trial.json"  # in every folder that a trial has left
LOCK = ".st_hpo.lock"
_EVALUATIONS = "eval"  # upstream's name (BaseTrainer.evaluation_loop)
_CHECKPOINTS = "checkpoint-*"
# Training arguments that say what is to be saved. `load_best_model_at_end` needs checkpoints, but not afterwards
_ASKING = {
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "save_only_model",
    "save_on_each_node",
    "push_to_hub",
    "hub_strategy",
}


@dataclass
class Saving:
    """What trials leave below ``output_dir``.

    Attributes:
        output_dir: The folder of the search.
        keeps: Whether the user has asked for checkpoints. Those of completed trials stay; a failed or pruned one
            leaves none.
        limit: How many of them the whole search keeps, None for all.
    """

    output_dir: str
    keeps: bool
    limit: int | None

    @classmethod
    def of(cls, args: Any, given: Mapping[str, Any]) -> Saving:
        """Returns what the training arguments ask for.

        Args:
            args: The training arguments.
            given: Those of them that differ from their defaults.
        """
        keeps = args.save_strategy != "no" and not _ASKING.isdisjoint(given)
        limit = args.save_total_limit if args.save_total_limit and args.save_total_limit > 0 else None
        return cls(args.output_dir, keeps, limit)

    def prepare(self, args: Any) -> None:
        """Switches checkpoints off that nobody has asked for and nothing needs."""
        if not self.keeps and not args.load_best_model_at_end and args.save_strategy != "no":
            args.save_strategy = type(args.save_strategy)("no")

    @contextlib.contextmanager
    def folder(self, args: Any, name: str, record: TrialRecord, directions: list[str]) -> Iterator[None]:
        """Gives a trial a folder of its own, and leaves in it what was asked for, whatever ends the trial.

        Args:
            args: The trial's arguments, whose ``output_dir`` is set.
            name: The name of its run.
            record: Its record, complete when the trial is.
            directions: The directions of the objectives, which rank the trials.
        """
        _sweep(Path(self.output_dir))
        own = _free_folder(Path(self.output_dir, name), record.number)
        if _Mark.read(own) is not None:
            _clear(own)
        foreign = {path.name for path in _leavings(own)}
        own.mkdir(parents=True, exist_ok=True)
        _Mark(record.number, RUNNING).write(own)
        args.output_dir = str(own)
        with _alive(own):
            try:
                yield
            finally:
                if self.keeps and record.state == COMPLETED and any(own.glob(_CHECKPOINTS)):
                    _Mark.of(record, own).write(own)
                else:
                    _clear(own, foreign)
        if self.keeps and self.limit is not None:
            keep_best(Path(self.output_dir), self.limit, directions)


@dataclass
class _Mark:
    """What is known of a trial by its folder alone, which may be another process's.

    Attributes:
        number: The trial's number.
        state: How it ended.
        values: Its objectives, empty unless it is completed.
        checkpoints: The names of its checkpoints, the one that its objective belongs to first.
    """

    number: int
    state: str
    values: list[float] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, record: TrialRecord, folder: Path) -> _Mark:
        newest_first = sorted(folder.glob(_CHECKPOINTS), key=lambda path: path.stat().st_mtime, reverse=True)
        names = [path.name for path in newest_first]
        best = _best_checkpoint(newest_first[0]) if newest_first else None
        names.sort(key=lambda name: name != best)
        return cls(record.number, record.state, record.values, names)

    @classmethod
    def read(cls, folder: Path) -> _Mark | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((folder / MARKER).read_text(encoding="utf-8")))
        return None

    def write(self, folder: Path) -> None:
        (folder / MARKER).write_text(json.dumps(asdict(self)), encoding="utf-8")


def keep_best(output_dir: Path, limit: int, directions: list[str]) -> None:
    """Deletes checkpoints until ``limit`` are left: those of the best trials, of each the best first.

    Only folders that trials have left are looked at. Several processes may do this at once.

    Args:
        output_dir: The folder of the search.
        limit: How many checkpoints to keep.
        directions: ``"minimize"`` or ``"maximize"`` for each objective. Of several, a trial that others beat in all
            of them comes after one that fewer beat.
    """
    from filelock import FileLock

    with FileLock(output_dir / LOCK):
        folders = {path.parent: _Mark.read(path.parent) for path in output_dir.glob(f"*/{MARKER}")}
        found = {path: mark for path, mark in folders.items() if mark is not None and mark.state != RUNNING}
        losses = {path: _losses(mark, directions) for path, mark in found.items()}

        def rank(path: Path) -> tuple[Any, ...]:
            own = losses[path]
            if own is None:
                return (1, 0, [], found[path].number)
            beaten = sum(other is not None and _dominates(other, own) for other in losses.values())
            return (0, beaten, own if len(own) == 1 else [], found[path].number)

        left = limit
        for path in sorted(found, key=rank):
            mark = found[path]
            present = [name for name in mark.checkpoints if (path / name).is_dir()]
            for name in present[left:]:
                shutil.rmtree(path / name, ignore_errors=True)
            left = max(0, left - len(present))
            if not any(path.glob(_CHECKPOINTS)):
                _clear(path)
        (output_dir / LOCK).unlink(missing_ok=True)


def _losses(mark: _Mark, directions: list[str]) -> list[float] | None:
    if len(mark.values) != len(directions):
        return None
    return [-value if way == "maximize" else value for value, way in zip(mark.values, directions, strict=True)]


def _dominates(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and a != b and all(x <= y for x, y in zip(a, b, strict=True))


def _best_checkpoint(newest: Path) -> str | None:
    """The checkpoint that was loaded at the end, by upstream's own note in the newest one."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
        return Path(state.get("best_model_checkpoint") or newest).name
    return None


def _free_folder(folder: Path, number: int) -> Path:
    """The folder, or one beside it where another trial of the same name has left something."""
    mark = _Mark.read(folder)
    return folder if mark is None or mark.number == number else folder.with_name(f"{folder.name}-{number}")


def _leavings(folder: Path) -> list[Path]:
    return [path for path in [folder / _EVALUATIONS, *folder.glob(_CHECKPOINTS)] if path.is_dir()]


def _clear(folder: Path, foreign: Collection[str] = ()) -> None:
    """Removes what a trial has left, and nothing else; the folder too, if nothing else is in it.

    Args:
        folder: The trial's folder.
        foreign: What was there before.
    """
    for path in _leavings(folder):
        if path.name not in foreign:
            shutil.rmtree(path, ignore_errors=True)
    for name in (MARKER, LOCK):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _alive(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system takes from a process that dies."""
    from filelock import FileLock

    with FileLock(folder / LOCK):
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if nothing else is in it


def _sweep(output_dir: Path) -> None:
    """Removes what trials have left that were killed in their middle."""
    from filelock import FileLock, Timeout

    for marker in output_dir.glob(f"*/{MARKER}"):
        mark = _Mark.read(marker.parent)
        if mark is not None and mark.state == RUNNING:
            with contextlib.suppress(Timeout), FileLock(marker.parent / LOCK, timeout=0):
                _clear(marker.parent)


def check_run_name(name: Any) -> str:
    """Returns the name of a run, which is also its folder below ``output_dir``.

    Raises:
        ConfigurationError: It is no string, or would lead out of that folder.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or any(mark in name for mark in ("/", "\\", "\0")):
        raise ConfigurationError(
            f"`hp_name` must return the name of a folder, without '/', but returned {name!r}. For example: "
            "hp_name=lambda trial: f'trial-{trial.number}'."
        )
    return os.path.basename(name)


def default_run_name(record: TrialRecord, native: Any) -> str:
    """Returns ``run-<id>``, with what the backend calls the trial, as transformers does."""
    return f"run-{record.backend_id or record.number}"

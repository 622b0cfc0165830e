"""The folder of a trial: emptied of what nobody asked for, and limited over the whole search.

Upstream's evaluators write a CSV file whenever they run, its trainers a checkpoint every 500 steps by default, and
``save_total_limit`` counts within one training. In a search of many trainings that fills a disk.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_hpo.errors import ConfigurationError
from st_hpo.objective import Objective
from st_hpo.records import COMPLETED, RUNNING, TrialRecord

if TYPE_CHECKING:
    from filelock import BaseFileLock

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
    def folder(self, args: Any, name: str, record: TrialRecord, objective: Objective) -> Iterator[None]:
        """Gives a trial a folder of its own, and leaves in it what was asked for, whatever ends the trial.

        Args:
            args: The trial's arguments, whose ``output_dir`` is set.
            name: The name of its run.
            record: Its record, complete when the trial is.
            objective: What is optimized, which ranks the trials.
        """
        _sweep(Path(self.output_dir))
        with _own_folder(Path(self.output_dir, name), record.number) as own:
            args.output_dir = str(own)
            kept = False
            try:
                _Mark(record.number, RUNNING).write(own)
                yield
                if self.keeps and record.state == COMPLETED and any(own.glob(_CHECKPOINTS)):
                    _Mark.of(record, own, objective).write(own)
                    kept = True
            finally:
                if not kept:
                    _clear(own)
        if self.keeps and self.limit is not None:
            keep_best(Path(self.output_dir), self.limit, objective)


@dataclass
class _Mark:
    """What is known of a trial by its folder alone, which may be another process's.

    Attributes:
        number: The trial's number.
        state: How it ended.
        values: Its objectives, empty unless it is completed.
        checkpoints: The names of its checkpoints, the one that its objective belongs to first.
        aims: The metric keys of its objectives, and their directions.
    """

    number: int
    state: str
    values: list[float] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    aims: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, record: TrialRecord, folder: Path, objective: Objective) -> _Mark:
        newest_first = sorted(folder.glob(_CHECKPOINTS), key=lambda path: path.stat().st_mtime, reverse=True)
        names = [path.name for path in newest_first]
        best = _best_checkpoint(newest_first[0]) if newest_first else None
        names.sort(key=lambda name: name != best)
        return cls(record.number, record.state, record.values, names, _aims(objective))

    @classmethod
    def read(cls, folder: Path) -> _Mark | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((folder / MARKER).read_text(encoding="utf-8")))
        return None

    def write(self, folder: Path) -> None:
        (folder / MARKER).write_text(json.dumps(asdict(self)), encoding="utf-8")


def _aims(objective: Objective) -> dict[str, str]:
    return dict(zip(objective.names, objective.directions, strict=True))


def keep_best(output_dir: Path, limit: int, objective: Objective) -> None:
    """Deletes checkpoints until ``limit`` are left: those of the best trials, of each the best first.

    Only folders that trials of this objective have left are looked at: others cannot be compared with them. Several
    processes may do this at once.

    Args:
        output_dir: The folder of the search.
        limit: How many checkpoints to keep.
        objective: What is optimized. Of several objectives, a trial that others beat in all of them comes after one
            that fewer beat.
    """
    from filelock import FileLock

    with FileLock(output_dir / LOCK):
        folders = {path.parent: _Mark.read(path.parent) for path in output_dir.glob(f"*/{MARKER}")}
        ended = {path: mark for path, mark in folders.items() if mark is not None and mark.state != RUNNING}
        found = {path: mark for path, mark in ended.items() if mark.aims == _aims(objective)}
        losses = {path: _losses(mark, objective.directions) for path, mark in found.items()}

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


def _leavings(folder: Path) -> list[Path]:
    return [path for path in [folder / _EVALUATIONS, *folder.glob(_CHECKPOINTS)] if path.is_dir()]


def _clear(folder: Path) -> None:
    """Removes what a trial has left, and nothing else; the folder too, if nothing else is in it."""
    for path in _leavings(folder):
        shutil.rmtree(path, ignore_errors=True)
    (folder / MARKER).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _own_folder(folder: Path, number: int) -> Iterator[Path]:
    """Holds the folder of a trial, or one beside it where something is that is not this trial's.

    That may be another trial of the same name, a trial of a search that runs now, or checkpoints that no trial has
    left. What an earlier trial of the same name and number has left is removed.
    """
    beside = folder.with_name(f"{folder.name}-{number}")
    further = (beside.with_name(f"{beside.name}-{count}") for count in itertools.count(2))
    for own in itertools.chain([folder, beside], further):
        if (lock := _take(own, number)) is not None:
            try:
                yield own
            finally:
                _let_go(own, lock)
            return


def _take(folder: Path, number: int) -> BaseFileLock | None:
    """Holds a folder's lock, which the system takes from a process that dies; None where the folder is not free."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    while not lock.is_locked:
        folder.mkdir(parents=True, exist_ok=True)
        # Another process may remove the folder, which it has found empty, in the same moment
        with contextlib.suppress(FileNotFoundError):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return None
    mark = _Mark.read(folder)
    if mark is not None and mark.number == number:
        _clear(folder)
    elif mark is not None or _leavings(folder):
        _let_go(folder, lock)
        return None
    return lock


def _let_go(folder: Path, lock: BaseFileLock) -> None:
    (folder / LOCK).unlink(missing_ok=True)
    lock.release()
    with contextlib.suppress(OSError):
        folder.rmdir()  # only if nothing else is in it


def _sweep(output_dir: Path) -> None:
    """Removes what trials have left that were killed in their middle."""
    from filelock import FileLock, Timeout

    for marker in output_dir.glob(f"*/{MARKER}"):
        folder = marker.parent
        mark = _Mark.read(folder)
        if mark is not None and mark.state == RUNNING:
            lock = FileLock(folder / LOCK)
            with contextlib.suppress(Timeout, FileNotFoundError):  # it is held, or the folder has gone meanwhile
                lock.acquire(timeout=0)
                mark = _Mark.read(folder)  # it may have ended meanwhile
                if mark is not None and mark.state == RUNNING:
                    _clear(folder)
                _let_go(folder, lock)


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

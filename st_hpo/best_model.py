"""The best trial's model on disk, while a search runs: one folder, replaced in one step when a better one is found."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import secrets
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from st_hpo.errors import ConfigurationError
from st_hpo.folders import LOCK
from st_hpo.jsonable import from_jsonable, to_jsonable
from st_hpo.objective import Objective
from st_hpo.randomness import random_states_kept
from st_hpo.records import COMPLETED, TrialRecord
from st_hpo.results import SearchResult

BEST_MODEL = "best_model"
NOTE = "st_hpo.json"  # in the folder: which trial's model it is
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux: fcntl.h and renameat2(2)


@dataclass
class BestModelNote:
    """What the folder says of its model.

    Attributes:
        search: The search, or the shared study, in which it is the best.
        trial: The trial's number.
        objective_names: The metric keys.
        values: Its objectives.
        hyperparameters: Its values.
    """

    search: str
    trial: int
    objective_names: list[str]
    values: list[float]
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> BestModelNote | None:
        """Returns the note in a folder, None where there is none."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(**from_jsonable(json.loads((folder / NOTE).read_text(encoding="utf-8"))))
        return None

    def write(self, folder: Path) -> None:
        """Writes the note."""
        (folder / NOTE).write_text(json.dumps(to_jsonable(asdict(self)), indent=2), encoding="utf-8")


@dataclass
class BestModelKeeper:
    """Keeps the weights of the best trial at ``output_dir/best_model``, and those of no other.

    Several processes may keep the best of one search in one folder. A reader finds a whole model there at any time.

    Attributes:
        output_dir: The folder of the search.
        search: What tells this search, or this shared study, from others that have used the folder.
    """

    output_dir: str
    search: str
    _staged: Path | None = None
    _held: FileLock | None = None

    @property
    def folder(self) -> Path:
        """Where the best model is."""
        return Path(self.output_dir, BEST_MODEL)

    def check(self) -> None:
        """Refuses to replace a folder that no search has made.

        Raises:
            ConfigurationError: It is there, and is not empty.
        """
        if self.folder.exists() and BestModelNote.read(self.folder) is None and any(self.folder.iterdir()):
            raise ConfigurationError(
                f"`save_best_model` keeps the best model at {str(self.folder)!r}, but something is there that no "
                "search has made. Move it away, or choose another `output_dir`."
            )

    def note(self) -> BestModelNote | None:
        """Returns the note of this search's best model so far, None if there is none yet."""
        note = BestModelNote.read(self.folder)
        return note if note is not None and note.search == self.search else None

    def beats(self, value: float, direction: str) -> bool:
        """Whether a model of this objective would be the best so far."""
        note = self.note()
        if note is None:
            return True
        return value > note.values[0] if direction == "maximize" else value < note.values[0]

    def stage(self, model: Any, number: int) -> None:
        """Writes a model that may become the best, beside the folder.

        The random states are left as they are: this may be in the middle of a training.

        Args:
            model: A sentence-transformers model.
            number: The number of its trial.
        """
        self.discard()
        with self._together():
            self._remove_what_was_left()
            self._staged = Path(self.output_dir, f".{BEST_MODEL}-{number}-{os.getpid()}-{secrets.token_hex(4)}")
            self._staged.mkdir(parents=True)
            self._held = FileLock(self._staged / LOCK)
            self._held.acquire()
        with random_states_kept():
            model.save_pretrained(str(self._staged))

    def _remove_what_was_left(self) -> None:
        """Removes models that processes had staged which were killed: nobody holds them any more."""
        for lock in Path(self.output_dir).glob(f".{BEST_MODEL}-*/{LOCK}"):
            with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0):
                shutil.rmtree(lock.parent, ignore_errors=True)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """No other process does in here what this one does."""
        Path(self.output_dir).mkdir(parents=True, exist_ok=True)
        lock = Path(self.output_dir, f".{BEST_MODEL}.lock")
        with FileLock(lock):
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # elsewhere than on Linux and macOS, where it is open
                    lock.unlink(missing_ok=True)

    def publish(self, note: BestModelNote, direction: str) -> bool:
        """Puts the staged model in the place of the best one so far, if it still beats that.

        Returns:
            Whether it is the best now.
        """
        if self._staged is None:
            return False
        try:
            with self._together():
                if not self.beats(note.values[0], direction):
                    return False
                note.write(self._staged)
                self._let_go()
                (self._staged / LOCK).unlink(missing_ok=True)
                _replace(self._staged, self.folder)
                return True
        finally:
            self.discard()

    def write_card(self, result: SearchResult) -> None:
        """Adds the search to the best model's card, if the best trial's model is there."""
        note, best = self.note(), result.best_trials
        if note is not None and best and best[0].number == note.trial:
            result.write_card(self.folder)

    def discard(self) -> None:
        """Removes what is staged."""
        self._let_go()
        if self._staged is not None:
            shutil.rmtree(self._staged, ignore_errors=True)
            self._staged = None

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None


def _replace(new: Path, target: Path) -> None:
    """Puts a folder in the place of another, in one step where the system can, and removes the old one."""
    if not target.exists():
        os.rename(new, target)
    elif _exchange(new, target):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = target.with_name(f"{new.name}-old")
        os.rename(target, old)
        os.rename(new, target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two folders in one step (renameat2 of Linux 3.15); False where the system or the disk cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return int(rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)) == 0


def best_model_keeper(output_dir: str, study: str | None, objective: Objective) -> BestModelKeeper:
    """Returns what keeps the best model of a search.

    Args:
        output_dir: The folder of the search.
        study: The study that it takes part in, None for one of its own.
        objective: What is optimized.

    Raises:
        ConfigurationError: There are several objectives, or something else is in the folder.
    """
    if objective.is_multi:
        raise ConfigurationError(
            "`save_best_model` needs a single objective: of several none is the best. Choose a run of the Pareto "
            "front afterwards, and train its model with `retrain_best`."
        )
    keeper = BestModelKeeper(output_dir, study or uuid.uuid4().hex)
    keeper.check()
    return keeper


class Candidate:
    """What one trial offers of its model to become the best of the search.

    Args:
        keeper: Keeps the best model of the search; None to offer nothing.
        objective: What is optimized.
        record: The trial's record.
    """

    def __init__(self, keeper: BestModelKeeper | None, objective: Objective, record: TrialRecord) -> None:
        self._keeper = keeper
        self._objective = objective
        self._record = record
        self._value = math.nan

    def offer(self, model: Any, metrics: dict[str, Any], final: bool = False) -> None:
        """Stages the model if it is the trial's best so far, and would be that of the search."""
        if self._keeper is None:
            return
        value = self._objective.values(metrics)[0]
        # Of equal evaluations the last one gives the objective
        if math.isnan(value) or (final and self._objective.is_better(self._value, value)):
            return
        if final or self._objective.is_better(value, self._value):
            self._value = value
            if self._keeper.beats(value, self._objective.directions[0]):
                self._keeper.stage(model, self._record.number)
            else:
                self._keeper.discard()

    def keep(self) -> None:
        """Publishes what is staged, once the trial is completed."""
        record, objective = self._record, self._objective
        if self._keeper is not None and record.state == COMPLETED:
            note = BestModelNote(
                self._keeper.search, record.number, objective.names, record.values, record.hyperparameters
            )
            self._keeper.publish(note, objective.directions[0])

    def drop(self) -> None:
        """Removes what is staged and was not published."""
        if self._keeper is not None:
            self._keeper.discard()

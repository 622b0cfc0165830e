"""A disk that is soon full, a plugin of pytest, and what fills it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"only root can mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(file: Path, left: int = 0) -> None:
    """Fills a disk with one file.

    Args:
        file: The file.
        left: How many bytes to leave.
    """
    disk = os.statvfs(file.parent)
    file.write_bytes(bytes(disk.f_bavail * disk.f_frsize - left))


class Ballast(TrainerCallback):
    """Fills the disk in one trial, with a checkpoint of that trial's, which goes when it has failed.

    Args:
        trial: The trial's name.
        left: How many bytes to leave.
        before: Called before the disk is full.
    """

    def __init__(self, trial: str, left: int = 0, before: Callable[[], None] = lambda: None) -> None:
        self.trial = trial
        self.left = left
        self.before = before

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.trial_name == self.trial:
            self.before()
            folder = Path(args.output_dir, "checkpoint-0")
            folder.mkdir()
            fill(folder / "ballast", self.left)

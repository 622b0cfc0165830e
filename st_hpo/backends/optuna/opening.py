"""Opening the study of a search: a new one, one that there is, or the private one of a few workers."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from st_hpo.backends.optuna.settings import STUDY_NAME, Settings
from st_hpo.backends.optuna.urls import is_in_memory

_OPENING_SECONDS = 60.0
# What databases say when another process makes the same tables, or the same row, at the same moment
_CREATED_MEANWHILE = (
    "already exists",
    "duplicate key",
    "duplicate entry",
    "unique constraint",
    "pg_type",
    "try restarting transaction",
    "table definition has changed",
    "database is locked",
)


@contextlib.contextmanager
def opened_study(settings: Settings, directions: list[str], output_dir: str) -> Iterator[tuple[Any, bool]]:
    """Opens the study.

    Args:
        settings: The backend's arguments.
        directions: Those of the search.
        output_dir: Where the study of a search is kept that is to be resumed and has no storage.

    Returns:
        The study, and whether other processes may take part, now or later.
    """
    arguments = dict(settings.study)
    folder: str | None = None
    try:
        shared = arguments.get("storage") is not None
        if shared:
            from st_hpo.backends.optuna.storage import open_storage

            shared = not is_in_memory(arguments["storage"])
            if shared:
                arguments["storage"] = _opened(
                    lambda: open_storage(settings.study["storage"], settings.storage_patience)
                )
        elif settings.resume or settings.n_jobs > 1:
            from st_hpo.backends.optuna.storage import JOURNAL, open_journal

            if settings.resume:
                os.makedirs(output_dir, exist_ok=True)
                arguments.setdefault("study_name", STUDY_NAME)
            else:
                folder = tempfile.mkdtemp(prefix="st_hpo-study-")
            arguments["storage"] = open_journal(os.path.join(folder or output_dir, JOURNAL), settings.storage_patience)
            shared = settings.resume
        yield _created_or_loaded(arguments, directions, settings.resume), shared
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _created_or_loaded(arguments: dict[str, Any], directions: list[str], resume: bool) -> Any:
    import optuna

    load_if_exists = bool(arguments.pop("load_if_exists", False)) or resume
    try:
        return optuna.create_study(directions=directions, load_if_exists=False, **arguments)  # type: ignore[arg-type]
    except optuna.exceptions.DuplicatedStudyError:
        if not load_if_exists:
            raise
    study = optuna.load_study(**arguments)
    # With its seed it would propose once more what whoever has created the study has proposed, or proposes now
    study.sampler.reseed_rng()
    return study


def _opened(open_it: Any) -> Any:
    """Several processes that are the first at an empty database make its tables at once, and all but one fail."""
    deadline = time.monotonic() + _OPENING_SECONDS
    while True:
        try:
            return open_it()
        except Exception as exc:
            meanwhile = any(text in str(exc).lower() for text in _CREATED_MEANWHILE)
            if not meanwhile or time.monotonic() > deadline:
                raise
        time.sleep(random.SystemRandom().uniform(0.05, 0.5))

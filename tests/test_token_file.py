"""The file of tokens: what several processes share, what does not fit in memory, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast, TrainerCallback

from st_hpo import scratch, searching, sharing
from st_hpo.scratch import scratch_folder
from st_hpo.sharing import SharedWork
from st_hpo.token_cache import TokenCache
from st_hpo.token_file import TokenFile
from st_hpo.token_rows import Row

from embedded import model_path
from fast_trainer import fast_trainer

MIB = 2**20
TEXTS = [f"text number {number} of this file" for number in range(64)]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes are forked")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def file() -> Iterator[TokenFile]:
    file = TokenFile(8 * MIB)
    assert file.make() == file.make() == file.path is not None
    yield file
    file.close()


def rows_of(start: int, count: int, length: int = 30) -> dict[bytes, Row]:
    return {
        b"key %12d" % number: Row(number.to_bytes(4, "little") * length, bytes(length) if number % 2 else b"")
        for number in range(start, start + count)
    }


def model() -> SentenceTransformer:
    return SentenceTransformer(model_path(), device="cpu")


@contextlib.contextmanager
def tokenised() -> Iterator[list[str]]:
    """Notes every text that a tokenizer of transformers is given in this block."""
    given: list[str] = []
    original = PreTrainedTokenizerFast.__call__

    def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        given.extend(text)
        return original(self, text, *args, **kwargs)

    PreTrainedTokenizerFast.__call__ = call
    try:
        yield given
    finally:
        PreTrainedTokenizerFast.__call__ = original


def texts_tokenised(work: SharedWork) -> list[str]:
    """What a new tokenizer is asked for in a trial that uses all texts."""
    with tokenised() as given:
        own = model()
        with work.trial():
            own.preprocess(TEXTS)
    return given


def send_texts_tokenised(work: SharedWork, pipe: Any) -> None:
    pipe.send(texts_tokenised(work))


def rows_in(path: str | None) -> int:
    if path is None:
        return 0
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT COUNT(*) FROM tokens").fetchone()[0]


class Files(TrainerCallback):
    """Notes at the beginning of each training which file it shares, and how many texts are in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        cache = sharing._cache()
        assert cache is not None
        note = {"process": os.getpid(), "path": cache.file.path, "rows": rows_in(cache.file.path)}
        (self.folder / state.trial_name).write_text(json.dumps(note))


def in_child(function: Callable[[], None]) -> int:
    """Runs a function in a forked process, as a data loader's worker is; returns how that process has ended."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- one file


def test_what_was_written_is_read(file):
    rows = rows_of(0, 1700)
    file.put(b"space", rows)
    assert file.get(b"space", [*rows, b"unknown"]) == rows
    assert file.get(b"another space", rows) == {}
    file.put(b"space", {next(iter(rows)): Row(b"1234")})
    assert file.get(b"space", rows) == rows  # what is there stays
    other = TokenFile(8 * MIB, file.path)
    assert other.get(b"space", rows) == rows
    other.put(b"another space", rows_of(0, 3))
    assert file.get(b"another space", rows) == rows_of(0, 3)
    other.close()
    assert os.path.exists(file.path)  # it is not the other's


def test_it_is_read_through_a_memory_map(file):
    file.put(b"space", rows_of(0, 2000))
    assert file._connection.execute("PRAGMA mmap_size").fetchone() == (8 * MIB,)
    file._connection.execute("PRAGMA wal_checkpoint")
    file.get(b"space", rows_of(0, 2000))
    if sys.platform == "linux":
        assert any(line.endswith(file.path) for line in Path("/proc/self/maps").read_text().splitlines())


def test_only_its_owner_can_read_it(file):
    assert stat.S_IMODE(os.stat(os.path.dirname(file.path)).st_mode) == 0o700


def test_it_stays_below_its_bound_and_drops_what_no_trial_has_used_for_longest(file):
    for name in (b"first", b"second", b"third"):
        file.begin_trial()
        file.put(name, rows_of(0, 12000))  # some 2.5 MiB
    assert all(len(file.get(name, rows_of(0, 12000))) == 12000 for name in (b"second", b"third", b"first"))
    file.begin_trial()
    assert file.get(b"second", rows_of(0, 1))
    for start in range(0, 24000, 500):
        file.put(b"fourth", rows_of(start, 500))
        assert file.size <= 8 * MIB + 6 * MIB  # SQLite's journal beside it
    assert os.path.getsize(file.path) <= 8 * MIB
    held = {name: len(file.get(name, rows_of(0, 24000))) for name in (b"first", b"second", b"third", b"fourth")}
    assert held == {b"first": 0, b"second": 12000, b"third": 0, b"fourth": 24000}


def test_a_large_space_is_dropped_in_parts():
    """Or else SQLite's journal would grow as large as the space."""
    file = TokenFile(24 * MIB)
    file.make()
    file.begin_trial()
    for start in range(0, 42000, 1000):
        file.put(b"large", rows_of(start, 1000, length=100))
    assert os.path.getsize(file.path) > 18 * MIB
    file.begin_trial()
    for start in range(0, 14000, 1000):
        file.put(b"new", rows_of(start, 1000, length=100))
    assert file.get(b"large", rows_of(0, 42000)) == {}
    assert len(file.get(b"new", rows_of(0, 14000))) == 14000
    assert file.size - os.path.getsize(file.path) < 8 * MIB
    file.close()


def test_a_full_file_of_one_trial_takes_no_more_until_the_next(file):
    file.begin_trial()
    for start in range(0, 80000, 1000):
        file.put(b"space", rows_of(start, 1000))
    held = len(file.get(b"space", rows_of(0, 80000)))
    assert 20000 < held < 79000
    file.put(b"another", rows_of(0, 1000))
    assert file.get(b"another", rows_of(0, 1000)) == {}
    file.begin_trial()
    file.put(b"another", rows_of(0, 1000))
    assert file.get(b"another", rows_of(0, 1000)) == rows_of(0, 1000)


# -- several processes


def test_another_process_does_not_tokenise_what_this_one_has(temporary):
    context = multiprocessing.get_context("spawn")
    with SharedWork.with_others() as work:
        assert len(texts_tokenised(work)) == len(TEXTS)
        ours, theirs = context.Pipe()
        process = context.Process(target=send_texts_tokenised, args=(pickle.loads(pickle.dumps(work)), theirs))
        process.start()
        assert ours.poll(240), "the other process has not answered"
        assert len(ours.recv()) == 1  # one text of the first batch is compared
        process.join(60)
        assert process.exitcode == 0
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("same_folder", [False, True], ids=["no such folder", "the same folder"])
def test_on_another_machine_a_copy_tokenises_for_itself_and_makes_no_file(same_folder, monkeypatch, temporary):
    with SharedWork.with_others(max_bytes=4000) as work, contextlib.ExitStack() as later:
        texts_tokenised(work)
        sent = pickle.dumps(work)
        if same_folder:
            monkeypatch.setattr(sharing, "_machine", lambda: "another")
        else:
            later.callback(work.tokens.clear)
            later.close()
        before = list(temporary.iterdir())
        there = pickle.loads(sent)
        assert there.place is None
        assert len(texts_tokenised(there)) == len(TEXTS)
        assert 0 < there.tokens.size <= 4000 and there.place is None
        assert list(temporary.iterdir()) == before


@needs_fork
def test_a_forked_process_leaves_the_connection_of_its_parent_alone(file):
    rows = rows_of(0, 100)
    file.put(b"space", rows)

    def child() -> None:
        assert file.get(b"space", rows) == {}
        file.put(b"space", rows_of(100, 100))
        file.close()
        assert TokenFile(MIB).make() is not None  # a file of its own is another matter

    assert in_child(child) == 0
    assert file.get(b"space", rows_of(0, 200)) == rows
    file.put(b"space", rows_of(100, 100))
    assert file.get(b"space", rows_of(0, 200)) == rows_of(0, 200)


@needs_fork
def test_a_process_that_was_forked_while_a_thread_tokenised_does_not_wait_for_it():
    work = SharedWork()
    texts_tokenised(work)
    own = model()
    held, done = threading.Event(), threading.Event()

    def thread() -> None:
        with work.tokens._lock, work.tokens.file._lock:
            held.set()
            done.wait()

    other = threading.Thread(target=thread)
    other.start()
    held.wait()

    def child() -> None:
        signal.alarm(60)
        with work.trial():
            own.preprocess(TEXTS)

    code = in_child(child)
    done.set()
    other.join()
    assert code == 0


@needs_fork
def test_a_process_that_is_killed_while_it_writes_leaves_what_was_there(file, tmp_path):
    path, begun = file.path, tmp_path / "begun"
    file.put(b"space", rows_of(0, 50))
    file._connection.close()  # a connection must not be there when the process forks
    file._connection = None

    def child() -> None:
        own = TokenFile(8 * MIB, path)
        for start in range(50, 10**6, 50):
            own.put(b"space", rows_of(start, 50))
            begun.write_text(str(start))

    if (pid := os.fork()) == 0:
        try:
            child()
        finally:
            os._exit(0)
    deadline, text = time.monotonic() + 60, ""
    while not text or int(text) < 500:
        assert time.monotonic() < deadline
        text = begun.read_text() if begun.exists() else ""
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    found = file.get(b"space", rows_of(0, 100_000))
    assert len(found) % 50 == 0 and len(found) >= 500
    assert found == rows_of(0, len(found))
    file.put(b"after", rows_of(0, 50))
    assert file.get(b"after", rows_of(0, 50)) == rows_of(0, 50)


def test_a_tokenizer_that_changes_is_refused_in_all_processes_and_for_good(file):
    rows = rows_of(0, 10)
    other = TokenFile(8 * MIB, file.path)
    file.put(b"space", rows)
    file.put(b"good", rows)
    assert other.get(b"space", rows) == rows
    other.refuse(b"space")
    file.begin_trial()
    for each in (file, other):
        assert each.get(b"space", rows) == {}
        each.put(b"space", rows)
        assert each.get(b"space", rows) == {} and each.get(b"good", rows) == rows
    other.close()


def test_it_is_refused_also_while_another_process_writes(file):
    rows = rows_of(0, 10)
    file.put(b"space", rows)
    other = sqlite3.connect(file.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, lambda: other.execute("ROLLBACK"))
    timer.start()
    file.refuse(b"space")
    timer.join()
    other.close()
    after = TokenFile(8 * MIB, file.path)
    assert after.get(b"space", rows) == {}
    after.close()


def test_a_space_whose_number_was_not_committed_is_asked_for_again(file, monkeypatch):
    """Or else it might read what another process has written under the same number."""

    class Full(sqlite3.Connection):
        def __exit__(self, *exception: Any) -> bool:
            self.rollback()
            raise sqlite3.OperationalError("database or disk is full")

    file._connection.close()
    file._connection = sqlite3.connect(file.path, factory=Full, timeout=0, check_same_thread=False)
    file.put(b"space", rows_of(0, 10))
    file._connection.close()
    file._connection = None
    other = TokenFile(8 * MIB, file.path)
    other.put(b"another space", rows_of(0, 10, length=3))
    assert file.get(b"space", rows_of(0, 10)) == {}
    other.close()


def test_nobody_waits_for_another_one_who_writes(file):
    file.put(b"space", rows_of(0, 10))
    other = sqlite3.connect(file.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    file.put(b"space", rows_of(10, 10))  # not now
    file.put(b"new", rows_of(0, 10))
    assert file.get(b"space", rows_of(0, 20)) == rows_of(0, 10)
    other.execute("ROLLBACK")
    other.close()
    file.put(b"space", rows_of(10, 10))
    assert file.get(b"space", rows_of(0, 20)) == rows_of(0, 20)


# -- faults


def test_where_there_are_no_locks_there_are_folders(temporary, monkeypatch):
    class NoLocks:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def __enter__(self) -> None:
            raise NotImplementedError("no flock on this file system")

        def __exit__(self, *exception: object) -> None:
            pass

    monkeypatch.setattr(scratch, "FileLock", NoLocks)
    with scratch_folder(scratch.TOKENS) as one, scratch_folder(scratch.TOKENS) as two:
        assert Path(one).exists() and Path(two).exists()
    assert list(temporary.iterdir()) == []


def test_a_sweep_between_a_folder_and_its_lock_costs_nothing(temporary, monkeypatch):
    original, swept = scratch.FileLock, []

    class Swept:
        """The lock of a folder that a sweep has, and then one that a sweep has just removed."""

        def __init__(self, path: str, **kwargs: Any) -> None:
            self.path, self.kwargs = path, kwargs

        def __enter__(self) -> None:
            swept.append(os.path.dirname(self.path))
            if len(swept) < 3:
                os.rmdir(swept[-1])
            if len(swept) == 1:
                raise scratch.Timeout(self.path)
            if len(swept) == 2:
                raise FileNotFoundError(self.path)
            self.lock = original(self.path, **self.kwargs)
            self.lock.acquire()

        def __exit__(self, *exception: object) -> None:
            self.lock.release()

    monkeypatch.setattr(scratch, "FileLock", Swept)
    with scratch_folder(scratch.TOKENS) as folder:
        assert folder == swept[2] and os.path.isdir(folder) and len(set(swept)) == 3
    assert list(temporary.iterdir()) == []


def test_a_folder_that_locking_makes_anew_is_its_owners_alone(temporary, monkeypatch):
    original = scratch.FileLock

    def lock(path: str, **kwargs: Any) -> Any:
        os.rmdir(os.path.dirname(path))
        return original(path, **kwargs)

    monkeypatch.setattr(scratch, "FileLock", lock)
    with scratch_folder(scratch.TOKENS) as folder:
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


@pytest.mark.parametrize("name", ["another", "{own}-1"])
def test_what_another_machine_has_in_the_same_folder_stays(name, temporary):
    theirs = temporary / f"st_hpo-tokens-{name.format(own=socket.gethostname())}-abcd_123"
    theirs.mkdir()
    (theirs / ".lock").touch()
    with scratch_folder(scratch.TOKENS):
        assert theirs.exists()


def test_a_disk_that_is_nearly_full_is_left_to_the_trials(monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4 * MIB))
    file = TokenFile(8 * MIB)
    assert file.make() is not None and file.max_bytes == MIB
    for start in range(0, 20000, 1000):
        file.put(b"space", rows_of(start, 1000))
    assert os.path.getsize(file.path) <= MIB
    assert 2000 < len(file.get(b"space", rows_of(0, 20000))) < 20000
    file.close()


def test_where_nothing_can_be_written_there_is_no_file(temporary, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "missing"))
    with SharedWork.with_others() as work:
        assert work.place is None
        assert len(texts_tokenised(work)) == len(TEXTS)
        assert len(texts_tokenised(work)) == 1


def test_a_damaged_file_is_not_used(file):
    file.put(b"space", rows_of(0, 2000))
    file._connection.close()
    file._connection = None
    Path(file.path).write_bytes(b"something else" * 10000)
    assert file.get(b"space", rows_of(0, 10)) == {}
    file.put(b"space", rows_of(0, 10))
    assert file.get(b"space", rows_of(0, 10)) == {}


@needs_fork
def test_what_a_killed_process_has_left_is_removed_by_the_next_and_what_is_held_is_not(temporary, tmp_path):
    made = tmp_path / "made"

    def child() -> None:
        file = TokenFile(MIB)
        made.write_text(file.make())
        os.kill(os.getpid(), signal.SIGKILL)

    with scratch_folder(scratch.TOKENS) as held, scratch_folder("st_hpo-other-") as other:
        assert in_child(child) == -signal.SIGKILL
        left = Path(made.read_text()).parent
        assert left.parent == temporary and left.exists()
        file = TokenFile(MIB)
        file.make()
        assert not left.exists() and Path(held).exists() and Path(other).exists()
        file.close()
    assert list(temporary.iterdir()) == []


def test_a_folder_that_is_about_to_be_locked_stays_and_an_old_one_without_a_lock_goes(temporary):
    young, old = (temporary / f"{scratch.TOKENS}{socket.gethostname()}-{name}" for name in ("young", "old"))
    young.mkdir()
    old.mkdir()
    os.utime(old, (1, 1))
    with scratch_folder(scratch.TOKENS):
        assert young.exists() and not old.exists()


# -- memory and file together


def test_what_does_not_fit_in_memory_is_in_the_file(temporary):
    with SharedWork(max_bytes=4000) as work:
        assert len(texts_tokenised(work)) == len(TEXTS)
        assert 0 < work.tokens.size <= 4000 and work.place is not None
        assert len(texts_tokenised(work)) == 1
        assert 0 < work.tokens.size <= 4000
        assert len(list(temporary.iterdir())) == 1
    assert list(temporary.iterdir()) == []


def test_what_makes_room_goes_into_the_file():
    with SharedWork(max_bytes=25_000) as work:
        assert len(texts_tokenised(work)) == len(TEXTS)
        assert work.place is None  # everything is in memory
        with work.trial():
            other = model()
            other.max_seq_length = 7
            other.preprocess(TEXTS)
        assert work.place is not None
        assert len(texts_tokenised(work)) == 1


def test_one_process_with_room_in_memory_makes_no_file(temporary, monkeypatch):
    made: list[SharedWork] = []
    original = searching.shared_work

    def noted(*args: Any, **kwargs: Any) -> SharedWork:
        made.append(original(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(searching, "shared_work", noted)
    monkeypatch.setattr(TokenFile, "make", lambda self: pytest.fail("a file"))
    fast_trainer().hyperparameter_search(n_trials=1, baseline=False)
    assert len(made) == 1 and made[0].place is None


@pytest.mark.parametrize("alone", [True, False], ids=["does not fit", "for others"])
def test_a_search_with_the_file_gives_the_same_numbers(alone, temporary, monkeypatch):
    """And leaves nothing."""
    held: list[int] = []

    def shared_work(share: bool, *args: Any, **kwargs: Any) -> SharedWork:
        if not share:
            return SharedWork(0)
        return SharedWork(max_bytes=3000) if alone else SharedWork.with_others(max_bytes=3000)

    original = TokenCache.clear
    monkeypatch.setattr(searching, "shared_work", shared_work)
    monkeypatch.setattr(TokenCache, "clear", lambda self: (held.append(rows_in(self.file.path)), original(self)))

    def search(share: bool) -> list[float]:
        def hp_space(trial: optuna.Trial) -> dict[str, Any]:
            return {"learning_rate": [1e-4, 1e-3, 1e-4][trial.number] + 0 * trial.suggest_float("x", 0, 1)}

        trainer = fast_trainer()
        best = trainer.hyperparameter_search(hp_space, n_trials=3, share_work=share, baseline=False)
        return [trial.objective for trial in best.run_summary.trials]

    assert search(True) == search(False)
    assert held[0] > 0 and held[1] == 0
    assert [item.name for item in temporary.iterdir() if item.name.startswith("st_hpo")] == []


def test_workers_share_one_file(temporary, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    trainer = fast_trainer(callbacks=[Files(notes)])
    trainer.hyperparameter_search(n_trials=5, n_jobs=2, baseline=False)
    found = [json.loads(path.read_text()) for path in notes.iterdir()]
    assert len(found) == 5 and len({note["process"] for note in found}) == 2
    ((path,),) = [{note["path"] for note in found}]
    assert path is not None and not os.path.exists(path)
    texts = {*trainer.evaluator.sentences1, *trainer.evaluator.sentences2}
    assert max(note["rows"] for note in found) >= len(texts)  # an earlier trial's evaluation
    assert [item.name for item in temporary.iterdir() if item.name.startswith("st_hpo")] == []

"""The worker processes of a search on one machine: started through loky, given trials, and never left behind."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import cloudpickle

from st_hpo.backends.optuna.remote import SHIPMENT_FILE, STOP_FILE, Outcome, Relative, Shipment, serve
from st_hpo.shipping import pack

_GOODBYE_SECONDS = 5.0


@dataclass
class Died:
    """A worker has died in the middle of a trial.

    Attributes:
        reason: How, as far as its exit code says.
    """

    reason: str


@dataclass
class _Worker:
    process: Any
    connection: Any


class Workers:
    """Worker processes, started when they are first used.

    Args:
        folder: A private folder, for what they all get, and for the sign to stop.
        shipment: What they all get.
        count: How many there are.
        gpus: The GPU of each, as ``CUDA_VISIBLE_DEVICES`` names it; empty where there are none.
    """

    def __init__(self, folder: str, shipment: Shipment, count: int, gpus: list[str]) -> None:
        self._folder = folder
        self._gpus = gpus
        self._workers: dict[int, _Worker] = {}
        self._busy: set[int] = set()
        self._count = count
        with open(os.path.join(folder, SHIPMENT_FILE), "wb") as file:
            pickle.dump(pack(shipment, whole_datasets=False), file, protocol=5)

    @property
    def free(self) -> list[int]:
        """The workers that run nothing now."""
        return [index for index in range(self._count) if index not in self._busy]

    @property
    def busy(self) -> set[int]:
        """The workers that run a trial."""
        return set(self._busy)

    def begin(self, index: int, trial_id: int, number: int, values: Mapping[str, Any], relative: Relative) -> None:
        """Has a worker run a trial.

        Args:
            index: The worker.
            trial_id: Optuna's id of the trial.
            number: Its number.
            values: Its hyperparameters.
            relative: What the sampler has proposed for it beyond them.
        """
        message = cloudpickle.dumps((trial_id, number, dict(values), relative))
        if index in self._workers and self._workers[index].process.exitcode is not None:
            self._discard(index)
        if index not in self._workers:
            self._start(index)
        self._busy.add(index)
        with contextlib.suppress(ConnectionError):  # it has died just now: `wait` will tell
            self._workers[index].connection.send_bytes(message)

    def _start(self, index: int) -> None:
        context = importlib.import_module("joblib.externals.loky.backend").get_context("loky")
        ours, theirs = context.Pipe()
        environment = {"CUDA_VISIBLE_DEVICES": self._gpus[index]} if self._gpus else {}
        process = context.Process(
            target=serve, args=(theirs, os.getpid(), self._folder), name=f"st_hpo-worker-{index}", env=environment
        )
        self._workers[index] = _Worker(process, ours)  # known before it begins: a Ctrl-C meanwhile must not lose it
        with _no_ctrl_c():
            process.start()
        theirs.close()

    def wait(self, timeout: float) -> list[tuple[int, Outcome | Died]]:
        """Returns the trials that have ended meanwhile, with their workers.

        Args:
            timeout: How many seconds to wait for one.
        """
        running = {index: self._workers[index] for index in self._busy}
        if not running:
            time.sleep(timeout)
            return []
        ready = wait([item for w in running.values() for item in (w.connection, w.process.sentinel)], timeout)
        found: list[tuple[int, Outcome | Died]] = []
        for index, worker in running.items():
            # A sentinel lies still as long as a process that the worker has begun is there, which has its pipe
            dead = worker.process.sentinel in ready or worker.process.exitcode is not None
            if dead or worker.connection in ready:
                self._busy.discard(index)
                found.append((index, self._received(index, worker)))
        return found

    def _received(self, index: int, worker: _Worker) -> Outcome | Died:
        try:
            if worker.connection.poll():
                outcome: Outcome = pickle.loads(worker.connection.recv_bytes())
                return outcome
        except (EOFError, OSError):
            pass
        worker.process.join(_GOODBYE_SECONDS)
        code = worker.process.exitcode
        self._discard(index)
        return Died(_describe_exit(code))

    def ask_to_stop(self, reason: str) -> None:
        """Has the trials that run end between two steps.

        Args:
            reason: Why, for their records.
        """
        path = os.path.join(self._folder, STOP_FILE)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(reason)
        os.replace(f"{path}.new", path)

    def close(self) -> None:
        """Ends all workers: those that wait for a trial by themselves, the others by force."""
        for index, worker in self._workers.items():
            if index not in self._busy:
                with contextlib.suppress(OSError):
                    worker.connection.send_bytes(b"")
        deadline = time.monotonic() + _GOODBYE_SECONDS
        for index in list(self._workers):
            if index not in self._busy and self._workers[index].process.pid is not None:
                self._workers[index].process.join(max(0.0, deadline - time.monotonic()))
            self._discard(index)
        self._busy.clear()

    def _discard(self, index: int) -> None:
        worker = self._workers.pop(index)
        if worker.process.pid is not None:
            if worker.process.exitcode is None:
                _kill(worker.process)
            worker.process.join()
        worker.connection.close()


@contextlib.contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """A process that begins in here does not see Ctrl-C until it says so itself."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(process: Any) -> None:
    """Ends a process by force; loky's own have no ``kill``."""
    if hasattr(signal, "SIGKILL"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    else:
        process.terminate()


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            hint = " (by the system, if memory was short)" if name == "SIGKILL" else ""
            return f"the worker process was ended by {name}{hint}"
    return f"the worker process has ended with exit code {code}"


def gpus_of_workers(count: int, per_gpu: int | None) -> list[str]:
    """Returns the GPU of each worker, one after the other.

    Args:
        count: How many workers there are.
        per_gpu: How many use one GPU before the next one is used; None for one, and round again.

    Returns:
        What ``CUDA_VISIBLE_DEVICES`` is to be for each; an empty list where this process sees no GPU.
    """
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available == 0:
        return []
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible[:available] or [str(index) for index in range(available)]
    return [names[(index // (per_gpu or 1)) % len(names)] for index in range(count)]


def threads_of_workers(count: int, wanted: int | None) -> int:
    """Returns how many threads PyTorch has in each worker: those asked for, or a share of this process's."""
    import torch

    return wanted or max(1, torch.get_num_threads() // count)

"""What runs in a worker process: trials, one after the other, for the process that has started it."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from st_hpo.backends.optuna.patience import Patience, in_trial
from st_hpo.faults import SearchStopped, StopSignal
from st_hpo.records import COMPLETED, TrialRecord
from st_hpo.scratch import TOKENS, sweep
from st_hpo.shipping import Parcel, pack_exception

SHIPMENT_FILE = "trials.pkl"
STOP_FILE = "stop"
_WATCH_SECONDS = 0.5
# What a sampler has proposed for a whole trial: for which parameters, and their values; None if it was not asked
Relative = tuple[dict[str, Any], dict[str, Any]] | None


@dataclass
class Shipment:
    """What every worker gets once.

    Attributes:
        trials: The search's :class:`~st_hpo.backends.target.PortableTrials`.
        storage: The study's storage, pickled on its own: opening it may take patience.
        patience: For how many seconds.
        url: Its URL where it has one: no message may show the password in it.
        study_name: The study's name.
        sampler: For what ``model_init`` and ``loss_init`` suggest.
        pruner: For the reports.
        several: Whether there are several objectives.
        threads: PyTorch's threads.
        torch: What the script has set in PyTorch that changes numbers.
        paused: The folder of the checkpoints of trials that pause, None for none.
    """

    trials: Any
    storage: bytes
    patience: float
    url: Any
    study_name: str
    sampler: Any
    pruner: Any
    several: bool
    threads: int
    torch: dict[str, Any] = field(default_factory=dict)
    paused: str | None = None


@dataclass
class Outcome:
    """What became of a trial.

    Attributes:
        record: Its record.
        names: The names of the objectives, where an evaluation has told them.
        error: What it raised, as :func:`~st_hpo.shipping.pack_exception` pickles it.
        raised: Whether it raised anything.
    """

    record: TrialRecord
    names: list[str] | None = None
    error: bytes | None = None
    raised: bool = False


class StopFile(StopSignal):
    """Whether the search is to end, and why, as a file says that all workers see.

    Args:
        folder: Where the file would be.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._path = os.path.join(folder, STOP_FILE)

    @property
    def reason(self) -> str | None:
        """See :class:`~st_hpo.faults.StopSignal`."""
        if not os.path.exists(self._path):
            return None
        with open(self._path, encoding="utf-8") as file:
            return file.read()


def serve(connection: Any, parent: int, folder: str) -> None:
    """Runs trials until the parent closes the connection, or is gone.

    Args:
        connection: Where the trials come from, and their outcomes go to.
        parent: The parent's process id.
        folder: Where the parent has put what the trials need.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_exit_with, args=(parent, folder), daemon=True).start()
    try:
        worker = _Worker(folder)
        while (message := connection.recv_bytes()) != b"":
            connection.send_bytes(cloudpickle.dumps(worker.run(*pickle.loads(message))))
    except (EOFError, ConnectionError):
        pass  # the parent is gone


def _exit_with(parent: int, folder: str) -> None:
    """Ends this process when its parent is gone, be it in the middle of a trial; and removes what the parent had."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        sweep(TOKENS)
    finally:
        os._exit(1)


class _Worker:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._stop = StopFile(folder)
        self._shipment: Shipment | None = None
        self._storage: Any = None
        self._trials_run = 0

    def run(self, trial_id: int, number: int, values: Mapping[str, Any], relative: Relative) -> Outcome:
        """Runs a trial; whatever it raises is part of the outcome."""
        record = TrialRecord(number)
        try:
            from st_hpo.backends.optuna.careful import careful_sampling

            with careful_sampling():
                try:
                    self._open()
                    trial = self._trial(trial_id, relative)
                except Exception as exc:
                    record.state, record.error = "failed", f"{type(exc).__name__}: {exc}"
                    raise
                self._run(trial, record, values)
        except BaseException as exc:
            return Outcome(record, error=pack_exception(exc), raised=True)
        assert self._shipment is not None
        names = self._shipment.trials.objective_names if record.state == COMPLETED else None
        return Outcome(record, names)

    def _run(self, trial: Any, record: TrialRecord, values: Mapping[str, Any]) -> None:
        from st_hpo.backends.optuna.paused import checkpoints_of
        from st_hpo.backends.optuna.promotion import Reporter

        assert self._shipment is not None

        def propose() -> Mapping[str, Any]:
            self._stop.check()
            return values

        report = None if self._shipment.several else Reporter(trial)
        checkpoints = checkpoints_of(trial, self._shipment.paused)
        try:
            with in_trial():
                self._shipment.trials.run(record, propose, trial, report, checkpoints, stop=self._stop)
        finally:
            self._trials_run += 1
            if self._trials_run == 1:
                _freeze()

    def _open(self) -> None:
        if self._shipment is not None:
            return
        with open(os.path.join(self._folder, SHIPMENT_FILE), "rb") as file:
            parcel: Parcel = pickle.load(file)
        if os.path.isdir(parcel.folder):
            os.chdir(parcel.folder)
        shipment: Shipment = parcel.unpack()
        use_torch_settings(shipment.torch, shipment.threads)
        self._storage = Patience(shipment.patience, shipment.url).call(lambda: pickle.loads(shipment.storage))
        shipment.sampler.reseed_rng()
        self._shipment = shipment
        _freeze()

    def _trial(self, trial_id: int, relative: Relative) -> Any:
        import optuna

        from st_hpo.backends.optuna.steady import heed

        assert self._shipment is not None
        study = optuna.load_study(
            study_name=self._shipment.study_name,
            storage=self._storage,
            sampler=self._sampler(relative),
            pruner=self._shipment.pruner,
        )
        heed(study, lambda: SearchStopped(reason) if (reason := self._stop.reason) is not None else None)
        study.get_trials(deepcopy=False)  # a caching storage knows only the trials that it has read
        return optuna.trial.Trial(study, trial_id)

    def _sampler(self, relative: Relative) -> Any:
        """Returns what `model_init` and `loss_init` draw from: first of all what the parent's sampler has proposed.

        The copy of it here does not begin trials, and does not propose them once more.
        """
        assert self._shipment is not None
        sampler = self._shipment.sampler
        sampler.before_trial = lambda study, trial: None
        for name in ("infer_relative_search_space", "sample_relative"):
            vars(sampler).pop(name, None)  # what the trial before had
        if relative is not None:
            space, values = relative
            sampler.infer_relative_search_space = lambda study, trial: space
            sampler.sample_relative = lambda study, trial, search_space: values
        return sampler


def _freeze() -> None:
    """Takes what exists by now out of every later garbage collection, as the search does in its own process."""
    gc.collect()
    gc.freeze()


def torch_settings() -> dict[str, Any]:
    """Returns what a script may have set in PyTorch that changes the numbers of a training, and how much it prints."""
    import torch
    from transformers import logging as transformers_logging

    found: dict[str, Any] = {"verbosity": transformers_logging.get_verbosity()}
    for name, get in (
        ("dtype", torch.get_default_dtype),
        ("precision", torch.get_float32_matmul_precision),
        ("deterministic", torch.are_deterministic_algorithms_enabled),
        ("warn_only", torch.is_deterministic_algorithms_warn_only_enabled),
        ("cudnn.benchmark", lambda: torch.backends.cudnn.benchmark),
        ("cudnn.deterministic", lambda: torch.backends.cudnn.deterministic),
        ("cudnn.allow_tf32", lambda: torch.backends.cudnn.allow_tf32),
    ):
        with contextlib.suppress(RuntimeError):  # it refuses to say after its newer settings have been used
            found[name] = get()
    return found


def use_torch_settings(settings: Mapping[str, Any], threads: int) -> None:
    """Sets in this process what :func:`torch_settings` has found in another one, as far as it differs.

    Args:
        settings: What was found.
        threads: PyTorch's threads.
    """
    import torch
    from transformers import logging as transformers_logging

    torch.set_num_threads(threads)
    transformers_logging.set_verbosity(settings["verbosity"])
    here = torch_settings()
    changed = {name: value for name, value in settings.items() if here.get(name) != value}
    if "dtype" in changed:
        torch.set_default_dtype(changed["dtype"])
    if "precision" in changed:
        torch.set_float32_matmul_precision(changed["precision"])
    if "deterministic" in changed or "warn_only" in changed:
        torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn_only"])
    for name in ("benchmark", "deterministic", "allow_tf32"):
        if f"cudnn.{name}" in changed:
            setattr(torch.backends.cudnn, name, changed[f"cudnn.{name}"])

"""What runs in Ray's worker processes: one trial, and the reports that Ray Tune decides on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from st_hpo.backends.ray.scheduling import RUNG
from st_hpo.backends.target import PortableTrials
from st_hpo.checkpoints import TrialCheckpoints
from st_hpo.errors import ConfigurationError, HPOError
from st_hpo.records import FAILED, Baseline, TrialRecord
from st_hpo.rung_points import REDUCTION_FACTOR
from st_hpo.shipping import Parcel, pack_exception, unpack_exception
from st_hpo.space import SearchSpace

RECORD = "st_hpo/record"
NAMES = "st_hpo/objective_names"
OBJECTIVE = "objective"
HAS_FAILED = "st_hpo/failed"  # in the values of a trial that is not to be retried
# What may change in the middle of a training; anything else would be ignored, or would make it another one
MUTABLE = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "loss.")
_VALUES_FILE = "hyperparameters.pkl"


class TrialFailed(HPOError):
    """A trial has failed in a worker; carries its record and what it raised.

    Attributes:
        record: The trial's record.
        pickled: What it raised, as :func:`~st_hpo.shipping.pack_exception` pickles it; None where it cannot.
        raised: Whether it raised anything; a trial also fails by an objective that is NaN.
    """

    def __init__(self, record: Mapping[str, Any], pickled: bytes | None = None, raised: bool = True) -> None:
        self.record = dict(record)
        self.pickled = pickled
        self.raised = raised
        super().__init__(record, pickled, raised)

    def __str__(self) -> str:
        return str(self.record.get("error"))

    def error(self) -> BaseException:
        """Returns what the trial raised, or an error that quotes it where it does not survive the way."""
        if self.pickled is not None:
            try:
                return unpack_exception(self.pickled)
            except Exception:  # what it takes to make one is only there where it was raised
                pass
        return HPOError(str(self))


@dataclass
class Shipment:
    """What every worker gets, through Ray's object store.

    Attributes:
        trials: Runs the trials.
        space: The SearchSpace, to give values back their types; None for a space in Ray Tune's format.
        n_objectives: How many objectives there are.
        needs_checkpoints: Whether the scheduler pauses trials, or continues them with other values.
        may_mutate: Whether it continues them with other values.
        rungs: The steps of the reports at the rungs of a trial.
    """

    trials: PortableTrials
    space: SearchSpace | None
    n_objectives: int
    needs_checkpoints: bool
    may_mutate: bool
    rungs: list[int] = field(default_factory=list)


_opened: dict[str, Shipment] = {}


def open_parcel(holder: Any) -> Shipment:
    """Fetches and unpacks what the driver has sent, once in a process: actors are reused."""
    import ray

    (reference,) = ray.get(holder.get.remote())
    key = reference.hex()
    if key not in _opened:
        _opened.clear()
        _opened[key] = opened(ray.get(reference))
    return _opened[key]


def opened(parcel: Parcel) -> Shipment:
    """Unpacks what the driver has sent, and goes to its working directory, where relative paths have their meaning."""
    import ray

    if os.path.isdir(parcel.folder) and "working_dir" not in ray.get_runtime_context().runtime_env:
        os.chdir(parcel.folder)
    shipment: Shipment = parcel.unpack()
    return shipment


def remote_baseline(parcel: Parcel) -> tuple[Baseline, list[str], list[str]]:
    """Evaluates the untrained model in a worker: see :meth:`PortableTrials.settled_baseline`.

    Raises:
        TrialFailed: Whatever that raised.
    """
    shipment = opened(parcel)
    try:
        return shipment.trials.settled_baseline()
    except BaseException as exc:
        raise TrialFailed({"error": f"{type(exc).__name__}: {exc}"}, pack_exception(exc)) from None


def remote_default(parcel: Parcel) -> dict[str, Any]:
    """Trains with the user's own arguments in a worker, and returns the record.

    Raises:
        TrialFailed: Whatever that raised.
    """
    shipment, record = opened(parcel), TrialRecord(-1)
    try:
        shipment.trials.run_default(record)
    except BaseException as exc:
        raise TrialFailed(record.to_dict(), pack_exception(exc)) from None
    return record.to_dict()


def run_trial(config: dict[str, Any], holder: Any) -> None:
    """The function that Ray Tune runs: one trial.

    Args:
        config: The values, in Ray Tune's own form.
        holder: The actor that holds Ray's reference to the packed :class:`Shipment`.

    Raises:
        TrialFailed: Whatever the trial raised.
    """
    from ray import tune

    if config.get(HAS_FAILED):
        raise TrialFailed({"error": "The trial has failed before."})
    shipment = open_parcel(holder)
    record = TrialRecord(0, backend_id=tune.get_context().get_trial_id())
    values = dict(config) if shipment.space is None else shipment.space.decode(config)
    with tempfile.TemporaryDirectory(prefix="st_hpo-") as folder:
        reporter = _Reporter(record, values, shipment)
        try:
            reporter.checkpoints = checkpoints = _checkpoints(reporter, folder, shipment, values)
            several = shipment.n_objectives > 1
            shipment.trials.run(record, lambda: values, dict(values), None if several else reporter, checkpoints)
        except BaseException as exc:
            if reporter.ended:
                raise
            record.error = record.error or f"{type(exc).__name__}: {exc}"
            # To Ray, SystemExit would be a worker that has died
            raise TrialFailed(record.to_dict(), pack_exception(exc)) from None
        if record.state == FAILED:
            raise TrialFailed(record.to_dict(), raised=False)
        reporter.report(final=True)


def _checkpoints(reporter: _Reporter, folder: str, shipment: Shipment, values: Mapping[str, Any]) -> TrialCheckpoints:
    """The trial's checkpoints, from the one on that Ray Tune wants it to continue from, if any."""
    from ray import tune

    resumed, resume_from = tune.get_checkpoint(), None
    if resumed is not None:
        resume_from = resumed.to_directory(os.path.join(folder, "resumed"))
        if shipment.may_mutate:
            check_mutation(resume_from, values)
    return TrialCheckpoints(
        reporter.saved, folder=folder if shipment.needs_checkpoints else None, resume_from=resume_from
    )


class _Reporter:
    """Tells Ray Tune of evaluations, together with the checkpoint where one is written right after.

    Attributes:
        checkpoints: The trial's checkpoints.
        ended: Whether Ray Tune has ended or paused the trial, which it does inside of a report, by SystemExit.
    """

    def __init__(self, record: TrialRecord, values: dict[str, Any], shipment: Shipment) -> None:
        self._record = record
        self._values = values
        self._trials = shipment.trials
        self._rungs = shipment.rungs
        self._pending: tuple[float, int] | None = None
        self._last_folder: str | None = None
        self.checkpoints: Any = None
        self.ended = False

    def __call__(self, value: float, step: int) -> bool:
        self._pending = (value, step)
        # The evaluation after the last step is the final report: a scheduler that ends trials after so and so many
        # reports would end the trial on the finishing line
        if not self.checkpoints.save_follows and not self.checkpoints.at_end:
            self.report()
        return False

    def saved(self, folder: str) -> None:
        """Reports the evaluation that the checkpoint belongs to; a checkpoint without one stays where it is."""
        if self._pending is not None:
            with open(os.path.join(folder, _VALUES_FILE), "wb") as file:
                cloudpickle.dump(self._values, file)
            if self.checkpoints.at_end:
                self._last_folder = folder
            else:
                self.report(folder)

    def report(self, folder: str | None = None, final: bool = False) -> None:
        """Sends a report."""
        from ray import tune

        numbers = {key: value for key, value in self._record.metrics.items() if isinstance(value, float | int)}
        report: dict[str, Any] = {**numbers, RECORD: json.dumps(self._record.to_dict())}
        if final:
            values = self._record.values
            report[NAMES] = json.dumps(self._trials.objective_names)
            report.update(zip(self._trials.objective_names, values, strict=True))
            if len(values) == 1:
                report[OBJECTIVE] = values[0]
            folder = self._last_folder
        elif self._pending is not None:
            report[OBJECTIVE], report["step"] = self._pending
            if report["step"] in self._rungs:
                report[RUNG] = REDUCTION_FACTOR ** self._rungs.index(report["step"])
            self._pending = None
        try:
            tune.report(report, checkpoint=None if folder is None else tune.Checkpoint.from_directory(folder))
        except SystemExit:
            self.ended = True
            raise


def check_mutation(checkpoint: str, values: Mapping[str, Any]) -> None:
    """Refuses to continue a training with values that cannot change in its middle.

    Raises:
        ConfigurationError: Naming them.
    """
    file = os.path.join(checkpoint, _VALUES_FILE)
    with open(file, "rb") as opened:
        before = cloudpickle.load(opened)
    changed = [name for name in values if before.get(name) != values[name]]
    if fixed := [name for name in changed if not name.startswith(MUTABLE)]:
        raise ConfigurationError(
            f"The scheduler has changed {fixed} in the middle of a training, where it cannot take effect. Let it "
            f"change only {[name + '*' if name.endswith('.') else name for name in MUTABLE]}."
        )

"""What a backend sees of a search: protocols, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from st_hpo.records import Baseline, TrialRecord

Report = Callable[[float, int], bool]
Propose = Callable[[], Mapping[str, Any]]


class PortableTrials(Protocol):
    """What runs the trials of a search in another process, once cloudpickle has taken it there. It holds no model."""

    def run(
        self,
        record: TrialRecord,
        propose: Propose,
        native: Any = None,
        report: Report | None = None,
        checkpoints: Any = None,
    ) -> None:
        """Runs a trial and fills its record; see :meth:`SearchTarget.run_trial`.

        Args:
            record: The record to fill.
            propose: Gives the hyperparameters.
            native: The backend's own trial.
            report: Takes an intermediate objective and its step.
            checkpoints: A :class:`~st_hpo.checkpoints.TrialCheckpoints` where the backend pauses or moves trials.

        Raises:
            Exception: What the trial raised; recorded before.
        """

    def run_default(self, record: TrialRecord) -> None:
        """Trains with the user's own arguments, and fills the record; see :meth:`SearchTarget.run_default`."""

    @property
    def objective_names(self) -> list[str]:
        """The metric keys that are optimized, known for certain after an evaluation."""

    def settled_baseline(self) -> tuple[Baseline, list[str], list[str]]:
        """Evaluates the untrained model.

        Returns:
            The baseline, and the names and directions of the objectives: an evaluator may know them only now.
        """


class SearchTarget(Protocol):
    """A search, as a backend sees it (the ``trainer`` of transformers' ``run``)."""

    hp_space: Any
    verbose: bool

    @property
    def objective_names(self) -> list[str]:
        """The metric keys that are optimized; empty while only an evaluator's first run can tell."""

    @property
    def directions(self) -> list[str]:
        """``"minimize"`` or ``"maximize"`` for each objective."""

    @property
    def rungs(self) -> list[int]:
        """The steps that ``report`` is called with: per cent of the training, or examples.

        Empty where the training's own evaluations are reported, with their optimizer steps.
        """

    @property
    def portable(self) -> PortableTrials:
        """What runs the same trials in other processes."""

    def run_trial(
        self,
        number: int,
        propose: Propose,
        native: Any = None,
        report: Report | None = None,
        *,
        checkpoints: Any = None,
        backend_id: str | None = None,
        catch: tuple[type[BaseException], ...] = (),
        continues: int | None = None,
    ) -> TrialRecord:
        """Runs one trial from start to end, in this process.

        Args:
            number: The trial's number, from 0.
            propose: Gives the hyperparameters.
            native: The backend's own trial, or a dict of the values, for ``model_init(trial)``,
                ``loss_init(model, trial)`` and ``hp_name(trial)``.
            report: Takes an intermediate objective and its step, and says whether the trial is to be pruned. None
                for several objectives, where nothing can be pruned. Where it has an attribute ``reached``, the rungs
                up to that one are not evaluated: an earlier trial of the same values has done so.
            checkpoints: The :class:`~st_hpo.pausing.PausingCheckpoints` of a trial that may pause and be taken up
                again.
            backend_id: What the backend calls the trial, if not by its number.
            catch: Exceptions that fail the trial, but not the search.
            continues: The number of the paused trial that this one takes up again, if it does.

        Returns:
            The record of a completed trial; of one that ``report`` pruned; or of a failed one, whose objective is NaN
            or which raised what does not end the search.

        Raises:
            SearchStopped: A timeout or SIGTERM; the trial is recorded as failed.
            TooManyFailuresError: This trial was one failure in a row too many.
            Exception: What a trial raised, recorded as failed; as pruned, if it is one of ``pruned_exceptions``.
        """

    def run_default(self, record: TrialRecord) -> None:
        """Trains with the user's own arguments, in this process, and fills the record."""

    def take_over(self, record: TrialRecord, values: Mapping[str, Any], native: Any = None) -> bool:
        """Completes a trial that equals an earlier one with that one's value, instead of training it again.

        Only a backend whose trials run in other processes has to ask: :meth:`run_trial` does it by itself.

        Args:
            record: Its record, with its number.
            values: Its hyperparameters, as proposed.
            native: The backend's own trial.

        Returns:
            Whether it is completed now. If so, :meth:`add_record` takes the record as that of any other trial.
        """

    def add_record(self, record: TrialRecord, objective_names: list[str] | None = None) -> None:
        """Takes the record of a trial that has ended in another process.

        Args:
            record: Its record.
            objective_names: The metric keys that were optimized there, where they are known now.
        """

    def survives(self, exc: BaseException, catch: tuple[type[BaseException], ...] = ()) -> bool:
        """Whether the search goes on after a trial that has raised this in another process.

        Args:
            exc: What it raised.
            catch: Exceptions that fail a trial, but not the search.
        """

    @property
    def ending(self) -> BaseException | None:
        """What ends the search now and is to be raised: a timeout, SIGTERM, too many failures. None to go on.

        Only a backend whose trials run in other processes has to ask: :meth:`run_trial` raises it by itself.
        """

    @property
    def no_more(self) -> BaseException | None:
        """What is to be raised instead of beginning one more trial; None to go on.

        That is :attr:`ending`, or the search has enough: its patience or its budget is used up. Trials that run are
        trained to their end then. A backend asks before it makes a trial, which would be there in vain;
        :meth:`run_trial` raises it by itself.
        """

    def enough(self, reason: str) -> None:
        """Has no new trial begin.

        Args:
            reason: Why, in words, for the result.
        """

    def waiting(self) -> None:
        """Says that this process waits for trials that others run. To be called every second or so meanwhile."""

    @property
    def output_dir(self) -> str:
        """The folder for everything that the search writes: that of the training arguments."""

    def record_of(self, number: int) -> TrialRecord | None:
        """Returns the record of a trial of this search, None for any other."""

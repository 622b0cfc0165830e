"""A trial as a run of Trackio. Imports trackio inside its functions."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from transformers import TrainerCallback

from st_hpo.records import TrialRecord
from st_hpo.trackers.trial_run import TrialRun, with_model_config

# What upstream's callbacks leave out: numbers of the whole training
_OF_THE_WHOLE = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}


class TrackioTrialRun(TrialRun):
    """A run beside the one that the user may have open, which is the current one again afterwards.

    Upstream's callback closes its run when the training ends and opens another one for the evaluation after it, knows
    no groups, and turns the Space into a static one after every training. So the trial has a callback of ours.

    Attributes:
        reporter: The callback that stands in for upstream's.
    """

    tracker = "Trackio"

    def __init__(self, callback: Any, facts: Any) -> None:
        super().__init__(callback, facts)
        self.reporter = _Reporter()

    def open(self, args: Any, model: Any) -> None:
        """See :meth:`TrialRun.open`."""
        import trackio

        variables = [item for item in vars(trackio.context_vars).values() if isinstance(item, ContextVar)]
        self._before = [(item, item.get()) for item in variables]
        self._config = trackio.config
        trackio.context_vars.current_run.set(None)  # or it would be finished
        config = {**with_model_config(args, model), **self.facts.hyperparameters, "trial": self.facts.number}
        bucket = getattr(args, "trackio_bucket_id", None)  # older versions of both know none
        try:
            with self._quiet():
                self.reporter.run = trackio.init(
                    project=args.project,
                    name=self.facts.name,
                    group=self.facts.group,
                    space_id=args.trackio_space_id,
                    private=args.hub_private_repo,
                    config={name: value for name, value in config.items() if not name.startswith("_")},
                    resume="never",
                    **({"bucket_id": bucket} if bucket else {}),
                )
        except BaseException:
            self._restore()
            raise

    def close(self, record: TrialRecord) -> None:
        """See :meth:`TrialRun.close`."""
        try:
            ended = {**self.facts.final(record), "trial_state": record.state}
            if record.error:
                ended["trial_error"] = record.error
            self.reporter.run.log(ended)
        finally:
            try:
                with self._quiet():
                    self.reporter.run.finish()
            finally:
                self.reporter.run = None
                self._restore()

    def _restore(self) -> None:
        import trackio

        for variable, value in self._before:
            variable.set(value)
        trackio.config = self._config

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Trackio prints several lines for every run."""
        with contextlib.nullcontext() if self.facts.verbose else contextlib.redirect_stdout(io.StringIO()):
            yield


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Logs what upstream's callback does, under the same names, to the one run of the trial."""

    run: Any = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        from transformers.integrations import rewrite_logs

        if self.run is not None:
            kept = {name: value for name, value in logs.items() if name not in _OF_THE_WHOLE}
            self.run.log({**rewrite_logs(kept), "train/global_step": state.global_step})

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        from transformers.integrations import rewrite_logs

        if self.run is not None:
            self.run.log(rewrite_logs(metrics))

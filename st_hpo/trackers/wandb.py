"""A trial as a run of Weights & Biases. Imports wandb inside its functions."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from typing import Any

from st_hpo.records import FAILED, TrialRecord
from st_hpo.trackers.trial_run import TrialRun

# What ``wandb`` has of the run that is the current one
_CURRENT = ("run", "config", "summary")
_FUNCTIONS = (
    "log",
    "save",
    "use_artifact",
    "log_artifact",
    "define_metric",
    "alert",
    "mark_preempting",
    "log_model",
    "use_model",
    "link_model",
    "watch",
    "unwatch",
)


def is_run_of(backend_id: str | None) -> bool:
    """Whether the trial of this id is a W&B run already: that of a sweep, which its backend opens and closes."""
    module = sys.modules.get("wandb")
    run = None if module is None else module.run
    return backend_id is not None and run is not None and run.id == backend_id


class WandbTrialRun(TrialRun):
    """A run beside the one that the user may have open, which is the current one again afterwards."""

    tracker = "W&B"

    def open(self, args: Any, model: Any) -> None:
        """See :meth:`TrialRun.open`."""
        import wandb

        settings = wandb.setup().settings
        self._before = {name: getattr(wandb, name) for name in (*_CURRENT, *_FUNCTIONS) if hasattr(wandb, name)}
        run = wandb.init(
            config=self.facts.hyperparameters,
            project=os.getenv("WANDB_PROJECT", "huggingface"),
            name=self.facts.name,
            group=self.facts.group,
            id=secrets.token_hex(4),  # one of its own, also where WANDB_RUN_ID is set
            settings=wandb.Settings(reinit="create_new", silent=settings.silent or not self.facts.verbose),
        )
        self._run = run
        self._finish = run.finish
        # Upstream's callback calls wandb.finish() when a trial begins, and would open another run
        run.finish = lambda exit_code=None: None
        for name in self._before:
            setattr(wandb, name, run if name == "run" else getattr(run, name, None))

    def begun(self) -> None:
        """See :meth:`TrialRun.begun`: upstream's callback has logged all training arguments."""
        self._run.config.update(self.facts.hyperparameters, allow_val_change=True)

    def close(self, record: TrialRecord) -> None:
        """See :meth:`TrialRun.close`."""
        import wandb
        from transformers.integrations import rewrite_logs

        try:
            summary = {**rewrite_logs(dict(record.metrics)), **self.facts.objectives(record)}
            summary["trial_state"] = record.state
            if record.error:
                summary["trial_error"] = record.error
            self._run.summary.update(summary)
            self._run.tags = (*(self._run.tags or ()), record.state)
        finally:
            with contextlib.suppress(AttributeError):
                del self._run.finish
            try:
                self._finish(exit_code=1 if record.state == FAILED else 0)
            finally:
                for name, value in self._before.items():
                    setattr(wandb, name, value)

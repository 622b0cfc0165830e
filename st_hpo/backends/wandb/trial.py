"""One trial as a run of a W&B sweep: opened, logged to and closed. Imports wandb inside its functions."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from st_hpo.backends.target import SearchTarget
from st_hpo.backends.wandb import agent as wandb_agent
from st_hpo.backends.wandb import space as wandb_space
from st_hpo.errors import BackendUnavailableError, ConfigurationError
from st_hpo.records import FAILED, TrialRecord
from st_hpo.space import SearchSpace

logger = logging.getLogger(__name__)


def logged_name(objective: str) -> str:
    """Returns the name under which an objective is logged: that of upstream's W&B callback, ``eval/...``."""
    if objective == "objective" or objective.startswith("objective_"):
        return objective  # what a function computes
    key = objective if objective.startswith(("eval_", "test_")) else f"eval_{objective}"
    return next(iter(_logged({key: None})))


def _logged(metrics: Mapping[str, Any]) -> dict[str, Any]:
    from transformers.integrations import rewrite_logs

    return dict(rewrite_logs(dict(metrics)))


def run_trial(
    trainer: SearchTarget,
    agent: wandb_agent.Agent,
    number: int,
    command: Mapping[str, Any],
    names: list[str] | None,
    metric: str | None,
    catch: tuple[type[BaseException], ...],
) -> None:
    """Runs the trial for which the server has given a run.

    Args:
        trainer: The search.
        agent: The agent that was given the run.
        number: The trial's number in this search.
        command: What the server sent.
        names: The hyperparameters in the space; None where only the server knows them.
        metric: What the sweep optimizes, by its logged name; None for several objectives.
        catch: Exceptions that fail the trial but not the search.

    Raises:
        BackendUnavailableError: The server does not take the run.
        Exception: What the trial raised, unless ``catch`` names it.
    """
    run_id = str(command["run_id"])
    values = wandb_space.arrived(command.get("args") or {}, names)
    space = trainer.hp_space if isinstance(trainer.hp_space, SearchSpace) and names is not None else None
    stop = threading.Event()

    def propose() -> Mapping[str, Any]:
        return values if space is None else space.decode(values)

    native = dict(values)
    if space is not None:
        with contextlib.suppress(ConfigurationError):  # `propose` raises it within the trial, which records it
            native = space.decode(values)
    with agent.running(run_id, stop), _open_run(trainer, agent, number, command, stop) as run:

        def report(value: float, step: int) -> bool:
            record = trainer.record_of(number)
            if trainer.rungs and record is not None:
                step = record.rungs[-1]["step"]
            logged = _logged(record.metrics if record is not None else {})
            # Transformers' own callback, if the trainer has it, has logged this evaluation already
            if run.summary.get("train/global_step") == step and logged.keys() <= set(run.summary.keys()):
                logged = {}
            run.log({**logged, "objective": value, "train/global_step": step})
            agent.ask(run_id, stop)
            return stop.is_set()

        record = trainer.run_trial(
            number,
            propose,
            native,
            report if len(trainer.directions) == 1 else None,
            backend_id=run_id,
            catch=catch,
        )
        logged = {**_logged(record.metrics), "objective": None, **dict(run.summary)}
        if number == 0 and record.values and metric is not None and metric not in logged:
            logger.warning(
                f"The sweep optimizes {metric!r}, which the trial has not logged, so the sweep cannot compare its "
                f"runs. There are: {', '.join(sorted(name for name in logged if not name.startswith('_')))}."
            )


@contextlib.contextmanager
def _open_run(
    trainer: SearchTarget,
    agent: wandb_agent.Agent,
    number: int,
    command: Mapping[str, Any],
    stop: threading.Event,
) -> Iterator[Any]:
    """The W&B run of a trial; closed at the end of the block, in the state that the trial's record has then."""
    import wandb

    settings = wandb.setup().settings
    # A model may take long to upload
    limit = 0.0 if os.environ.get("WANDB_LOG_MODEL", "false").lower() != "false" else wandb_agent.UPLOAD_SECONDS
    sweep = agent.sweep
    ours = wandb.Settings(
        run_id=command["run_id"],
        sweep_id=sweep.id,
        project=sweep.project,
        entity=sweep.entity,
        run_name=f"trial-{number}",
        resume="allow" if command.get("type") == "resume" else None,
        silent=settings.silent or not trainer.verbose,
        init_timeout=min(settings.init_timeout, wandb_agent.UPLOAD_SECONDS),
        finish_timeout=settings.finish_timeout or limit,
        stop_fn=lambda: stop.set(),  # a function, because `run.settings` copies deeply
    )
    try:
        run = wandb.init(settings=ours)
    except Exception as exc:
        raise BackendUnavailableError(
            f"The W&B server did not take the run {command['run_id']!r} of the sweep {sweep.path!r}: {exc}."
        ) from exc
    # Locked, as wandb's agent does it: the search engine reads the values back, and a callback logs others
    config = wandb_space.proposed(command.get("args") or {})
    run.config.update_locked(config, user="sweep", _allow_val_change=True)
    finish = run.finish
    # Transformers' callback calls wandb.finish() when a trial begins, and would open another run
    run.finish = lambda exit_code=None: None
    try:
        yield run
    finally:
        record = trainer.record_of(number)
        try:
            _log_end(run, record, len(trainer.directions) == 1)
            agent.check_silence()
            finish(exit_code=1 if record is None or record.state == FAILED else 0)
        except Exception as exc:  # the trial itself has ended, and what ended it must be seen
            logger.warning(f"The W&B run {run.id} could not be closed ({type(exc).__name__}: {exc}).")


def _log_end(run: Any, record: TrialRecord | None, single: bool) -> None:
    """Logs what the trial ended with, as far as it is not what was logged last."""
    if record is None:
        return
    final = _logged(record.metrics)
    objectives = ["objective"] if single else [f"objective_{index}" for index in range(len(record.values))]
    final.update(zip(objectives, record.values, strict=False))
    new = {name: value for name, value in final.items() if not _same(run.summary.get(name), value)}
    if new:
        run.log(new)
    run.summary.update({"trial_state": record.state, **({"trial_error": record.error} if record.error else {})})


def _same(logged: Any, value: Any) -> bool:
    both_nan = isinstance(logged, float) and isinstance(value, float) and math.isnan(logged) and math.isnan(value)
    return both_nan or logged == value

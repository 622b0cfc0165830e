"""Training by hand, in a fresh process: the truth that every objective of a search is compared with, bit for bit.

The processes are forked from a server that has only imported: nothing was built or trained before in any of them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

import torch
import transformers
from transformers import set_seed

from scenarios import SCENARIOS, arguments

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def train_once(scenario_name: str, values: dict[str, Any]) -> dict[str, float]:
    """Trains with plain upstream classes, as a script without any search would.

    Args:
        scenario_name: Which of the scenarios.
        values: Its hyperparameters, as a trial names them.

    Returns:
        The metrics of an evaluation at the end.
    """
    scenario = SCENARIOS[scenario_name]
    own = {name: value for name, value in values.items() if "." not in name}
    model_values = {name[6:]: value for name, value in values.items() if name.startswith("model.")}
    loss_values = {name[5:]: value for name, value in values.items() if name.startswith("loss.")}
    args = arguments(scenario.arguments, **{**(scenario.fixed or {}), **own})
    set_seed(args.seed)
    model = scenario.model_init(**model_values)
    if isinstance(scenario.loss_init, dict):
        loss: Any = {
            name: make(model, **(loss_values if name == "scored" else {})) for name, make in scenario.loss_init.items()
        }
    else:
        loss = scenario.loss_init(model, **loss_values) if scenario.loss_init is not None else None
    trainer = scenario.plain(
        model=model,
        args=args,
        train_dataset=scenario.train(),
        eval_dataset=scenario.eval_data() if scenario.eval_data else None,
        loss=loss,
        evaluator=scenario.evaluator(),
    )
    trainer.train()
    return trainer.evaluate()


def train_each(scenario_name: str, trials: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Trains once for each set of values, every time in a new process; returns the metrics of each."""
    context = multiprocessing.get_context("forkserver")
    # The server finds the module to preload through the environment alone (before Python 3.12 it ignores sys.path)
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    context.set_forkserver_preload(["by_hand"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        return pool.starmap(train_once, [(scenario_name, values) for values in trials], chunksize=1)

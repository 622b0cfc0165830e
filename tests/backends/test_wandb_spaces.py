"""Spaces of the W&B backend: what its sweeps propose, and what is refused before any model is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

import st_hpo
from st_hpo import (
    BackendNotInstalledError,
    Categorical,
    ConfigurationError,
    Float,
    Int,
    SearchSpace,
)
from st_hpo.backends import get_backend
from st_hpo.backends.wandb import space as wandb_space

from fast_trainer import RATES, fast_arguments, fast_trainer, loss_init
from wandb_setup import (
    EVERY_STEP,
    TWO,
    grid,
    search,
)

pytest_plugins = ["wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("no_wandb_of_before")


# ---- Values ----


def test_values_have_their_declared_types_and_dotted_names(service):
    space = SearchSpace(
        {
            "learning_rate": Float(1e-4, 1e-3, log=True),
            "weight_decay": Float(0.0, 0.3, step=0.1),
            "warmup_steps": Float(0.0, 1.0, step=0.5),
            "per_device_train_batch_size": Int(2, 8, log=True),
            "gradient_accumulation_steps": Int(1, 3),
            "seed": Int(1, 7, step=3),
            "loss.scale": Float(5.0, 9.0),
            "prompts": Categorical([{"sentence1": "query: "}, None]),
            "fp16": Categorical([False]),
            "max_steps": Int(1, 1),
        }
    )
    seen = []

    def loss(model, scale=20.0):
        seen.append(scale)
        return loss_init(model, scale)

    for trial in search(space, n_trials=6, loss_init=loss).run_summary.trials:
        values = trial.hyperparameters
        assert values.keys() == space.keys()
        assert values["weight_decay"] in (0.0, 0.1, 0.2, 0.3) and values["warmup_steps"] in (0.0, 0.5, 1.0)
        assert values["seed"] in (1, 4, 7) and values["prompts"] in ({"sentence1": "query: "}, None)
        assert 2 <= values["per_device_train_batch_size"] <= 8 and values["gradient_accumulation_steps"] in (1, 2, 3)
        kinds = {name: type(value) for name, value in values.items() if name != "prompts"}
        assert set(kinds.values()) == {float, int, bool} and kinds["seed"] is int and kinds["loss.scale"] is float
        assert seen[-6 + trial.number] == values["loss.scale"]
    assert {run.values["prompts"] for run in service.runs_of()} <= {'{"sentence1": "query: "}', None}


def test_nested_parameters_arrive_under_dotted_names(service):
    space = {
        "method": "random",
        "parameters": {
            "loss": {"parameters": {"scale": {"min": 5.0, "max": 9.0}}},
            "loss.other": {"values": [1, 2]},
            "learning_rate": {"value": 1e-4},
        },
    }
    seen = []

    def loss(model, scale=20.0, other=0):
        seen.append((scale, other))
        return loss_init(model, scale)

    trials = search(space, n_trials=2, loss_init=loss).run_summary.trials
    assert [(t.hyperparameters["loss.scale"], t.hyperparameters["loss.other"]) for t in trials] == seen[-2:]
    assert [set(trial.hyperparameters) for trial in trials] == [{"loss.scale", "loss.other", "learning_rate"}] * 2
    assert service.runs_of()[0].values["loss"] == {"scale": trials[0].hyperparameters["loss.scale"]}


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        (Float(0.5, 2.5), {"distribution": "uniform", "min": 0.5, "max": 2.5}),
        (Float(0.5, 2.5, step=0.5), {"distribution": "q_uniform", "min": 0.5, "max": 2.5, "q": 0.5}),
        (Float(0.1, 0.4, step=0.1), {"values": [0.1, 0.2, 0.3, 0.4]}),
        (Float(0.0, 1.0, step=0.75), {"values": [0.0, 0.75]}),
        (Float(3.0, 3.0), {"value": 3.0}),
        (Int(10, 30, step=10), {"distribution": "q_uniform", "min": 10, "max": 30, "q": 10}),
        (Int(1, 9, step=4), {"values": [1, 5, 9]}),
        (Int(1, 9, log=True), {"distribution": "q_log_uniform_values", "min": 1, "max": 9, "q": 1}),
        (Categorical([1, True, [2]]), {"values": ["int 1", "bool true", "list [2]"]}),
    ],
)
def test_dimensions_become_parameters_that_propose_their_values_only(dimension, expected):
    space = SearchSpace({"a.b": dimension})
    assert wandb_space.to_parameters(space, "random") == {"a.b": expected}
    if "values" in expected:
        assert [space.decode({"a.b": value})["a.b"] for value in expected["values"]]


def test_a_grid_lists_what_can_be_listed():
    space = SearchSpace({"a": Int(1, 4, log=True), "b": Float(0.0, 1.0, step=0.25), "c": Int(2, 2)})
    assert wandb_space.to_parameters(space, "grid") == {
        "a": {"values": [1, 2, 3, 4]},
        "b": {"values": [0.0, 0.25, 0.5, 0.75, 1.0]},
        "c": {"value": 2},
    }


# ---- What is refused, before any model is loaded ----


CONTINUOUS = SearchSpace({"learning_rate": Float(1e-5, 1e-3), "loss.scale": Float(1.0, 2.0), "seed": Int(1, 3)})


@pytest.mark.parametrize(
    ("space", "arguments", "said"),
    [
        (lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1, 2)}, {}, "suggest_float.*optuna"),
        ({"learning_rate": {"min": 1e-6, "max": 1e-4}}, {}, "needs a dict of 'parameters'.*learning_rate"),
        (CONTINUOUS, {"method": "grid"}, "'learning_rate', 'loss.scale' cannot be enumerated"),
        ({"method": "grid", **{"parameters": {"seed": {"min": 1.0, "max": 2.0}}}}, {}, "'seed' cannot be enumerated"),
        ({"method": "gird", "parameters": {"seed": {"value": 1}}}, {}, "'gird'.*Did you mean 'grid'"),
        ({"method": "random", "parameters": {"seed": [1, 2]}}, {}, r"parameter 'seed'.*\[1, 2\]"),
        ({"method": "random", "parameters": {"seed": {"min": 1, "max": 2.5}}}, {}, "'seed'.*two ints"),
        ({"method": "random", "parameters": {"seed": {"min": 3, "max": 2}}}, {}, "'seed'.*'min' below"),
        ({"method": "random", "parameters": {"seed": {"values": 3}}}, {}, "'seed'.*list of at least one value"),
        (SearchSpace({"loss.2nd": Float(1, 2), "1st": Int(1, 2)}), {}, r"\['1st'\]"),
        (SearchSpace({"seed": Int(1, 999_999, step=7)}), {}, "cannot express 'seed'.*142857 explicit values"),
        (RATES, {"method": "bayse"}, "'bayse'.*Did you mean 'bayes'"),
        (grid([1e-4]), {"method": "random"}, "`method` is for a SearchSpace"),
        (RATES, {"early_terminate": {"type": "median"}}, "`early_terminate` must be W&B's Hyperband.*median"),
        (RATES, {"early_terminate": {"type": "hyperband"}}, "`early_terminate` must be W&B's Hyperband"),
        (RATES, {"method": "bayes", **TWO}, "'bayes' optimizes one metric, but there are 2 objectives"),
        (RATES, {"early_terminate": {"type": "hyperband", "min_iter": 1}, **TWO}, "compares runs by one metric"),
        (RATES, {"metric": "eval/loss", **TWO}, "`metric` is the one metric"),
        (RATES, {"sweep_id": "abc", "method": "grid"}, "`method` cannot be set for the sweep 'abc'"),
        (RATES, {"project": 7}, "`project` must be a string, but got 7"),
        (RATES, {"n_jobs": 2, "projct": "x"}, "'n_jobs', 'projct'.*Did you mean 'project'"),
        (RATES, {"catch": "RuntimeError"}, "`catch` must be a class"),
    ],
)
def test_what_a_sweep_cannot_do_is_refused_by_name(space, arguments, said, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")

    def never():
        raise AssertionError("a model was made")

    trainer = fast_trainer()
    trainer.model_init = never
    args = fast_arguments(**EVERY_STEP)
    trainer.args = args
    with pytest.raises(ConfigurationError, match=f"(?s){said}"):
        search(space, trainer=trainer, **arguments)


def test_an_unknown_name_in_a_sweep_config_is_refused(service):
    with pytest.raises(st_hpo.UnknownHyperparameterError, match=r"learning_rat.*learning_rate"):
        search({"method": "random", "parameters": {"learning_rat": {"value": 1}}})
    assert not service.sweeps


def test_a_package_that_is_missing_or_too_old_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.28.2")
    with pytest.raises(BackendNotInstalledError, match=r"wandb 0.29 or newer, but 0.28.2.*pip install --upgrade"):
        get_backend("wandb")
    (tmp_path / "wandb").mkdir()  # where the runs are
    monkeypatch.setattr("importlib.util.find_spec", lambda name: type("Spec", (), {"origin": None}))
    with pytest.raises(BackendNotInstalledError, match="pip install wandb"):
        get_backend("wandb")


def test_the_package_is_imported_by_a_search_only():
    code = "import sys, st_hpo.backends.wandb.backend; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Spaces of the SigOpt backend: what becomes of a SearchSpace, and what is refused before anything runs."""

from __future__ import annotations

import json

import pytest

from st_hpo import (
    Categorical,
    ConfigurationError,
    Float,
    Int,
    NotSupportedError,
    SearchSpace,
    SearchSpaceError,
    UnknownHyperparameterError,
    default_search_space,
)
from st_hpo.backends.sigopt.backend import SigOptBackend
from st_hpo.backends.sigopt.space import MAX_GRID, EncodedSpace

from fast_trainer import fast_arguments
from sigopt_setup import RATE, refused, search

pytest_plugins = ["sigopt_fixtures"]


# ---- SearchSpace ----

MIXED = SearchSpace(
    {
        "learning_rate": Float(1e-5, 1e-3, log=True),
        "weight_decay": Float(0.0, 0.3, step=0.1),
        "gradient_accumulation_steps": Int(1, 7, step=3),
        "per_device_train_batch_size": Categorical([4, 8]),
        "lr_scheduler_kwargs": Categorical([None, {}, {"a long key " * 9: "b"}]),
        "max_grad_norm": Categorical([1.0]),
        "loss.scale": Int(5, 50),
    }
)


def test_a_search_space_is_encoded_and_decoded():
    encoded = EncodedSpace(MIXED)
    kinds = {parameter["name"]: parameter for parameter in encoded.parameters}
    assert kinds["learning_rate"]["transformation"] == "log"
    assert kinds["weight_decay"]["grid"] == [0.0, 0.1, 0.2, 0.3]
    assert kinds["gradient_accumulation_steps"] == {
        "name": "gradient_accumulation_steps",
        "type": "int",
        "grid": [1, 4, 7],
    }
    assert kinds["per_device_train_batch_size"]["categorical_values"] == ["4", "8"]
    labels = kinds["lr_scheduler_kwargs"]["categorical_values"]
    assert labels[:2] == ["null", "{}"] and len(labels[2]) <= 50
    assert "max_grad_norm" not in kinds
    json.dumps(encoded.parameters)
    values = encoded.decode(
        {
            "learning_rate": 1e-4,
            "weight_decay": 0,
            "gradient_accumulation_steps": 4,
            "per_device_train_batch_size": "8",
            "lr_scheduler_kwargs": labels[2],
            "loss.scale": 7.0,
        }
    )
    assert values["per_device_train_batch_size"] == 8 and type(values["per_device_train_batch_size"]) is int
    assert values["weight_decay"] == 0.0 and type(values["weight_decay"]) is float
    assert values["lr_scheduler_kwargs"] == {"a long key " * 9: "b"} and values["max_grad_norm"] == 1.0
    assert values["loss.scale"] == 7 and type(values["loss.scale"]) is int


def test_choices_that_look_alike_stay_apart():
    choices = [16, "16", True, 1, 1.0, None, "None", "", " a", "line\nbreak", "p" * 60, "p" * 60 + "q"]
    encoded = EncodedSpace(SearchSpace({"x": Categorical(choices)}))
    labels = encoded.parameters[0]["categorical_values"]
    assert len(set(labels)) == len(choices)
    assert [json.dumps(encoded.decode({"x": label})["x"]) for label in labels] == list(map(json.dumps, choices))


def test_a_search_space_is_searched(engine):
    space = SearchSpace({name: item for name, item in MIXED.items() if name != "lr_scheduler_kwargs"})
    for trial in search(space).run_summary.trials:
        assert space.decode(trial.hyperparameters) == trial.hyperparameters


def test_the_default_space_differs_from_the_common_one_in_its_integers_only(engine):
    space = SigOptBackend().default_hp_space(None)
    common = default_search_space()
    differing = {"per_device_train_batch_size": Categorical([16, 32, 64, 128, 256]), "num_train_epochs": Int(1, 4)}
    assert {name: space[name] for name in common if space[name] != common[name]} == differing
    assert space.keys() == common.keys()
    (trial,) = search(None, n_trials=1, args=fast_arguments(max_steps=1)).run_summary.trials
    assert trial.hyperparameters["per_device_train_batch_size"] in (16, 32, 64, 128, 256)


# ---- Refusals, before anything runs ----


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (SearchSpace({"per_device_train_batch_size": Int(8, 64, log=True)}), "no logarithmic integers"),
        (SearchSpace({"seed": Int(1, 1000, step=2)}), f"more than {MAX_GRID}"),
        (SearchSpace({"seed": Categorical([1])}), "nothing to search"),
        ([{**RATE, "type": "int", "bounds": {"min": 1, "max": 8}}], "no logarithmic integers"),
        ([{**RATE, "transformation": "ln"}], "'log' or 'none'"),
        ([{**RATE, "bounds": {"min": 0, "max": 1}}], "above 0"),
        ([{**RATE, "bounds": {"min": 2, "max": 1}}], "`min` below the `max`"),
        ([{**RATE, "bounds": {"min": "1e-5", "max": 1}}], "two numbers"),
        ([{**RATE, "grid": [1e-5, 1e-4]}], "either `bounds`"),
        ([{"name": "learning_rate", "type": "double", "grid": [1e-4]}], "at least two different"),
        ([{"name": "learning_rate", "type": "float", "bounds": {"min": 0, "max": 1}}], "one of ['double'"),
        ([{**RATE, "boundz": 1}], "Did you mean 'bounds'?"),
        ([RATE, RATE], "given twice"),
        ([{**RATE, "name": "learning_rate "}], "no spaces"),
        ([{"name": "seed", "type": "int", "bounds": {"min": 1, "max": 2.5}}], "two integers"),
        ([{"name": "seed", "type": "categorical", "categorical_values": [16, 32]}], "Write '16'"),
        ([{"name": "seed", "type": "categorical", "categorical_values": ["16"]}], "at least two different"),
        ([{"name": "seed", "type": "categorical", "categorical_values": ["1", "2"], "grid": [1]}], "no 'grid'"),
        ([{**RATE, "conditions": {"kind": "a"}}], "none of `conditionals`"),
        ([{"type": "double"}], "a dict with a `name`"),
        ([], "empty"),
        (lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 0, 1)}, "'suggest_float'"),
        (lambda trial: {"learning_rate": [1, 2]}, "a list of SigOpt's parameters"),
    ],
)
def test_what_sigopt_cannot_express_is_refused_by_name(engine, space, said):
    message = refused(SearchSpaceError, space)
    assert said in message
    if isinstance(space, SearchSpace):
        assert repr(next(iter(space))) in message
    elif isinstance(space, list) and space and "name" in space[0]:
        assert repr(space[0]["name"]) in message
    assert engine is None or not engine.experiments


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"objective": lambda metrics: [1, 2, 3], "direction": ["maximize"] * 3}, "one or two objectives"),
        ({"sampler": None}, "Unknown argument(s)"),
        ({"naem": "x"}, "Did you mean 'name'"),
        ({"seed": -1}, "`seed`"),
        ({"project": "My Project"}, "lowercase"),
        ({"name": 5}, "`name`"),
        ({"catch": "ValueError"}, "`catch`"),
        ({"conditionals": [{"name": "kind", "values": ["a"]}]}, "'kind' must have at least two"),
        ({"conditionals": [{"name": "learning_rate", "values": ["a", "b"]}]}, "a hyperparameter as well"),
        ({"conditionals": "kind"}, "a list of dicts"),
        ({"hp_space": MIXED, "conditionals": []}, "SigOpt's format"),
    ],
)
def test_wrong_arguments_are_refused(engine, kwargs, said):
    assert said in refused(ConfigurationError, **kwargs)
    assert engine is None or not engine.experiments


def test_names_that_nothing_uses_are_refused(engine):
    assert "'loss.scale'" in refused(UnknownHyperparameterError, [{**RATE, "name": "loss.scael"}])


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ({**RATE, "transformation": None, "prior": {"name": "normal", "mean": 1e-4, "scale": 1e-4}}, "`prior`"),
        ({**RATE, "tunable": False}, "`tunable`"),
    ],
)
def test_what_only_a_server_can_do_is_refused_locally_and_handed_on(engine, parameter, said):
    if engine is None:
        assert said in refused(NotSupportedError, [parameter])
    else:
        search([parameter], n_trials=1)
        assert engine.experiment["parameters"] == [parameter]

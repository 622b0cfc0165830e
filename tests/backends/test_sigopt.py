"""The SigOpt backend: the same searches with a server, which the real client asks, and locally."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest

from st_hpo import Int, SearchSpace
from st_hpo.backends.sigopt.backend import SigOptBackend
from st_hpo.backends.sigopt.local import SigOptTrial, search_locally, suggest_parameters
from st_hpo.records import TrialRecord

from fast_trainer import METRIC, fast_arguments, fast_trainer, loss_init, model_init
from sigopt_setup import (
    NO_BASELINE,
    RATE,
    by_hand,
    default_hp_space_of_transformers_4,
    failing,
    search,
    sigopt_hp_space,
)

pytest_plugins = ["sigopt_fixtures"]
PAGE = Path(__file__).parents[2] / "docs" / "backends" / "sigopt.md"


# ---- Spaces of guides and scripts ----


def test_the_guides_space_gives_the_numbers_of_the_plain_trainer(engine):
    best = search(direction="maximize", n_trials=3)
    trials = best.run_summary.trials
    assert [trial.state for trial in trials] == ["completed"] * 3
    for trial in trials:
        rate, size = trial.hyperparameters["learning_rate"], trial.hyperparameters["per_device_train_batch_size"]
        assert 1e-6 <= rate <= 1e-4 and size in (16, 32, 64, 128) and type(size) is int
        assert trial.objective == by_hand(trial.hyperparameters)
    assert best.objective == max(trial.objective for trial in trials)
    if engine is not None:
        assert [trial.backend_id for trial in trials] == list(engine.runs) and best.run_id in engine.runs
    else:
        assert [trial.backend_id for trial in trials] == [None] * 3


def test_the_default_space_of_transformers_4_runs_with_its_misspelt_logarithm(engine):
    given = default_hp_space_of_transformers_4(None)
    kept = copy.deepcopy(given)
    trials = search(given, args=fast_arguments(max_steps=1)).run_summary.trials
    assert given == kept
    for trial in trials:
        values = trial.hyperparameters
        assert values.keys() == {"learning_rate", "num_train_epochs", "seed", "per_device_train_batch_size"}
        assert 1 <= values["seed"] <= 40 and type(values["seed"]) is int
    if engine is not None:
        assert engine.experiment["parameters"][0]["transformation"] == "log"
    else:
        assert trials and optuna_distribution("learning_rate", given).log


def optuna_distribution(name: str, given: list[dict[str, Any]]) -> Any:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    suggest_parameters(SigOptBackend().open_space(given), [], trial)
    return trial.distributions[name]


def test_the_example_of_the_documentation_runs(engine, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(block, scope)
    assert "BestRun(run_id=" in capsys.readouterr().out
    assert scope["sigopt_hp_space"](None) == sigopt_hp_space(None)
    assert scope["best_trial"].hyperparameters["per_device_train_batch_size"] in (16, 32, 64, 128)


def test_every_type_of_parameter_arrives_in_its_type(engine):
    space = [
        {"name": "learning_rate", "type": "double", "bounds": {"min": 1, "max": 4}, "default_value": 2.0},
        {"name": "weight_decay", "type": "double", "grid": [0.0, 0.5, 1.0]},
        {"name": "gradient_accumulation_steps", "type": "int", "grid": [1, 2, 4]},
        {"name": "warmup_steps", "type": "int", "bounds": {"min": 0, "max": 1}, "transformation": None},
        {"name": "lr_scheduler_type", "type": "categorical", "categorical_values": [{"name": "linear"}, "cosine"]},
        {"name": "loss.kind", "type": "categorical", "categorical_values": ["16", "32"]},
    ]
    kinds = []

    def loss(model, kind=None):
        kinds.append(kind)
        return loss_init(model)

    for trial in search(space, n_trials=3, loss_init=loss).run_summary.trials:
        values = trial.hyperparameters
        assert list(map(type, values.values())) == [float, float, int, float, str, str], values
        assert values["weight_decay"] in (0.0, 0.5, 1.0) and values["gradient_accumulation_steps"] in (1, 2, 4)
    assert kinds[0] is None and set(kinds[1:]) <= {"16", "32"} and len(kinds) == 4


def test_names_with_dots_survive(engine):
    scales = []

    def loss(model, scale=20.0):
        scales.append(scale)
        return loss_init(model, scale=scale)

    space = [RATE, {"name": "loss.scale", "type": "double", "bounds": {"min": 5.0, "max": 50.0}}]
    result = search(space, n_trials=3, loss_init=loss).run_summary
    del scales[0]  # of the construction of the trainer
    assert scales == [trial.hyperparameters["loss.scale"] for trial in result.trials] and len(set(scales)) == 3
    if engine is not None:
        assert [run["assignments"]["loss.scale"] for run in engine.runs.values()] == pytest.approx(scales)


def test_conditions_leave_a_parameter_out_where_they_do_not_hold(engine):
    conditionals = [{"name": "lr_scheduler_type", "values": ["linear", "constant"]}]
    space = [
        RATE,
        {"name": "warmup_steps", "type": "int", "grid": [1, 2], "conditions": {"lr_scheduler_type": "linear"}},
    ]
    trials = search(space, n_trials=6, conditionals=conditionals, seed=1).run_summary.trials
    for trial in trials:
        linear = trial.hyperparameters["lr_scheduler_type"] == "linear"
        assert ("warmup_steps" in trial.hyperparameters) == linear
    assert {trial.hyperparameters["lr_scheduler_type"] for trial in trials} == {"linear", "constant"}


# ---- Objectives ----


def test_two_metrics_give_a_pareto_front(engine):
    keys = [METRIC, "eval_sts-dev_pearson_cosine"]
    front = search(objective=keys, direction=["maximize", "minimize"], n_trials=4)
    result = front[0].run_summary
    assert isinstance(front, list) and all(len(run.objective) == 2 for run in front)
    assert len(result.completed) == 4
    if engine is not None:
        names = ["objective_1", "objective_2"]
        metrics = [(m["name"], m["objective"], m["strategy"]) for m in engine.experiment["metrics"]]
        assert metrics == [(names[0], "maximize", "optimize"), (names[1], "minimize", "optimize")]
        for run, trial in zip(engine.runs.values(), result.trials, strict=True):
            assert [run["values"][name]["value"] for name in names] == trial.objective
    else:
        assert len(result.native.best_trials) == len(front)


def test_five_trials_are_five_proposals_although_every_trial_sets_the_seed(engine):
    trials = search([RATE], n_trials=5).run_summary.trials
    assert len({trial.hyperparameters["learning_rate"] for trial in trials}) == 5


def test_the_seed_makes_local_proposals_the_same_every_time(local):
    first, again, other = (search([RATE], n_trials=3, seed=seed).run_summary for seed in (1, 1, 2))
    rates = [[trial.hyperparameters for trial in result.trials] for result in (first, again, other)]
    assert rates[0] == rates[1] != rates[2]


class FakeTarget:
    """A search whose trials cost nothing: the objective is best at x = 0.3 and kind "b"."""

    verbose = False
    no_more = None

    def __init__(self) -> None:
        self.values: list[float] = []

    def run_trial(self, number, propose, native, report=None, *, backend_id=None, catch=()):
        values = propose()
        self.values.append(-((values["x"] - 0.3) ** 2) - (values["kind"] != "b"))
        return TrialRecord(number, state="completed", objective=self.values[-1])


def test_the_local_engine_learns_from_what_it_is_told(local):
    parameters = SigOptBackend().open_space(
        [
            {"name": "x", "type": "double", "bounds": {"min": 0.0, "max": 1.0}},
            {"name": "kind", "type": "categorical", "categorical_values": ["a", "b", "c"]},
        ]
    )
    target, studies = FakeTarget(), []
    search_locally(
        target, lambda trial: suggest_parameters(parameters, [], trial), 16, ["maximize"], 0, (), studies.append, []
    )
    assert max(target.values) > -1e-3
    assert sum(target.values[8:]) > sum(target.values[:8])
    assert isinstance(studies[0].sampler, optuna.samplers.GPSampler)


@pytest.mark.parametrize("seed", range(3))
def test_the_local_engine_repeats_no_proposal(local, seed):
    """Also where the best value is the last one of its range, which a Gaussian process soon proposes every time."""
    target, studies = FakeTarget(), []
    parameters = [
        {"name": "x", "type": "double", "bounds": {"min": 0.5, "max": 1.0}},
        {"name": "kind", "type": "categorical", "categorical_values": ["b", "c"]},
    ]
    search_locally(
        target, lambda trial: suggest_parameters(parameters, [], trial), 20, ["maximize"], seed, (), studies.append, []
    )
    assert len({json.dumps(trial.params) for trial in studies[0].trials}) == 20


# ---- Failures ----


def states_on(engine: Any, result: Any) -> list[str]:
    if engine is None:
        return [trial.state.name.lower() for trial in result.native.trials]
    return [run["state"] for run in engine.runs.values()]


def test_the_first_exception_ends_the_search_and_is_raised_unchanged(engine):
    error = RuntimeError("out of luck")
    trainer = fast_trainer(callbacks=[failing({1}, error)])
    with pytest.raises(RuntimeError) as caught:
        trainer.hyperparameter_search([RATE], METRIC, n_trials=4, backend="sigopt", **NO_BASELINE)
    assert caught.value is error
    result = trainer.last_search
    assert [trial.state for trial in result.trials] == ["completed", "failed"]
    assert states_on(engine, result) == (["complete", "fail"] if engine is None else ["completed", "failed"])
    if engine is not None:
        assert list(engine.runs.values())[1]["metadata"] == {"error": "RuntimeError: out of luck"}


def test_a_caught_exception_fails_its_trial_only(engine):
    result = search(
        [RATE], n_trials=4, callbacks=[failing({0, 2}, RuntimeError("x" * 999))], catch=RuntimeError
    ).run_summary
    assert [trial.state for trial in result.trials] == ["failed", "completed", "failed", "completed"]
    assert [state.startswith("fail") for state in states_on(engine, result)] == [True, False, True, False]


def test_an_objective_that_is_nan_fails_its_trial(engine):
    values = iter([float("nan"), 0.25, float("nan"), 0.5])
    result = search([RATE], lambda metrics: next(values), 4, direction="maximize").run_summary
    assert [trial.objective for trial in result.completed] == [0.25, 0.5]
    assert [state.startswith("fail") for state in states_on(engine, result)] == [True, False, True, False]


def test_ctrl_c_returns_the_best_so_far(engine):
    best = search([RATE], n_trials=5, callbacks=[failing({2}, KeyboardInterrupt())])
    result = best.run_summary
    assert result.interrupted and [trial.state for trial in result.trials] == ["completed", "completed", "failed"]
    assert [state.startswith("fail") for state in states_on(engine, result)] == [False, False, True]


# ---- The trial ----


@pytest.mark.parametrize("read", [lambda t: t.assignments["width"], lambda t: t.params["width"], lambda t: t["width"]])
def test_a_name_may_be_read_from_the_trial_in_every_way(engine, read):
    widths, names = [], []

    def loss(model, trial):
        if trial is not None:
            widths.append(read(trial))
        return loss_init(model)

    def hp_name(trial):
        assert trial and trial.number == len(names) and isinstance(trial.id, str)
        names.append(f"width-{read(trial)}")
        return names[-1]

    space = [{"name": "width", "type": "categorical", "categorical_values": ["8", "16"]}]
    result = search(space, loss_init=loss, hp_name=hp_name).run_summary
    assert widths == [trial.hyperparameters["width"] for trial in result.trials] and set(widths) <= {"8", "16"}
    assert names == [f"width-{width}" for width in widths]


def test_assignments_are_those_of_an_applied_run_too(local):
    lengths = []

    def model(trial):
        built = model_init()
        built.max_seq_length = trial.assignments["length"] if trial else 16
        lengths.append(built.max_seq_length)
        return built

    trainer = fast_trainer(model_init=model)
    space = SearchSpace({"length": Int(8, 64)})
    best = trainer.hyperparameter_search(space, METRIC, n_trials=2, backend="sigopt", **NO_BASELINE)
    trainer.apply_best_run(best)
    trainer.train()
    assert lengths[-1] == best.hyperparameters["length"]
    assert trainer.evaluate()[METRIC] == best.objective


def test_a_local_trial_says_what_it_has_not():
    trial = SigOptTrial(3, lambda: {"a": 1})
    assert not dict(trial) and trial.propose() == {"a": 1} == trial.assignments == dict(trial)
    assert trial.id == "3" and len(trial) == 1
    with pytest.raises(AttributeError, match="'log_metadata' without a server"):
        _ = trial.log_metadata

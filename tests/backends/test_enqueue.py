"""Given points for the first trials: enqueued once however many processes and runs there are, and checked before.

That a backend begins with them, value by value, is in the contract.
"""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from st_hpo import (
    Categorical,
    ConfigurationError,
    Float,
    HyperparameterValueError,
    NotSupportedError,
    SearchSpace,
    UnknownHyperparameterError,
    known_good_points,
)
from st_hpo.backends import get_backend
from st_hpo.backends.optuna.backend import OptunaBackend
from st_hpo.backends.optuna.points import enqueue, pop_waiting_trial_id
from st_hpo.backends.optuna.records import counts, ended
from st_hpo.backends.optuna.storage import open_storage
from st_hpo.backends.ray.backend import RayBackend
from st_hpo.backends.sigopt.backend import SigOptBackend
from st_hpo.testing import METRIC, build_tiny_model, make_trainer, train_by_hand

from shared_setup import COMPLETE, FAIL, PATIENCE, SPACE, WAITING, Search, ended_with, fork, processes, trials_in

pytest_plugins = ["shared_fixtures"]
pytestmark = pytest.mark.usefixtures("quiet_optuna")

POINTS = [{"learning_rate": 3.3e-4}, {"learning_rate": 1e-5}, {"learning_rate": 0.1 + 0.2 - 0.3 + 1e-6}]
RATES = [point["learning_rate"] for point in POINTS]


def backend_with_points() -> OptunaBackend:
    backend = OptunaBackend()
    assert backend.enqueue(POINTS, SPACE, {}) == []
    return backend


def search(where: Any, n_trials: int, target: Search, **kwargs: Any) -> OptunaBackend:
    backend = backend_with_points()
    arguments = {"storage": where(), "study_name": "s", "resume": True, "heartbeat_interval": 1.0, **kwargs}
    backend.run(target, n_trials, "maximize", **arguments)
    return backend


def search_together(where: Any, n_trials: int, barrier: Any, results: Any) -> None:
    backend = backend_with_points()
    target = Search(0.02)
    barrier.wait(PATIENCE)
    backend.run(target, n_trials, "maximize", storage=where(), study_name="s", resume=True, heartbeat_interval=1.0)
    results.put([record.to_dict() for record in backend.records(target)])


def test_processes_that_begin_together_try_each_point_once(where):
    results = fork.Queue()
    with processes(2, search_together, where, 6, fork.Barrier(2), results) as running:
        records = [results.get(timeout=PATIENCE) for _ in running]
        assert [ended_with(process) for process in running] == [0] * 2
    trials = trials_in(where)
    assert sum(map(counts, trials)) == 6 and {trial.state for trial in trials} <= {COMPLETE, FAIL}
    tried = [trial.params["learning_rate"] for trial in trials if trial.state == COMPLETE]
    assert [tried.count(rate) for rate in RATES] == [1, 1, 1]
    assert {ended(trial).get("why") for trial in trials if trial.state == FAIL} <= {"surplus"}
    assert [len(found) for found in records] == [6] * 2


def test_a_search_that_is_continued_does_not_try_them_again(where):
    one, two = Search(), Search()
    search(where, 2, one)
    assert [trial.state for trial in trials_in(where)] == [COMPLETE, COMPLETE, WAITING]
    search(where, 5, two)
    trials = trials_in(where)
    assert [trial.params["learning_rate"] for trial in trials[:3]] == RATES
    assert [trial.state for trial in trials] == [COMPLETE] * 5 and sorted(two.own) == [2, 3, 4]


def test_a_study_that_is_joined_with_a_number_of_trials_of_ones_own_tries_them_once(where):
    for n_trials in (2, 3):
        search(where, n_trials, Search(), resume=False, load_if_exists=True)
    rates = [trial.params["learning_rate"] for trial in trials_in(where)]
    assert rates[:3] == RATES and len(rates) == 5 and len(set(rates)) == 5


def test_of_two_trials_of_a_point_the_later_one_steps_back_whoever_takes_it(where, monkeypatch):
    """Both processes look before either has enqueued."""
    study = optuna.create_study(study_name="s", storage=open_storage(where(), 5.0))
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(study, "get_trials", lambda **kwargs: [])
            enqueue(study, POINTS[:1], SPACE, 1.0)
    assert [trial.state for trial in study.get_trials()] == [WAITING, WAITING]
    first = pop_waiting_trial_id(study)
    assert study._storage.get_trial(first).number == 0
    assert pop_waiting_trial_id(study) is None
    assert ended(study.get_trials()[1]) == {"why": "surplus", "counts": False, "retried": False}
    enqueue(study, POINTS[:1], SPACE, 1.0)
    assert len(study.get_trials()) == 2


def function(trial):
    values = {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True)}
    if trial.suggest_categorical("with_decay", [True, False]):
        values["weight_decay"] = trial.suggest_float("weight_decay", 0.01, 0.1)
    return {**values, "lr_scheduler_type": trial.suggest_categorical("lr_scheduler_type", ["linear", "constant"])}


def test_the_points_of_a_function_are_tried_out_on_it_before_the_search():
    backend = OptunaBackend()
    assert backend.enqueue([{"with_decay": True, "weight_decay": 0.05}], function, {}) == []
    assert backend.enqueue([{"with_decay": False, "weight_decay": 0.05}], function, {}) == ["weight_decay"]
    with pytest.raises(HyperparameterValueError, match=r"'learning_rate' got 0\.1"):
        backend.enqueue([{"learning_rate": 0.1}], function, {})
    with pytest.raises(ConfigurationError, match="cosine"):
        backend.enqueue([{"lr_scheduler_type": "cosine"}], function, {})


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


def searched(trainer: Any, space: Any, **kwargs: Any) -> Any:
    options = {"compute_objective": METRIC, "n_trials": 2, "backend": "optuna", "baseline": False, **kwargs}
    return trainer.hyperparameter_search(space, **options).run_summary.trials


def test_a_function_gets_a_part_of_a_point_and_samples_the_rest(tiny_model, tmp_path):
    def rates_and_decays(trial):
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 0.01, 0.1),
        }

    trainer = make_trainer(tiny_model, tmp_path)
    given, other = searched(trainer, rates_and_decays, enqueue=[{"weight_decay": 0.0625}])
    assert given.hyperparameters["weight_decay"] == 0.0625 != other.hyperparameters["weight_decay"]
    assert given.objective == train_by_hand(tiny_model, tmp_path, given.hyperparameters)[METRIC]
    trainer.model_init.path = "/there/is/no/model"
    with pytest.raises(UnknownHyperparameterError, match=r"(?s)Did you mean 'learning_rate'.*does not ask for it"):
        searched(trainer, function, enqueue=[{"learning_rat": 1e-4}])


def test_what_model_init_asks_of_its_trial_may_be_in_a_point(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer

    def model_init(trial):
        if trial is not None:
            trial.suggest_int("width", 1, 9)
        return SentenceTransformer(tiny_model, device="cpu")

    trainer = make_trainer(tiny_model, tmp_path, model_init=model_init)
    trainer.evaluator.model_init = None
    given, _ = searched(trainer, function, enqueue=[{"width": 7}])
    assert given.hyperparameters["width"] == 7


@pytest.mark.slow
def test_workers_begin_with_them(tiny_model, tmp_path):
    points = [{"learning_rate": 0.0011, "lr_scheduler_type": "constant"}, {"learning_rate": 0.0022}]
    space = SearchSpace(
        {"learning_rate": Float(1e-4, 1e-2, log=True), "lr_scheduler_type": Categorical(["linear", "constant"])}
    )
    records = searched(make_trainer(tiny_model, tmp_path), space, n_trials=3, n_jobs=2, enqueue=points)
    assert records[0].hyperparameters == points[0] and records[1].hyperparameters["learning_rate"] == 0.0022
    for record in records:
        assert record.objective == train_by_hand(tiny_model, tmp_path, record.hyperparameters)[METRIC]


def test_known_points_begin_the_search_as_far_as_there_are_trials(tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path)
    (record,) = searched(trainer, None, n_trials=1, enqueue="known")
    assert record.hyperparameters == {
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 16,
        "num_train_epochs": 4,
        "warmup_steps": 0.1,
    }
    space = SearchSpace({"learning_rate": Float(1e-6, 1e-4, log=True), "num_train_epochs": Categorical([1, 2])})
    first, second = searched(trainer, space, enqueue=[*known_good_points("CoSENTLoss"), {"learning_rate": 1e-6}])
    assert first.hyperparameters["learning_rate"] == 5e-5 and second.hyperparameters["learning_rate"] == 1e-6


def unknown_loss(model, scale=20.0):
    return model.loss(scale)


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ("knwon", "'known'"),
        ({"learning_rate": 1e-4}, "list of dicts"),
        ([{"learning_rate": 1e-4}, {}], r"enqueue\[1\]"),
        ([1e-4], r"enqueue\[0\]"),
        ([{"learning_rate": 1e-3}, {"learning_rate": "0.001"}], "given twice"),
        ([{"learning_rate": 1e-3}, {"learning_rate": 2e-3}, {"learning_rate": 3e-3}], "3 points, but there are 2"),
        ([{"learning_rate": 1e-3, "loss.scal": 3}], "'loss.scale'"),
        ("known", "known_good_points"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_model_is_loaded(tiny_model, tmp_path, points, why):
    trainer = make_trainer(tiny_model, tmp_path)
    trainer.model_init.path = "/there/is/no/model"
    trainer.loss = trainer._given["loss"] = unknown_loss
    space = SearchSpace({"learning_rate": Float(1e-4, 1e-2), "loss.scale": Float(1, 9)})
    with pytest.raises(ConfigurationError, match=why):
        searched(trainer, space, enqueue=points)


def test_a_backend_that_cannot_says_so_by_its_name():
    for name, kwargs in (("wandb", {}), ("ray", {"search_alg": "optuna"})):
        with pytest.raises(NotSupportedError, match="enqueue"):
            get_backend(name).enqueue(POINTS, SPACE, kwargs)


def test_points_of_ray_tunes_own_spaces_are_checked_by_their_domains():
    from ray import tune

    space = {
        "learning_rate": tune.loguniform(1e-5, 1e-3),
        "per_device_train_batch_size": tune.choice([16, 32]),
        "seed": tune.randint(1, 4),
        "num_train_epochs": 2,
        "warmup_steps": tune.grid_search([0.0, 0.1]),
    }
    right = {"learning_rate": 1e-3, "per_device_train_batch_size": 16, "seed": 3, "num_train_epochs": 2}
    assert RayBackend().enqueue([right, {"warmup_steps": 0.1}], space, {}) == []
    wrong = [{"learning_rate": 2e-3}, {"per_device_train_batch_size": 8}, {"seed": 4}, {"num_train_epochs": 1}]
    for point in [*wrong, {"warmup_steps": 0.2}, {"lerning_rate": 1e-4}]:
        with pytest.raises(ConfigurationError, match=next(iter(point))):
            RayBackend().enqueue([point], space, {})


def test_points_of_a_space_in_sigopts_format(monkeypatch):
    monkeypatch.delenv("SIGOPT_API_URL", raising=False)
    backend = SigOptBackend()
    space = backend.open_space(
        [
            {"name": "learning_rate", "type": "double", "bounds": {"min": 1e-6, "max": 1e-4}},
            {"name": "per_device_train_batch_size", "type": "categorical", "categorical_values": ["16", "32"]},
            {"name": "num_train_epochs", "type": "int", "grid": [1, 2, 4]},
            {
                "name": "weight_decay",
                "type": "double",
                "bounds": {"min": 0.0, "max": 0.1},
                "conditions": {"decay": ["yes"]},
            },
        ]
    )
    kwargs = {"conditionals": [{"name": "decay", "values": ["yes", "no"]}]}
    right = {"learning_rate": 2e-5, "per_device_train_batch_size": 16, "num_train_epochs": 4.0}
    assert backend.enqueue([right, {"decay": "yes", "weight_decay": 0.05}], space, kwargs) == []
    wrong: list[dict[str, Any]] = [{"learning_rate": 1.0}, {"per_device_train_batch_size": 8}, {"num_train_epochs": 3}]
    for point in [*wrong, {"decay": "maybe"}, {"weight_decay": 0.05}, {"lerning_rate": 1e-5}]:
        with pytest.raises(ConfigurationError, match=next(iter(point))):
            SigOptBackend().enqueue([point], space, kwargs)
    monkeypatch.setenv("SIGOPT_API_URL", "http://127.0.0.1:1")
    with pytest.raises(NotSupportedError, match="sigopt"):
        SigOptBackend().enqueue([right], space, kwargs)

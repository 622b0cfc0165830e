"""The Optuna backend, against real studies and a search that trains nothing."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from transformers.trainer_utils import HPSearchBackend

from st_hpo import (
    Categorical,
    ConfigurationError,
    Float,
    Int,
    SearchSpace,
    SearchSpaceError,
    TrialRecord,
    default_search_space,
)
from st_hpo.backends import get_backend
from st_hpo.backends.optuna.backend import OptunaBackend
from st_hpo.backends.optuna.records import RECORD_ATTRIBUTE
from st_hpo.backends.optuna.settings import Settings

pytestmark = pytest.mark.usefixtures("quiet_optuna")
SPACE = SearchSpace({"learning_rate": Float(1e-6, 1e-2, log=True), "seed": Int(0, 9)})
COMPLETE, FAIL, PRUNED = (optuna.trial.TrialState[name] for name in ("COMPLETE", "FAIL", "PRUNED"))


class FakeSearch:
    """A search as a backend sees it; ``train`` stands for all that happens in a trial."""

    def __init__(
        self,
        train: Callable[[dict[str, Any], Any], Any],
        hp_space: Any = SPACE,
        reports: tuple[float, ...] = (),
        objective_names: tuple[str, ...] = ("eval_x",),
    ) -> None:
        self.hp_space = hp_space
        self.verbose = False
        self.ending = None
        self.rungs: list[int] = []
        self.output_dir = "output"
        self.objective_names = list(objective_names)
        self.own: dict[int, TrialRecord] = {}
        self.could_report: list[bool] = []
        self._train = train
        self._reports = reports

    @property
    def no_more(self) -> BaseException | None:
        return self.ending

    def waiting(self) -> None:
        pass

    def run_trial(
        self,
        number: int,
        propose: Callable[[], Mapping[str, Any]],
        native: Any = None,
        report: Callable[[float, int], bool] | None = None,
        *,
        checkpoints: Any = None,
        backend_id: str | None = None,
        catch: tuple[type[BaseException], ...] = (),
        continues: int | None = None,
    ) -> TrialRecord:
        record = self.own[number] = TrialRecord(number, backend_id=backend_id, continues=continues)
        self.could_report.append(report is not None)
        try:
            record.hyperparameters = dict(propose())
            for step, value in enumerate(self._reports, start=1):
                if report is not None and report(value, step):
                    record.state, record.error = "pruned", f"pruned at step {step}"
                    return record
            value = self._train(record.hyperparameters, native)
            record.metrics = {"eval_x": value}
            if isinstance(value, float) and math.isnan(value):
                record.state, record.error = "failed", "The objective is NaN"
            else:
                record.state, record.objective = "completed", value
        except BaseException as exc:
            record.state, record.error = "failed", f"{type(exc).__name__}: {exc}"
            if not isinstance(exc, catch):
                raise
        return record

    def record_of(self, number: int) -> TrialRecord | None:
        return self.own.get(number)


def by_rate(values: dict[str, Any], native: Any) -> float:
    return -math.log(values["learning_rate"])


def ran(search: FakeSearch, n_trials: int = 3, direction: Any = "maximize", **kwargs: Any) -> OptunaBackend:
    backend = OptunaBackend()
    backend.run(search, n_trials, direction, **kwargs)
    return backend


def stored(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """The record that the study keeps with its trial, as JSON."""
    return json.loads(trial.user_attrs[RECORD_ATTRIBUTE])


def proposals(dimension: Any, count: int = 25) -> list[Any]:
    """What a real study suggests for one dimension."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append(SearchSpace({"x": dimension}).suggest(trial)["x"])
        study.tell(trial, 0.0)
    return found


# -- what is refused before anything runs


def refused(
    error: type[Exception], hp_space: Any = SPACE, directions: tuple[str, ...] = ("maximize",), **kwargs
) -> str:
    with pytest.raises(error) as caught:
        backend = OptunaBackend()
        backend.check(backend.open_space(hp_space), 3, list(directions), kwargs)
    return str(caught.value)


@pytest.mark.parametrize("n_jobs", [0, -2, None, True, 1.5, "2"])
def test_a_number_of_processes_that_is_none_is_refused(n_jobs):
    assert refused(ConfigurationError, n_jobs=n_jobs) == (
        f"`n_jobs` must be a number of processes of at least 1, or -1 for one for each CPU, but got {n_jobs!r}."
    )


def test_minus_one_job_is_one_for_each_cpu():
    settings = Settings.of("optuna", {"n_jobs": -1})
    assert settings.n_jobs == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("resume", 1, "`resume` must be True or False, but got 1."),
        ("gc_after_trial", "yes", "`gc_after_trial` must be True or False, but got 'yes'."),
        ("heartbeat_interval", 0, "`heartbeat_interval` must be a number of seconds above 0, but got 0."),
        ("heartbeat_interval", math.nan, "`heartbeat_interval` must be a number of seconds above 0, but got nan."),
        ("storage_patience", -1, "`storage_patience` must be a number of seconds of at least 0, but got -1."),
        ("threads_per_worker", 0, "`threads_per_worker` must be an integer of at least 1, or None, but got 0."),
        ("workers_per_gpu", 1.5, "`workers_per_gpu` must be an integer of at least 1, or None, but got 1.5."),
        ("callbacks", [1], "`callbacks` must be a list of functions(study, trial), but got [1]."),
    ],
)
def test_arguments_of_its_own_are_checked(name, value, message):
    assert refused(ConfigurationError, **{name: value}) == message


@pytest.mark.parametrize(
    "storage", [optuna.storages.InMemoryStorage(), "sqlite://", "sqlite:///:memory:"], ids=["object", "bare", "named"]
)
@pytest.mark.parametrize(
    ("given", "what"), [({"n_jobs": 2}, "n_jobs=2"), ({"resume": True, "study_name": "s"}, "`resume=True`")]
)
def test_a_storage_in_the_memory_of_one_process_is_refused_for_several(storage, given, what):
    message = refused(ConfigurationError, storage=storage, **given)
    assert message.startswith(f"{what} needs a storage that other processes can open")


def test_resuming_in_a_storage_needs_the_name_of_the_study():
    message = refused(ConfigurationError, storage="sqlite:///study.db", resume=True)
    assert "but there is no `study_name`. Pass one, the same in every run." in message


def test_unknown_arguments_are_refused_all_at_once_with_what_was_meant():
    message = refused(ConfigurationError, studyname="a", n_trails=3, pruner=None, zzz=1)
    assert message.startswith("Unknown argument(s) for the backend 'optuna': 'studyname', 'n_trails', 'zzz'. ")
    assert "'studyname': Did you mean 'study_name'?" in message and "'zzz': unknown." in message
    known = (
        "callbacks, catch, gc_after_trial, heartbeat_interval, load_if_exists, n_jobs, pruner, resume, sampler, "
        "storage, storage_patience, study_name, terminator, threads_per_worker, workers_per_gpu"
    )
    source = "those of optuna.create_study and Study.optimize, and its own"
    assert message.endswith(f"It takes {source}: {known}.")


def test_the_direction_is_no_argument_of_the_backend():
    assert "Unknown argument(s) for the backend 'optuna': 'direction'." in refused(ConfigurationError, direction="x")


def test_a_plain_dict_is_no_search_space_but_nearly():
    space = {"learning_rate": Float(0, 1)}
    assert refused(SearchSpaceError, hp_space=space) == (
        "`hp_space` must be a SearchSpace or a function of an Optuna trial that returns a dict, but got "
        f"{space!r}. Wrap the dict: SearchSpace({{...}})."
    )


@pytest.mark.parametrize("space", [None, "learning_rate", [1]])
def test_what_is_no_search_space_at_all_is_refused(space):
    assert refused(SearchSpaceError, hp_space=space) == (
        f"`hp_space` must be a SearchSpace or a function of an Optuna trial that returns a dict, but got {space!r}."
    )


def test_a_pruner_needs_a_single_objective():
    pruner = optuna.pruners.MedianPruner()
    message = refused(ConfigurationError, directions=("maximize", "minimize"), pruner=pruner)
    assert message == "`pruner` needs a single objective: Optuna does not prune with several."
    OptunaBackend().check(SPACE, 3, ["maximize"], {"pruner": pruner})
    OptunaBackend().check(SPACE, 3, ["maximize", "minimize"], {"pruner": None})


def test_upstreams_arguments_are_taken():
    kwargs = {"study_name": "s", "storage": None, "sampler": None, "n_jobs": 1, "catch": ()}
    OptunaBackend().check(lambda trial: {}, 3, ["maximize"], kwargs)


# -- finding a backend


@pytest.mark.parametrize("name", [None, "optuna", HPSearchBackend.OPTUNA])
def test_optuna_is_found_by_its_name_and_by_transformers_and_is_the_default(name):
    backend = get_backend(name)
    assert type(backend) is OptunaBackend and backend.native is None
    assert get_backend(name) is not backend
    assert dict(backend.default_hp_space(None)) == dict(default_search_space())


# -- proposals


def test_floats_stay_between_their_bounds():
    found = proposals(Float(0.5, 2))
    assert all(type(value) is float and 0.5 <= value <= 2.0 for value in found) and len(set(found)) == 25


def test_logarithmic_floats_are_spread_over_the_powers_of_ten():
    found = proposals(Float(1e-6, 1.0, log=True), 60)
    assert {math.floor(math.log10(value)) for value in found} == set(range(-6, 0))


def test_floats_with_a_step_are_multiples_of_it():
    assert set(proposals(Float(0.0, 1.0, step=0.25), 60)) == {0.0, 0.25, 0.5, 0.75, 1.0}


@pytest.mark.parametrize(
    ("dimension", "possible"),
    [
        (Int(2, 5), {2, 3, 4, 5}),
        (Int(8, 32, step=8), {8, 16, 24, 32}),
        (Int(1, 3, log=True), {1, 2, 3}),
        (Int(7, 7), {7}),
    ],
)
def test_integers_are_integers_and_both_bounds_are_drawn(dimension, possible):
    found = proposals(dimension, 60)
    assert set(found) == possible and {type(value) for value in found} == {int}


@pytest.mark.parametrize(
    "choices",
    [
        [16, 32, 64],
        ["no_duplicates", None],
        [True, False],
        [1, True, 1.0],
        [0, False, 0.0, "0", None],
        [{"anchor": "q: "}, {"anchor": "query: ", "positive": "p: "}, None],
        [[1, 2], [2, 1], "[1, 2]"],
        [{}, [], "{}", "dict {}"],
        [[{"a": [1.5]}], 1.5],
        ["é", "\u2028", ""],
    ],
    ids=repr,
)
def test_every_choice_is_proposed_as_the_very_value_that_was_given(choices):
    found = proposals(Categorical(choices), 25 * len(choices))
    assert {repr(value) for value in found} == {repr(choice) for choice in choices}


@pytest.mark.parametrize(
    "choices", [[1, True, 1.0], [{"anchor": "q: "}, None], [16, 32]], ids=["equal", "dict", "numbers"]
)
def test_optuna_warns_of_no_choice_and_stores_them_all(choices, tmp_path, recwarn):
    """It takes scalars only: others travel under a text."""
    search = FakeSearch(lambda values, native: 0.0, SearchSpace({"x": Categorical(choices)}))
    backend = ran(search, 12, storage=f"sqlite:///{tmp_path}/study.db", study_name="s", sampler=seeded())
    assert not [item for item in recwarn if issubclass(item.category, UserWarning)]
    first = backend.records(search)
    assert {repr(record.hyperparameters["x"]) for record in first} == set(map(repr, choices))
    again = FakeSearch(lambda values, native: 0.0, search.hp_space)
    kept = ran(again, 1, storage=f"sqlite:///{tmp_path}/study.db", study_name="s", load_if_exists=True).records(again)
    assert repr(kept[:12]) == repr(first) and len(kept) == 13


def seeded() -> Any:
    return optuna.samplers.RandomSampler(seed=1)


def test_five_trials_give_five_proposals_though_every_trial_seeds_all_generators():
    """``set_seed`` runs in every trial: a sampler that drew from a global generator would repeat itself."""

    def train(values: dict[str, Any], native: Any) -> float:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        return 0.0

    search = FakeSearch(train)
    ran(search, 5)
    assert len({record.hyperparameters["learning_rate"] for record in search.own.values()}) == 5


def test_a_function_suggests_from_optunas_trial():
    def hp_space(trial: optuna.Trial) -> dict[str, Any]:
        return {"per_device_train_batch_size": 2 ** trial.suggest_int("exponent", 3, 5)}

    search = FakeSearch(lambda values, native: float(native.number), hp_space)
    study = ran(search, 4).native
    for record, trial in zip(search.own.values(), study.trials, strict=True):
        assert record.hyperparameters == {"per_device_train_batch_size": 2 ** trial.params["exponent"]}


@pytest.mark.parametrize("returned", [None, 3, ["learning_rate"]])
def test_a_function_that_returns_no_dict_is_refused(returned):
    with pytest.raises(SearchSpaceError) as caught:
        ran(FakeSearch(by_rate, lambda trial: returned))
    assert str(caught.value) == (
        f"`hp_space` must return a dict of hyperparameters, but returned {returned!r} of type "
        f"{type(returned).__name__}."
    )


# -- the study


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_study_is_told_what_the_trials_gave(direction):
    search = FakeSearch(by_rate)
    backend = ran(search, 4, direction)
    study = backend.native
    assert study.direction.name.lower() == direction
    assert [trial.value for trial in study.trials] == [record.objective for record in search.own.values()]
    assert backend.records(search) == list(search.own.values())
    assert [stored(trial) for trial in study.trials] == [record.to_dict() for record in search.own.values()]
    assert search.could_report == [True] * 4


def test_several_objectives_are_told_together_and_never_reported_between():
    search = FakeSearch(lambda values, native: [0.5, float(native.number)], objective_names=("eval_x", "eval_y"))
    study = ran(search, 2, ["maximize", "minimize"]).native
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values for trial in study.trials] == [[0.5, 0.0], [0.5, 1.0]]
    assert search.could_report == [False, False]


def test_a_pruned_trial_is_pruned_in_the_study_and_the_next_one_runs():
    class FirstOnly(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return trial.number == 0 and trial.last_step == 2

    search = FakeSearch(by_rate, reports=(0.1, 0.2, 0.3))
    backend = ran(search, 2, pruner=FirstOnly())
    assert [trial.state for trial in backend.native.trials] == [PRUNED, COMPLETE]
    assert backend.native.trials[0].intermediate_values == {1: 0.1, 2: 0.2}
    assert backend.records(search)[0].error == "pruned at step 2"


def test_a_trial_whose_objective_is_nan_fails_and_the_next_one_runs():
    search = FakeSearch(lambda values, native: math.nan if native.number == 0 else 1.0)
    backend = ran(search, 2)
    assert [trial.state for trial in backend.native.trials] == [FAIL, COMPLETE]
    assert [record.state for record in backend.records(search)] == ["failed", "completed"]


def fail_first(values: dict[str, Any], native: Any) -> float:
    if native.number == 0:
        raise RuntimeError("CUDA out of memory")
    return 1.0


def test_an_error_ends_the_search_and_its_trial_has_failed():
    search, backend = FakeSearch(fail_first), OptunaBackend()
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        backend.run(search, 3, "maximize")
    assert [trial.state for trial in backend.native.trials] == [FAIL]
    assert stored(backend.native.trials[0])["error"] == "RuntimeError: CUDA out of memory"


def test_an_error_that_catch_names_ends_its_trial_only():
    search = FakeSearch(fail_first)
    assert [trial.state for trial in ran(search, 2, catch=(RuntimeError,)).native.trials] == [FAIL, COMPLETE]


def test_ctrl_c_in_a_trial_leaves_no_running_trial(tmp_path):
    def train(values: dict[str, Any], native: Any) -> float:
        if native.number == 1:
            raise KeyboardInterrupt
        return 1.0

    search, storage = FakeSearch(train), f"sqlite:///{tmp_path}/study.db"
    with pytest.raises(KeyboardInterrupt):
        OptunaBackend().run(search, 5, "maximize", storage=storage, study_name="s")
    study = optuna.load_study(study_name="s", storage=storage)
    assert [trial.state for trial in study.trials] == [COMPLETE, FAIL]
    assert stored(study.trials[1])["error"].startswith("KeyboardInterrupt")


def test_a_callback_ends_the_search_as_in_optuna():
    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 1:
            study.stop()

    assert len(ran(FakeSearch(by_rate), 5, callbacks=[stop], gc_after_trial=False).native.trials) == 2


def test_a_search_that_is_to_end_asks_for_no_more_trials():
    search, backend = FakeSearch(by_rate), OptunaBackend()
    search.ending = TimeoutError("enough")
    with pytest.raises(TimeoutError, match="enough"):
        backend.run(search, 3, "maximize")
    assert backend.native.trials == []


@pytest.mark.parametrize(("verbose", "lines"), [(False, False), (True, True)])
def test_optuna_logs_only_when_asked_to_and_its_level_is_kept(verbose, lines, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("optuna"), "handlers", [caplog.handler])
    optuna.logging.set_verbosity(optuna.logging.INFO)
    search = FakeSearch(by_rate)
    search.verbose = verbose
    ran(search, 1)
    assert any("Trial 0 finished" in message for message in caplog.messages) is lines
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


# -- studies that others began

OTHER_PROGRAM = """
import optuna, sys
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(study_name="s", storage=sys.argv[1], direction="maximize")
def objective(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    trial.suggest_categorical("kind", ["a", "b"])
    if trial.number == 1:
        trial.report(0.5, 1)
        raise optuna.TrialPruned()
    if trial.number == 2:
        raise ValueError("too large")
    return x
study.optimize(objective, n_trials=3, catch=(ValueError,))
study.ask()
study.enqueue_trial({"x": 0.25})
"""


def test_the_records_of_a_study_that_another_program_ran_say_what_it_says(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    subprocess.run([sys.executable, "-c", OTHER_PROGRAM, storage], check=True, timeout=120)
    search = FakeSearch(by_rate)
    backend = ran(search, 1, storage=storage, study_name="s", load_if_exists=True)
    records = backend.records(search)
    assert [record.state for record in records] == ["completed", "pruned", "failed", "running", "completed"]
    assert [record.number for record in records] == [0, 1, 2, 3, 4]
    first, pruned, failed, running, own = records
    assert first.objective == first.hyperparameters["x"] and first.hyperparameters["kind"] in ("a", "b")
    assert first.seconds is not None and running.seconds is None
    assert pruned.objective is None and failed.objective is None and running.objective is None
    assert own is search.own[4]


def test_a_search_that_goes_on_has_the_records_that_the_earlier_one_left(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    kwargs = {"storage": storage, "study_name": "s", "load_if_exists": True, "catch": (RuntimeError,)}
    earlier = FakeSearch(fail_first)
    ran(earlier, 2, **kwargs)
    later = FakeSearch(by_rate)
    records = ran(later, 2, **kwargs).records(later)
    assert records[:2] == list(earlier.own.values()) and records[0].error == "RuntimeError: CUDA out of memory"
    assert [record.number for record in records] == [0, 1, 2, 3]
    assert json.dumps([record.to_dict() for record in records])


@pytest.mark.parametrize(
    ("direction", "names", "message"),
    [
        ("minimize", ("eval_x",), r"optimizes in the direction\(s\) \['maximize'\], this search in \['minimize'\]"),
        ("maximize", ("eval_y",), r"optimizes \['eval_x'\], this search \['eval_y'\]"),
    ],
)
def test_a_study_that_optimizes_something_else_is_not_continued(direction, names, message, tmp_path):
    kwargs = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "s", "load_if_exists": True}
    ran(FakeSearch(by_rate), 1, **kwargs)
    other = FakeSearch(by_rate, objective_names=names)
    with pytest.raises(ConfigurationError, match=message):
        ran(other, 1, direction, **kwargs)
    assert other.own == {}


def test_without_a_study_there_are_no_records():
    assert OptunaBackend().records(FakeSearch(by_rate)) == []


def test_user_code_may_prune_its_own_trial():
    assert OptunaBackend().pruned_exceptions == (optuna.TrialPruned,)

"""Corners that a first use does not reach: odd numbers, odd types, odd fields, damaged files."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from enum import Enum
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import SequentialEvaluator
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from st_hpo import (
    Categorical,
    ConfigurationError,
    Float,
    HyperparameterValueError,
    Int,
    ObjectiveError,
    SearchResult,
    SearchSpace,
    SearchSpaceError,
    TrialRecord,
)
from st_hpo.arguments import ArgumentSnapshot
from st_hpo.conversion import convert, plain
from st_hpo.factories import Factory, TrialView
from st_hpo.objective import resolve_objective
from st_hpo.routing import Router


def arguments(cls: type = SentenceTransformerTrainingArguments, **kwargs: Any) -> Any:
    return cls(**{"output_dir": "output", "report_to": "none", **kwargs})


def router(args: Any = None) -> Router:
    return Router(ArgumentSnapshot(args or arguments()), Factory(lambda: None, "model_init"), None)


def result(**record: Any) -> SearchResult:
    return SearchResult([TrialRecord(0, **record)], ["eval_x"], ["maximize"])


# ---- A custom evaluator's numbers of numpy and torch ----
@pytest.mark.parametrize("value", [np.float32(0.5), torch.tensor(0.5), np.int64(3), np.float64("nan")], ids=repr)
def test_metrics_of_numpy_and_torch_are_recorded(value):
    loaded = SearchResult.from_json(result(metrics={"eval_y": value}).to_json())
    assert repr(loaded.trials[0].metrics["eval_y"]) == repr(float(value) if value.dtype != np.int64 else 3)


# ---- typing.Any is a class on Python 3.11+ ----
def test_any_takes_everything():
    assert convert("x", 3, Any) == 3
    assert convert("x", None, Any) is None


@dataclasses.dataclass
class Unresolvable(SentenceTransformerTrainingArguments):
    extra: "OnlyForTypeCheckers" = None  # noqa


def test_one_unresolvable_annotation_does_not_switch_off_all_types():
    with pytest.raises(HyperparameterValueError):
        ArgumentSnapshot(arguments(Unresolvable)).convert({"per_device_train_batch_size": 16.5})


# ---- check_space: 0.37 of a range is an integer when the range is a multiple of 100 ----
@pytest.mark.parametrize("space", [Float(0, 100), Float(100, 300), Float(0, 1000)], ids=repr)
def test_a_float_for_an_integer_field_is_always_refused(space):
    with pytest.raises(HyperparameterValueError):
        router().check_space(SearchSpace({"per_device_train_batch_size": space}))


# ---- ArgumentSnapshot ----
def test_a_searched_warmup_steps_of_zero_is_zero_also_where_a_ratio_was_given_as_well():
    snapshot = ArgumentSnapshot(arguments(warmup_steps=10, warmup_ratio=0.1))
    assert snapshot.build({"warmup_steps": 0.0}).warmup_steps == 0


def test_derived_fields_are_derived_again_beside_a_sampler_given_as_a_partial():
    args = arguments(
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_x",
        batch_sampler=functools.partial(dict),
    )
    assert ArgumentSnapshot(args).build({"metric_for_best_model": "eval_loss"}).greater_is_better is False


@dataclasses.dataclass
class Required(SentenceTransformerTrainingArguments):
    temperature: float = dataclasses.field(kw_only=True)


def test_a_required_field_of_the_users():
    assert ArgumentSnapshot(arguments(Required, temperature=0.1)).build().temperature == 0.1


@dataclasses.dataclass
class Weighted(SentenceTransformerTrainingArguments):
    weights: Any = None


@pytest.mark.parametrize("weights", [torch.ones(3), np.ones(3)], ids=lambda w: type(w).__name__)
def test_a_field_that_holds_an_array(weights):
    assert ArgumentSnapshot(arguments(Weighted, weights=weights)).build().weights.shape == (3,)


class Mode(Enum):
    A = "a"
    B = "b"


@dataclasses.dataclass
class Moded(SentenceTransformerTrainingArguments):
    mode: Mode = Mode.A
    pair: tuple[int, int] = (1, 2)
    nested: dict | None = dataclasses.field(default_factory=lambda: {"x": 1})


def test_an_enum_field_of_the_users_gets_a_member_also_on_the_way_through_route():
    args = arguments(Moded)
    assert ArgumentSnapshot(args).build(router(args).route({"mode": "b"}).arguments).mode is Mode.B


def test_a_tuple_field_can_be_searched():
    args = arguments(Moded)
    space = SearchSpace({"pair": Categorical([(3, 4), (5, 6)])})
    router(args).check_space(space)


def test_a_nested_value_keeps_its_type():
    assert repr(ArgumentSnapshot(arguments(Moded, nested={"x": 1.0})).build().nested) == "{'x': 1.0}"


def test_building_does_not_warn_of_a_field_the_user_never_used():
    snapshot = ArgumentSnapshot(arguments(activation_checkpointing=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snapshot.build()


def test_a_warmup_ratio_set_after_construction_is_as_ignored_as_it_is_upstream():
    args = arguments()
    args.warmup_ratio = 0.1
    assert ArgumentSnapshot(args).build().get_warmup_steps(100) == args.get_warmup_steps(100) == 0


# ---- objective ----
@pytest.mark.parametrize("nonsense", [5, {"eval_loss": "maximize"}, {"eval_loss", "eval_x"}])
def test_compute_objective_that_is_no_list_is_refused(nonsense):
    with pytest.raises(ObjectiveError):
        resolve_objective(nonsense, None, None)


def test_a_sequential_evaluator_inside_another_gives_the_direction_of_its_evaluators():
    inner = EmbeddingSimilarityEvaluator(["a"], ["b"], [1.0])
    inner.greater_is_better = False
    nested = SequentialEvaluator([SequentialEvaluator([inner])])
    assert resolve_objective(None, None, nested).directions == ["minimize"]


@pytest.mark.parametrize(
    "value", [np.True_, torch.tensor(True), np.complex64(1 + 2j), 10**400], ids=lambda v: type(v).__name__
)
def test_what_is_no_real_number_is_refused(value):
    with pytest.raises(ObjectiveError):
        resolve_objective("eval_x", "maximize", None).values({"eval_x": value})


# ---- results ----
def test_a_truncated_result_is_a_configuration_error():
    with pytest.raises(ConfigurationError):
        SearchResult.from_json('{"format_version": 1}')


def test_a_file_that_is_no_text_is_a_configuration_error(tmp_path):
    (tmp_path / "x").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ConfigurationError):
        SearchResult.load(tmp_path / "x")


def test_an_integer_beyond_64_bits_can_be_in_a_dataset():
    result(hyperparameters={"x": 2**70}).to_dataset()


# ---- conversion ----
def test_an_integer_with_a_point_is_not_rounded():
    assert convert("x", "9007199254740993.0", int) == 9007199254740993


@pytest.mark.parametrize(("value", "declared"), [(True, Literal[1]), (1.0, Literal[1, 2]), (0, Literal[False])])
def test_a_literal_is_one_of_its_own_values(value, declared):
    try:
        found = convert("x", value, declared)
    except HyperparameterValueError:
        return
    assert type(found) is not type(value)


class One(Enum):
    ONE = 1


def test_true_is_not_the_member_of_value_one():
    with pytest.raises(HyperparameterValueError):
        convert("x", True, One)


def test_a_long_double_is_recorded_or_refused():
    assert repr(plain("x", np.longdouble(1.5))) == "1.5"


class Name(str, Enum):
    A = "a"


def test_an_enum_member_as_a_key_is_recorded_by_its_value():
    assert plain("x", {Name.A: 1}) == {"a": 1}


# ---- space, factories ----
def test_bounds_of_numpy_are_numbers():
    assert Int(np.int64(1), 2).low == 1 and Float(np.float32(0.5), 1).low == 0.5


def test_lists_that_differ_in_type_are_different_choices():
    assert len(Categorical([[1], [1.0], [True]]).choices) == 3


def test_nan_twice_is_given_twice():
    with pytest.raises(SearchSpaceError):
        Categorical([float("nan"), float("nan")])


def test_an_integer_beyond_every_float_is_a_search_space_error():
    with pytest.raises(SearchSpaceError, match="must be a finite number"):
        Int(0, 10**400)


def test_a_positional_only_trial_behind_a_default():
    trial = TrialView({})
    assert Factory(lambda a=1, trial=None, /: (a, trial), "model_init")(keywords={}, trial=trial) == (1, trial)


def test_loss_model_is_no_hyperparameter_of_a_loss_init_with_kwargs():
    assert not Factory(lambda model, **kwargs: None, "loss_init").accepts("model")


def test_model_scale_means_loss_scale_first():
    from st_hpo.errors import nearest

    assert nearest("model.scale", ["model.base", "loss.scale"])[0] == "loss.scale"


# ---- Leaving the process in the middle of a trial ----


def test_sys_exit_in_a_trial_leaves_no_running_trial_behind():
    from fast_trainer import METRIC, RATES, FailIn, fast_trainer

    trainer = fast_trainer(callbacks=[FailIn({1}, SystemExit(3))])
    with pytest.raises(SystemExit):
        trainer.hyperparameter_search(RATES, METRIC, n_trials=3)
    assert [trial.state for trial in trainer.last_search.trials] == ["completed", "failed"]
    assert [trial.state.name for trial in trainer.last_search.native.trials] == ["COMPLETE", "FAIL"]


def test_an_evaluator_of_ones_own_may_return_numbers_of_numpy_and_torch():
    from st_hpo import Baseline

    from fast_trainer import RATES, fast_trainer

    def evaluate(model, output_path=None, epoch=-1, steps=-1):
        return {"score": np.float32(0.5), "other": torch.tensor(2.0), "counts": np.ones(2)}

    class Own(EmbeddingSimilarityEvaluator):
        __call__ = staticmethod(evaluate)

    trainer = fast_trainer(evaluator=Own(["a"], ["b"], [1.0]))
    found = trainer.hyperparameter_search(RATES, "score", n_trials=1, direction="maximize").run_summary
    assert isinstance(found.baseline, Baseline) and found.baseline.objective == 0.5
    metrics = found.trials[0].metrics
    assert (metrics["eval_score"], metrics["eval_other"], metrics["eval_counts"]) == (0.5, 2.0, [1.0, 1.0])
    assert SearchResult.from_json(found.to_json()) == found

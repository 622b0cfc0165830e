"""Every hyperparameter goes where its name says, as the type that is declared there, or is refused at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, TripletLoss
from transformers.trainer_utils import SchedulerType

from st_hpo import (
    Categorical,
    ConfigurationError,
    FactoryError,
    Float,
    HyperparameterValueError,
    Int,
    SearchSpace,
    UnknownHyperparameterError,
    default_search_space,
)
from st_hpo.arguments import ArgumentSnapshot
from st_hpo.factories import Factory, TrialView
from st_hpo.routing import Routed, Router

SNAPSHOT = ArgumentSnapshot(SentenceTransformerTrainingArguments(output_dir="output", report_to="none"))
HINT = (
    "A plain name is a field of the training arguments; 'loss.<name>' and 'model.<name>' are keyword parameters of "
    "`loss_init` and `model_init`."
)


def model_init(base: str = "small", dropout: float = 0.1) -> None:
    """A ``model_init`` with two hyperparameters and no trial."""


def router(model: Any = model_init, loss: Any = CoSENTLoss) -> Router:
    if isinstance(loss, dict):
        losses: Any = {name: Factory(item, "loss_init") for name, item in loss.items()}
    else:
        losses = None if loss is None else Factory(loss, "loss_init")
    return Router(SNAPSHOT, Factory(model, "model_init"), losses)


def refused(names: list[str], where: Router | None = None) -> UnknownHyperparameterError:
    with pytest.raises(UnknownHyperparameterError) as caught:
        (where or router()).check_names(names)
    return caught.value


def unknown(name: str, hint: str = "") -> str:
    return (
        f"Unknown hyperparameter {name!r}: it is no training argument, and neither `model_init` nor `loss_init` takes "
        f"it or reads it from its trial.{hint}"
    )


# -- names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("scale", " Did you mean 'loss.scale'?"),
        ("dropout", " Did you mean 'model.dropout'?"),
        ("base", " Did you mean 'model.base'?"),
        ("learning_rte", " Did you mean 'learning_rate' or 'learning_rate_mapping'?"),
        ("loss.scal", " Did you mean 'loss.scale'?"),
        ("zzz", ""),
    ],
)
def test_a_name_that_nothing_uses_is_refused_with_what_was_meant(name, hint):
    error = refused([name])
    assert str(error) == unknown(name, hint) + "\n" + HINT
    assert error.names == [name]
    assert {"learning_rate", "loss.scale", "model.base"} <= set(error.choices)
    assert error.choices == sorted(error.choices) and "loss.model" not in error.choices


def test_several_unknown_names_are_refused_in_one_message():
    error = refused(["seed", "scale", "loss.scale", "zzz", "model.dropuot"])
    assert error.names == ["scale", "zzz", "model.dropuot"]
    assert str(error).splitlines() == [
        unknown("scale", " Did you mean 'loss.scale'?"),
        unknown("zzz"),
        unknown("model.dropuot", " Did you mean 'model.dropout'?"),
        HINT,
    ]


def test_without_a_loss_init_no_loss_hyperparameter_is_known():
    assert refused(["loss.scale"], router(loss=None)).names == ["loss.scale"]


def test_a_name_that_one_of_several_losses_takes_is_known():
    several = router(loss={"a": CoSENTLoss, "b": TripletLoss})
    several.check_names(["loss.scale", "loss.triplet_margin"])
    assert refused(["loss.margin"], several).names == ["loss.margin"]


def test_a_function_that_takes_any_keyword_takes_every_name_of_its_prefix():
    where = router(model=lambda **kwargs: None)
    where.check_names(["model.whatever", "model.else"])
    assert refused(["loss.whatever", "plain"], where).names == ["loss.whatever", "plain"]


def test_a_plain_name_may_be_read_from_the_trial_where_one_is_handed_on():
    router(model=lambda trial: None).check_names(["my_depth"])
    router(loss=lambda model, trial: None).check_names(["my_depth"])
    assert refused(["my_depth"], router(model=model_init, loss=None)).names == ["my_depth"]


def test_a_function_with_parameters_that_nothing_fills_is_refused_with_the_names():
    two = router(model=lambda base, depth: None)
    two.check_names(["model.base"])
    with pytest.raises(FactoryError, match="'base', 'depth' have no default"):
        two.check_names(["learning_rate"])


# -- the values of a space


@pytest.mark.parametrize(
    ("name", "dimension", "message"),
    [
        ("per_device_train_batch_size", Float(8, 64), "expected int. The fraction would be lost."),
        ("per_device_train_batch_size", Float(8, 64, step=0.5), "got 8.5 of type float, expected int."),
        ("per_device_train_batch_size", Categorical([8, 16, "large"]), "got 'large' of type str, expected int."),
        ("seed", Categorical([1, True]), "got True of type bool, expected int. A boolean is no number."),
        ("learning_rate", Categorical([1e-5, None]), "got None of type NoneType, expected float."),
        ("lr_scheduler_type", Categorical(["linear", "cosin"]), "got 'cosin' of type str, expected one of 'linear', "),
        ("bf16", Int(0, 2), "got 2 of type int, expected bool."),
        ("prompts", Categorical([{"a": "q: "}, 3]), "got 3 of type int, expected str or None or dict."),
    ],
)
def test_a_dimension_with_a_value_that_does_not_fit_is_refused_before_any_trial(name, dimension, message):
    with pytest.raises(HyperparameterValueError) as caught:
        router().check_space(SearchSpace({"learning_rate": Float(1e-6, 1e-4), name: dimension}))
    assert str(caught.value).startswith(f"Hyperparameter {name!r} got ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        ("per_device_train_batch_size", Float(8, 64, step=8)),
        ("per_device_train_batch_size", Float(16, 16)),
        ("per_device_train_batch_size", Categorical([8, 16.0, "32"])),
        ("learning_rate", Int(1, 2)),
        ("bf16", Int(0, 1)),
        ("batch_sampler", Categorical(["no_duplicates", "batch_sampler"])),
        ("prompts", Categorical([None, "query: ", {"anchor": "query: "}])),
        ("learning_rate_mapping", Categorical([{}, {"scale": 1e-2}])),
        ("warmup_steps", Float(0.0, 0.3)),
        ("data_seed", Categorical([None, 1])),
        ("loss.scale", Categorical(["anything", 3])),
        ("model.base", Float(0, 1)),
    ],
)
def test_a_dimension_whose_values_all_fit_is_taken(name, dimension):
    space = SearchSpace({name: dimension})
    router().check_space(space)
    values = dimension.choices if isinstance(dimension, Categorical) else (dimension.low, dimension.high)
    for value in values:  # ... and so is each value in its trial
        assert list(router().route({name: value}).all()) == [name]


def test_the_default_space_is_taken_by_the_arguments_of_sentence_transformers():
    router().check_space(default_search_space())


def test_an_unknown_name_in_a_space_is_refused():
    with pytest.raises(UnknownHyperparameterError, match=r"'scale'.* Did you mean 'loss\.scale'\?"):
        router().check_space(SearchSpace({"scale": Float(1, 2)}))


# -- the values of a trial


def test_values_are_sorted_by_their_names_and_converted():
    values = {
        "learning_rate": "1e-4",
        "per_device_train_batch_size": np.float64(16.0),
        "lr_scheduler_type": SchedulerType.COSINE,
        "loss.scale": np.float32(0.5),
        "model.base": "large",
        "depth": np.int64(3),
    }
    routed = router(model=lambda trial, base="small": None).route(values)
    assert routed == Routed(
        arguments={"learning_rate": 1e-4, "per_device_train_batch_size": 16, "lr_scheduler_type": "cosine"},
        model={"base": "large"},
        loss={"scale": 0.5},
        free={"depth": 3},
    )
    assert [type(value) for value in routed.all().values()] == [float, int, str, str, float, int]
    assert set(routed.all()) == set(values)


plain_values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers(), max_size=2)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": st.floats(1e-7, 1e-2),
            "num_train_epochs": st.floats(1, 9),
            "seed": st.integers(0, 2**31),
            "prompts": st.none() | st.text() | st.dictionaries(st.text(), st.text(), max_size=2),
            "batch_sampler": st.sampled_from(["no_duplicates", "batch_sampler"]),
            "loss.scale": plain_values,
            "model.base": plain_values,
            "model.dropout": plain_values,
        },
    )
)
@settings(deadline=None)
def test_nothing_is_lost_on_the_way_and_routing_again_changes_nothing(values):
    routed = router().route(values)
    assert routed.all() == values
    assert router().route(routed.all()) == routed


def test_an_unknown_name_in_a_trial_is_refused_unless_asked_to_keep_it():
    with pytest.raises(UnknownHyperparameterError):
        router().route({"depth": 3})
    assert router().route({"depth": 3}, strict=False).free == {"depth": 3}


def test_a_value_that_cannot_be_recorded_is_refused():
    with pytest.raises(HyperparameterValueError, match=r"'loss\.similarity_fct' got <built-in function len>"):
        router().route({"loss.similarity_fct": len})


def test_two_names_for_the_same_thing_are_refused():
    with pytest.raises(ConfigurationError, match="'warmup_ratio' and 'warmup_steps' set the same thing"):
        router().route({"warmup_ratio": 0.1, "warmup_steps": 10})


def test_a_plain_name_that_nothing_read_from_the_trial_is_refused_before_the_training():
    where = router(model=lambda trial: trial["depth"])
    routed = where.route({"depth": 3, "scale": 2.0, "learning_rate": 1e-4})
    view = TrialView(routed.all())
    assert view["depth"] == 3
    with pytest.raises(UnknownHyperparameterError) as caught:
        where.check_read(routed, view)
    assert caught.value.names == ["scale"] and "Did you mean 'loss.scale'?" in str(caught.value)
    assert view["scale"] == 2.0
    where.check_read(routed, view)

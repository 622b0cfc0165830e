"""Training arguments taken apart and built anew are the originals, plus what a trial searches."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from typing import Any

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers, DefaultBatchSampler
from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments
from sentence_transformers.multi_vector_encoder import MultiVectorEncoderTrainingArguments
from sentence_transformers.sparse_encoder import SparseEncoderTrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from st_hpo import ConfigurationError, HyperparameterValueError
from st_hpo.arguments import ArgumentSnapshot

FAMILIES = [
    SentenceTransformerTrainingArguments,
    CrossEncoderTrainingArguments,
    SparseEncoderTrainingArguments,
    MultiVectorEncoderTrainingArguments,
]


class OwnSampler(DefaultBatchSampler):
    """A batch sampler of the user's, given as a class."""


@dataclasses.dataclass
class OwnArguments(SentenceTransformerTrainingArguments):
    """A user's training arguments, with a field that its constructor changes and one that it derives."""

    temperature: float = 0.05
    tags: list[str] = dataclasses.field(default_factory=list)
    margin: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tags = [tag.lower() for tag in self.tags]
        if self.label is None:
            self.label = f"at {self.temperature}"


def arguments(arguments_class: type = SentenceTransformerTrainingArguments, **kwargs: Any) -> Any:
    return arguments_class(**{"output_dir": "output", "report_to": "none", **kwargs})


def fields(args: Any) -> dict[str, tuple[type, Any]]:
    """Every field with its type: 0, 0.0 and False are different arguments."""
    values = {item.name: getattr(args, item.name) for item in dataclasses.fields(args) if item.init}
    return {name: (type(value), value) for name, value in values.items()}


shares = st.floats(0, 0.875)
rates = st.floats(1e-7, 1e-2)
prompt_texts = st.sampled_from(["query: ", "passage: ", "é"])
prompts = st.none() | prompt_texts | st.dictionaries(st.sampled_from(["anchor", "positive"]), prompt_texts, max_size=2)
rate_mappings = st.dictionaries(st.sampled_from(["scale", r"head\..*"]), rates, max_size=2)
samplers = st.sampled_from([BatchSamplers.NO_DUPLICATES, "no_duplicates", "group_by_label", "batch_sampler"])

SEARCHED = {
    "learning_rate": rates,
    "weight_decay": st.floats(0, 1),
    "num_train_epochs": st.floats(0.5, 5) | st.integers(1, 3),
    "per_device_train_batch_size": st.integers(1, 128),
    "per_device_eval_batch_size": st.integers(1, 128),
    "seed": st.integers(0, 2**31),
    "prompts": prompts,
    "learning_rate_mapping": rate_mappings,
    "batch_sampler": samplers,
    "lr_scheduler_type": st.sampled_from(["linear", "cosine", SchedulerType.CONSTANT, "reduce_lr_on_plateau"]),
    "metric_for_best_model": st.sampled_from(["eval_loss", "eval_dev_spearman_cosine"]),
    "load_best_model_at_end": st.booleans(),
    "dataloader_drop_last": st.booleans(),
}
warmups = st.fixed_dictionaries({}, optional={"warmup_steps": shares | st.integers(0, 50)}) | st.fixed_dictionaries(
    {"warmup_ratio": shares}
)


@st.composite
def constructor_calls(draw: st.DrawFn) -> dict[str, Any]:
    """Valid keyword arguments, with the strategies that a best model and a plateau ask for."""
    own = {"batch_sampler": samplers | st.just(OwnSampler), "load_best_model_at_end": st.just(True)}
    kwargs = draw(st.fixed_dictionaries({}, optional={**SEARCHED, **own})) | draw(warmups)
    strategy = draw(st.sampled_from(["no", "steps", "epoch", IntervalStrategy.EPOCH]))
    if kwargs.get("load_best_model_at_end") or kwargs.get("lr_scheduler_type") == "reduce_lr_on_plateau":
        strategy = "epoch" if strategy == "no" else strategy
    if kwargs.get("load_best_model_at_end"):
        kwargs["save_strategy"] = strategy
    elif draw(st.booleans()):
        kwargs["logging_strategy"] = draw(st.sampled_from(["no", "steps", "epoch"]))
        kwargs["logging_steps"] = draw(st.sampled_from([5, 0.25]))
    return {**kwargs, "eval_strategy": strategy}


trial_values = st.fixed_dictionaries({}, optional=SEARCHED).flatmap(
    lambda values: warmups.map(lambda warmup: {**values, **warmup})
)


@given(constructor_calls())
@settings(max_examples=150, deadline=None)
@example({"warmup_steps": 0.22, "eval_strategy": "no"})
@example({"warmup_ratio": 0.1, "eval_strategy": "no"})
@example({"batch_sampler": OwnSampler, "eval_strategy": "no"})
def test_a_snapshot_builds_the_original_field_by_field(kwargs):
    args = arguments(**kwargs)
    before = fields(args)
    assert fields(ArgumentSnapshot(args).build()) == before
    assert fields(args) == before


@given(kwargs=constructor_calls(), values=trial_values)
@settings(max_examples=200, deadline=None)
def test_values_give_what_the_constructor_gives_for_them_by_hand(kwargs, values):
    """Also where the arguments' own validation refuses the combination."""
    args = arguments(**kwargs)
    before = fields(args)
    snapshot = ArgumentSnapshot(args)
    by_hand = {**kwargs, **snapshot.convert(values)}
    if "warmup_steps" in values or "warmup_ratio" in values:  # either replaces what was set before
        for name in {"warmup_steps", "warmup_ratio"} - set(values):
            by_hand.pop(name, None)
    try:
        expected = fields(arguments(**by_hand))
    except ValueError as exc:
        with pytest.raises(ValueError, match=r".") as caught:
            snapshot.build(snapshot.convert(values))
        assert str(caught.value) == str(exc)
    else:
        assert fields(snapshot.build(snapshot.convert(values))) == expected
    assert fields(args) == before and fields(snapshot.build()) == before


@pytest.mark.parametrize("arguments_class", FAMILIES, ids=lambda item: item.__name__)
def test_the_arguments_of_every_family_are_rebuilt_as_their_own_class(arguments_class):
    args = arguments(
        arguments_class, warmup_ratio=0.1, learning_rate_mapping={"a": 1e-3}, batch_sampler="no_duplicates"
    )
    snapshot = ArgumentSnapshot(args)
    built = snapshot.build(snapshot.convert({"learning_rate": "3e-4", "per_device_train_batch_size": 64.0}))
    assert type(built) is arguments_class
    changed = {"learning_rate": (float, 3e-4), "per_device_train_batch_size": (int, 64)}
    assert fields(built) == {**fields(args), **changed}


def test_fields_that_a_user_has_added_are_kept_converted_and_derived_again():
    args = arguments(OwnArguments, temperature=0.1, tags=["STS", "NLI"])
    snapshot = ArgumentSnapshot(args)
    assert fields(snapshot.build()) == fields(args)
    built = snapshot.build(snapshot.convert({"temperature": 1, "margin": "3"}))
    assert type(built) is OwnArguments
    assert (built.temperature, built.margin, built.tags, built.label) == (1.0, 3, ["sts", "nli"], "at 1.0")
    with pytest.raises(HyperparameterValueError, match=r"'margin' got 0\.5 of type float, expected int or None"):
        snapshot.convert({"margin": 0.5})


def test_what_was_set_after_construction_is_kept():
    args = arguments(eval_strategy="steps", warmup_steps=100)
    args.learning_rate = 7e-4
    args.warmup_steps = 0.3
    args.prompts = {"anchor": "query: "}
    args.greater_is_better = True
    args.eval_strategy = IntervalStrategy.EPOCH
    built = ArgumentSnapshot(args).build()
    assert fields(built) == fields(args)
    assert built.eval_steps == 500, "derived at the first construction, and still there"


def test_what_the_constructor_would_derive_is_kept_where_it_was_set_after_construction():
    """``eval_steps`` follows ``logging_steps`` where nothing else is said; here something else is said."""
    args = arguments(eval_strategy="steps", logging_steps=20)
    args.eval_steps = 30
    built = ArgumentSnapshot(args).build({"logging_steps": 50.0})
    assert (built.logging_steps, built.eval_steps) == (50.0, 30)
    own = arguments(OwnArguments, temperature=0.1)
    own.label = arguments(OwnArguments).label  # what it would be by default, but not at this temperature
    assert fields(ArgumentSnapshot(own).build()) == fields(own)


def test_what_the_constructor_derives_is_derived_again_from_a_trials_values():
    args = arguments(
        eval_strategy="steps",
        save_strategy="steps",
        logging_steps=20,
        save_steps=20,
        load_best_model_at_end=True,
        metric_for_best_model="eval_dev_spearman_cosine",
    )
    assert (args.greater_is_better, args.eval_steps, args.do_eval) == (True, 20, True)
    snapshot = ArgumentSnapshot(args)
    built = snapshot.build({"metric_for_best_model": "eval_loss", "logging_steps": 10.0})
    assert (built.greater_is_better, built.eval_steps) == (False, 10.0)
    without = snapshot.build({"eval_strategy": "no", "load_best_model_at_end": False})
    assert (without.do_eval, without.eval_steps) == (False, None)


@pytest.mark.parametrize("before", [{}, {"warmup_steps": 100}, {"warmup_steps": 0.3}, {"warmup_ratio": 0.3}])
@pytest.mark.parametrize("share", [0.0, 0.22])
def test_a_searched_warmup_ratio_replaces_the_warmup_of_the_original(before, share):
    """The constructor heeds ``warmup_ratio`` only where ``warmup_steps`` is 0."""
    snapshot = ArgumentSnapshot(arguments(**before))
    built = snapshot.build({"warmup_ratio": share})
    assert built.get_warmup_steps(1000) == 1000 * share
    assert snapshot.build().get_warmup_steps(1000) == arguments(**before).get_warmup_steps(1000)


@pytest.mark.parametrize("before", [{}, {"warmup_steps": 100}, {"warmup_ratio": 0.3}])
@pytest.mark.parametrize(("value", "steps"), [(0.0, 0), (0.22, 220), (30, 30)])
def test_a_searched_warmup_steps_is_a_share_or_a_number_of_steps(before, value, steps):
    snapshot = ArgumentSnapshot(arguments(**before))
    assert snapshot.build(snapshot.convert({"warmup_steps": value})).get_warmup_steps(1000) == steps


def test_searching_both_warmup_fields_is_refused():
    with pytest.raises(ConfigurationError) as caught:
        ArgumentSnapshot(arguments()).convert({"warmup_steps": 10, "learning_rate": 1e-3, "warmup_ratio": 0.1})
    assert str(caught.value) == (
        "The hyperparameters 'warmup_ratio' and 'warmup_steps' set the same thing, and the training arguments would "
        "ignore 'warmup_ratio'. Search one of them; 'warmup_steps' takes a share of all steps (0.1) as well."
    )


def test_no_built_arguments_share_a_dict_with_the_original_the_snapshot_or_the_values():
    prompts, values = {"anchor": "a: "}, {"learning_rate_mapping": {"scale": 1e-2}}
    args = arguments(prompts=prompts, router_mapping={"anchor": "query"})
    snapshot = ArgumentSnapshot(args)
    built = snapshot.build(values)
    built.prompts["anchor"] = "changed"
    built.router_mapping.clear()
    built.learning_rate_mapping["scale"] = 1.0
    args.prompts["positive"] = "set after the snapshot"
    assert values == {"learning_rate_mapping": {"scale": 1e-2}}
    again = snapshot.build(values)
    assert again.prompts == {"anchor": "a: "} and again.router_mapping == {"anchor": "query"}
    assert again.learning_rate_mapping == {"scale": 1e-2}
    assert args.router_mapping == {"anchor": "query"}


def test_the_arguments_own_validation_runs_for_every_trial():
    snapshot = ArgumentSnapshot(arguments())
    with pytest.raises(ValueError, match="--load_best_model_at_end requires the save and eval strategy to match"):
        snapshot.build({"load_best_model_at_end": True})
    with pytest.raises(ValueError, match="is not a valid BatchSamplers"):
        snapshot.build({"batch_sampler": "no_duplicate"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per_device_train_batch_size": 16.5}, "got 16.5 of type float, expected int. The fraction would be lost."),
        ({"learning_rate": "fast"}, "got 'fast' of type str, expected float. The string is no number."),
        ({"seed": True}, "got True of type bool, expected int. A boolean is no number."),
        ({"lr_scheduler_type": "cosin"}, "got 'cosin' of type str, expected one of 'linear', 'cosine', "),
        ({"learning_rate_mapping": [1]}, "got [1] of type list, expected str or None or dict."),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_refused(values, message):
    with pytest.raises(HyperparameterValueError) as caught:
        ArgumentSnapshot(arguments()).convert(values)
    assert f"Hyperparameter {next(iter(values))!r} {message}" in str(caught.value)


class Heard(logging.Handler):
    """Keeps what is logged by the libraries, whose loggers do not propagate to pytest's."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def heard(monkeypatch):
    handler = Heard()
    previous = transformers.logging.get_verbosity()
    for name in ("transformers", "sentence_transformers"):
        logging.getLogger(name).addHandler(handler)
    transformers.logging.set_verbosity_info()
    yield handler.messages
    transformers.logging.set_verbosity(previous)
    for name in ("transformers", "sentence_transformers"):
        logging.getLogger(name).removeHandler(handler)


def test_taking_a_snapshot_repeats_no_warning_and_no_log_line_of_the_construction(heard):
    settings_that_talk = {"eval_strategy": "steps", "gradient_checkpointing": True, "warmup_ratio": 0.1}
    with pytest.warns(FutureWarning, match="gradient_checkpointing"):
        args = arguments(**settings_that_talk)
    assert any("warmup_ratio" in message for message in heard) and any("eval_steps" in message for message in heard)
    heard.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ArgumentSnapshot(args)
    assert heard == [] and caught == []
    logging.getLogger("sentence_transformers").warning("logging works again")
    assert heard == ["logging works again"]


def test_a_switched_off_log_stays_switched_off():
    logging.disable(logging.ERROR)
    try:
        ArgumentSnapshot(arguments())
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)


def test_the_names_are_those_that_the_constructor_takes():
    names = ArgumentSnapshot(arguments(OwnArguments)).names
    assert {"learning_rate", "warmup_ratio", "prompts", "temperature"} <= set(names)
    built = OwnArguments(**{"output_dir": "output"})
    assert not [name for name in names if not hasattr(built, name)]
    assert len(names) == len(set(names))

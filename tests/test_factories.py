"""``model_init`` and ``loss_init`` get their hyperparameters by keyword, and the trial where they ask for it."""

from __future__ import annotations

import copy
import functools
from typing import Any

import optuna
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss, SoftmaxLoss

from st_hpo import ConfigurationError, FactoryError
from st_hpo.factories import Factory, TrialView, make_loss, make_model

TRIAL = TrialView({"a": 1})
MODEL = torch.nn.Linear(1, 1)


def model_factory(function: Any) -> Factory:
    return Factory(function, "model_init")


def loss_factory(function: Any) -> Factory:
    return Factory(function, "loss_init")


@pytest.fixture
def study():
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


# -- who gets what


@pytest.mark.parametrize(
    ("function", "keywords", "received"),
    [
        (lambda: (), {}, ()),
        (lambda trial: (trial,), {}, (TRIAL,)),
        (lambda t: (t,), {}, (TRIAL,)),
        (lambda trial=None: (trial,), {}, (TRIAL,)),
        (lambda trial, /: (trial,), {}, (TRIAL,)),
        (lambda *, trial: (trial,), {}, (TRIAL,)),
        (lambda base="small": (base,), {}, ("small",)),
        (lambda base="small": (base,), {"base": "large"}, ("large",)),
        (lambda base: (base,), {"base": "large"}, ("large",)),
        (lambda trial, base="small": (trial, base), {"base": "large"}, (TRIAL, "large")),
        (lambda base, trial: (base, trial), {"base": "large"}, ("large", TRIAL)),
        (lambda base="small", trial=None: (base, trial), {}, ("small", TRIAL)),
        (lambda trial, /, base="small": (trial, base), {"base": "large"}, (TRIAL, "large")),
        (lambda **kwargs: (kwargs,), {"base": "large", "x": 1}, ({"base": "large", "x": 1},)),
        (lambda trial, **kwargs: (trial, kwargs), {"x": 1}, (TRIAL, {"x": 1})),
        (lambda *args: args, {}, ()),
    ],
)
def test_model_init_gets_its_keywords_and_the_trial(function, keywords, received):
    assert model_factory(function)(keywords=keywords, trial=TRIAL) == received


@pytest.mark.parametrize(
    ("function", "keywords", "received"),
    [
        (lambda model: (model,), {}, (MODEL,)),
        (lambda m, /: (m,), {}, (MODEL,)),
        (lambda model, trial: (model, trial), {}, (MODEL, TRIAL)),
        (lambda m, t, /: (m, t), {}, (MODEL, TRIAL)),
        (lambda model, trial=None: (model, trial), {}, (MODEL, TRIAL)),
        (lambda model, scale=20.0: (model, scale), {}, (MODEL, 20.0)),
        (lambda model, scale=20.0: (model, scale), {"scale": 5.0}, (MODEL, 5.0)),
        (lambda model, scale: (model, scale), {"scale": 5.0}, (MODEL, 5.0)),
        (lambda model, trial, scale: (model, trial, scale), {"scale": 5.0}, (MODEL, TRIAL, 5.0)),
        (lambda model, *, scale=20.0: (model, scale), {"scale": 5.0}, (MODEL, 5.0)),
        (lambda model, **kwargs: (model, kwargs), {"scale": 5.0}, (MODEL, {"scale": 5.0})),
        (lambda *args: args, {}, (MODEL,)),
    ],
)
def test_loss_init_gets_the_model_its_keywords_and_the_trial(function, keywords, received):
    assert loss_factory(function)(MODEL, keywords=keywords, trial=TRIAL) == received


def test_a_keyword_that_a_function_does_not_take_goes_to_the_other_functions_only():
    """With several losses by dataset name, each takes its own part of the ``loss.`` hyperparameters."""
    assert loss_factory(lambda model, scale: scale)(MODEL, keywords={"scale": 5.0, "margin": 1}, trial=None) == 5.0


def test_outside_of_a_trial_the_trial_is_none_and_the_defaults_apply():
    def model_init(trial: Any, base: str = "small") -> tuple[Any, str]:
        return trial, base

    assert model_factory(model_init)(keywords={}, trial=None) == (None, "small")


def test_methods_partials_and_callable_objects_are_functions_too():
    class Maker:
        def make(self, trial: Any, base: str = "small") -> tuple[Any, str]:
            return trial, base

        def __call__(self, base: str = "small") -> str:
            return base

    assert model_factory(Maker().make)(keywords={"base": "large"}, trial=TRIAL) == (TRIAL, "large")
    assert model_factory(Maker())(keywords={"base": "large"}, trial=TRIAL) == "large"
    fixed = functools.partial(Maker().make, base="fixed")
    assert model_factory(fixed)(keywords={}, trial=TRIAL) == (TRIAL, "fixed")
    assert model_factory(fixed).accepts("base") and not model_factory(fixed).accepts("other")


class OwnLoss(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, scale: float = 20.0) -> None:
        super().__init__()
        self.model, self.scale = model, scale


def test_a_loss_class_is_its_own_loss_init():
    factory = loss_factory(OwnLoss)
    assert factory.keywords == ["scale"] and factory.accepts("scale") and not factory.accepts("model")
    assert factory(MODEL, keywords={"scale": 5.0}, trial=TRIAL).scale == 5.0
    assert factory(MODEL, keywords={}, trial=TRIAL).scale == 20.0


@pytest.mark.parametrize("loss_class", [CoSENTLoss, MultipleNegativesRankingLoss])
def test_the_losses_of_sentence_transformers_take_their_own_parameters(loss_class):
    factory = loss_factory(loss_class)
    assert factory.accepts("scale") and factory.accepts("similarity_fct") and not factory.accepts("margin")
    assert factory.trial_parameter({}) is None


# -- too much


def test_two_parameters_that_nothing_fills_are_refused_with_the_names_to_search():
    with pytest.raises(FactoryError) as caught:
        model_factory(lambda base, pooling, trial=None: None)(keywords={}, trial=TRIAL)
    assert str(caught.value) == (
        "`model_init` takes too much: 'base', 'pooling' have no default and no hyperparameter gives them a value. It "
        "gets at most the trial; give the others defaults, and search them as 'model.base', 'model.pooling' if they "
        "are hyperparameters."
    )


def test_a_loss_class_that_needs_more_than_the_model_is_refused():
    with pytest.raises(FactoryError) as caught:
        loss_factory(SoftmaxLoss).trial_parameter({})
    assert str(caught.value).startswith(
        "`loss_init` takes too much: 'embedding_dimension', 'num_labels' have no default and no "
        "hyperparameter gives them a value. It gets the model and at most the trial;"
    )
    assert "'loss.num_labels'" in str(caught.value)


def test_a_parameter_counts_as_filled_once_a_hyperparameter_names_it():
    factory = model_factory(lambda base, pooling: (base, pooling))
    assert factory.trial_parameter({"base": "small"}) == "pooling"
    assert factory.trial_parameter({"base": "small", "pooling": "cls"}) is None


@pytest.mark.parametrize("nonsense", [None, "CoSENTLoss", MODEL.weight, {}], ids=lambda value: type(value).__name__)
def test_what_is_no_function_is_refused(nonsense):
    with pytest.raises(FactoryError) as caught:
        Factory(nonsense, "loss_init")
    assert str(caught.value) == f"`loss_init` must be a function, but got {nonsense!r}."


# -- what they return


def test_a_model_of_the_trainers_kind_is_handed_on():
    assert make_model(model_factory(lambda: MODEL), {}, None, torch.nn.Linear) is MODEL


@pytest.mark.parametrize(
    ("returned", "what"),
    [(None, "None: did it forget its `return`?"), ("a model", "'a model' of type str."), (3, "3 of type int.")],
)
def test_what_is_no_model_and_no_loss_is_refused(returned, what):
    with pytest.raises(FactoryError) as caught:
        make_model(model_factory(lambda: returned), {}, None, torch.nn.Linear)
    assert str(caught.value) == f"`model_init` must return a Linear, but returned {what}"
    with pytest.raises(FactoryError) as caught:
        make_loss(loss_factory(lambda model: returned), MODEL, {}, None)
    assert str(caught.value) == f"`loss_init` must return a loss (a torch.nn.Module), but returned {what}"


def test_a_loss_class_returned_in_place_of_a_loss_is_refused():
    with pytest.raises(FactoryError, match="must return a loss"):
        make_loss(loss_factory(lambda model: OwnLoss), MODEL, {}, None)


def test_several_losses_by_dataset_name_get_the_same_keywords():
    factories = {"a": loss_factory(OwnLoss), "b": loss_factory(lambda model: OwnLoss(model, scale=1.0))}
    losses = make_loss(factories, MODEL, {"scale": 5.0}, TRIAL)
    assert {name: loss.scale for name, loss in losses.items()} == {"a": 5.0, "b": 1.0}
    assert all(loss.model is MODEL for loss in losses.values())


def test_a_model_or_a_loss_returned_a_second_time_is_refused_where_it_must_be_new():
    """It would be trained on from trial to trial."""
    once = torch.nn.Linear(1, 1)
    factory = model_factory(lambda: once)
    assert make_model(factory, {}, None, torch.nn.Linear, must_be_new=True) is once
    assert make_model(factory, {}, None, torch.nn.Linear) is once
    with pytest.raises(FactoryError, match=r"returned the same model again.*return copy\.deepcopy\(model\)"):
        make_model(factory, {}, None, torch.nn.Linear, must_be_new=True)
    copies = model_factory(lambda: copy.deepcopy(once))
    made = [make_model(copies, {}, None, torch.nn.Linear, must_be_new=True) for _ in range(2)]
    assert made[0] is not made[1]
    loss = OwnLoss(MODEL)
    make_loss({"a": loss_factory(lambda model: loss)}, MODEL, {}, None, must_be_new=True)
    with pytest.raises(FactoryError, match="`loss_init` returned the same loss again"):
        make_loss({"a": loss_factory(lambda model: loss)}, MODEL, {}, None, must_be_new=True)


# -- the trial that they get


def test_a_view_reads_like_the_dict_that_ray_and_wandb_hand_on():
    view = TrialView({"a": 1, "b": None})
    assert view["a"] == 1 and view.get("b", 2) is None and view.get("c", 3) == 3 and "a" in view and "c" not in view
    assert dict(view) == {"a": 1, "b": None} and len(view) == 2 and list(view) == ["a", "b"]
    with pytest.raises(KeyError):
        view["c"]


def test_a_view_reads_like_optunas_trial(study):
    native = study.ask()
    view = TrialView({"learning_rate": 1e-4}, native)
    assert isinstance(view, optuna.Trial) and isinstance(view, TrialView)
    assert view.number == native.number == 0
    layers = view.suggest_int("layers", 1, 4)
    scale = view.suggest_float(name="scale", low=1.0, high=2.0)
    assert native.params == {"layers": layers, "scale": scale}
    assert view.params["layers"] == layers and view["scale"] == scale and view.params["learning_rate"] == 1e-4
    view.set_user_attr("note", "from model_init")
    assert native.user_attrs == {"note": "from model_init"}
    assert dict(view) == {"layers": layers, "scale": scale, "learning_rate": 1e-4}


def test_the_value_that_was_set_wins_over_the_one_that_was_suggested(study):
    """``hp_space`` may suggest an exponent and return its power under the same name."""
    native = study.ask()
    native.suggest_int("batch", 3, 5)
    assert TrialView({"batch": 16}, native)["batch"] == 16


def test_without_a_running_trial_suggestions_give_what_was_recorded():
    view = TrialView({"layers": 3, "pooling": "cls"})
    assert view.suggest_int("layers", 1, 4) == 3
    assert view.suggest_categorical(name="pooling", choices=["mean"]) == "cls"
    assert not isinstance(view, optuna.Trial) and isinstance(view, TrialView)


def test_without_a_running_trial_a_name_that_was_not_recorded_is_refused():
    with pytest.raises(ConfigurationError) as caught:
        TrialView({"pooling": "cls", "layers": 3}).suggest_float("scale", 1.0, 2.0)
    assert str(caught.value) == (
        "`model_init` or `loss_init` suggests 'scale', but the applied run has no such hyperparameter: it has "
        "['layers', 'pooling']."
    )


def test_without_a_running_trial_there_is_no_number(study):
    view = TrialView({})
    view.set_user_attr("who", 1)  # as in every trial, with nobody to keep it
    view.report(0.5, 1)
    assert view.should_prune() is False
    with pytest.raises(AttributeError, match=r"There is no running trial, so it has no attribute 'number'\."):
        _ = TrialView({}).number
    with pytest.raises(AttributeError):
        _ = TrialView({}, study.ask()).no_such_attribute


def test_a_trial_is_true_also_before_anything_was_suggested(study):
    """``if trial:`` asks whether there is one."""
    assert TrialView({}) and TrialView({}, study.ask())


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (lambda view: view["a"], {"a"}),
        (lambda view: view.params["a"], {"a"}),
        (lambda view: view.get("a"), {"a"}),
        (lambda view: view.get("absent"), set()),
        (lambda view: {**view}, {"a", "b"}),
        (lambda view: dict(view.params.items()), {"a", "b"}),
        (lambda view: view.suggest_int("a", 0, 9), {"a"}),
        (lambda view: (len(view), list(view), view.params), set()),
    ],
)
def test_a_view_knows_what_was_read_from_it(read, names):
    view = TrialView({"a": 1, "b": 2})
    read(view)
    assert view.names_read == names


def test_suggestions_of_a_running_trial_count_as_read(study):
    view = TrialView({"a": 1}, study.ask())
    view.suggest_float("scale", 1.0, 2.0)
    assert view.names_read == {"scale"}


def test_a_view_can_be_copied():
    view = copy.copy(TrialView({"a": 1}))
    assert view["a"] == 1
    assert dict(copy.deepcopy(TrialView({"a": [1]}))) == {"a": [1]}

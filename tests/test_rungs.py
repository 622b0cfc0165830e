"""Rungs: where trials are compared, what that leaves untouched, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers import TrainerCallback

from st_hpo import Categorical, ConfigurationError, NotSupportedError, SearchResult, SearchSpace
from st_hpo.backends.optuna.promotion import promotion_of
from st_hpo.backends.optuna.pruners import AshaPruner, make_pruner
from st_hpo.records import COMPLETED, FAILED, PRUNED
from st_hpo.rung_points import PRUNERS, RungPoints, check_rungs

from fast_trainer import METRIC, RATES, FailIn, fast_arguments, fast_trainer, loss_init, model_init, random_sampler
from scenarios import embedding_evaluator, pairs

NO_BASELINE: dict[str, Any] = {"baseline": False, "direction": "maximize"}
SIZES = SearchSpace({"per_device_train_batch_size": Categorical([2, 4, 8])})


class Below(optuna.pruners.BasePruner):
    """Prunes all trials from one number on, at one of their reports."""

    def __init__(self, first: int = 1, report: int = 1) -> None:
        self.first, self.report = first, report

    def prune(self, study: Any, trial: Any) -> bool:
        return trial.number >= self.first and len(trial.intermediate_values) >= self.report


class Sizes(optuna.samplers.GridSampler):
    """The batch sizes in their order."""

    def __init__(self) -> None:
        super().__init__({"per_device_train_batch_size": [2, 4, 8]}, seed=0)


def search(trainer: Any, **changes: Any) -> Any:
    options = {"hp_space": RATES, "compute_objective": METRIC, "n_trials": 3, "sampler": random_sampler()}
    return trainer.hyperparameter_search(**{**options, **changes}).run_summary


def epoch_of(**changes: Any) -> Any:
    """A trainer that trains on 32 pairs, for one epoch if nothing else is said."""
    return fast_trainer(args=fast_arguments(**{"max_steps": -1, "num_train_epochs": 1, **changes}))


# ---- Where they are ----


def test_upstream_compares_trials_at_equal_steps_whatever_share_of_their_training_that_is():
    trainer = SentenceTransformerTrainer(
        model_init=model_init,
        args=fast_arguments(max_steps=-1, num_train_epochs=1, eval_strategy="steps", eval_steps=2),
        train_dataset=pairs("train", 32),
        evaluator=embedding_evaluator(),
        loss=loss_init,
    )
    seen = {}

    class Pruner(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            seen[trial.number] = list(trial.intermediate_values)
            return False

    trainer.hyperparameter_search(
        lambda trial: {"per_device_train_batch_size": [4, 16][trial.number]},
        lambda metrics: metrics[METRIC],
        n_trials=2,
        direction="maximize",
        backend="optuna",
        pruner=Pruner(),
    )
    assert seen == {0: [2, 4, 6, 8], 1: [2]}  # a quarter of the one training is all of the other


def test_ours_compares_them_at_equal_fractions_of_their_own_training():
    result = search(epoch_of(), hp_space=SIZES, sampler=Sizes(), pruner=Below(9), rungs=[0.25, 0.5])
    assert {trial.hyperparameters["per_device_train_batch_size"] for trial in result.trials} == {2, 4, 8}
    for trial in result.trials:
        steps = 32 // trial.hyperparameters["per_device_train_batch_size"]
        assert [(rung["at"], rung["step"], rung["fraction"]) for rung in trial.rungs] == [
            (25, steps // 4, 0.25),
            (50, steps // 2, 0.5),
        ]
        assert trial.fraction == 1 and trial.evaluations[-1]["step"] == steps
    assert [list(trial.intermediate_values) for trial in result.native.trials] == [[25, 50]] * 3


def test_fractions_are_those_of_all_epochs_and_of_accumulated_steps():
    trainer = epoch_of(gradient_accumulation_steps=2, per_device_train_batch_size=2, num_train_epochs=2)
    (trial,) = search(trainer, n_trials=1, pruner=Below(9), rungs=[0.25, 0.5]).trials
    assert [(rung["at"], rung["step"]) for rung in trial.rungs] == [(25, 4), (50, 8)]
    assert trial.evaluations[-1]["step"] == 16


def test_a_pruner_object_of_optunas_sees_rungs_as_its_steps():
    options = {"hp_space": SIZES, "sampler": Sizes(), "n_trials": 3}
    one = search(epoch_of(), pruner=optuna.pruners.PercentilePruner(50, n_startup_trials=1), **options)
    assert [list(trial.intermediate_values) for trial in one.native.trials] == [[26]] * 3
    late = search(epoch_of(), pruner=optuna.pruners.MedianPruner(1, n_warmup_steps=30), rungs=[0.2, 0.4], **options)
    assert {20} < {step for trial in late.native.trials for step in trial.intermediate_values} <= {20, 40}
    assert late.trials[1].state == "completed" or late.trials[1].rungs[-1]["at"] == 40


def test_or_at_equal_numbers_of_examples():
    rungs = {"rungs": [8, 24], "rung_scale": "examples"}
    result = search(epoch_of(), hp_space=SIZES, sampler=Sizes(), pruner=Below(9), **rungs)
    for trial in result.trials:
        size = trial.hyperparameters["per_device_train_batch_size"]
        assert [(rung["at"], rung["step"]) for rung in trial.rungs] == [(8, 8 // size), (24, 24 // size)]


def test_accumulated_batches_count_as_one_step():
    points = RungPoints((8, 24), "examples")
    trainer = epoch_of(gradient_accumulation_steps=2, per_device_train_batch_size=2)
    (trial,) = search(trainer, n_trials=1, pruner=Below(9), rungs=list(points.points), rung_scale="examples").trials
    assert [rung["step"] for rung in trial.rungs] == [2, 6]


@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True), st.integers(1, 400), st.sampled_from([1, 7, 64])
)
def test_a_rung_is_reached_by_the_first_step_that_completes_it(percents, max_steps, per_step):
    points = check_rungs([percent / 100 for percent in percents], "fraction")
    due = points.steps(max_steps, per_step)
    assert list(due) == sorted(due) and all(1 <= step < max_steps for step in due)
    assert {at for reached in due.values() for at in reached} <= set(points.resources)
    for percent in percents:
        step = max(1, -(-percent * max_steps // 100))
        assert (percent in due.get(step, [])) == (step < max_steps)


def test_rungs_of_a_short_training_share_a_step_and_an_evaluation():
    calls = []

    class Counting(EmbeddingSimilarityEvaluator):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(kwargs.get("steps"))
            return super().__call__(*args, **kwargs)

    trainer = fast_trainer(evaluator=embedding_evaluator(Counting))
    (trial,) = search(trainer, n_trials=1, pruner=Below(9), rungs=[0.1, 0.2, 0.9], **NO_BASELINE).trials
    assert [(rung["at"], rung["step"]) for rung in trial.rungs] == [(10, 1), (20, 1)]
    assert calls == [1, 2]


def test_a_training_of_one_step_has_no_rung():
    result = search(fast_trainer(args=fast_arguments(max_steps=1)), pruner=Below(0))
    assert [trial.state for trial in result.trials] == [COMPLETED] * 3 and not result.trials[0].rungs


# ---- What they do ----


def test_a_name_is_all_the_set_up_that_pruning_needs():
    for name, fractions in PRUNERS.items():
        result = search(fast_trainer(args=fast_arguments(max_steps=8)), n_trials=7, pruner=name)
        assert {trial.state for trial in result.trials} == {COMPLETED, PRUNED}, name
        for trial in result.trials:
            reached = [rung["at"] for rung in trial.rungs]
            if trial.continues is None:
                assert reached == [round(100 * fraction) for fraction in fractions][: len(reached)]
            if trial.state == PRUNED:
                last = trial.rungs[-1]
                assert trial.error == f"pruned at step {last['step']}, {last['at']} % of its training"
                assert trial.fraction == last["fraction"] < 1 and trial.metrics[METRIC] == last["value"]
                assert trial.objective is None
            else:
                before = 0 if trial.continues is None else result.trials[trial.continues].fraction
                assert trial.fraction == pytest.approx(1 - before)


def test_without_a_pruner_nothing_is_pruned():
    """Optuna's own default would compare trials at equal steps as soon as a training evaluates."""
    trainer = fast_trainer(args=fast_arguments(max_steps=4, eval_strategy="steps", eval_steps=1))
    result = search(trainer, n_trials=8)
    assert [trial.state for trial in result.trials] == [COMPLETED] * 8 and result.trials[0].rungs == []
    assert isinstance(result.native.pruner, optuna.pruners.NopPruner)


def test_the_trainings_own_evaluation_at_a_rung_is_taken_and_not_made_again():
    calls = []

    class Counting(EmbeddingSimilarityEvaluator):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(kwargs.get("steps"))
            return super().__call__(*args, **kwargs)

    args = fast_arguments(max_steps=8, eval_strategy="steps", eval_steps=2)
    trainer = fast_trainer(args=args, evaluator=embedding_evaluator(Counting))
    first, second = search(trainer, n_trials=2, pruner=Below(1, 2), rungs=[0.25, 0.6], **NO_BASELINE).trials
    assert calls == [2, 4, 5, 6, 8, 2, 4, 5]
    assert [item["step"] for item in first.evaluations] == [2, 4, 5, 6, 8]
    assert first.rungs[0]["value"] == first.evaluations[0]["metrics"][METRIC]
    assert second.error == "pruned at step 5, 60 % of its training"


def test_no_callback_and_no_log_hears_of_a_rung(tmp_path):
    heard = []

    class Listening(TrainerCallback):
        def __deepcopy__(self, memo: Any) -> Listening:
            return self

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            heard.append(("evaluate", state.global_step))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            heard.append(("log", state.global_step))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            heard.append([line["step"] for line in state.log_history])
            model = kwargs["model"]
            heard.append(len(model.model_card_data.training_logs))

    args = {"max_steps": 4, "logging_strategy": "no", "eval_strategy": "no", "output_dir": str(tmp_path)}
    plain, runged = [], []
    for found, options in ((plain, {}), (runged, {"pruner": Below(9), "rungs": [0.3, 0.6]})):
        heard.clear()
        search(fast_trainer(args=fast_arguments(**args), callbacks=[Listening()]), n_trials=1, **options)
        found.extend(heard)
    assert plain == runged and plain


def test_the_time_of_rungs_is_not_that_of_the_training():
    args = fast_arguments(max_steps=4, eval_strategy="steps", eval_steps=2)
    (trial,) = search(fast_trainer(args=args), n_trials=1, pruner=Below(9), rungs=[0.25]).trials
    phases = trial.phases
    assert phases["rungs"] > 0 and phases["evaluate"] > 0 and phases["train"] > 0
    assert sum(phases.values()) <= trial.seconds


def test_a_pruned_trial_leaves_no_trace_in_the_next(tmp_path):
    trainer = fast_trainer(args=fast_arguments(max_steps=4), callbacks=[FailIn({1}, ValueError("no"))])
    result = search(trainer, n_trials=4, pruner=PruneThird(), catch=ValueError)
    alone = search(fast_trainer(args=fast_arguments(max_steps=4)), n_trials=4)
    assert [trial.state for trial in result.trials] == [COMPLETED, FAILED, PRUNED, COMPLETED]
    assert [result.trials[k].objective for k in (0, 3)] == [alone.trials[k].objective for k in (0, 3)]


class PruneThird(optuna.pruners.BasePruner):
    def prune(self, study: Any, trial: Any) -> bool:
        return trial.number == 2


# ---- Another evaluator ----


def half(name: str = "sts-dev") -> EmbeddingSimilarityEvaluator:
    dev = pairs("dev", 32)
    return EmbeddingSimilarityEvaluator(dev["sentence1"], dev["sentence2"], dev["score"], name=name)


@pytest.mark.parametrize(
    ("objective", "other", "baseline"),
    [
        (None, half(), False),
        (METRIC, half(), True),
        (None, half("other"), True),
        (METRIC, [half("a"), half("b")], True),
        ("eval_loss", half(), False),
        ("eval_loss", half(), True),
    ],
)
def test_rungs_have_an_evaluator_of_their_own(objective, other, baseline):
    trainer = fast_trainer(eval_dataset=pairs("dev", 8))
    plain = {"n_trials": 2, "compute_objective": objective}
    changes = {**plain, "baseline": baseline, "trial_evaluator": other, "pruner": Below(9)}
    if objective == "eval_loss":
        with pytest.raises(ConfigurationError, match=r"minimize its objective, but maximize 'eval_"):
            search(trainer, **changes)
        return
    result = search(trainer, **changes)
    assert [t.objective for t in result.trials] == [t.objective for t in search(trainer, **plain).trials]
    for trial in result.trials:
        assert METRIC in trial.metrics and trial.rungs[0]["value"] != trial.objective


def test_a_metric_that_the_rungs_lack_is_missed_before_any_training():
    def loss_alone(metrics: dict[str, float]) -> float:
        return metrics["eval_loss"]

    trainer = fast_trainer(eval_dataset=pairs("dev", 8))
    begun = []

    class Begun(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            begun.append(1)

    trainer.add_callback(Begun())
    with pytest.raises(ConfigurationError, match="eval_loss"):
        search(trainer, compute_objective=loss_alone, direction="minimize", pruner=Below(9), trial_evaluator=half())
    assert begun == []


# ---- Pruners ----


def study_of(values: list[float], direction: str = "maximize", rung: int = 13) -> optuna.Study:
    study = optuna.create_study(direction=direction)
    for value in values:
        study.ask().report(value, rung)
    return study


def pruned(pruner: AshaPruner, study: optuna.Study) -> list[bool]:
    return [pruner.prune(study, trial) for trial in study.trials]


def test_asha_lets_the_best_third_go_on():
    values = [0.1, 0.9, 0.5, 0.7, 0.3, 0.8]
    assert pruned(AshaPruner(), study_of(values)) == [value < 0.8 for value in values]
    assert pruned(AshaPruner(2), study_of(values)) == [value < 0.7 for value in values]
    assert pruned(AshaPruner(), study_of(values, "minimize")) == [value > 0.3 for value in values]


def test_asha_begins_with_the_best_of_the_first_or_pauses_them_all():
    for values, ended in (([0.5], [False]), ([0.5, 0.4, 0.5], [False, True, False])):
        assert pruned(AshaPruner(4), study_of(values)) == ended
        assert pruned(AshaPruner(4, pauses=True), study_of(values)) == [True] * len(values)
    assert pruned(AshaPruner(4, pauses=True), study_of([0.5, 0.4, 0.3, 0.2])) == [False, True, True, True]


def test_asha_compares_at_one_rung_only_and_ends_what_is_not_a_number():
    study = study_of([0.5, 0.6])
    later = study.ask()
    later.report(0.1, 26)
    assert not AshaPruner().prune(study, study.trials[2])
    lost = study.ask()
    lost.report(math.nan, 13)
    assert pruned(AshaPruner(), study) == [True, False, False, True]
    assert not AshaPruner().prune(study, study.tell(study.ask(), 1.0))


def test_asha_refuses_a_factor_that_keeps_everything():
    with pytest.raises(ValueError, match="must be an integer of at least 2, but got 1"):
        AshaPruner(1)


def paused(study: optuna.Study, value: float, rung: int = 10) -> None:
    trial = study.ask()
    trial.report(value, rung)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def test_asha_takes_up_the_best_paused_trial_of_the_highest_rung():
    study, asha = optuna.create_study(direction="maximize"), AshaPruner(2, pauses=True)
    assert asha.promotable(study, last=True) is None
    paused(study, 0.3)
    assert asha.promotable(study, last=False) is None
    assert asha.promotable(study, last=True).number == 0
    paused(study, 0.5)
    assert asha.promotable(study, last=False).number == 1
    for value in (0.1, 0.2):
        paused(study, value, rung=20)
    assert asha.promotable(study, last=False).number == 3
    study.add_trial(optuna.trial.create_trial(value=0.9, user_attrs=promotion_of(study.trials[3])))
    assert asha.promotable(study, last=False).number == 1


def test_asha_takes_up_the_next_one_where_the_best_has_failed():
    study, asha = optuna.create_study(direction="maximize"), AshaPruner(4, pauses=True)
    for value in (0.3, 0.5, 0.4):
        paused(study, value)
    failed = optuna.trial.TrialState.FAIL
    assert asha.promotable(study, last=True).number == 1
    study.add_trial(optuna.trial.create_trial(state=failed, user_attrs=promotion_of(study.trials[1])))
    assert asha.promotable(study, last=False) is None
    assert asha.promotable(study, last=True).number == 2
    # One that paused again, and failed then
    again = {"user_attrs": promotion_of(study.trials[2]), "intermediate_values": {20: 0.6}}
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, **again))
    assert asha.promotable(study, last=True).number == 4
    study.add_trial(optuna.trial.create_trial(state=failed, user_attrs=promotion_of(study.trials[4])))
    assert asha.promotable(study, last=True).number == 0
    study.add_trial(optuna.trial.create_trial(value=0.9, user_attrs=promotion_of(study.trials[0])))
    assert asha.promotable(study, last=True) is None


def test_asha_on_the_trainings_own_evaluations_pauses_nothing():
    trainer = fast_trainer(args=fast_arguments(max_steps=4, eval_strategy="steps", eval_steps=2))
    result = search(trainer, n_trials=4, pruner="asha", rungs="evaluations")
    assert result.completed and [trial.continues for trial in result.trials] == [None] * 4
    with pytest.raises(ConfigurationError, match="takes trials up again at rungs, but there are none"):
        search(trainer, n_trials=1, pruner=AshaPruner(pauses=True), rungs="evaluations")


def test_when_a_grid_is_exhausted_the_best_that_has_paused_goes_on():
    sizes = [2, 4, 8]
    trainer = fast_trainer(args=fast_arguments(max_steps=16))
    result = search(trainer, hp_space=SIZES, sampler=Sizes(), n_trials=20, pruner="asha")
    own = [trial for trial in result.trials if trial.continues is None]
    assert sorted(trial.hyperparameters["per_device_train_batch_size"] for trial in own) == sizes
    assert [trial.state for trial in own] == [PRUNED] * 3
    (finished,) = result.completed
    best = max(own, key=lambda trial: trial.rungs[-1]["value"])
    assert finished.continues == best.number


# ---- Trials that are taken up again ----


@pytest.fixture(scope="module")
def alone() -> dict[float, float]:
    """The objectives of nine trials without a pruner, by learning rate."""
    trials = search(fast_trainer(args=fast_arguments(max_steps=16)), n_trials=9).trials
    return {trial.hyperparameters["learning_rate"]: trial.objective for trial in trials}


def check_promotions(result: Any, alone: dict[float, float]) -> None:
    own = [trial for trial in result.trials if trial.continues is None]
    assert sorted(trial.hyperparameters["learning_rate"] for trial in own) == sorted(alone)
    for trial in result.completed:
        assert trial.objective == alone[trial.hyperparameters["learning_rate"]]
    best = sorted(alone.values())[-3:]
    assert max(trial.objective for trial in result.completed) == best[-1]
    promoted = [trial for trial in result.trials if trial.continues is not None]
    assert promoted and len({trial.continues for trial in promoted}) == len(promoted)
    for trial in promoted:
        before = result.trials[trial.continues]
        assert before.state == PRUNED and before.hyperparameters == trial.hyperparameters
        assert all(rung["at"] > before.rungs[-1]["at"] for rung in trial.rungs)
    assert SearchResult.from_json(result.to_json()) == result


def test_a_trial_that_has_paused_is_taken_up_again_and_gives_the_number_of_a_whole_training(alone):
    trainer = fast_trainer(args=fast_arguments(max_steps=16))
    check_promotions(search(trainer, n_trials=9, pruner="asha"), alone)


@pytest.mark.slow
def test_workers_take_up_paused_trials_as_well(alone):
    trainer = fast_trainer(args=fast_arguments(max_steps=16))
    # The best first: one of the two that begin together pauses, and is taken up, whichever is the quicker
    points = [{"learning_rate": rate} for rate in sorted(alone, key=alone.__getitem__, reverse=True)]
    check_promotions(search(trainer, n_trials=9, pruner="asha", n_jobs=2, enqueue=points), alone)


@pytest.mark.parametrize("n_trials", [1, 2])
def test_the_best_of_few_trials_goes_on_to_its_end(n_trials):
    result = search(fast_trainer(args=fast_arguments(max_steps=16)), n_trials=n_trials, pruner="asha")
    assert len(result.completed) == 1 and result.completed[0].continues is not None
    assert sum(trial.continues is None for trial in result.trials) == n_trials


def test_on_a_study_that_others_may_share_nothing_pauses(tmp_path):
    shared = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "shared"}
    trainer = fast_trainer(args=fast_arguments(max_steps=16))
    result = search(trainer, n_trials=3, pruner="asha", **shared)
    assert result.trials[0].state == COMPLETED and [rung["at"] for rung in result.trials[0].rungs] == [26]
    assert len(result.trials) == 3 and all(trial.continues is None for trial in result.trials)
    with pytest.raises(ConfigurationError, match="takes its trials up again"):
        search(trainer, pruner=AshaPruner(pauses=True), **shared)


@pytest.mark.parametrize("rungs", [[13], [13, 39], [1000, 9000], []])
def test_every_name_is_a_pruner(rungs):
    study = study_of([0.1, 0.2, 0.3], rung=rungs[0] if rungs else 1)
    for name in PRUNERS:
        pruner = make_pruner(name, rungs, pauses=True)
        study.pruner = pruner
        for trial in study.trials:
            pruner.prune(study, trial)


# ---- What is refused ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruner": "ashe"}, "no pruner 'ashe'.*'asha'"),
        ({"pruner": 3}, "`pruner` must be"),
        ({"pruner": "asha", "rungs": []}, "`rungs` must be"),
        ({"pruner": "asha", "rungs": "evaluation"}, "`rungs` must be"),
        ({"pruner": "asha", "rungs": [0.5, 1.0]}, "from 0.01 to 0.99, but there is 1.0"),
        ({"pruner": "asha", "rungs": [384]}, "rung_scale='examples'"),
        ({"pruner": "asha", "rungs": [True]}, "there is True"),
        ({"pruner": "asha", "rungs": [0.131, 0.132]}, "0.01 apart"),
        ({"pruner": "asha", "rungs": [5, 5], "rung_scale": "examples"}, "must be different"),
        ({"pruner": "asha", "rungs": [0.5], "rung_scale": "examples"}, "numbers of examples"),
        ({"pruner": "asha", "rung_scale": "examples"}, "there is no default"),
        ({"pruner": "asha", "rung_scale": "example"}, "Did you mean 'examples'"),
        ({"rungs": [0.5]}, "are for a pruner, but there is none"),
        ({"rungs": [0.5], "pruner": optuna.pruners.NopPruner()}, "are for a pruner, but there is none"),
        ({"trial_evaluator": half()}, "are for a pruner, but there is none"),
        ({"pruner": "asha", "trial_evaluator": "dev"}, "must be an evaluator"),
        ({"pruner": "asha", "rungs": "evaluations"}, "eval_strategy='no'"),
        ({"pruner": "asha", "rungs": "evaluations", "trial_evaluator": half()}, "Leave one of them out"),
        ({"pruner": "asha", "direction": ["maximize"] * 2, "compute_objective": ["a", "b"]}, "single objective"),
        ({"backend": "sigopt", "sampler": None, "rungs": [0.5]}, "prunes nothing"),
        ({"backend": "wandb", "sampler": None, "rungs": [0.5]}, "early_terminate"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(changes, message):
    trainer = fast_trainer()
    trainer._given["model_init"] = None  # whatever loads a model now fails in another way
    trainer._given["model_init"] = lambda: pytest.fail("a model was loaded")
    options = {name: value for name, value in changes.items() if not (name == "sampler" and value is None)}
    keep = {} if "backend" in changes else {"sampler": random_sampler()}
    with pytest.raises((ConfigurationError, NotSupportedError), match=message):
        trainer.hyperparameter_search(
            **{"hp_space": RATES, "compute_objective": METRIC, "n_trials": 2, **keep, **options}
        )

"""The best trials over several seeds: the same trainings as by hand, what is said of them, and going on."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback

from st_hpo import ConfigurationError, Float, SearchResult, SearchSpace
from st_hpo.confirmation import Confirmation, ConfirmedTrial, student_interval
from st_hpo.confirming import FILE
from st_hpo.records import TrialRecord

from fast_trainer import METRIC, RATES, CountTrainings, fast_arguments, fast_trainer, random_sampler
from scenarios import embedding_evaluator

TEST = "test_sts-dev_spearman_cosine"


def search(trainer: Any, **changes: Any) -> Any:
    options = {"hp_space": RATES, "compute_objective": METRIC, "n_trials": 4, "sampler": random_sampler()}
    return trainer.hyperparameter_search(**{**options, **changes})


def by_hand(**values: Any) -> float:
    trainer = fast_trainer(args=fast_arguments(**values))
    trainer.train()
    return trainer.evaluate()[METRIC]


def test_every_seeds_value_is_that_of_training_once_by_hand():
    trainer = fast_trainer()
    best = search(trainer)
    confirmation = trainer.confirm(k=2, seeds=[3, 4])
    assert {trial.number for trial in confirmation.trials} == {r.number for r in best.run_summary.ranked()[:2]}
    for trial in confirmation.trials:
        record = trainer.last_search.trials[trial.number]
        assert trial.searched == [record.objective] and trial.hyperparameters == record.hyperparameters
        for seed, values, metrics in zip([3, 4], trial.values, trial.metrics, strict=True):
            assert values == [by_hand(**record.hyperparameters, seed=seed)] == [metrics[METRIC]]
    means = [trial.mean() for trial in confirmation.trials]
    assert means == sorted(means, reverse=True) and not confirmation.held_out
    assert trainer.last_search.confirmation is confirmation
    assert SearchResult.from_json(trainer.last_search.to_json()).confirmation == confirmation
    # The trainer itself is as the search has left it
    assert trainer.args.seed == fast_arguments().seed and trainer.retrain_best().metrics[METRIC] == best.objective


def test_the_seeds_are_others_than_that_of_the_search_by_default():
    trainer = fast_trainer()
    search(trainer, n_trials=1)
    seed = fast_arguments().seed
    assert trainer.confirm(k=5).trials[0].seeds == [seed + 1, seed + 2, seed + 3]


def test_the_values_are_of_the_best_evaluation_where_those_of_the_search_are():
    evaluating = {"eval_strategy": "steps", "eval_steps": 1}
    trainer = fast_trainer(args=fast_arguments(**evaluating))
    search(trainer, n_trials=1, objective_from="best", hp_space=SearchSpace({"learning_rate": Float(0.02, 0.03)}))
    (trial,) = trainer.confirm(k=1, seeds=[3]).trials
    again = fast_trainer(args=fast_arguments(**trial.hyperparameters, **evaluating, seed=3))
    again.train()
    scores = [log[METRIC] for log in again.state.log_history if METRIC in log]
    assert trial.values == [[max(scores)]] and max(scores) > scores[-1]
    (trial,) = trainer.confirm(k=1, seeds=[3], compute_objective=METRIC, direction="maximize").trials
    assert trial.values == [[scores[-1]]]


def test_a_held_out_evaluator_gives_the_values():
    trainer = fast_trainer()
    search(trainer, n_trials=2)
    held_out = embedding_evaluator()
    held_out.sentences1, held_out.sentences2 = held_out.sentences1[:40], held_out.sentences2[:40]
    held_out.scores = held_out.scores[:40]
    confirmation = trainer.confirm(k=1, seeds=[1], test_evaluator=held_out)
    (trial,) = confirmation.trials
    assert confirmation.held_out and confirmation.objective_names == [TEST]
    record = trainer.last_search.trials[trial.number]
    again = fast_trainer(args=fast_arguments(**record.hyperparameters, seed=1))
    again.train()
    assert trial.values == [[held_out(again.model)["sts-dev_spearman_cosine"]]]
    assert trial.metrics[0][METRIC] != trial.metrics[0][TEST]
    both = trainer.confirm(
        k=1,
        seeds=[1],
        test_evaluator=[held_out],
        compute_objective=[TEST, "test_sts-dev_pearson_cosine"],
        direction=["maximize", "maximize"],
    )
    assert both.trials[0].values[0][0] == trial.values[0][0] and len(both.trials[0].values[0]) == 2


def test_suggestions_that_led_to_the_values_are_no_names_to_be_used():
    def hp_space(trial: Any) -> dict[str, Any]:
        return {"learning_rate": 10 ** trial.suggest_float("exponent", -5, -3)}

    trainer = fast_trainer()
    search(trainer, n_trials=1, hp_space=hp_space)
    (trial,) = trainer.confirm(k=1, seeds=[7]).trials
    assert trial.values == [[by_hand(learning_rate=trial.hyperparameters["learning_rate"], seed=7)]]


def test_a_seed_that_fails_has_no_value_and_the_others_count():
    class FailSeed(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.seed == 2:
                raise ValueError("not with this seed")

    trainer = fast_trainer(callbacks=[FailSeed])
    search(trainer, n_trials=2)
    confirmation = trainer.confirm(k=2, seeds=[1, 2])
    for trial in confirmation.trials:
        assert trial.values[1] is None and trial.errors == [None, "ValueError: not with this seed"]
        assert trial.mean() == trial.values[0][0] and trial.std() is None and trial.interval() is None


def test_it_goes_on_where_it_was_interrupted(tmp_path):
    counter = CountTrainings()

    class Interrupt(TrainerCallback):
        on = True

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if Interrupt.on and str(state.trial_name).startswith("confirm") and args.seed == 2:
                raise KeyboardInterrupt

    trainer = fast_trainer(args=fast_arguments(output_dir=str(tmp_path)), callbacks=[Interrupt, counter])
    search(trainer, n_trials=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.confirm(k=2, seeds=[1, 2], resume=True)
    assert len(json.loads((tmp_path / FILE).read_text())) == 1
    Interrupt.on = False
    counter.begun = 0
    first = trainer.confirm(k=2, seeds=[1, 2], resume=True)
    assert counter.begun == 3
    assert trainer.confirm(k=2, seeds=[1, 2], resume=True) == first and counter.begun == 3
    more = trainer.confirm(k=1, seeds=[1, 2, 5], resume=True)
    assert counter.begun == 4 and len(json.loads((tmp_path / FILE).read_text())) == 5
    best = more.trials[0]
    assert best.values[:2] == next(t.values for t in first.trials if t.number == best.number)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ConfigurationError, match=r"is no file of an earlier `confirm`.*Remove it"):
        trainer.confirm(k=1, resume=True)


def test_without_resume_nothing_is_left_on_disk(tmp_path):
    trainer = fast_trainer(args=fast_arguments(output_dir=str(tmp_path)))
    search(trainer, n_trials=1)
    trainer.confirm(k=1, seeds=[1])
    assert list(tmp_path.iterdir()) == []


def test_a_saved_result_is_confirmed_by_another_trainer(tmp_path):
    first = fast_trainer()
    search(first, n_trials=2)
    first.last_search.save(tmp_path / "result.json")
    result = SearchResult.load(tmp_path / "result.json")
    confirmation = fast_trainer().confirm(k=1, seeds=[1], result=result)
    assert result.confirmation is confirmation and confirmation.trials[0].mean() is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, r"`k` must be an integer of at least 1, but got 0"),
        ({"k": True}, r"`k` must be an integer"),
        ({"seeds": []}, r"`seeds` must be different integers of at least 0, such as \[1, 2, 3\], but got \[\]"),
        ({"seeds": [1, 1]}, r"`seeds` must be different integers"),
        ({"seeds": [-1]}, r"`seeds` must be different integers"),
        ({"seeds": "12"}, r"`seeds` must be different integers"),
        ({}, r"there is no finished trial: run `hyperparameter_search` first"),
    ],
)
def test_bad_arguments_are_refused_before_any_training(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        fast_trainer().confirm(**arguments)


# -- what is said of the numbers


def confirmed(number: int, values: list[Any], searched: float = 0.9) -> ConfirmedTrial:
    seeds = list(range(len(values)))
    listed = [None if value is None else [value] for value in values]
    return ConfirmedTrial(number, [searched], {}, seeds, listed, [{}] * len(values), [None] * len(values))


def test_mean_standard_deviation_and_interval_are_the_textbooks():
    trial = confirmed(0, [0.1, 0.2, 0.6])
    assert trial.mean() == pytest.approx(0.3) and trial.std() == pytest.approx(statistics.stdev([0.1, 0.2, 0.6]))
    low, high = trial.interval()
    # t of 2 degrees of freedom at 97.5%: 4.302653 (any table of Student's distribution)
    assert high - 0.3 == pytest.approx(4.302653 * trial.std() / 3**0.5, rel=1e-6) and low == pytest.approx(0.6 - high)


def test_a_lead_that_the_seeds_do_not_tell_is_said_to_be_none():
    clear, near, far = (
        confirmed(0, [0.80, 0.82, 0.81]),
        confirmed(1, [0.81, 0.80, 0.79]),
        confirmed(2, [0.1, 0.12, 0.1]),
    )
    found = Confirmation.ranked(["m"], ["maximize"], False, [far, near, clear])
    assert [trial.number for trial in found.trials] == [0, 1, 2]
    assert not found.is_separated(near) and found.is_separated(far)
    lines = str(found).splitlines()
    assert "not told from the first" in lines[2] and "not told" not in lines[1] + lines[3]
    turned = Confirmation.ranked(["m"], ["minimize"], False, [far, near, clear])
    assert [trial.number for trial in turned.trials] == [2, 1, 0] and turned.is_separated(clear)


def test_trials_without_a_value_come_last():
    found = Confirmation.ranked(["m"], ["minimize"], False, [confirmed(0, [None, None]), confirmed(1, [0.5, None])])
    assert [trial.number for trial in found.trials] == [1, 0]
    assert "no value" in str(found) and found.difference(found.trials[1]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12), st.floats(0.5, 0.99))
def test_the_interval_holds_the_mean_and_grows_with_the_confidence(values, confidence):
    low, high = student_interval(values, confidence)
    wider_low, wider_high = student_interval(values, (1 + confidence) / 2)
    mean = statistics.fmean(values)
    assert low <= mean <= high and wider_low <= low and high <= wider_high


def test_ranked_takes_the_front_first():
    records = [TrialRecord(n, "completed", v) for n, v in enumerate([[1.0, 5.0], [2.0, 1.0], [0.5, 9.0], [2.0, 2.0]])]
    result = SearchResult(records, ["a", "b"], ["maximize", "minimize"])
    assert [record.number for record in result.ranked()] == [1, 3, 0, 2]

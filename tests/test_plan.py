"""What a search says that it will do, how long it may take, and what its time was spent on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from st_hpo import SearchResult
from st_hpo.console import SearchProgress
from st_hpo.plan import Plan, named
from st_hpo.records import COMPLETED, FAILED, PRUNED, RUNNING, WAITING, Baseline, TrialRecord, time_spent
from st_hpo.rung_points import RungPoints
from st_hpo.stopping import Limits, trials_done

from fast_trainer import METRIC, RATES, fast_arguments, fast_trainer, random_sampler
from pausing_setup import AtFirst
from scenarios import embedding_evaluator

PHASES = {"train": 5.0, "rungs": 1.0, "evaluate": 2.0, "model": 0.5, "loss": 0.25, "trainer": 0.25, "propose": 0.1}


def full(number: int, seconds: float) -> TrialRecord:
    return TrialRecord(number, COMPLETED, 0.5, seconds=seconds, fraction=1.0)


def half(number: int) -> TrialRecord:
    return TrialRecord(number, PRUNED, seconds=1.0, fraction=0.5)


def test_the_example_of_the_page_runs(capsys):
    page = Path(__file__).parents[1] / "docs" / "budget.md"
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, {})
    assert "the budget of 3 full trainings is used up" in capsys.readouterr().out


# ---- Before ----


def test_a_plan_says_what_will_be_done():
    limits = Limits(patience=5, budget=6)
    plan = Plan(60, "optuna", limits, 90.0, 2, RungPoints((0.2,)), embedding_evaluator())
    assert plan.lines(["eval_x"], ["maximize"]) == [
        "Plan: at most 60 trials by 'optuna', 2 at a time; objective: eval_x (maximize)",
        "      one rung at 20 % of each trial's training, with EmbeddingSimilarityEvaluator 'sts-dev'",
        "      ends before, after 6 full trainings, or after 5 trials without a better objective, or after 1 min 30 s",
    ]


def test_a_plain_one_is_one_line():
    lines = Plan(20, "ray", Limits(), concurrency=None).lines(["a", "b"], ["maximize", "minimize"])
    assert lines == ["Plan: 20 trials by 'ray'; objective: a (maximize), b (minimize)"]
    (total,) = Plan(40, "optuna", Limits(), in_total=True).lines(["a"], ["maximize"])
    assert total == "Plan: 40 trials in total by 'optuna'; objective: a (maximize)"


def test_without_an_evaluator_of_their_own_rungs_have_that_of_the_objective():
    (_, rungs) = Plan(3, "optuna", Limits(), rungs=RungPoints((0.2, 0.6))).lines(["a"], ["maximize"])
    assert rungs.strip() == "2 rungs at 20, 60 % of each trial's training, with the evaluator of the objective"
    assert named(object()) == "object"


# ---- Meanwhile ----


@pytest.mark.parametrize(
    ("plan", "records", "estimate"),
    [
        (Plan(20, "optuna", Limits()), [full(0, 40.0)], "About 12 min 40 s for 19 more trials, at most."),
        (
            Plan(20, "optuna", Limits()),
            [half(0), half(1), full(2, 10.0)],
            "About 2 min 50 s for 17 more trials, at most.",
        ),
        (Plan(9, "optuna", Limits(), concurrency=4), [full(0, 10.0)], "About 20 s for 8 more trials, at most."),
        (Plan(3, "optuna", Limits(), concurrency=4), [full(0, 10.0)], "About 10 s for 2 more trials, at most."),
        (Plan(20, "optuna", Limits(), timeout=30.0), [full(0, 10.0)], "About 20 s for 19 more trials, at most."),
        (
            Plan(60, "optuna", Limits(budget=6)),
            [half(0), full(1, 10.0)],
            "About 45 s for the 4.5 full trainings that are left of the budget, at most.",
        ),
        (Plan(20, "optuna", Limits()), [half(0)], None),
        (Plan(1, "optuna", Limits()), [full(0, 10.0)], None),
        (Plan(20, "ray", Limits(), concurrency=None), [full(0, 10.0)], None),
    ],
)
def test_the_time_that_is_left_follows_from_full_trainings(plan, records, estimate):
    assert plan.estimate(records) == estimate


def test_only_what_n_trials_counts_is_done():
    counted = [full(0, 1.0), half(1), TrialRecord(2, FAILED, error="ValueError: lost")]
    others = [
        TrialRecord(3, FAILED, error="stopped: SIGTERM"),
        TrialRecord(4, FAILED, error="lost: no heartbeat"),
        TrialRecord(5, COMPLETED, 0.5, continues=1),
        TrialRecord(6, RUNNING),
        TrialRecord(7, WAITING),
    ]
    assert trials_done([*counted, *others]) == 3


def test_what_goes_on_from_a_pause_is_no_trial_more():
    plan = Plan(20, "optuna", Limits())
    goes_on = TrialRecord(4, COMPLETED, 0.5, seconds=30.0, fraction=0.75, continues=0)
    assert plan.estimate([*map(half, range(4)), goes_on]) == "About 10 min 40 s for 16 more trials, at most."


@pytest.mark.parametrize(
    ("plan", "estimate"),
    [
        (Plan(40, "optuna", Limits(), in_total=True), "About 1 min 30 s for 9 more trials, at most."),
        (Plan(40, "optuna", Limits()), "About 6 min 30 s for 39 more trials, at most."),
        (
            Plan(40, "optuna", Limits(budget=33)),
            "About 20 s for the 2 full trainings that are left of the budget, at most.",
        ),
        (Plan(31, "optuna", Limits(), in_total=True), None),
    ],
)
def test_trials_of_others_count_where_the_search_counts_them(plan, estimate):
    # Theirs took longer, on another machine: how long trials take here is what those of this search have taken
    own, others = full(30, 10.0), [full(number, 1000.0) for number in range(30)]
    assert plan.estimate([own], [*others, TrialRecord(31, RUNNING)]) == estimate


def test_the_study_is_asked_once_at_most(capsys):
    own = [half(9), full(10, 1.0), full(11, 1.0), full(12, 1.0)]
    asked: list[int] = []

    def times_asked(plan: Plan, disable: bool = False) -> int:
        def known() -> list[TrialRecord]:
            asked.append(1)
            return [*(full(number, 50.0) for number in range(9)), own[0], TrialRecord(10, RUNNING)]

        asked.clear()
        progress = SearchProgress(plan.n_trials, disable, plan)
        for ended in range(1, len(own) + 1):
            progress.trial_ended(own[ended - 1], None, own[:ended], known)
        progress.end(own)
        return len(asked)

    assert times_asked(Plan(20, "optuna", Limits(), in_total=True)) == 1
    out, err = capsys.readouterr()
    assert "About 9 s for 9 more trials, at most." in out + err
    assert re.findall(r"\d+/20", err)[-1] == "13/20"  # the bar begins with the trials that were there before
    assert times_asked(Plan(20, "optuna", Limits(budget=12))) == 1
    out, err = capsys.readouterr()
    assert "About 1.5 s for the 1.5 full trainings that are left of the budget" in out + err
    assert re.findall(r"\d+/20", err)[-1] == "4/20"
    assert times_asked(Plan(9, "optuna", Limits(), in_total=True)) == 1  # others have run the last one meanwhile
    assert times_asked(Plan(20, "optuna", Limits())) == 0
    assert times_asked(Plan(20, "optuna", Limits(), in_total=True), disable=True) == 0


@pytest.mark.parametrize("shown", [True, False])
def test_it_is_said_where_the_progress_bar_is(shown, capsys):
    trainer = fast_trainer(args=fast_arguments(disable_tqdm=not shown))
    trainer.hyperparameter_search(
        RATES, METRIC, n_trials=3, patience=9, sampler=random_sampler(), direction="maximize"
    )
    out, err = capsys.readouterr()
    said = out + err
    assert said.count("Plan: at most 3 trials by 'optuna'") == shown
    assert said.count("for 2 more trials, at most.") == said.count("About ") == shown


def said_of_what_is_left(capsys: Any) -> list[str]:
    out, err = capsys.readouterr()
    return re.findall(r"About .*? for (.*?), at most\.", out + err)


def test_a_search_that_is_resumed_says_what_is_left_of_the_total(tmp_path, capsys):
    def search(n_trials: int) -> Any:
        trainer = fast_trainer(args=fast_arguments(disable_tqdm=False, output_dir=str(tmp_path)))
        return trainer.hyperparameter_search(
            RATES, METRIC, n_trials=n_trials, sampler=random_sampler(), direction="maximize", resume=True
        ).run_summary

    assert len(search(2).trials) == 2
    assert said_of_what_is_left(capsys) == ["1 more trial"]
    assert len(search(4).trials) == 4
    assert said_of_what_is_left(capsys) == ["1 more trial"]
    assert len(search(4).trials) == 4  # nothing is left
    assert said_of_what_is_left(capsys) == []


def test_a_trial_that_pauses_and_goes_on_is_one_trial(tmp_path, capsys):
    trainer = fast_trainer(args=fast_arguments(max_steps=4, disable_tqdm=False, output_dir=str(tmp_path)))
    result = trainer.hyperparameter_search(
        RATES, METRIC, n_trials=3, pruner=AtFirst(), rungs=0.5, sampler=random_sampler(), direction="maximize"
    ).run_summary
    assert [trial.continues for trial in result.trials] == [None, 0, None, 2, None, 4]
    assert said_of_what_is_left(capsys) == ["2 more trials"]


# ---- Afterwards ----


def test_time_is_added_up_by_what_it_was_spent_on():
    records = [TrialRecord(0, phases=PHASES, seconds=10.0), TrialRecord(1, seconds=1.0), TrialRecord(2)]
    spent = {"training": 5.0, "evaluation": 3.0, "loading": 1.0, "baseline": 4.0, "other": 2.0}
    assert time_spent(records, Baseline(0.1, {}, 4.0)) == spent
    default = TrialRecord(-1, phases={"train": 2.0}, seconds=2.0)
    result = SearchResult(records, ["a"], ["maximize"], baseline=Baseline(0.1, {}, 4.0), default=default)
    assert result.time_spent == {**spent, "training": 7.0}


def test_a_result_says_it():
    result = SearchResult([TrialRecord(0, COMPLETED, 0.1, phases=PHASES, seconds=10.0)], ["a"], ["maximize"])
    assert str(result).endswith(": training 50%, evaluation 30%, loading 10%, other 10%")
    assert "training" not in str(SearchResult([TrialRecord(0, COMPLETED, 0.1, seconds=10.0)], ["a"], ["maximize"]))
    ended = SearchResult([], ["a"], ["maximize"], ended_early="SIGTERM")
    assert "ended early: SIGTERM" in str(ended)


def test_a_search_accounts_for_its_time():
    found: Any = fast_trainer().hyperparameter_search(RATES, METRIC, n_trials=1, direction="maximize").run_summary
    spent = found.time_spent
    assert all(seconds > 0 for seconds in spent.values())
    assert sum(spent.values()) == pytest.approx(found.trials[0].seconds + found.baseline.seconds)

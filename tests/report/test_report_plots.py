"""Plots of results of any backend: by name, from the trials alone, with what is not known said in a sentence."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report_text import results

from st_hpo.errors import BackendNotInstalledError, ConfigurationError
from st_hpo.records import TrialRecord
from st_hpo.report.curves import CURVES, METRICS, POINTS, curve, evenly, thinning
from st_hpo.report.figures import KINDS
from st_hpo.report.over_parameters import importances
from st_hpo.report.study import drawable, parameters, to_study
from st_hpo.report.words import label
from st_hpo.results import SearchResult

from report_cases import OBJECTIVE, PAYLOADS, all_failed, hostile, search


def of(*values: Any, name: str = "x", objectives: Any = None, **fields: Any) -> SearchResult:
    """A completed trial for each value of one hyperparameter; ``...`` is a trial without it."""
    trials = [
        TrialRecord(k, "completed", float(k) if objectives is None else objectives[k], {} if v is ... else {name: v})
        for k, v in enumerate(values)
    ]
    return SearchResult(trials, ["eval_a"], ["maximize"], **fields)


def said(figure: Any) -> str:
    """The sentence of an empty plot."""
    assert len(figure.data) == 0
    return figure.layout.annotations[0].text


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


# -- as a study


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1e-5, 1e-2), optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)),
        ((1e-3, 5e-2), optuna.distributions.FloatDistribution(1e-3, 5e-2)),
        ((-1.0, 1e3), optuna.distributions.FloatDistribution(-1.0, 1e3)),
        ((0, 0.1), optuna.distributions.FloatDistribution(0.0, 0.1)),
        ((16, 32, 5000), optuna.distributions.IntDistribution(16, 5000)),
        ((True, False), optuna.distributions.CategoricalDistribution(("False", "True"))),
        (("b", "a"), optuna.distributions.CategoricalDistribution(("a", "b"))),
        ((1, "1"), optuna.distributions.CategoricalDistribution(("1", "1 #2"))),
        ((None, {"b": [1], "a": 2}), optuna.distributions.CategoricalDistribution(("None", '{"b": [1], "a": 2}'))),
        ((math.inf, 1.0), optuna.distributions.CategoricalDistribution(("1", "inf"))),
        ((2**70, 1), optuna.distributions.CategoricalDistribution(("1", "1.1806e+21"))),
    ],
)
def test_the_kinds_of_hyperparameters_follow_from_their_values(values, expected):
    study = to_study(of(*values))
    found = study.trials[0].distributions["x"]
    if isinstance(expected, optuna.distributions.CategoricalDistribution):
        assert set(found.choices) == set(expected.choices) and type(found) is type(expected)
    else:
        assert found == expected
    assert len({trial.params["x"] for trial in study.trials}) == len(values)


def test_what_was_searched_says_that_numbers_are_choices_or_on_a_logarithmic_axis():
    (choice,) = parameters(of(16, 32, 64, space={"x": "Categorical([16, 32, 64])"}))
    assert not choice.numeric and choice.choices == ["16", "32", "64"]
    (log,) = parameters(of(0.1, 0.9, space={"x": "Float(0.1, 1.0, log=True)"}))
    assert log.numeric and log.log


def test_a_conditional_hyperparameter_is_only_in_the_trials_that_have_it():
    study = to_study(of(1.0, ..., 3.0))
    assert [sorted(trial.params) for trial in study.trials] == [["x"], [], ["x"]]


def test_the_study_has_the_completed_trials_with_finite_objectives():
    result = of(1, 2, 3, 4, objectives=[0.5, math.inf, math.nan, 0.75])
    result.trials.append(TrialRecord(4, "failed", error="no"))
    assert [trial.value for trial in to_study(result).trials] == [0.5, 0.75]
    assert to_study(result).direction == optuna.study.StudyDirection.MAXIMIZE


# -- kinds


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pareto_front"])
def test_every_kind_draws_a_search_with_one_objective(kind):
    figure = search(24).plot(kind)
    assert len(figure.data) > 0 and figure.layout.title.text
    json.loads(figure.to_json())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_each_of_several_objectives_by_name_or_index(kind):
    result = search(24, directions=("maximize", "minimize"))
    first, second = result.plot(kind), result.plot(kind, objective=result.objective_names[1])
    assert len(first.data) and len(second.data)
    assert second.to_json() == result.plot(kind, objective=1).to_json() == result.plot(kind, objective=-1).to_json()
    if kind not in ("timeline", "learning_curves"):
        assert first.to_json() != second.to_json()


@given(results())
@settings(max_examples=25, deadline=None)
def test_no_result_is_one_that_cannot_be_drawn(result):
    for kind in KINDS:
        json.loads(result.plot(kind).to_json())


def test_the_history_has_the_trials_own_numbers_and_the_lines_to_compare_with():
    result = search(24)
    for trial in result.trials:
        trial.number += 100
    points, best, *others = result.plot("history").data
    assert list(points.x) == [trial.number for trial in result.completed]
    assert list(points.y) == [trial.objective for trial in result.completed]
    running = [max(points.y[: k + 1]) for k in range(len(points.y))]
    assert list(best.y) == running
    names = [trace.name for trace in others]
    assert "your arguments: 0.81235" in names and "untrained: 0.69741" in names
    assert not any("confirmed" in name for name in names), "it was measured on other data"
    assert {"pruned (no objective)", "failed (no objective)"} <= set(names)
    result.confirmation.held_out = False
    assert any("confirmed" in trace.name for trace in result.plot("history").data)


def test_slices_have_the_trials_own_numbers_and_values():
    result = of(1e-5, 1e-3, 1e-2, name="learning_rate")
    for trial in result.trials:
        trial.number += 7
    (trace,) = result.plot("slice").data
    assert list(trace.x) == [1e-5, 1e-3, 1e-2] and list(trace.y) == [0, 1, 2]
    assert list(trace.marker.color) == [7, 8, 9]
    assert result.plot("slice").layout.xaxis.type == "log"


def test_slices_of_several_hyperparameters_each_have_their_own_axis():
    result = search(24)
    figure = result.plot("slice", params=["num_train_epochs", "loss.scale", "bf16"])
    axes = [figure.layout[name].title.text for name in ("xaxis", "xaxis2", "xaxis3")]
    assert axes == ["bf16", "loss.scale", "num_train_epochs"]
    for trace, name in zip(figure.data, axes, strict=True):
        expected = [t.hyperparameters[name] for t in drawable(result) if name in t.hyperparameters]
        assert list(trace.x) == [str(value) if name == "bf16" else value for value in expected]


def test_a_contour_is_that_of_the_two_most_important_hyperparameters():
    result = search(60)
    top = list(importances(result, 0))[:2]
    figure = result.plot("contour")
    assert {figure.layout.xaxis.title.text, figure.layout.yaxis.title.text} == set(top)
    other = result.plot("contour", params=["bf16", "loss.scale"])
    assert {other.layout.xaxis.title.text, other.layout.yaxis.title.text} == {"bf16", "loss.scale"}
    assert len(other.data[1].x) == sum("loss.scale" in trial.hyperparameters for trial in result.completed)


def test_parallel_coordinates_go_through_the_values_of_every_trial():
    result = of(1.0, 2.0, 3.0)
    paths = set()
    for trace in result.plot("parallel_coordinates").data:
        ys = list(trace.y)
        paths |= {tuple(ys[k : k + 2]) for k in range(0, len(ys), 3)}
    assert paths == {(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)}


def test_the_timeline_has_a_bar_for_each_trial_from_its_start():
    result = search(24)
    bars = [
        (y, round(base * 60, 6), round(x * 60, 6))
        for trace in result.plot("timeline").data
        for y, base, x in zip(trace.y, trace.base, trace.x, strict=True)
    ]
    begin = result.trials[0].started
    assert sorted(bars) == [(t.number, round(t.started - begin, 6), round(t.seconds, 6)) for t in result.trials]
    assert len({trace.marker.pattern.shape for trace in result.plot("timeline").data}) == 3


def test_the_front_is_marked():
    result = search(24, directions=("maximize", "minimize"))
    front = next(trace for trace in result.plot("pareto_front").data if "on the Pareto front" in trace.name)
    expected = sorted(trial.values for trial in result.best_trials)
    assert [list(point) for point in zip(front.x, front.y, strict=True)] == expected
    three = search(24, directions=("maximize", "minimize", "minimize"))
    assert three.plot("pareto_front", objective=1, against=2).layout.yaxis.title.text == "eval_loss (minimized)"
    assert three.plot("pareto_front", objective=1, against=0).layout.yaxis.title.text.startswith(OBJECTIVE)


# -- importances


def test_importances_tell_what_mattered():
    trials = [
        TrialRecord(k, "completed", (k % 7) ** 2.0, {"matters": k % 7, "not": (k * 5) % 11 / 3}) for k in range(60)
    ]
    shares = importances(SearchResult(trials, ["a"], ["minimize"]), 0)
    assert list(shares) == ["matters", "not"] and shares["matters"] > 0.9 and math.isclose(sum(shares.values()), 1)
    assert shares == importances(SearchResult(trials, ["a"], ["minimize"]), 0), "the same each time"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (of(1, 2, 3), "Importances need at least 5 completed trials with finite objectives; there are 3."),
        (of(*range(9), objectives=[0.25] * 9), "All completed trials have the same objective (0.25)"),
        (of(*[1] * 9), "No hyperparameter has two different values"),
        (of(..., *range(9)), "No hyperparameter with different values is in all completed trials."),
        (all_failed(), "there are 0"),
    ],
)
def test_where_there_are_no_importances_a_sentence_says_why(result, reason):
    assert reason in said(result.plot("importances"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "timeline"])
def test_a_search_without_a_result_has_empty_plots_that_say_why(kind):
    assert said(all_failed().plot(kind)).endswith(".")


# -- learning curves


def test_learning_curves_are_the_evaluations_of_each_trial():
    result = search(5)
    figure = result.plot("learning_curves", metric="eval_loss")
    by_name = {trace.name.split()[2].rstrip(","): trace for trace in figure.data}
    for trial in result.trials:
        trace = by_name[str(trial.number)]
        points = [(e["step"], e["metrics"]["eval_loss"]) for e in trial.evaluations]
        assert list(zip(trace.x, trace.y, strict=True)) == points == curve(trial, "eval_loss")
    assert [trace.line.width for trace in figure.data][-1] == 3, "the best is drawn last, over the others"


def test_learning_curves_of_many_are_thinned_out_and_it_is_said_how():
    result = search(80, metrics=40, evaluations=200)
    figure = result.plot("learning_curves")
    assert len(figure.data) == CURVES and max(len(trace.x) for trace in figure.data) == POINTS
    drawn = {int(trace.name.split()[2].rstrip(",")) for trace in figure.data}
    best = sorted(result.completed, key=lambda trial: -trial.values[0])[:10]
    assert {trial.number for trial in best} <= drawn
    longest = max(figure.data, key=lambda trace: len(trace.x))
    assert longest.x[0] == 100 and longest.x[-1] == 20_000
    notes = " ".join(thinning(result))
    assert f"{METRICS} in all" in notes and f"{CURVES} in all" in notes and f"{POINTS} evenly spaced" in notes
    assert thinning(search(20)) == []


@given(st.integers(0, 300), st.integers(1, 40))
def test_evenly_spaced_items_are_in_order_and_have_both_ends(n, wanted):
    found = evenly(list(range(n)), wanted)
    assert len(found) == min(n, wanted) and found == sorted(set(found))
    assert n == 0 or found[0] == 0
    assert n == 0 or wanted == 1 or found[-1] == n - 1


# -- what is wrong


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("nonsense",), {}, "`kind` must be one of 'history', 'importances', .*, but got 'nonsense'"),
        (("histroy",), {}, "Did you mean 'history'"),
        ((None,), {}, "but got None"),
        (("history", "eval_sts-dev_spearman_cosin"), {}, "`objective` must be .* Did you mean 'eval_sts-dev_spearm"),
        (("history", 1), {}, "an index below 1, but got 1"),
        (("history",), {"params": ["bf16"]}, "'history' has no option 'params'. It takes none"),
        (("slice",), {"parms": ["bf16"]}, "Did you mean 'params'"),
        (("slice",), {"params": ["learning_rat"]}, "Did you mean 'learning_rate'"),
        (("contour",), {"params": ["bf16"]}, "must be two hyperparameters"),
        (("learning_curves",), {"metric": "eval_los"}, "Did you mean 'eval_loss'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_choices(arguments, options, message):
    with pytest.raises(ConfigurationError, match=message):
        search(24).plot(*arguments, **options)


def test_without_plotly_the_error_has_the_pip_command(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    for use in (lambda: search(3).plot("history"), lambda: search(3).report(tmp_path / "report.html")):
        with pytest.raises(BackendNotInstalledError, match=r"pip install 'st-hpo\[report\]'"):
            use()
    assert not list(tmp_path.iterdir())
    assert str(search(3)) and search(3)._repr_html_(), "the short forms need no plotly"


# -- hostile texts


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_of_a_plot_is_mark_up_but_line_breaks(kind):
    found = [*strings(json.loads(hostile().plot(kind).to_json())), *strings(json.loads(said_or_drawn(kind)))]
    for text in found:
        rest = text.replace("<br>", "")
        assert "<" not in rest and ">" not in rest and "$" not in rest


def said_or_drawn(kind: str) -> str:
    return SearchResult([], [PAYLOADS[0]], ["maximize"]).plot(kind).to_json()


def test_no_text_of_a_search_is_a_template_of_plotly():
    """A template is filled in by plotly, from data that a text could name."""

    def keys(value: Any) -> set[str]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return set(value if isinstance(value, dict) else ()).union(*map(keys, inner))

    for kind in KINDS:
        figure = json.loads(hostile().plot(kind).to_json())
        figure["layout"].pop("template", None)  # plotly's name for a style
        found = keys(figure)
        assert {"data", "layout", "title"} <= found
        assert not [key for key in found if "template" in key or key == "customdata"]


@given(st.text() | st.sampled_from(PAYLOADS), st.integers(4, 60))
def test_a_label_has_no_mark_up(text, limit):
    found = label(text, limit)
    assert not set(found) & set("<>$\x00\n") and found.encode("utf-8") is not None
    bare = found
    for entity in ("&amp;", "&lt;", "&gt;", "&#36;"):
        bare = bare.replace(entity, "_")
    assert "&" not in bare and len(bare) <= limit

"""Learning curves: a metric over the steps of each trial's training, thinned out by a rule that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from st_hpo.errors import ConfigurationError, did_you_mean
from st_hpo.objective import metric_keys
from st_hpo.report.facts import COLOURS, DASHES, MARKS
from st_hpo.report.looks import BLUE, GREY, ORANGE, NothingToDraw, figure
from st_hpo.report.words import is_number, label

if TYPE_CHECKING:
    from st_hpo.records import TrialRecord
    from st_hpo.results import SearchResult

CURVES, POINTS, METRICS = 30, 60, 12
_BEST = 10


def curve(trial: TrialRecord, metric: str) -> list[tuple[float, float]]:
    """Returns the steps and values of a metric in the evaluations of a trial."""
    points = []
    for place, evaluation in enumerate(trial.evaluations):
        metrics = evaluation.get("metrics")
        value = metrics.get(metric) if isinstance(metrics, Mapping) else None
        step = evaluation.get("step")
        if is_number(value):
            points.append((float(step) if is_number(step) else float(place), float(value)))
    return points


def measured(result: SearchResult) -> list[str]:
    """Returns the metrics that evaluations during training have given, the objectives first."""
    found: dict[str, None] = {}
    for trial in result.trials:
        for evaluation in trial.evaluations:
            metrics = evaluation.get("metrics")
            if isinstance(metrics, Mapping):
                new = {name: value for name, value in metrics.items() if name not in found and is_number(value)}
                found.update((name, None) for name in metric_keys(new))
    first = [name for name in result.objective_names if name in found]
    return first + [name for name in found if name not in first]


def chosen(result: SearchResult, metric: str) -> list[TrialRecord]:
    """Returns the trials whose curves are drawn: all, or the 10 best and 20 evenly spaced others."""
    having = [trial for trial in result.trials if curve(trial, metric)]
    if len(having) <= CURVES:
        return having
    best = _ranked(result, having)[:_BEST]
    taken = {trial.number for trial in best}
    others = [trial for trial in having if trial.number not in taken]
    return sorted([*best, *evenly(others, CURVES - len(best))], key=lambda trial: trial.number)


def _ranked(result: SearchResult, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    sign = -1.0 if result.directions[0] == "maximize" else 1.0
    with_value = [t for t in trials if t.state == "completed" and t.values and is_number(t.values[0])]
    return sorted(with_value, key=lambda trial: (sign * trial.values[0], trial.number))


def evenly(items: Sequence[Any], n: int) -> list[Any]:
    """Returns ``n`` of the items, evenly spaced, the first and the last among them; all if there are no more."""
    if len(items) <= n:
        return list(items)
    return [items[round(k * (len(items) - 1) / (n - 1))] for k in range(n)] if n > 1 else list(items[:n])


def thinning(result: SearchResult) -> list[str]:
    """Returns what the learning curves on the page leave out, in sentences; empty if nothing."""
    metrics, notes = measured(result), []
    if len(metrics) > METRICS:
        notes.append(f"Of {len(metrics)} metrics the objectives and the first others are drawn, {METRICS} in all.")
    if any(len([t for t in result.trials if curve(t, metric)]) > CURVES for metric in metrics[:METRICS]):
        notes.append(
            f"There are more than {CURVES} trials with curves: the {_BEST} best by the first objective and evenly "
            f"spaced others are drawn, {CURVES} in all."
        )
    if any(len(trial.evaluations) > POINTS for trial in result.trials):
        notes.append(f"Of curves with more than {POINTS} evaluations, {POINTS} evenly spaced ones are drawn.")
    return notes


def learning_curves(result: SearchResult, index: int, metric: str | None = None) -> Any:
    """Returns a line for each trial: a metric over the optimizer's steps.

    Args:
        result: The search.
        index: The objective whose metric is drawn where none is given.
        metric: The name of a metric.

    Raises:
        ConfigurationError: No evaluation gave such a metric.
    """
    import plotly.graph_objects as go

    names = measured(result)
    if metric is not None and metric not in names:
        raise ConfigurationError(
            f"`metric` must be one that evaluations have given, but got {metric!r}."
            f"{did_you_mean(metric, names)} They have given: {', '.join(names[:20]) or 'none'}."
        )
    if not names:
        raise NothingToDraw("No evaluation during or after training was recorded.")
    wanted = metric or (result.objective_names[index] if result.objective_names[index] in names else names[0])
    trials = chosen(result, wanted)
    best = {trial.number for trial in _ranked(result, result.trials)[:1]}
    ordered = sorted(trials, key=lambda trial: trial.number in best)
    single = all(len(curve(trial, wanted)) == 1 for trial in trials)
    traces = []
    for trial in ordered:
        points = evenly(curve(trial, wanted), POINTS)
        is_best = trial.number in best
        colour = ORANGE if is_best else BLUE if trial.state == "completed" else COLOURS.get(trial.state, GREY)
        name = f"trial {trial.number}" + (", the best" if is_best else f", {label(trial.state)}")
        traces.append(
            go.Scatter(
                x=[step for step, _ in points],
                y=[value for _, value in points],
                mode="markers" if single else "lines+markers" if len(points) < 20 else "lines",
                name=f"{MARKS.get(trial.state, '')} {name}",
                opacity=1.0 if is_best else 0.65,
                line={"color": colour, "width": 3 if is_best else 1.3, "dash": DASHES.get(trial.state, "solid")},
                marker={"size": 6 if is_best or single else 4, "color": colour},
                hoverinfo="name+x+y",
            )
        )
    shown = label(wanted)
    return figure(traces, f"Learning curves of {shown}", "step", shown).update_layout(showlegend=len(traces) <= 10)

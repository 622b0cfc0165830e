"""Plots over the hyperparameters: importances, slices, contour."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from st_hpo.errors import ConfigurationError, did_you_mean
from st_hpo.report.curves import evenly
from st_hpo.report.looks import BLUE, SCALE, NothingToDraw, dressed, figure, hover, log_ticks
from st_hpo.report.study import Parameter, drawable, parameters, quiet, to_study
from st_hpo.report.words import label, number

if TYPE_CHECKING:
    from st_hpo.results import SearchResult

_REMEMBERED: ContextVar[dict[int, dict[str, float] | NothingToDraw] | None] = ContextVar("remembered", default=None)
FEWEST = 5  # completed trials, for importances
CONTOUR = 80  # trials
AXES = 12  # hyperparameters side by side


def varying(result: SearchResult, params: Sequence[str] | None = None) -> list[Parameter]:
    """Returns the hyperparameters of the completed trials that have at least two values, or those asked for.

    Raises:
        ConfigurationError: There is no such hyperparameter.
        NothingToDraw: No hyperparameter has two values.
    """
    known = parameters(result, drawable(result))
    if params is not None:
        names = {item.name: item for item in known}
        for name in params:
            if name not in names:
                raise ConfigurationError(
                    f"`params` names {name!r}, which no completed trial has.{did_you_mean(name, names)} "
                    f"They have: {', '.join(names) or 'none'}."
                )
        return [names[name] for name in params]
    found = [item for item in known if item.varies]
    if not found:
        raise NothingToDraw("No hyperparameter has two different values in the completed trials.")
    return found


@contextmanager
def remembering() -> Iterator[None]:
    """Importances, which take seconds for hundreds of trials, are computed once in here; for one result only."""
    token = _REMEMBERED.set({})
    try:
        yield
    finally:
        _REMEMBERED.reset(token)


def importances(result: SearchResult, index: int) -> dict[str, float]:
    """Returns the share that each hyperparameter has in the objective's variation (fANOVA, Hutter et al. 2014).

    Only hyperparameters that all completed trials have can be compared; the greatest share comes first.

    Raises:
        NothingToDraw: There are too few trials, or the objective is the same in all of them.
    """
    known = _REMEMBERED.get()
    if known is None:
        return _importances(result, index)
    if index not in known:
        try:
            known[index] = _importances(result, index)
        except NothingToDraw as reason:
            known[index] = reason
    found = known[index]
    if isinstance(found, NothingToDraw):
        raise found
    return found


def _importances(result: SearchResult, index: int) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    trials = drawable(result)
    if len(trials) < FEWEST:
        raise NothingToDraw(
            f"Importances need at least {FEWEST} completed trials with finite objectives; there are {len(trials)}."
        )
    values = [trial.values[index] for trial in trials]
    if max(values) - min(values) <= 1e-12 * max(map(abs, values)):
        raise NothingToDraw(
            f"All completed trials have the same objective ({number(values[0])}), so nothing made a difference."
        )
    shared = {item.label: item.name for item in varying(result) if len(item.values) == len(trials)}
    if not shared:
        raise NothingToDraw("No hyperparameter with different values is in all completed trials.")
    if len(shared) == 1:
        return dict.fromkeys(shared.values(), 1.0)
    # The objective is scaled to 0..1: shares are the same, and sums of squares neither overflow nor vanish
    low, width = min(values) / 2, max(values) / 2 - min(values) / 2
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(
            to_study(result, trials),
            evaluator=FanovaImportanceEvaluator(seed=0),
            params=list(shared),
            target=lambda trial: (float(trial.values[index]) / 2 - low) / width,
        )
    return {shared[text]: float(share) for text, share in sorted(found.items(), key=lambda item: -item[1])}


def plot_importances(result: SearchResult, index: int) -> Any:
    """Returns a bar for each hyperparameter's share."""
    import plotly.graph_objects as go

    shares = importances(result, index)
    labels = {item.name: item.label for item in parameters(result, drawable(result))}
    rows = list(shares.items())[: 2 * AXES][::-1]
    bar = go.Bar(
        x=[share for _, share in rows],
        y=[labels[name] for name, _ in rows],
        orientation="h",
        marker={"color": BLUE},
        text=[f"{share:.0%}" if share >= 0.01 else "&lt; 1%" for _, share in rows],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="x+y",
    )
    fig = figure([bar], f"Importances for {label(result.objective_names[index])}", "share of the variation")
    top = 1.2 * max(share for _, share in rows) or 1.0
    fig.update_xaxes(tickformat=".0%", range=[0, top]).update_yaxes(type="category")
    return fig.update_layout(height=140 + 28 * len(rows), margin={"r": 40})


def ordered(result: SearchResult, index: int) -> list[Parameter]:
    """Returns the varying hyperparameters, the most important ones first where importances can be told."""
    try:
        shares = importances(result, index)
    except NothingToDraw:
        shares = {}
    return sorted(varying(result), key=lambda item: -shares.get(item.name, -1.0))


def plot_slice(result: SearchResult, index: int, params: Sequence[str] | None = None) -> Any:
    """Returns the objective over each hyperparameter, drawn by Optuna, with the trials' own numbers and values."""
    from optuna.visualization import plot_slice as plot

    trials = drawable(result)
    chosen = varying(result, params)[:AXES] if params is None else varying(result, params)
    name = label(result.objective_names[index])
    with quiet():
        study = to_study(result, trials)
        fig = plot(study, params=[p.label for p in chosen], target=lambda t: float(t.values[index]), target_name=name)
    # Optuna sorts the hyperparameters by name, and the trials by their numbers in the study
    by_name = sorted({item.label: item for item in chosen}.values(), key=lambda item: item.label)
    colorbar = {"title": {"text": "trial"}, "thickness": 12, "outlinewidth": 0, "x": 1.02, "xpad": 4}
    fig.update_layout(coloraxis={"colorscale": SCALE, "colorbar": colorbar})
    dressed(fig, "Slices", showlegend=False)
    for place, (trace, item) in enumerate(zip(fig.data, by_name, strict=True)):
        having = [trial for trial in trials if trial.number in item.values]
        trace.update(
            x=[item.values[trial.number] for trial in having],
            y=[trial.values[index] for trial in having],
            hovertext=[hover(result, trial, 0) for trial in having],
            hoverinfo="text",
            marker={"color": [t.number for t in having], "coloraxis": "coloraxis", "size": 7, "showscale": None},
        )
        trace.marker.colorscale = None
        trace.marker.colorbar = None
        axis = fig.layout["xaxis" if place == 0 else f"xaxis{place + 1}"]
        axis.update(_axis(item))
    return fig.update_yaxes(title_text=name, col=1) if len(by_name) > 1 else fig.update_yaxes(title_text=name)


def _axis(item: Parameter) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": item.label}}
    if not item.numeric:
        return {**axis, "type": "category", "categoryorder": "array", "categoryarray": item.choices}
    if item.log:
        low, high = min(item.values.values()), max(item.values.values())
        return {**axis, "type": "log", **log_ticks(low, high)}
    return {**axis, "type": "linear"}


def _pair(result: SearchResult, index: int, params: Sequence[str] | None) -> list[Parameter]:
    if params is not None and (len(params) != 2 or params[0] == params[1]):
        raise ConfigurationError(f"`params` of a contour must be two hyperparameters, but got {list(params)!r}.")
    chosen = varying(result, params) if params is not None else ordered(result, index)[:2]
    if len(chosen) < 2:
        raise NothingToDraw("A contour needs two hyperparameters with different values; there is one.")
    return chosen


def plot_contour(result: SearchResult, index: int, params: Sequence[str] | None = None) -> Any:
    """Returns the objective over two hyperparameters, drawn by Optuna; the two most important if none are given.

    Of more than 80 trials, 80 are drawn, evenly spaced between the best and the worst.
    """
    from optuna.visualization import plot_contour as plot

    a, b = _pair(result, index, params)
    trials = [trial for trial in drawable(result) if trial.number in a.values and trial.number in b.values]
    trials = evenly(sorted(trials, key=lambda trial: (trial.values[index], trial.number)), CONTOUR)
    both = {item.name: item for item in parameters(result, trials)}
    if a.name not in both or b.name not in both or not (both[a.name].varies and both[b.name].varies):
        raise NothingToDraw("The two hyperparameters have different values in no two trials that have both.")
    a, b = both[a.name], both[b.name]
    name = label(result.objective_names[index])
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fig = plot(
            to_study(result, trials),
            params=[a.label, b.label],
            target=lambda trial: float(trial.values[index]),
            target_name=name,
        )
    x, y = sorted((a, b), key=lambda item: item.label)  # as Optuna does
    dressed(fig, f"Contour of {name}", showlegend=False)
    bar = {"thickness": 12, "outlinewidth": 0, "title": {"text": ""}}
    fig.update_traces(selector={"type": "contour"}, colorscale=SCALE, reversescale=False, colorbar=bar)
    for trace in fig.data[1:]:
        trace.update(x=[], y=[])
    fig.data[1].update(
        x=[x.values[trial.number] for trial in trials],
        y=[y.values[trial.number] for trial in trials],
        mode="markers",
        marker={"color": "#ffffff", "size": 6, "line": {"color": "#1f2937", "width": 1}},
        hovertext=[hover(result, trial) for trial in trials],
        hoverinfo="text",
    )
    for axis, item in ((fig.layout.xaxis, x), (fig.layout.yaxis, y)):
        axis.update(_axis(item))
        if not item.numeric:
            axis.ticktext = axis.tickvals = None
    return fig

"""Parallel coordinates: a line for each trial through its hyperparameters, coloured by the objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from st_hpo.report.curves import evenly
from st_hpo.report.looks import GREY, ORANGE, SCALE, NothingToDraw, figure
from st_hpo.report.over_parameters import AXES, ordered, varying
from st_hpo.report.study import Parameter, drawable
from st_hpo.report.words import label, number

if TYPE_CHECKING:
    from st_hpo.records import TrialRecord
    from st_hpo.results import SearchResult

BINS = 9  # colours of lines


def plot_parallel_coordinates(result: SearchResult, index: int, params: Sequence[str] | None = None) -> Any:
    """Returns a line for each trial through its values, coloured by the objective, with as few traces as colours.

    Optuna's own plot needs WebGL or a trace for each trial, depending on its version.
    """
    import plotly.graph_objects as go

    trials = drawable(result)
    if not trials:
        raise NothingToDraw("No trial was completed with a finite objective.")
    chosen = varying(result, params) if params is not None else ordered(result, index)[:AXES]
    name = label(result.objective_names[index])
    values = [trial.values[index] for trial in trials]
    low, high = min(values), max(values)
    places = [_places(item) for item in chosen]
    bins: dict[int, list[TrialRecord]] = {}
    better = result.directions[index] == "maximize"
    for trial in trials:
        share = (trial.values[index] - low) / (high - low) if high > low else 0.5
        bins.setdefault(min(int(share * BINS), BINS - 1), []).append(trial)
    best = result.best_trials[0] if len(result.directions) == 1 and result.best_trials else None
    traces = []
    for place in sorted(bins, reverse=not better):
        xs: list[float | None] = []
        ys: list[float | None] = []
        texts: list[str] = []
        for trial in bins[place]:
            share = (trial.values[index] - low) / (high - low) if high > low else 0.5
            path = [share, *(at.get(trial.number) for at in places)]
            xs += [*range(len(path)), None]
            ys += [*path, None]
            texts += [f"trial {trial.number}: {number(trial.values[index])}"] * (len(path) + 1)
        line = {"color": _between((place + 0.5) / BINS), "width": 1.5}
        traces.append(go.Scatter(x=xs, y=ys, mode="lines", opacity=0.6, line=line, text=texts, hoverinfo="text"))
    if best is not None and best.number in {trial.number for trial in trials}:
        share = (best.values[index] - low) / (high - low) if high > low else 0.5
        path = [share, *(at.get(best.number) for at in places)]
        line = {"color": ORANGE, "width": 4}
        texts = [f"trial {best.number}, the best: {number(best.values[index])}"] * len(path)
        traces.append(
            go.Scatter(x=list(range(len(path))), y=path, mode="lines+markers", line=line, text=texts, hoverinfo="text")
        )
    notes = [_tick(0, 0.0, number(low)), _tick(0, 1.0, number(high))] if high > low else [_tick(0, 0.5, number(low))]
    for k, item in enumerate(chosen, start=1):
        notes += [_tick(k, at, text) for at, text in _ticks(item)]
    lines = [
        {"type": "line", "x0": k, "x1": k, "y0": 0, "y1": 1, "line": {"color": GREY, "width": 1}, "layer": "below"}
        for k in range(len(chosen) + 1)
    ]
    heads = [_folded(text) for text in (name, *(item.label for item in chosen))]
    fig = figure(traces, f"Parallel coordinates of {name}", showlegend=False, annotations=notes, shapes=lines)
    fig.update_xaxes(tickvals=list(range(len(heads))), ticktext=heads, tickangle=0, showgrid=False)
    fig.update_xaxes(range=[-0.15, len(chosen) + 0.6])
    fig.update_layout(meta={"width": 105 * len(heads)})  # a narrower screen scrolls
    return fig.update_yaxes(visible=False, range=[-0.06, 1.06])


def _folded(text: str, width: int = 16) -> str:
    """A label on several lines: cut behind underscores and dots, for axes side by side."""
    lines = [""]
    for part in text.replace("_", "_\0").replace(".", ".\0").replace(" ", " \0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "<br>".join(lines)


def _places(item: Parameter) -> dict[int, float]:
    """Where each trial's value is on an axis from 0 to 1."""
    if not item.numeric:
        step = max(len(item.choices) - 1, 1)
        where = {text: place / step for place, text in enumerate(item.choices)}
        return {trial: where[value] for trial, value in item.values.items()}
    turn = math.log if item.log else float
    low, high = turn(min(item.values.values())), turn(max(item.values.values()))
    return {n: (turn(value) - low) / (high - low) if high > low else 0.5 for n, value in item.values.items()}


def _ticks(item: Parameter) -> list[tuple[float, str]]:
    if not item.numeric:
        step = max(len(item.choices) - 1, 1)
        return evenly([(place / step, text) for place, text in enumerate(item.choices)], 12)
    places = _places(item)
    least, most = (f(item.values, key=lambda n: item.values[n]) for f in (min, max))
    ends = [(places[least], number(item.values[least])), (places[most], number(item.values[most]))]
    return ends if ends[0] != ends[1] else ends[:1]


def _tick(x: float, y: float, text: str) -> dict[str, Any]:
    place = {"x": x, "y": y, "xanchor": "left", "xshift": 4, "showarrow": False, "font": {"size": 11}}
    return {**place, "text": text, "bgcolor": "rgba(128,128,128,0.15)"}


def _between(share: float) -> str:
    """The colour of the scale at a share of it."""
    (a, low), (b, high) = next((p, q) for p, q in pairwise(SCALE) if p[0] <= share <= q[0])
    t = (share - a) / (b - a)
    pairs = [(int(low[k : k + 2], 16), int(high[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(p + (q - p) * t):02x}" for p, q in pairs)

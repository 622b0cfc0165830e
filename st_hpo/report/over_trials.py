"""Plots over the trials: the objective's history, its distribution, the timeline, the Pareto front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st_hpo.report.facts import COLOURS, PATTERNS, SYMBOLS, facts, on_other_data, span
from st_hpo.report.looks import BLUE, GREEN, GREY, ORANGE, PURPLE, NothingToDraw, dressed, figure, hover
from st_hpo.report.study import drawable, quiet, to_study
from st_hpo.report.words import count, duration, is_number, label, number

if TYPE_CHECKING:
    from st_hpo.results import SearchResult

REFERENCES = {"Untrained": (GREY, "dot"), "Your arguments": (PURPLE, "dash"), "Confirmed": (GREEN, "dashdot")}


def _some(result: SearchResult) -> list[Any]:
    trials = drawable(result)
    if not trials:
        raise NothingToDraw("No trial was completed with a finite objective.")
    return trials


def _whole(numbers: list[int]) -> dict[str, Any]:
    """An axis of trials has no fractions."""
    return {"tickformat": "d", **({"dtick": 1} if max(numbers) - min(numbers) <= 10 else {})}


def history(result: SearchResult, index: int) -> Any:
    """Returns each trial's objective in the order of the trials, the best so far, and the lines to compare with.

    Optuna's own plot of this numbers the trials anew, and leaves those out that gave no objective.
    """
    import plotly.graph_objects as go

    trials = _some(result)
    name, maximize = label(result.objective_names[index]), result.directions[index] == "maximize"
    values = [trial.values[index] for trial in trials]
    best: list[float] = []
    for value in values:
        best.append(value if not best else max(best[-1], value) if maximize else min(best[-1], value))
    numbers = [trial.number for trial in trials]
    traces: list[Any] = [
        go.Scatter(
            x=numbers,
            y=values,
            mode="markers",
            name="completed",
            marker={"color": COLOURS["completed"], "size": 8, "opacity": 0.8},
            hovertext=[hover(result, trial) for trial in trials],
            hoverinfo="text",
        ),
        go.Scatter(
            x=numbers,
            y=best,
            mode="lines",
            name="best so far",
            line={"color": ORANGE, "shape": "hv", "width": 2},
            hoverinfo="skip",
        ),
    ]
    known = [fact for fact in facts(result) if fact.name in REFERENCES and len(fact.values) > index]
    known = [fact for fact in known if not on_other_data(result, fact)]
    lines = {fact.name: fact.values[index] for fact in reversed(known)}
    everyone = [trial.number for trial in result.trials]
    low, high = min(everyone), max(everyone)
    ends = [low, high] if high > low else [low - 0.5, high + 0.5]
    for reference, value in lines.items():
        if value is not None and is_number(value):
            colour, dash = REFERENCES[reference]
            line = {"color": colour, "dash": dash, "width": 1.5}
            text = f"{reference.lower()}: {number(value)}"
            traces.append(
                go.Scatter(
                    x=ends, y=[value] * 2, mode="lines", name=text, line=line, hoverinfo="text", hovertext=[text] * 2
                )
            )
    floor = min([*values, *(v for v in lines.values() if v is not None and is_number(v))])
    for state in ("pruned", "failed"):
        others = [trial for trial in result.trials if trial.state == state]
        if others:
            traces.append(
                go.Scatter(
                    x=[trial.number for trial in others],
                    y=[floor] * len(others),
                    mode="markers",
                    name=f"{state} (no objective)",
                    marker={"symbol": SYMBOLS[state], "color": COLOURS[state], "size": 8, "line": {"width": 2}},
                    hovertext=[hover(result, trial) for trial in others],
                    hoverinfo="text",
                )
            )
    fig = figure(traces, f"History of {name}", "trial", name)
    return fig.update_xaxes(**_whole(everyone))


def edf(result: SearchResult, index: int) -> Any:
    """Returns the share of trials up to each value of the objective, drawn by Optuna."""
    from optuna.visualization import plot_edf

    trials = _some(result)
    if len({trial.values[index] for trial in trials}) < 2:
        raise NothingToDraw(f"All completed trials have the same objective: {number(trials[0].values[index])}.")
    name = label(result.objective_names[index])
    with quiet():
        fig = plot_edf(to_study(result), target=lambda trial: float(trial.values[index]), target_name=name)
    fig.update_traces(
        name="trials", line={"color": BLUE, "width": 2, "shape": "hv"}, hovertemplate=None, hoverinfo="x+y"
    )
    return dressed(fig, f"Distribution of {name}", name, "share of trials up to here", showlegend=False)


def timeline(result: SearchResult, index: int) -> Any:
    """Returns a bar for each trial from its start to its end."""
    import plotly.graph_objects as go

    around = span(result)
    known = [t for t in result.trials if is_number(t.started) and is_number(t.seconds)]
    if around is None or not known:
        raise NothingToDraw("It is not known when the trials began and how long they took.")
    whole = max(around[1] - around[0], 1e-3)
    unit, length = (
        next(
            (unit, length)
            for unit, length in (("hours", 3600), ("minutes", 60), ("seconds", 1))
            if whole >= 2 * length
        )
        if whole >= 2
        else ("seconds", 1)
    )
    traces = []
    for state in dict.fromkeys(trial.state for trial in known):
        trials = [trial for trial in known if trial.state == state]
        begins = [(trial.started or 0.0) - around[0] for trial in trials]
        texts = [
            f"{hover(result, trial)}<br>began after {duration(begin)}"
            for trial, begin in zip(trials, begins, strict=True)
        ]
        colour = COLOURS.get(state, GREY)
        traces.append(
            go.Bar(
                orientation="h",
                base=[begin / length for begin in begins],
                x=[(trial.seconds or 0.0) / length for trial in trials],
                y=[trial.number for trial in trials],
                width=0.8,
                name=label(state),
                marker={"color": colour, "pattern": {"shape": PATTERNS.get(state, ""), "fgopacity": 0.9}},
                hovertext=texts,
                hoverinfo="text",
            )
        )
    height = max(260, min(620, 110 + 16 * len(known)))
    fig = figure(traces, "Timeline", f"{unit} since the first trial began", "trial", barmode="overlay", height=height)
    return fig.update_layout(showlegend=True).update_yaxes(autorange="reversed", **_whole([t.number for t in known]))


def pareto_front(result: SearchResult, index: int, against: int) -> Any:
    """Returns all completed trials over two objectives; those that no other trial beats in all of them are marked."""
    import plotly.graph_objects as go

    trials = _some(result)
    front = {trial.number for trial in result.best_trials}
    x, y = (label(result.objective_names[k]) for k in (index, against))
    ways = [f"{way[:3]}imized" for way in (result.directions[index], result.directions[against])]
    traces = []
    for on_front in (False, True):
        chosen = [trial for trial in trials if (trial.number in front) is on_front]
        chosen.sort(key=lambda trial: trial.values[index])
        joined = on_front and len(result.directions) == 2
        traces.append(
            go.Scatter(
                x=[trial.values[index] for trial in chosen],
                y=[trial.values[against] for trial in chosen],
                mode="lines+markers" if joined else "markers",
                name=("on the Pareto front" if on_front else "beaten by another trial") + f" ({len(chosen)})",
                line={"color": ORANGE, "width": 1, "dash": "dot"},
                marker={"color": ORANGE, "symbol": "diamond", "size": 11}
                if on_front
                else {"color": BLUE, "symbol": "circle-open", "size": 8},
                hovertext=[hover(result, trial) for trial in chosen],
                hoverinfo="text",
            )
        )
    for fact in facts(result):
        if fact.name in ("Untrained", "Your arguments") and len(fact.values) > max(index, against):
            a, b = fact.values[index], fact.values[against]
            if is_number(a) and is_number(b):
                marker = {"symbol": "star-open", "size": 13, "color": REFERENCES[fact.name][0]}
                name = fact.name.lower()
                traces.append(go.Scatter(x=[a], y=[b], mode="markers", name=name, marker=marker, hoverinfo="name+x+y"))
    fig = figure(traces, f"Pareto front ({count(len(front), 'trial')})", f"{x} ({ways[0]})", f"{y} ({ways[1]})")
    return fig.update_layout(showlegend=True)

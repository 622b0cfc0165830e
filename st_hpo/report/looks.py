"""What all plots have in common: colours that read on white and on black, axes, and empty plots that say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from st_hpo.errors import ConfigurationError, did_you_mean
from st_hpo.report.facts import MARKS
from st_hpo.report.words import duration, exact, label, number, shown

if TYPE_CHECKING:
    from st_hpo.records import TrialRecord
    from st_hpo.results import SearchResult

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3b7dd8", "#c77d0a", "#1f9d6b", "#d1495b", "#8e6bbf", "#7b8794"
COLOURWAY = [BLUE, ORANGE, GREEN, RED, PURPLE, "#17899e", "#b8578f", "#7a8a1e"]
# Low to high; of about the same brightness all along, so that no end vanishes on white or on black
SCALE: list[tuple[float, str]] = [(0.0, "#5a6fd0"), (0.5, "#1f9d8b"), (1.0, "#d98a1c")]


class NothingToDraw(Exception):
    """There is nothing to see in a plot; the message says why, in a sentence for the reader."""


def objective_index(result: SearchResult, objective: str | int | None) -> int:
    """Returns the index of an objective that is given by its name or index.

    Raises:
        ConfigurationError: There is no such objective.
    """
    names = result.objective_names
    if objective is None:
        return 0
    if isinstance(objective, str) and objective in names:
        return names.index(objective)
    if type(objective) is int and -len(names) <= objective < len(names):
        return objective % len(names)
    hint = did_you_mean(objective, names) if isinstance(objective, str) else ""
    raise ConfigurationError(
        f"`objective` must be one of {', '.join(map(repr, names))} or an index below {len(names)}, but got "
        f"{objective!r}.{hint}"
    )


def figure(traces: Sequence[Any], title: str, x: str = "", y: str = "", **layout: Any) -> Any:
    """Returns a plot of traces with the looks of all plots.

    Args:
        traces: The traces of plotly.
        title: The title, safe for plotly (:func:`st_hpo.report.words.label`).
        x: The title of the horizontal axis.
        y: The title of the vertical axis.
        **layout: What else goes into the layout.
    """
    import plotly.graph_objects as go

    return dressed(go.Figure(data=list(traces)), title, x, y, **layout)


def dressed(fig: Any, title: str, x: str = "", y: str = "", **layout: Any) -> Any:
    """Returns a figure, also one of Optuna's, with the looks of all plots."""
    fig.update_layout(
        title={"text": title, "x": 0.0, "xref": "paper", "font": {"size": 16}},
        template="none",
        colorway=COLOURWAY,
        font={"size": 12, "color": "#6b7280"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        hoverlabel={"align": "left", "namelength": -1},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hovermode="closest",
    )
    fig.update_xaxes(title_text=x, gridcolor="rgba(128,128,128,0.25)", zeroline=False, automargin=True)
    fig.update_yaxes(title_text=y, gridcolor="rgba(128,128,128,0.25)", zeroline=False, automargin=True)
    return fig.update_layout(**layout)


def sentence(title: str, reason: str) -> Any:
    """Returns an empty plot that says why it is empty."""
    hidden = {"visible": False}
    note = {"text": label(reason, 400), "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    return figure([], title).update_layout(xaxis=hidden, yaxis=hidden, annotations=[note])


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Returns the ticks of a logarithmic axis: powers of ten, where there are few also 2 and 5 times these."""
    import math

    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, round((last - first) / 6))
    factors = (1, 2, 5) if last - first <= 2 else (1, 3) if last - first == 3 else (1,)
    ticks = [float(f"{factor}e{power}") for power in range(first, last + 1, step) for factor in factors]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}


def hover(result: SearchResult, trial: TrialRecord, limit: int = 8) -> str:
    """Returns what is shown where the pointer is on a trial."""
    lines = [f"{MARKS.get(trial.state, '')} trial {trial.number}, {label(trial.state)}"]
    pairs = zip(result.objective_names, trial.values, strict=False)
    lines += [f"{label(name)}: {number(value)}" for name, value in pairs]
    given: Mapping[str, Any] = trial.hyperparameters
    lines += [f"{label(name, 32)}: {label(shown(value, 32), 32)}" for name, value in list(given.items())[:limit]]
    if len(given) > limit > 0:
        lines.append(f"and {len(given) - limit} more")
    if trial.seconds is not None:
        lines.append(duration(trial.seconds))
    if trial.error:
        lines.append(label(exact(trial.error), 80))
    return "<br>".join(lines)

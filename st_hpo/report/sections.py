"""The plots of the page: what each section shows, what it says below, what it leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from st_hpo.report.curves import METRICS, measured, thinning
from st_hpo.report.figures import draw
from st_hpo.report.looks import NothingToDraw
from st_hpo.report.over_parameters import AXES, CONTOUR, importances, ordered
from st_hpo.report.study import Parameter, drawable
from st_hpo.report.words import count, line

if TYPE_CHECKING:
    from st_hpo.results import SearchResult

OBJECTIVES = 4  # with plots of their own


@dataclass
class Panel:
    """One plot, or several among which the reader chooses.

    Attributes:
        name: What it is, for people who hear the page.
        variants: The names and the figures (as plotly's plain dicts) to choose from.
    """

    name: str
    variants: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass
class Section:
    """A part of the page.

    Attributes:
        key: Its anchor.
        title: Its heading.
        caption: What is to be seen, in plain words.
        panels: Its plots; none where ``missing`` says why.
        notes: What was left out, in sentences.
        missing: Why there is no plot, in a sentence.
    """

    key: str
    title: str
    caption: str
    panels: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: str = ""


def sections(result: SearchResult) -> list[Section]:
    """Returns all plots of a result, in the order of the page."""
    several = len(result.directions) > 1
    found = [
        _section(
            "history",
            "How the search went",
            "Each point is a trial, in the order in which they were proposed; the line is the best result up to "
            "there. A line that is flat for long says that more trials of this kind would bring little. Triangles and "
            "crosses at the bottom are trials that were ended early or failed: they have no result.",
            lambda: _by_objective(result, "Objective of each trial", "history"),
        )
    ]
    if several:
        found.append(
            _section(
                "pareto_front",
                "The trade-off between the objectives",
                "Each point is a trial. No other trial is better than a diamond in one objective without being worse "
                "in another: the choice among the diamonds is yours. Circles are beaten by some diamond in all.",
                lambda: _pairs(result),
            )
        )
    found += [
        _section(
            "importances",
            "What mattered",
            "The share that each hyperparameter has in the differences between the completed trials (fANOVA). A "
            "small share means that its value hardly mattered within the range searched, not that it never does. "
            "With few trials these shares are rough.",
            lambda: _by_objective(result, "Share of each hyperparameter", "importances"),
        ),
        _section(
            "parallel_coordinates",
            "All trials at a glance",
            "Each line is a completed trial: it begins at its objective on the left and crosses each axis at its "
            "value. Lines of one colour have similar results; where they run together, that value goes with that "
            "result. The thick line is the best trial.",
            lambda: _by_objective(result, "Values of all trials", "parallel_coordinates"),
        ),
        _section(
            "slice",
            "One hyperparameter at a time",
            "Each point is a completed trial: its value of one hyperparameter, and above it its result. Early trials "
            "are blue, late ones orange, so that one sees where the search went. The best points at the very edge of "
            "an axis say that a wider range may be worth a search.",
            lambda: _slices(result),
        ),
        _section(
            "contour",
            "The two most important together",
            "The colour is the result, estimated between the trials; the white points are the trials. Where there "
            "is no point nearby, the colour is a guess.",
            lambda: _by_objective(result, "Result over two hyperparameters", "contour"),
        ),
        _section(
            "edf",
            "How good most trials were",
            "How large a share of the completed trials has a result up to each value. A steep rise means that many "
            "trials gave nearly the same.",
            lambda: _by_objective(result, "Share of trials up to each result", "edf"),
        ),
        _section(
            "learning_curves",
            "Learning curves",
            "Each line is a trial: a metric over the steps of its training. The thick line is the best trial; dashed "
            "lines are trials that were ended early, dotted ones failed. A line that still rises at its end has not "
            "been trained to its best.",
            lambda: _curves(result),
        ),
        _section(
            "timeline",
            "Timeline",
            "Each bar is a trial from its start to its end. Bars beside each other ran at the same time. Plain bars "
            "are completed, hatched ones were ended early, crossed ones failed.",
            lambda: [Panel("When each trial ran", [("", _plain(draw(result, "timeline", 0)))])],
        ),
    ]
    _say_what_is_left_out(result, {section.key: section for section in found})
    return found


def _section(key: str, title: str, caption: str, panels: Callable[[], list[Panel]]) -> Section:
    try:
        return Section(key, title, caption, panels())
    except NothingToDraw as reason:
        return Section(key, title, caption, missing=str(reason))


def _objectives(result: SearchResult) -> Iterable[tuple[int, str]]:
    return list(enumerate(result.objective_names[: len(result.directions)]))[:OBJECTIVES]


def _variants(drawn: Iterable[tuple[str, Callable[[], Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The figures that can be drawn; the reason of the first one where none can."""
    found: list[tuple[str, dict[str, Any]]] = []
    reasons = []
    for name, make in drawn:
        try:
            found.append((name, _plain(make())))
        except NothingToDraw as reason:
            reasons.append(reason)
    if not found and reasons:
        raise reasons[0]
    return found


def _by_objective(result: SearchResult, name: str, kind: str) -> list[Panel]:
    drawn = ((text, lambda k=k: draw(result, kind, k)) for k, text in _objectives(result))
    return [Panel(name, _variants(drawn))]


def _pairs(result: SearchResult) -> list[Panel]:
    known = list(_objectives(result))
    pairs = [(a, b) for a in known for b in known if a[0] < b[0]]
    drawn = (
        (f"{b[1]} over {a[1]}", lambda a=a, b=b: draw(result, "pareto_front", a[0], against=b[0])) for a, b in pairs
    )
    return [Panel("Trade-off between two objectives", _variants(drawn))]


def _slices(result: SearchResult) -> list[Panel]:
    if not drawable(result):
        raise NothingToDraw("No trial was completed with a finite objective.")

    def panel(item: Parameter) -> Panel:
        drawn = ((text, lambda k=k: draw(result, "slice", k, params=[item.name])) for k, text in _objectives(result))
        return Panel(f"Result over {item.name}", _variants(drawn))

    panels = [panel(item) for item in ordered(result, 0)[:AXES]]
    for _, figure in (variant for each in panels for variant in each.variants):
        figure["layout"]["coloraxis"]["showscale"] = False  # the caption says what the colours are
        figure["layout"]["yaxis"].pop("title", None)
    return panels


def _curves(result: SearchResult) -> list[Panel]:
    names: list[str | None] = [*measured(result)[:METRICS]] or [None]
    drawn = ((name or "", lambda name=name: draw(result, "learning_curves", 0, metric=name)) for name in names)
    return [Panel("A metric over the steps", _variants(drawn))]


def _say_what_is_left_out(result: SearchResult, found: dict[str, Section]) -> None:
    found["learning_curves"].notes += thinning(result)
    trials = drawable(result)
    if len(trials) > CONTOUR and not found["contour"].missing:
        text = f"Of {len(trials)} trials, {CONTOUR} are drawn, evenly spaced between the worst and the best."
        found["contour"].notes.append(text)
    try:
        varying = ordered(result, 0)
        shares = importances(result, 0)
    except NothingToDraw:
        varying, shares = [], {}
    if len(varying) > AXES:
        text = f"Of {len(varying)} hyperparameters the {AXES} most important ones are shown."
        found["slice"].notes.append(text)
        found["parallel_coordinates"].notes.append(text)
    without = [line(item.name, 60) for item in varying if shares and item.name not in shares]
    if without:
        names = ", ".join(without[:10]) + (f" and {len(without) - 10} more" if len(without) > 10 else "")
        found["importances"].notes.append(f"Not in all completed trials, so without a share: {names}.")
    infinite = len(result.completed) - len(trials)
    if infinite:
        text = f"{count(infinite, 'completed trial')} with an infinite or missing objective can not be drawn."
        found["history"].notes.append(text)
    if len(result.directions) > OBJECTIVES:
        found["history"].notes.append(f"The plots show the first {OBJECTIVES} of {len(result.directions)} objectives.")


def _plain(fig: Any) -> dict[str, Any]:
    """A figure as plain values: without its title, which is the section's, and with floats of six digits."""
    data = fig.to_plotly_json()
    data["layout"].pop("template", None)
    data["layout"].pop("title", None)
    data["layout"]["margin"] = {**data["layout"].get("margin", {}), "t": 30}
    return {"data": _short(data["data"]), "layout": _short(data["layout"])}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if hasattr(value, "tolist"):
        return _short(value.tolist())
    return value

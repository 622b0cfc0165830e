"""The plots by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from st_hpo.errors import BackendNotInstalledError, ConfigurationError, did_you_mean
from st_hpo.report.curves import learning_curves
from st_hpo.report.looks import NothingToDraw, objective_index, sentence
from st_hpo.report.over_parameters import plot_contour, plot_importances, plot_slice
from st_hpo.report.over_trials import edf, history, pareto_front, timeline
from st_hpo.report.parallel import plot_parallel_coordinates

if TYPE_CHECKING:
    from st_hpo.results import SearchResult

KINDS: dict[str, Callable[..., Any]] = {
    "history": history,
    "importances": plot_importances,
    "parallel_coordinates": plot_parallel_coordinates,
    "slice": plot_slice,
    "contour": plot_contour,
    "timeline": timeline,
    "learning_curves": learning_curves,
    "pareto_front": pareto_front,
    "edf": edf,
}
OPTIONS = {
    "parallel_coordinates": ("params",),
    "slice": ("params",),
    "contour": ("params",),
    "learning_curves": ("metric",),
    "pareto_front": ("against",),
}


def check_plotly() -> None:
    """Raises a clear error where plotly is missing.

    Raises:
        BackendNotInstalledError: It is; the message has the pip command.
    """
    try:
        import plotly  # noqa: F401
    except ImportError as exc:
        raise BackendNotInstalledError(
            "Plots and reports need plotly, which is not installed. Run `pip install 'st-hpo[report]'`."
        ) from exc


def draw(result: SearchResult, kind: str, index: int, **options: Any) -> Any:
    """Returns a plot.

    Args:
        result: The search.
        kind: One of :data:`KINDS`.
        index: The index of the objective.
        **options: The options of this kind.

    Raises:
        NothingToDraw: There is nothing to see in it.
    """
    if kind == "pareto_front":
        if len(result.directions) < 2:
            raise NothingToDraw("A Pareto front needs at least two objectives; this search has one.")
        against = objective_index(result, options.get("against", 1 if index == 0 else 0))
        if against == index:
            raise ConfigurationError("`against` must be another objective than `objective`.")
        return pareto_front(result, index, against)
    return KINDS[kind](result, index, **options)


def plot(result: SearchResult, kind: str, objective: str | int | None, options: Mapping[str, Any]) -> Any:
    """Returns a plot for a notebook: see :meth:`st_hpo.SearchResult.plot`."""
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
        raise ConfigurationError(f"`kind` must be one of {', '.join(map(repr, KINDS))}, but got {kind!r}.{hint}")
    allowed = OPTIONS.get(kind, ())
    for name in options:
        if name not in allowed:
            known = f"It takes: {', '.join(allowed)}." if allowed else "It takes none."
            raise ConfigurationError(f"A plot {kind!r} has no option {name!r}.{did_you_mean(name, allowed)} {known}")
    index = objective_index(result, objective)
    check_plotly()
    try:
        return draw(result, kind, index, **options)
    except NothingToDraw as reason:
        return sentence(kind.replace("_", " ").capitalize(), str(reason))

"""The section of a model card that tells of the search by which the model was found."""

from __future__ import annotations

import contextlib
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_hpo.errors import ConfigurationError
from st_hpo.files import write_whole

if TYPE_CHECKING:
    from st_hpo.records import TrialRecord
    from st_hpo.results import SearchResult

BEGIN, END = "<!-- st_hpo: search -->", "<!-- st_hpo: end of search -->"
_TOP = 5
_LONGEST = 60
# A section of upstream's template (sentence_transformers/*/model_card_template.md); ours goes before it
_BEFORE = re.compile(r"^### Framework Versions", re.MULTILINE)


def search_section(result: SearchResult) -> str:
    """Returns the section in Markdown: space, budget, untrained and best model, the best trials, importances.

    Args:
        result: The result of the search.
    """
    names = result.objective_names
    best = result.ranked()[:_TOP]
    parameters = list(dict.fromkeys(name for trial in best for name in trial.hyperparameters))
    lines = [BEGIN, "### Hyperparameter Search", "", _sentence(result), ""]
    lines += _table(["model", *names], _models(result))
    if result.space:
        lines += ["", "#### Search Space", ""]
        lines += _table(["hyperparameter", "values"], [[name, text] for name, text in result.space.items()])
    if best:
        lines += ["", f"#### Best {len(best)} of {len(result.completed)} Completed Trials", ""]
        rows = [[trial.number, *trial.values, *_values(trial, parameters)] for trial in best]
        lines += _table(["trial", *names, *parameters], rows)
    if importances := _importances(result):
        lines += ["", f"#### Importance of the Hyperparameters for {_cell(names[0])} (fANOVA)", ""]
        lines += _table(["hyperparameter", "importance"], [[name, value] for name, value in importances.items()])
    if result.confirmation is not None and result.confirmation.trials:
        lines += ["", *_confirmation(result)]
    return "\n".join([*lines, END]) + "\n"


def write_card(result: SearchResult, folder: str | os.PathLike[str]) -> Path:
    """Writes the section into the README.md of a saved model; one that is there is replaced.

    Args:
        result: The result of the search.
        folder: The folder of the model.

    Returns:
        The path of the card.

    Raises:
        ConfigurationError: There is no such folder.
    """
    if not Path(folder).is_dir():
        raise ConfigurationError(f"There is no folder {str(folder)!r} with a saved model.")
    path = Path(folder, "README.md")
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    card = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}\n+", "", card, flags=re.DOTALL)
    section = search_section(result)
    place = _BEFORE.search(card)
    if place is None:
        return write_whole(path, f"{card.rstrip()}\n\n{section}".lstrip())
    return write_whole(path, f"{card[: place.start()]}{section}\n{card[place.start() :]}")


def _sentence(result: SearchResult) -> str:
    counts = [f"{len(result.trials)} trials" if len(result.trials) != 1 else "1 trial"]
    for state in ("completed", "pruned", "failed"):
        if count := sum(trial.state == state for trial in result.trials):
            counts.append(f"{count} {state}")
    seconds = sum(trial.seconds or 0.0 for trial in result.trials)
    aims = [f"{way} {_cell(name)}" for name, way in zip(result.objective_names, result.directions, strict=True)]
    engine = f"st_hpo {result.st_hpo_version} ({_cell(result.backend)})"
    return f"Searched with {engine}: {', '.join(counts)} in {seconds:.0f} s; {', '.join(aims)}."


def _models(result: SearchResult) -> list[list[Any]]:
    rows: list[list[Any]] = []
    if result.baseline is not None:
        found = result.baseline.objective
        rows.append(["untrained", *(found if isinstance(found, list) else [found])])
    if result.default is not None and result.default.values:
        rows.append(["arguments as given", *result.default.values])
    rows += [[f"trial {trial.number} (best)", *trial.values] for trial in result.best_trials]
    return rows


def _values(trial: TrialRecord, parameters: list[str]) -> list[Any]:
    return [trial.hyperparameters.get(name, "") for name in parameters]


def _confirmation(result: SearchResult) -> list[str]:
    confirmation = result.confirmation
    assert confirmation is not None
    where = "on held-out data" if confirmation.held_out else "on the data of the search"
    lines = [f"#### Confirmed with {len(confirmation.trials[0].seeds)} Seeds, {where}", ""]
    rows = []
    for trial in confirmation.trials:
        cells: list[Any] = [trial.number]
        for index in range(len(confirmation.objective_names)):
            mean, std = trial.mean(index), trial.std(index)
            text = "none" if mean is None else f"{mean:.4f}"
            cells.append(text if std is None else f"{text} ± {std:.4f}")
        rows.append(cells)
    return lines + _table(["trial", *confirmation.objective_names], rows)


def _importances(result: SearchResult) -> dict[str, float]:
    """What each hyperparameter has to do with the objective; nothing where the trials are too few to say."""
    from st_hpo.report.looks import NothingToDraw
    from st_hpo.report.over_parameters import importances

    with contextlib.suppress(NothingToDraw):
        return importances(result, 0)
    return {}


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    return [line(header), "|" + ":---|" * len(header), *map(line, rows)]


def _cell(value: Any) -> str:
    """A value as the text of one cell: no markup of its own gets through."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    text = " ".join(str(value).split())
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|$!])", r"\\\1", escaped)

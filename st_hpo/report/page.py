"""The page: one HTML file with everything in it, that asks no network for anything and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import resources
from typing import TYPE_CHECKING, Any

from st_hpo.duplicates import taken_over
from st_hpo.report.facts import MARKS, Fact, facts, failures, gain, span, spent_on, state_counts, total_time
from st_hpo.report.figures import check_plotly
from st_hpo.report.over_parameters import remembering
from st_hpo.report.sections import Section, sections
from st_hpo.report.words import NONE, clean, count, duration, exact, is_number, line, number, shown
from st_hpo.tables import union

if TYPE_CHECKING:
    from st_hpo.results import SearchResult

COLUMNS = 40  # hyperparameters in the table of the trials
CARDS = 8
GROUPS = 30  # reasons of failures
_CELL, _FULL = 60, 500  # characters of a cell, and of what it shows when pointed at


def page(result: SearchResult) -> str:
    """Returns the page of a result.

    Raises:
        BackendNotInstalledError: plotly is missing.
    """
    check_plotly()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    folder = resources.files("st_hpo.report")
    style, script, template = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    plotly = _inert(get_plotlyjs())
    with remembering():
        parts = sections(result)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    return environment.from_string(template).render(
        policy=_policy(plotly, script),
        style=Markup(style),
        script=Markup(script),
        plotly=Markup(plotly),
        figures=Markup(_json([[figure for _, figure in panel.variants] for part in parts for panel in part.panels])),
        sections=_numbered(parts),
        title=line(f"Search of {', '.join(result.objective_names)}", 200),
        summary=_summary(result),
        cards=[_card(result, fact) for fact in facts(result)[:CARDS]],
        more_cards=max(len(facts(result)) - CARDS, 0),
        best=_best(result),
        confirmation=_confirmation(result),
        table=_table(result),
        failures=_failures(result),
        phases=_phases(result),
        version=result.st_hpo_version,
    )


def _inert(script: str) -> str:
    """A script that no HTML parser takes for an end of its element."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(*scripts: str) -> str:
    """The content security policy: these scripts and no other; no network; styles, since plotly sets them."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> str:
    """JSON that can stand in an HTML element: nothing in it begins a tag, a comment or an entity."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _numbered(parts: Sequence[Section]) -> list[dict[str, Any]]:
    found, n = [], 0
    for part in parts:
        panels = []
        for panel in part.panels:
            heights = [figure["layout"].get("height") or 0 for _, figure in panel.variants]
            variants = [line(name, 80) for name, _ in panel.variants]
            panels.append({"index": n, "name": line(panel.name, 120), "variants": variants, "height": max(heights)})
            n += 1
        found.append({**vars(part), "panels": panels})
    return found


def _summary(result: SearchResult) -> list[str]:
    states = ", ".join(f"{n} {state}" for state, n in state_counts(result).items())
    took = total_time(result)
    lines = [f"{count(len(result.trials), 'trial')} with {line(result.backend, 40)} ({states or 'none'})"]
    lines[0] += f", {took}." if took else "."
    ways = zip(result.objective_names, result.directions, strict=False)
    lines.append(
        "; ".join(f"{line(name, 80)}: {'more' if way == 'maximize' else 'less'} is better" for name, way in ways) + "."
    )
    around = span(result)
    if around is not None and 0 <= around[0] < 2**33:
        lines.append(f"Began {datetime.fromtimestamp(around[0], timezone.utc):%Y-%m-%d %H:%M} UTC.")
    if spent := spent_on(result):
        lines.append(f"Time: {spent}.")
    if (copies := taken_over(result.trials)) is not None:
        lines.append(copies)
    if result.ended_early:
        lines.append(f"The search has ended early: {line(result.ended_early, 200)}.")
    if result.interrupted:
        lines.append("The search was interrupted before its end.")
    if not result.completed:
        lines.append("No trial was completed, so there is no best one.")
    return lines


def _card(result: SearchResult, fact: Fact) -> dict[str, Any]:
    values = []
    for index, value in enumerate(fact.values):
        std = fact.stds[index] if index < len(fact.stds) else None
        better = gain(result, fact, index)
        said = ""
        if better is not None and better[1] != 0:
            said = f"{abs(better[1]):.3g} {'better' if better[1] > 0 else 'worse'} than {better[0]}"
        elif better is not None:
            said = f"the same as {better[0]}"
        name = line(result.objective_names[index], 80) if index < len(result.objective_names) else ""
        spread = "" if std is None else f"\u00b1 {std:.2g}"
        values.append({"name": name, "exact": exact(value), "shown": number(value), "std": spread, "gain": said})
        values[-1]["way"] = "worse" if better is not None and better[1] < 0 else "better"
    return {"name": fact.name, "trial": fact.trial, "note": fact.note, "values": values}


def _best(result: SearchResult) -> dict[str, Any] | None:
    best = result.best_trials[:CARDS]
    if not best:
        return None
    names = union(trial.hyperparameters for trial in best)
    rows = [
        {
            "name": line(name, 80),
            "domain": line(result.space.get(name, ""), 200),
            "cells": [_cell(t.hyperparameters, name) for t in best],
        }
        for name in names
    ]
    return {"numbers": [trial.number for trial in best], "rows": rows, "with_space": any(r["domain"] for r in rows)}


def _cell(values: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in values:
        return {"shown": NONE, "full": "", "sort": None}
    value = values[name]
    text, full = shown(value, _CELL), clean(exact(value), _FULL)
    sort = value if is_number(value) and abs(value) < 2**53 else None
    return {"shown": text, "full": full if full != text else "", "sort": sort, "text": True}


def _plain(value: Any) -> dict[str, Any]:
    known = is_number(value) and abs(value) < 10**300
    text = number(value) if isinstance(value, int | float) else NONE
    full = exact(value) if isinstance(value, int | float) and exact(value) != text else ""
    return {"shown": text, "full": full, "sort": value if known else None}


def _table(result: SearchResult) -> dict[str, Any]:
    names = union(trial.hyperparameters for trial in result.trials)
    kept = names[:COLUMNS]
    n = len(result.directions)
    on_top = {trial.number for trial in result.best_trials}
    with_ids = any(trial.backend_id for trial in result.trials)
    with_errors = any(trial.error for trial in result.trials)
    rows = []
    for trial in result.trials:
        values: list[Any] = [*trial.values[:n], *[None] * (n - len(trial.values))]
        seconds = trial.seconds if is_number(trial.seconds) else None
        cells = [_plain(value) for value in values]
        cells.append({"shown": duration(seconds), "full": "" if seconds is None else f"{seconds} s", "sort": seconds})
        cells += [_cell(trial.hyperparameters, name) for name in kept]
        cells += [_text(trial.backend_id)] if with_ids else []
        cells += [_text(trial.error)] if with_errors else []
        best = trial.number in on_top
        state = {"name": trial.state, "mark": MARKS.get(trial.state, "")}
        rows.append({"number": trial.number, "state": state, "best": best, "cells": cells})
    heads = [*result.objective_names[:n], "time", *kept]
    heads += (["id"] if with_ids else []) + (["error"] if with_errors else [])
    left = f"Of {len(names)} hyperparameters the first {COLUMNS} are shown." if len(names) > COLUMNS else ""
    return {"heads": [line(head, 80) for head in heads], "rows": rows, "note": left}


def _text(value: str | None) -> dict[str, Any]:
    if not value:
        return {"shown": NONE, "full": "", "sort": None}
    text, full = line(value, _CELL), clean(value, _FULL)
    return {"shown": text, "full": full if full != text else "", "sort": None, "text": True}


def _confirmation(result: SearchResult) -> dict[str, Any] | None:
    found = result.confirmation
    if found is None or not found.trials:
        return None
    rows = []
    for trial in found.trials:
        for index, name in enumerate(found.objective_names):
            interval, first = trial.interval(index), trial is found.trials[0]
            told = "" if index or len(found.directions) > 1 else "yes" if found.is_separated(trial) else "no"
            rows.append(
                {
                    "trial": trial.number,
                    "name": line(name, 80),
                    "cells": [_plain(trial.searched[index]), _plain(trial.mean(index)), _plain(trial.std(index))],
                    "interval": " to ".join(number(end) for end in interval) if interval else NONE,
                    "n": f"{len(trial.of(index))} of {len(trial.seeds)}",
                    "told": NONE if first or not told else told,
                }
            )
    errors = [
        f"trial {trial.number}, seed {seed}: {line(error, 300)}"
        for trial in found.trials
        for seed, error in zip(trial.seeds, trial.errors, strict=False)
        if error
    ]
    return {"rows": rows, "held_out": found.held_out, "errors": errors[:GROUPS]}


def _failures(result: SearchResult) -> dict[str, Any]:
    groups = failures(result)
    rows = [
        {"reason": clean(reason, 2000), "n": len(numbers), "numbers": _some(numbers)}
        for reason, numbers in list(groups.items())[:GROUPS]
    ]
    return {"rows": rows, "more": max(len(groups) - GROUPS, 0)}


def _some(numbers: Sequence[int], limit: int = 30) -> str:
    more = f" and {len(numbers) - limit} more" if len(numbers) > limit else ""
    return ", ".join(map(str, numbers[:limit])) + more


def _phases(result: SearchResult) -> list[tuple[str, str, str]]:
    """Where the time went: the seconds of each phase over all trials, and their share."""
    totals: dict[str, float] = {}
    for trial in result.trials:
        for phase, seconds in trial.phases.items():
            if is_number(seconds) and seconds >= 0:
                totals[phase] = totals.get(phase, 0.0) + seconds
    whole = sum(totals.values())
    ordered = sorted(totals.items(), key=lambda item: -item[1])[:20]
    return [(line(name, 80), duration(seconds), f"{seconds / whole:.0%}") for name, seconds in ordered if whole > 0]

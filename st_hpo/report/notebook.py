"""A result in a notebook: a small table, without any script. Pure Python."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from st_hpo.report.facts import facts, failures, state_counts, total_time
from st_hpo.report.words import NONE, clean, count, exact, line, number, shown

if TYPE_CHECKING:
    from st_hpo.results import SearchResult

ROWS = 12


def html(result: SearchResult) -> str:
    """Returns the headline of a result as an HTML table; every text in it is escaped."""
    states = ", ".join(f"{n} {state}" for state, n in state_counts(result).items())
    caption = f"{count(len(result.trials), 'trial')} ({states or 'none'})"
    if took := total_time(result):
        caption += f", {took}"
    names = [f"{name} ({way})" for name, way in zip(result.objective_names, result.directions, strict=False)]
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in ("", "trial", *names, "hyperparameters"))
    known = facts(result)
    body = []
    for fact in known[:ROWS]:
        stds = fact.stds or [None] * len(fact.values)
        cells = []
        for value, std in zip(fact.values, stds, strict=True):
            spread = "" if std is None else f" ± {std:.2g}"
            cells.append(f'<td title="{_text(value)}">{NONE if value is None else number(value)}{spread}</td>')
        cells += [f"<td>{NONE}</td>"] * (len(names) - len(cells))
        values = fact.record.hyperparameters if fact.record is not None else {}
        said = ", ".join(f"{key} = {shown(value)}" for key, value in values.items()) or fact.note
        trial = "" if fact.trial is None else fact.trial
        body.append(
            f'<tr><th scope="row">{_text(fact.name)}</th><td>{trial}</td>{"".join(cells)}'
            f'<td style="text-align:left">{_text(line(said, 400))}</td></tr>'
        )
    notes = [f"and {len(known) - ROWS} more"] if len(known) > ROWS else []
    notes += [
        f"{count(len(numbers), 'trial')} failed: {line(reason, 200)}"
        for reason, numbers in list(failures(result).items())[:5]
    ]
    below = "".join(f"<div>{_text(note)}</div>" for note in notes)
    return (
        f'<table><caption style="text-align:left">{_text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{below}"
    )


def _text(value: object) -> str:
    return escape(clean(exact(value)))

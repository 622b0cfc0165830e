"""A result says in a terminal and in a notebook what one wants to know first, whatever its texts are."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_hpo.confirmation import Confirmation, ConfirmedTrial
from st_hpo.records import STATES, Baseline, TrialRecord
from st_hpo.report.facts import COLOURS, DASHES, MARKS, PATTERNS, SYMBOLS
from st_hpo.report.text import columns
from st_hpo.report.words import NONE, clean, duration, number, shown
from st_hpo.results import SearchResult

from report_cases import OBJECTIVE, PAYLOADS, STARTED, all_failed, hostile, search

floats = st.floats() | st.sampled_from([math.inf, -math.inf, math.nan])
texts = st.text(max_size=8) | st.sampled_from([*PAYLOADS, "$float"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | floats | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
dicts = st.dictionaries(texts, values, max_size=3)
steps = st.fixed_dictionaries({"step": st.integers(0, 10**6), "epoch": st.floats(0, 10), "metrics": dicts})


@st.composite
def results(draw: st.DrawFn) -> SearchResult:
    """Any result that a search may leave, with every field; as many objectives as directions."""
    n = draw(st.integers(1, 3))
    objective = st.floats(allow_nan=False) if n == 1 else st.lists(st.floats(allow_nan=False), min_size=n, max_size=n)
    metrics = st.dictionaries(texts, floats | values, max_size=3)

    def record(number: int) -> TrialRecord:
        state = draw(st.sampled_from(STATES))
        return TrialRecord(
            number,
            state,
            draw(objective) if state == "completed" else None,
            draw(dicts),
            draw(metrics),
            draw(st.none() | st.floats(0, 1e7)),
            draw(st.dictionaries(texts, st.floats(0, 1e6), max_size=2)),
            draw(st.none() | texts),
            draw(st.none() | texts),
            draw(st.none() | st.floats(0, 4e9)),
            draw(st.lists(steps, max_size=2)),
        )

    names = draw(st.lists(texts, min_size=n, max_size=n))
    ways = draw(st.lists(st.sampled_from(["minimize", "maximize"]), min_size=n, max_size=n))
    finite = st.lists(st.floats(-1e6, 1e6), min_size=n, max_size=n)

    def confirmed(number: int) -> ConfirmedTrial:
        seeds = [1, 2, 3]
        found = draw(st.lists(st.none() | finite, min_size=3, max_size=3))
        return ConfirmedTrial(number, draw(finite), draw(dicts), seeds, found, [draw(metrics)] * 3, [None] * 3)

    return SearchResult(
        [record(k) for k in range(draw(st.integers(0, 4)))],
        names,
        ways,
        draw(texts),
        draw(st.none() | st.builds(Baseline, objective, metrics, st.floats(0, 1e6))),
        draw(st.none() | st.just(-1).map(record)),
        draw(st.none() | st.just([0, 2]).map(lambda ns: Confirmation(names, ways, True, [confirmed(k) for k in ns]))),
        draw(st.dictionaries(texts, texts, max_size=2)),
        draw(st.booleans()),
        draw(texts),
    )


@given(results())
@settings(max_examples=150, deadline=None)
def test_every_result_with_every_field_survives_a_file(result):
    result.save("result.json")
    assert repr(SearchResult.load("result.json")) == repr(result)


class Structure(HTMLParser):
    """The tags and attributes of a page, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@given(results())
@settings(max_examples=100, deadline=None)
def test_the_short_forms_of_any_result_can_be_shown_anywhere(result):
    text = str(result)
    assert max(map(columns, text.split("\n"))) <= 110
    assert "\x00" not in text and text.encode("utf-8")
    assert text.splitlines() == text.split("\n"), "no other character ends a line"
    html = result._repr_html_()
    assert html.encode("utf-8") and "\x00" not in html
    found = Structure(html)
    assert set(found.tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "div"}
    assert {name for name, _ in found.attributes} <= {"scope", "title", "style"}
    assert {value for name, value in found.attributes if name == "style"} <= {"text-align:left"}


def test_a_terminal_shows_the_headline_the_best_trials_the_failures_and_the_time():
    result = search(24)
    lines = str(result).splitlines()
    best = result.best_trials[0]
    assert lines[0].startswith("24 trials (") and lines[0].endswith(f"of {OBJECTIVE}")
    assert lines[1].split() == ["untrained", "0.6974063496149674"]
    assert lines[2].split() == ["your", "arguments", "0.8123456789"]
    assert lines[3].startswith("best") and repr(best.objective) in lines[3] and f"trial {best.number}" in lines[3]
    assert lines[4].startswith("confirmed") and "±" in lines[4] and "mean over 4 seeds, on data that" in lines[4]
    starts = {
        line.index(text) for line, text in zip(lines[1:5], ("0.697", "0.812", repr(best.objective), "0."), strict=True)
    }
    assert len(starts) == 1, "the numbers stand below each other"
    top = lines.index(f"best 5 of {len(result.completed)} completed:")
    assert lines[top + 1].split()[:3] == ["trial", "objective", "time"]
    ranked = sorted(result.completed, key=lambda trial: -trial.values[0])[:5]
    assert [int(line.split()[0]) for line in lines[top + 2 : top + 7]] == [trial.number for trial in ranked]
    assert any("CUDA out of memory" in line for line in lines) and lines[-1].startswith("time: ")


def test_a_terminal_says_when_nothing_was_completed_or_the_search_was_interrupted():
    text = str(all_failed())
    assert "none: no trial was completed" in text and "4 trials (0, 1, 2, 3): RuntimeError: no" in text
    assert "interrupted" in str(search(3, interrupted=True)) and "interrupted" not in text


def test_a_long_front_is_shown_in_part_and_the_rest_is_counted():
    trials = [TrialRecord(k, "completed", [float(k), float(-k)]) for k in range(30)]
    text = str(SearchResult(trials, ["a", "b"], ["maximize", "maximize"]))
    assert text.count("\nbest ") == 10 and "and 20 more on the Pareto front" in text


def test_a_notebook_shows_the_numbers_rounded_and_in_full():
    html = search(12)._repr_html_()
    assert ">0.69741<" in html and 'title="0.6974063496149674"' in html and "Your arguments" in html


def test_hostile_texts_are_shown_as_they_are_in_a_notebook():
    found = Structure(hostile()._repr_html_())
    assert "</script><script>window.hacked=1</script>" in found.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.254, "0.25 s"),
        (9.96, "10 s"),
        (59.7, "1 min"),
        (61, "1 min 1 s"),
        (3599.9, "1 h"),
        (7800, "2 h 10 min"),
        (None, NONE),
        (math.nan, NONE),
        (-1, NONE),
        (1e300, "2.78e+296 h"),
    ],
)
def test_durations_have_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.7354870734, "0.73549"),
        (3, "3"),
        (10**400, "1.0000e+400"),
        (2e-5, "2e-05"),
        (-math.inf, "-inf"),
        (None, NONE),
    ],
)
def test_numbers_have_five_digits(value, text):
    assert number(value) == text


def test_values_of_any_kind_are_shown_in_short():
    assert [shown(value) for value in (True, None, {"a": [1, "é"]}, "b", 2.0)] == [
        "True",
        "None",
        '{"a": [1, "é"]}',
        "b",
        "2",
    ]
    assert len(shown("x" * 10**6)) == 80 and shown(10**5000) == "1.0000e+5000"


@given(st.text(), st.integers(2, 30))
def test_a_cleaned_text_can_be_written_and_has_no_hidden_characters(text, limit):
    found = clean(text, limit)
    assert found.encode("utf-8") is not None and len(found) <= limit
    assert not set(found) & set("\x00\u2028\u202e\x1b\r")
    if text.isascii() and text.isprintable() and len(text) <= limit:
        assert found == text


def test_every_state_has_a_mark_and_every_state_that_is_drawn_looks_different_without_colour():
    assert set(MARKS) == set(STATES) and len(set(MARKS.values())) == len(STATES)
    for looks in (SYMBOLS, DASHES, PATTERNS):
        assert {"completed", "pruned", "failed"} <= set(looks) and len(set(looks.values())) == len(looks)
    assert set(COLOURS) == set(SYMBOLS) == set(DASHES) == set(PATTERNS)


def test_the_time_is_that_of_the_clock_and_where_trials_overlap_also_that_of_the_trials():
    trials = [TrialRecord(k, "completed", 0.5, seconds=100.0, started=STARTED) for k in range(3)]
    assert str(SearchResult(trials, ["a"], ["maximize"])).endswith("time: 1 min 40 s (5 min in trials)")

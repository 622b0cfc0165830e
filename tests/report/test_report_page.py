"""The page is one file that needs no network, runs no script but its own, and says what it leaves out."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs
from test_report_text import Structure, results

import st_hpo.report
from st_hpo.records import TrialRecord
from st_hpo.report.page import page
from st_hpo.results import SearchResult

from report_cases import OBJECTIVE, PAYLOADS, all_failed, hostile, search

FOLDER = Path(st_hpo.report.__file__).parent
SAFE_TAGS = {
    *("html", "head", "meta", "title", "link", "style", "body", "a", "header", "nav", "main", "section", "article"),
    *("h1", "h2", "h3", "p", "ul", "li", "div", "span", "small", "strong", "pre", "figure", "label", "select"),
    *("option", "table", "thead", "tbody", "tr", "th", "td", "button", "footer", "noscript", "script"),
}
SAFE_ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "id", "aria-label", "aria-hidden"),
    *("aria-labelledby", "title", "tabindex", "role", "data-plot", "value", "data-height", "scope", "aria-sort"),
    *("type", "data-n", "data-t"),
}


@pytest.fixture
def light(monkeypatch):
    """Pages without the 5 MB of plotly: what is around it is the same."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly */")


def figures_of(html: str) -> list[list[dict[str, Any]]]:
    """The plots of a page, as its script reads them."""
    text = html.split('<script type="application/json" id="figures">')[1].split("</script>")[0]
    return json.loads(text)


def check_harmless(html: str) -> Structure:
    """Nothing on the page but what the template has: its elements, attributes, links and scripts."""
    assert html.encode("utf-8") and not set(html) & set("\x00\u2028\u2029\u202e\x85")
    found = Structure(html)
    assert set(found.tags) <= SAFE_TAGS and found.tags.count("script") == 3 and found.tags.count("style") == 1
    assert html.lower().count("<script") == 3 and html.lower().count("</script") == 3 and "<!--" not in html
    attributes = found.attributes
    assert {name for name, _ in attributes} <= SAFE_ATTRIBUTES
    assert all(value == "data:," or value.startswith("#") for name, value in attributes if name == "href")
    assert sum(name == "http-equiv" for name, _ in attributes) == 1
    for variants in figures_of(html):
        assert all(set(figure) == {"data", "layout"} for figure in variants)
    return found


# -- hostile texts


@given(results())
@example(SearchResult([], [""], ["maximize"]))
@settings(max_examples=40, deadline=None)
def test_no_result_puts_anything_on_the_page_but_text(result):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly */")
        check_harmless(page(result))


@pytest.mark.slow
@given(st.lists(st.sampled_from(PAYLOADS) | st.text(alphabet="<>&'\"/!-script{}%$\u2028\x00\ud800 "), min_size=5))
@settings(max_examples=10, deadline=None)
@example(PAYLOADS)
def test_no_name_value_metric_error_or_id_puts_anything_on_the_page_but_text(texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly */")
        check_harmless(page(hostile(texts[:12])))


def test_hostile_texts_are_shown_as_they_are(light):
    found = check_harmless(page(hostile()))
    for payload in PAYLOADS[:8]:
        assert payload in found.text
    assert "{{ 7 * 7 }}" in found.text and "49" not in found.text.split("{{ 7")[1][:12]


def test_the_check_finds_what_is_not_harmless(light):
    """Otherwise the tests above would pass on any page."""
    html = page(search(6))
    for payload in (
        "<img src=x onerror=alert(1)>",
        "<script>alert(1)</script>",
        '<a href="javascript:alert(1)">x</a>',
    ):
        with pytest.raises(AssertionError):
            check_harmless(html.replace("<main", f"{payload}<main"))


# -- on its own


def test_the_page_asks_no_network_for_anything_and_allows_no_script_but_its_own():
    html = page(search(8))
    assert html.count(get_plotlyjs()[:2000]) == 1, "plotly is there once"
    around = html.replace(get_plotlyjs(), "")
    assert not re.search(r"https?://|//cdn|@import|url\(", around)
    policy = dict(part.strip().split(" ", 1) for part in policy_of(html).split(";"))
    assert policy["default-src"] == "'none'" and policy["img-src"] == "data: blob:"
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert len(scripts) == 2 and set(policy["script-src"].split()) == {f"'sha256-{digest}'" for digest in digests}


def policy_of(html: str) -> str:
    attributes = Structure(html.split("<style>")[0]).attributes
    return next(value for name, value in attributes if name == "content" and "default-src" in (value or "")) or ""


def test_every_part_is_on_the_page(light):
    result = search(24)
    found = Structure(page(result))
    for text in (
        "0.69741",
        "Your arguments",
        "better than with your arguments",
        "Float(3e-06, 0.003, log=True)",
        "Confirmation over several seeds",
        "data that the search has not seen",
        "OutOfMemoryError: CUDA out of memory.",
        "more is better",
        "Where the time went",
        *("completed", "pruned", "failed"),
    ):
        assert text in found.text
    assert ("title", "0.6974063496149674") in found.attributes, "a rounded number has its digits where pointed at"
    assert found.tags.count("tr") > len(result.trials)
    assert len(figures_of(page(result))) == 7 + len(result.trials[0].hyperparameters | {"loss.scale": 1})


def test_the_confirmed_mean_on_other_data_is_compared_with_nothing(light):
    result = search(24)
    text = Structure(page(result)).text
    assert text.count("better than with your arguments") == 1
    result.confirmation.held_out = False
    assert Structure(page(result)).text.count("better than with your arguments") == 2


def test_a_search_with_several_objectives_has_a_front_and_a_choice_of_objectives(light):
    result = search(24, directions=("maximize", "minimize"))
    html = page(result)
    assert "The trade-off between the objectives" in html and "on the Pareto front" in html
    for variants in figures_of(html)[:1]:
        assert len(variants) == 2
    assert "The trade-off between the objectives" not in page(search(5))


def test_what_cannot_be_drawn_is_said_in_a_sentence(light):
    text = Structure(page(all_failed())).text
    assert "No trial was completed, so there is no best one." in text and "RuntimeError: no" in text
    assert "Importances need at least 5 completed trials" in text
    assert "No trial was completed with a finite objective." in text
    assert "Importances need at least 5" in Structure(page(search(1, around=False))).text


def test_an_interrupted_search_says_so(light):
    assert "The search was interrupted before its end." in page(search(3, interrupted=True))


def test_what_is_left_out_is_said(light):
    result = search(130, metrics=40, evaluations=70)
    for trial in result.trials:
        trial.hyperparameters.update({f"model.p{k}": trial.number * k % 7 for k in range(60)})
        trial.error = f"ValueError: {trial.number}" if trial.state == "failed" else trial.error
    result.trials[0].objective = float("inf")
    text = Structure(page(result)).text
    for note in (
        "12 in all",
        "30 in all",
        "60 evenly spaced",
        "80 are drawn, evenly spaced",
        "the 12 most important ones are shown",
        "Of 68 hyperparameters the first 40 are shown.",
        "1 completed trial with an infinite or missing objective",
        "without a share: loss.scale",
    ):
        assert note in text, note


def test_with_500_trials_the_page_is_under_2_mb_beside_plotly():
    html = page(search(500, metrics=40, evaluations=20))
    assert len(html.encode()) - len(get_plotlyjs().encode()) < 2_000_000
    rows = Structure(html.split('<table id="trials-table">')[1].split("</table>")[0]).tags.count("tr")
    assert rows == 501, "every trial is in the table"


# -- readable


def test_headings_are_in_order_and_everything_has_a_name(light):
    found = Structure(page(search(24)))
    levels = [int(tag[1]) for tag in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert ("lang", "en") in found.attributes
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in found.attributes:
        if name == "aria-labelledby" or (name == "href" and value.startswith("#")):
            assert value.removeprefix("#") in ids
    images = [value for name, value in found.attributes if name == "role" and value == "img"]
    labels = [value for name, value in found.attributes if name == "aria-label"]
    assert len(labels) >= len(images) and all(labels)


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(scheme):
    """WCAG 2.1 asks for a contrast of 4.5 for text, and 3 for marks."""
    css = (FOLDER / "page.css").read_text(encoding="utf-8")
    light_part, dark_part = re.findall(r":root \{([^}]*)\}", css)
    names = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light_part if scheme == "light" else dark_part))

    def contrast(a: str, b: str) -> float:
        bright, dim = sorted((luminance(a), luminance(b)), reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    for text in ("text", "muted", "accent", "good", "bad"):
        for ground in ("card", "page"):
            assert contrast(names[text], names[ground]) >= 4.5, (text, ground)
    from st_hpo.report.looks import COLOURWAY

    for colour in COLOURWAY:
        assert contrast(colour, names["card"]) >= 3, colour


# -- the file


def test_the_file_is_written_whole_its_folders_made_and_its_path_returned(tmp_path, light):
    path = search(3).report(str(tmp_path / "a" / "b" / "report.html"))
    assert path == tmp_path / "a" / "b" / "report.html" and path.read_text(encoding="utf-8").startswith("<!doctype")
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_a_write_that_fails_leaves_the_older_file_and_no_other(tmp_path, monkeypatch, light):
    path = search(3).report(tmp_path / "report.html")
    before = path.read_bytes()

    def fails(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="No space left"):
        search(4).report(path)
    assert path.read_bytes() == before and [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_the_same_result_gives_the_same_page_and_is_not_changed(light):
    result = search(24)
    before = result.to_json()
    assert page(result) == page(SearchResult.from_json(before)) and result.to_json() == before


@pytest.mark.parametrize("backend", ["optuna", "ray", "wandb", "sigopt"])
def test_results_of_every_backend_are_shown(backend, light):
    trials = [
        TrialRecord(
            k, "completed", k / 7, {"learning_rate": 10.0**-k}, backend_id=None if backend == "optuna" else "a"
        )
        for k in range(6)
    ]
    found = check_harmless(page(SearchResult(trials, [OBJECTIVE], ["maximize"], backend)))
    assert f"6 trials with {backend}" in found.text


def test_the_package_has_the_files_of_the_page():
    text = (FOLDER.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[tool.setuptools.package-data]")[1].split("\n[")[0]
    assert '"st_hpo.report" = ["page.*"]' in section
    assert {path.name for path in FOLDER.glob("page.*")} == {"page.py", "page.html", "page.css", "page.js"}


def test_the_examples_of_the_documentation_run_and_print_what_they_say(capsys, light):
    text = (FOLDER.parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, scope)
    assert scope["path"] == Path("results", "report.html") and scope["path"].is_file()
    (trace,) = scope["figure"].data
    assert len(trace.x) == 20 and Path("slice.html").is_file()
    path, printed = capsys.readouterr().out.split("\n", 1)
    assert path == str(scope["path"])
    assert printed == re.findall(r"```text\n(.*?)```", text, re.DOTALL)[0]


def test_the_documentation_names_every_kind_of_plot_and_its_rules():
    from st_hpo.report import curves, figures, over_parameters
    from st_hpo.report.page import COLUMNS, GROUPS

    text = " ".join((FOLDER.parent.parent / "docs" / "report.md").read_text(encoding="utf-8").split())
    assert set(re.findall(r'\| `"(\w+)"` \|', text)) == set(figures.KINDS)
    for rule in (
        f"{curves.METRICS} in all; of more than {curves.CURVES} trials the 10 best",
        f"of more than {curves.POINTS} evaluations {curves.POINTS} evenly",
        f"the {over_parameters.AXES} most important",
        f"of more than {over_parameters.CONTOUR} trials",
        f"the first {COLUMNS} hyperparameters",
        f"of the {GROUPS} most frequent reasons",
    ):
        assert rule in text, rule

"""The page in a real browser without a network: every plot is drawn, the table sorts, no text of a search runs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report_cases import all_failed, hostile, search

pytestmark = pytest.mark.slow

SCREENSHOTS = Path(os.environ.get("ST_HPO_SCREENSHOTS") or Path(__file__).parents[2] / "build" / "screenshots")
SIZES = {"desktop": (1280, 900), "phone": (400, 800)}
CASES = {
    "usual": lambda: search(40),
    "bare": lambda: search(12, around=False),
    "one-trial": lambda: search(1, around=False),
    "all-failed": all_failed,
    "two-objectives": lambda: search(40, directions=("maximize", "minimize")),
    "three-objectives": lambda: search(30, directions=("maximize", "minimize", "minimize")),
    "large": lambda: search(500, metrics=40, evaluations=20),
    "hostile": hostile,
}
# What each plot has drawn: paths of points, lines, bars, or contours
DRAWN = """() => Array.from(document.querySelectorAll("div.plot")).map((box) => {
    const svg = box.querySelector("svg.main-svg");
    const size = svg ? svg.getBoundingClientRect() : { width: 0, height: 0 };
    const paths = Array.from(box.querySelectorAll(".trace path, .points path, .contourlayer path, .js-line"));
    const inside = paths.filter((path) => (path.getAttribute("d") || "").length > 4).length;
    const parent = box.parentElement.getBoundingClientRect();
    return { id: box.id, width: size.width, height: size.height, paths: inside, room: parent.width };
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests, without any way out; Debian's, no download."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        why = "Chromium is not installed (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(f"{why}, and CI is set: the page would go untested.")
        pytest.skip(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=chromium, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Any:
    """The pages, each written once."""
    folder = tmp_path_factory.mktemp("pages")

    def write(case: str) -> Path:
        path = folder / f"{case}.html"
        return path if path.exists() else CASES[case]().report(path)

    return write


class Opened:
    """A page in the browser, and everything that it said and asked for."""

    def __init__(self, browser: Any, path: Path, size: str = "desktop", scheme: str = "light") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        begin = time.perf_counter()
        self.page.goto(path.as_uri())
        self.seconds_to_load = time.perf_counter() - begin
        self.page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
        self.seconds_to_draw = time.perf_counter() - begin
        self.url = path.as_uri()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.context.close()

    def check_quiet(self) -> None:
        """No error, no word on the console, no request but for the file itself (a data: address is none)."""
        assert self.said == []
        assert [url for url in self.asked if not url.startswith("data:")] == [self.url]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("desktop", "dark"), ("phone", "light")])
def test_every_plot_is_drawn_without_error_or_request(browser, written, case, size, scheme):
    with Opened(browser, written(case), size, scheme) as opened:
        plots = opened.page.evaluate(DRAWN)
        expected = {"one-trial": 3, "all-failed": 1, "usual": 15, "bare": 15, "large": 15}
        assert len(plots) == expected.get(case, len(plots)) and plots
        for plot in plots:
            assert plot["paths"] >= 1 and plot["width"] >= 200 and plot["height"] >= 200, plot
        page_width = opened.page.evaluate("document.documentElement.scrollWidth")
        assert page_width <= SIZES[size][0], "only tables and wide plots scroll sideways, each in its frame"
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        opened.page.screenshot(path=SCREENSHOTS / f"{case}-{size}-{scheme}.png", full_page=True)
        opened.check_quiet()


def test_the_page_of_500_trials_opens_within_3_seconds(browser, written):
    """The best of ten: other programs may be busy on the machine."""
    path = written("large")
    times = []
    for _ in range(10):
        with Opened(browser, path) as opened:
            times.append((opened.seconds_to_load, opened.seconds_to_draw))
        if times[-1][0] < 3.0:
            break
    print(f"loaded and drawn after {min(times)} seconds")
    assert min(load for load, _ in times) < 3.0


# -- hostile texts


def test_a_payload_that_is_not_escaped_would_be_noticed(browser, tmp_path):
    """Otherwise the test below would pass on any page."""
    path = tmp_path / "open.html"
    path.write_text('<html data-drawn="1"><img src=x onerror="window.hacked=1"></html>')
    with Opened(browser, path) as opened:
        opened.page.wait_for_timeout(200)
        assert opened.page.evaluate("window.hacked") == 1
        with pytest.raises(AssertionError):
            opened.check_quiet()


def test_no_text_of_a_search_runs_also_where_it_is_pointed_at_and_chosen(browser, written):
    with Opened(browser, written("hostile")) as opened:
        page = opened.page
        for box in page.query_selector_all("div.plot"):
            box.scroll_into_view_if_needed()
            point = box.query_selector(".points path, .point path, .js-line")
            if point is not None and (place := point.bounding_box()):
                page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
                page.wait_for_timeout(30)
        for select in page.query_selector_all("select"):
            for k in range(select.evaluate("s => s.options.length")):
                select.select_option(str(k))
        for button in page.query_selector_all("#trials-table button"):
            button.click()
        page.wait_for_timeout(300)
        assert page.evaluate("window.hacked === undefined && document.title.includes('</script>')")
        assert page.evaluate("document.querySelectorAll('svg a, svg script, svg image[href^=javascript]').length") == 0
        names = page.evaluate("Array.from(document.querySelectorAll('.ytick text')).map((t) => t.textContent)")
        assert any(name.startswith("<img src=x onerror=") for name in names), "names are shown as they are"
        assert any(name.startswith("&lt;script&gt;&amp;") for name in names)
        opened.check_quiet()


def test_what_is_pointed_at_shows_the_trial(browser, written):
    with Opened(browser, written("usual")) as opened:
        box = opened.page.query_selector("#plot-0")
        box.scroll_into_view_if_needed()
        place = box.query_selector(".points path").bounding_box()
        opened.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
        opened.page.wait_for_selector("#plot-0 .hoverlayer .hovertext")
        text = opened.page.inner_html("#plot-0 .hoverlayer")
        assert "trial 0" in text and "learning_rate" in text


# -- what a reader does


def column(page: Any, index: int) -> list[str]:
    return page.evaluate(
        "(k) => Array.from(document.querySelectorAll('#trials-table tbody tr')).map((r) => r.cells[k].innerText)",
        index,
    )


def sorted_by(page: Any) -> list[str | None]:
    return page.evaluate(
        "Array.from(document.querySelectorAll('#trials-table thead th')).map((h) => h.getAttribute('aria-sort'))"
    )


@pytest.mark.parametrize("way", ["click", "keyboard"])
def test_the_table_sorts_numbers_and_texts_with_missing_values_last(browser, written, way):
    with Opened(browser, written("usual")) as opened:
        page = opened.page
        heads = page.query_selector_all("#trials-table thead button")

        def choose(index: int) -> None:
            if way == "click":
                heads[index].click()
            else:
                heads[index].focus()
                page.keyboard.press("Enter" if index % 2 else "Space")

        trials = column(page, 0)
        assert sorted_by(page)[0] == "ascending" and [int(text.split()[0]) for text in trials] == list(range(40))
        for direction in ("ascending", "descending"):
            choose(2)
            values = column(page, 2)
            missing = values.index("\u2013")
            numbers = [float(value) for value in values[:missing]]
            assert numbers == sorted(numbers, reverse=direction == "descending") and len(numbers) > 20
            assert set(values[missing:]) == {"\u2013"} and sorted_by(page)[2] == direction
            assert sorted_by(page).count(None) == len(heads) - 1
        texts = [head.inner_text() for head in heads]
        choose(texts.index("loss.name"))
        names = column(page, texts.index("loss.name"))
        assert names == sorted(names, key=str.lower) and len(set(names)) == 3
        choose(texts.index("loss.name"))
        assert column(page, texts.index("loss.name")) == names[::-1]
        rates = texts.index("learning_rate")
        choose(rates)
        assert [float(value) for value in column(page, rates)] == sorted(map(float, column(page, rates)))
        choose(texts.index("loss.scale"))
        scales = column(page, texts.index("loss.scale"))
        assert scales[-1] == "\u2013" and scales[0] != "\u2013", "a hyperparameter that a trial does not have"
        choose(0)
        assert column(page, 0) == trials
        opened.check_quiet()


def test_the_reader_chooses_the_objective_of_a_plot(browser, written):
    with Opened(browser, written("two-objectives")) as opened:
        page = opened.page
        before = page.text_content("#plot-0 .ytitle")
        page.select_option('select[data-plot="0"]', "1")
        title = "document.querySelector('#plot-0 .ytitle').textContent"
        page.wait_for_function(f"before => {title} !== before", arg=before)
        after = page.text_content("#plot-0 .ytitle")
        assert [before, after] == ["eval_sts-dev_spearman_cosine", "eval_sts-dev_runtime_ms"]


def test_plots_follow_the_colours_of_the_system_and_the_width_of_the_window(browser, written):
    with Opened(browser, written("bare")) as opened:
        page = opened.page
        fill = "getComputedStyle(document.querySelector('#plot-0 .xtick text')).fill"
        bright = page.evaluate(fill)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(f"before => {fill} !== before", arg=bright)
        page.set_viewport_size({"width": 500, "height": 800})
        page.wait_for_function("() => document.querySelector('#plot-0 svg').getBoundingClientRect().width < 500")
        assert 200 < page.evaluate("document.querySelector('#plot-0 svg').getBoundingClientRect().width") < 500
        assert page.evaluate("document.documentElement.scrollWidth") == 500
        opened.check_quiet()

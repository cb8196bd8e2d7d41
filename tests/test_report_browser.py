"""The page of ``evaluate`` in a browser: it sorts, filters, explains and asks no network."""

import numpy as np
import pytest
from test_html_report import EVIL, METRICS, fake, group, page_of

from newsrec.report.page import html_page

pytestmark = pytest.mark.browser
SLICES = {
    "size": {
        "small": group(0.65, 0.6, 0.7),
        "large": group(0.8, 0.75, 0.85),
        "none": {"impressions": 0, "evaluated": 0, "users": 0},
    },
    EVIL: {"W" * 10_000: group(0.5, 0.45, 0.55), "\u202eturned": group(0.9, 0.85, 0.95)},
}


@pytest.fixture
def show(browser, tmp_path):
    """Show a page's text; at the end it had no error and asked for nothing else."""
    contexts, wrong = [], []

    def show(text, width=1280, **options):
        path = tmp_path / f"{len(contexts)}.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text))
        page.on("request", lambda one: one.url == path.as_uri() or wrong.append(one.url))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert not wrong


def page_text():
    steps, values = np.arange(5.0) * 10, np.linspace(0.5, 0.6, 5)
    curves = {f"val/{name}": (steps, values + k / 10) for k, name in enumerate(METRICS)}
    return html_page("x", fake(SLICES), None, [], curves)


def test_tables_are_sorted_and_filtered(show):
    page = show(page_text())
    table = page.locator("table.sift")
    column = table.locator("tbody tr:not(.head) td.value")
    before = column.all_inner_texts()
    heading = table.locator("th", has_text="AUC")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column.all_inner_texts() == ["0.5000", "0.6500", "0.8000", "0.9000", ""]
    assert not table.locator("tr.head").first.is_visible()
    assert table.locator(".of").first.is_visible()  # the slice of each group, out of its place now
    heading.locator("button").click()
    assert column.all_inner_texts() == ["0.9000", "0.8000", "0.6500", "0.5000", ""]
    heading.locator("button").click()
    assert column.all_inner_texts() == before
    page.get_by_label("filter rows").fill("SIZE large")
    assert [row for row in table.locator("tbody tr").all_inner_texts() if row.strip()]
    shown = table.locator("tbody tr:not(.head):visible th")
    assert [text.split()[-1] for text in shown.all_inner_texts()] == ["large"]
    assert table.locator("tr.head:visible").count() == 1
    assert "1 of 5 rows" in page.locator(".filter").inner_text()


def test_the_pointer_shows_the_numbers_of_pictures(show):
    page = show(page_text())
    page.locator("table.big svg.dots").first.hover()
    assert page.locator("#tip").inner_text() == "AUC 0.7000 (0.6000 to 0.8000)"
    picture = page.locator(".curves svg")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 360 * 46, box["y"] + 40)
    assert page.locator("#tip").inner_text().split("\n")[:2] == ["step 0", "AUC 0.5000"]


def test_the_dots_of_a_trade_off_say_their_values(show):
    none = {"ndcg@10": 0.6, "novelty@10": 9.0, "coverage@10": 0.4}
    step = {"value": 0.3, "ndcg@10": 0.5, "novelty@10": 9.5, "coverage@10": 0.4,
            "ndcg@10_difference_interval": [-0.2, 0.0]}  # fmt: skip
    rules = {"diversity": {"for": "novelty@10", "measured": [step]}}
    found = {"impressions": 5, "none": none, "rules": rules}
    page = show(html_page("x", fake(SLICES, trade_off=found), None, [], None))
    assert page.locator("svg.lines[role=img]").count() == 1  # coverage stays the same: no picture
    page.locator("svg.lines .told").nth(1).hover()
    assert page.locator("#tip").inner_text() == "--diversity 0.3: nDCG@10 0.5000, 9.500"
    page.locator("svg.lines .start").hover()
    assert page.locator("#tip").inner_text() == "as it is: nDCG@10 0.6000, 9.000"


def test_without_a_script_all_is_there_to_read(show, mind_dir):
    text, metrics, examples = page_of(mind_dir)
    page = show(text, java_script_enabled=False)
    words = page.locator("main").inner_text()
    assert all(f"{metrics[name]:.4f}" in words for name in METRICS)
    assert page.locator("details.example").count() == len(examples)
    assert page.locator("button").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_a_whole_page_of_hostile_text(show, scheme):
    page = show(page_text(), 360, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("script").count() == 1
    assert EVIL in page.locator("table.sift").inner_text()

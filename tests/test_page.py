"""The page in a browser, with a stand-in for the service: its answers are the oracle."""

import re
import threading
from contextlib import contextmanager

import pytest
from page_server import EXAMPLES, PageServer

pytestmark = pytest.mark.browser
PATIENCE_MS = 30_000
"""How long a test waits for what the page shows: a busy machine is slow."""
PHONE = {"width": 360, "height": 780}
HISTORY = ["N1", "N6", "N10"]
HOSTILE = [
    "<script>window.taken = 1</script>",
    "<img src=x onerror='window.taken = 1'>\"><svg onload=window.taken=1>",
    "&lt;b&gt; {{ 7 * 7 }} ${window.taken = 1} `javascript:`",
    "عاصفة تغلق الموانئ \u202eon the coast",
    "👩‍👩‍👧‍👦 Family day 🏳️‍🌈 returns",
    "W" * 2000,
    " ".join(["word"] * 400),
]


@pytest.fixture
def server():
    with PageServer() as server:
        yield server


@pytest.fixture
def open_page(browser, server):
    """Open pages; at the end none of them had an error or asked another host."""
    contexts, wrong, may_say = [], [], []

    def hear(page, url):
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.on("request", lambda one: one.url.startswith(url) or wrong.append(one.url))

    def open_(address="", url=server.url, wait="#recommended li", **options):
        context = browser.new_context(
            **{"reduced_motion": "reduce", "viewport": {"width": 1280, "height": 900}} | options
        )
        contexts.append(context)
        page = context.new_page()
        hear(page, url)
        page.goto(url + address)
        if wait:
            page.wait_for_selector(wait)
        page.may_say = may_say  # a test adds what errors of the console may contain
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not [said for said in wrong if not any(part in said for part in may_say)]


def expect(locator):
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE_MS)
    return expect(locator)


def titles(page):
    return page.locator("#recommended .title").all_inner_texts()


def address(history=HISTORY, **more):
    return "#" + "&".join([*(f"h={i}" for i in history), *(f"{k}={v}" for k, v in more.items())])


def expected(server, history=HISTORY, **rules):
    return server.recommend({"history": history, **rules})["news"]


def settled(page, wanted):
    """Wait until the list shows these news."""
    expect(page.locator("#recommended .title")).to_have_text([news["title"] for news in wanted])


def history_of(page):
    return page.locator("#history .title").all_inner_texts()


def test_a_click_on_found_news_changes_the_history_and_the_list(open_page, server):
    page = open_page()
    settled(page, expected(server, []))
    page.fill("#query", "cup final")
    found = page.locator("#found [role=option]")
    expect(found).to_have_count(2)
    found.filter(has_text="Rovers win").click()
    settled(page, expected(server, ["N1"]))
    expect(found.filter(has_text="Rovers win")).to_have_attribute("aria-selected", "true")
    found.filter(has_text="Rovers win").click()  # again: it leaves
    settled(page, expected(server, []))


def test_a_click_on_a_recommendation_joins_the_history_and_places_move(open_page, server):
    page = open_page(address(["N1"]))
    before = [news["news_id"] for news in expected(server, ["N1"])]
    page.locator("#recommended .title").nth(2).click()
    after = expected(server, ["N1", before[2]])
    settled(page, after)
    moved = page.locator("#recommended .place").all_inner_texts()
    for place, news in enumerate(after):
        was = before.index(news["news_id"]) if news["news_id"] in before else None
        text = "new" if was is None else f"▲{was - place}" if was > place else f"▼{place - was}"
        assert (text in moved[place]) == (was != place), (place, moved[place])


def test_rows_slide_to_their_places_unless_motion_is_reduced(open_page):
    for motion, slides in (("no-preference", True), ("reduce", False)):
        page = open_page(address(["N1"]), reduced_motion=motion)
        page.evaluate(
            "() => { const { animate } = Element.prototype; Element.prototype.animate = "
            "function (...all) { window.slid = true; return animate.apply(this, all); }; }"
        )
        page.locator("#recommended .title").nth(2).click()
        expect(page.locator("#history li")).to_have_count(2)
        page.wait_for_selector("#recommended .moved")
        assert page.evaluate("window.slid === true") == slides


def test_the_parts_of_a_score_are_those_of_the_service_and_add_up(open_page, server):
    page = open_page(address(half_life=12))
    news = expected(server, half_life=12)[0]
    page.locator("#recommended .more").first.click()
    cells = page.locator("#recommended .parts td:last-child").all_inner_texts()
    *values, score = [float(cell.replace("\u2212", "-")) for cell in cells]
    parts = news["explanation"]
    brought = sorted((click["value"] for click in parts["clicks"]), key=abs, reverse=True)
    assert values == pytest.approx([*brought, parts["rest"], parts["age"]], abs=0.006)
    assert score == pytest.approx(news["score"], abs=0.006)
    words = page.locator("#recommended .bars").first.get_attribute("aria-label")
    assert "the rest +0.10; age" in words
    bars = page.locator("#recommended > li > .bars").first.locator(".bar")
    widths = bars.evaluate_all("bars => bars.map((bar) => parseFloat(bar.style.width))")
    shown = [value for value in [*brought, parts["rest"], parts["age"]] if value]
    ratio = sum(widths) / sum(map(abs, shown))
    assert sorted(widths) == pytest.approx(sorted(abs(v) * ratio for v in shown), rel=1e-3)


def test_a_click_under_the_pointer_or_with_the_focus_shows_what_it_brought(open_page, server):
    page = open_page(address())
    wanted = [news["explanation"]["clicks"][1]["value"] for news in expected(server)]
    page.locator("#history li").nth(1).hover()
    shown = page.locator("#recommended .brought").all_inner_texts()
    assert [float(text) for text in shown] == pytest.approx(wanted, abs=0.006)
    lit = page.locator("#recommended > li > .bars .bar.on")
    expect(lit).to_have_count(sum(value != 0 for value in wanted))
    page.mouse.move(5, 5)
    expect(lit).to_have_count(0)
    page.locator("#history .grip").nth(1).focus()
    expect(lit).to_have_count(sum(value != 0 for value in wanted))
    page.locator("#recommended li").first.hover()
    parts = [click["value"] for click in expected(server)[0]["explanation"]["clicks"]]
    widths = page.locator("#history .share").evaluate_all("all => all.map((x) => x.style.width)")
    shares = [100 * value / max(parts) for value in parts]
    assert [float(width[:-1]) for width in widths] == pytest.approx(shares, abs=0.01)


def test_clicks_are_moved_and_removed_by_keys(open_page, server):
    page = open_page(address())
    first, second, third = history_of(page)
    page.locator("#history .grip").nth(0).focus()
    page.keyboard.press("ArrowDown")
    assert history_of(page) == [second, first, third]
    expect(page.locator("#spoken")).to_contain_text(re.compile("click 2 of 3|recommendations"))
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Click 2,")
    page.keyboard.press("End")
    assert history_of(page) == [second, third, first]
    page.keyboard.press("Delete")
    assert history_of(page) == [second, third]
    settled(page, expected(server, ["N6", "N10"]))
    assert server.asked[-1][1]["history"] == ["N6", "N10"]


def test_lights_go_out_with_the_click_under_the_pointer(open_page):
    page = open_page(address(["N1"]))
    page.locator("#history li").hover()
    expect(page.locator("body")).to_have_class("lit")
    page.locator("#history .remove").click()
    expect(page.locator("#history li")).to_have_count(0)
    expect(page.locator("body")).not_to_have_class("lit")


def test_lights_stay_on_the_moved_click_in_the_new_list(open_page, server):
    page = open_page(address())
    page.locator("#history .grip").nth(0).focus()
    page.keyboard.press("ArrowDown")
    settled(page, expected(server, ["N6", "N1", "N10"]))
    wanted = [n["explanation"]["clicks"][1]["value"] for n in expected(server, ["N6", "N1", "N10"])]
    lit = page.locator("#recommended > li > .bars .bar.on")
    expect(lit).to_have_count(sum(value != 0 for value in wanted))


def test_a_click_is_dragged_to_another_place(open_page):
    page = open_page(address())
    first, second, third = history_of(page)
    grip = page.locator("#history .grip").nth(2).bounding_box()
    top = page.locator("#history li").nth(0).bounding_box()
    page.mouse.move(grip["x"] + 8, grip["y"] + 8)
    page.mouse.down()
    page.mouse.move(grip["x"] + 8, top["y"] + 4, steps=5)
    page.mouse.up()
    assert history_of(page) == [third, first, second]


def test_everything_is_reached_by_keys_alone(open_page, server):
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type("storm")
    expect(page.locator("#found [role=option]")).to_have_count(3)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#popup")).to_be_hidden()
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"grip quiet", "remove quiet square", "clear", "rule-k", "rule-diversity", "toggle",
            "title", "more quiet square", "share", "theme", "tab-search"} <= reached  # fmt: skip
    page.locator("#tab-search").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#panel-replay")).to_be_visible()
    page.locator("#recommended .title").first.focus()
    title = page.locator("#recommended .title").first.inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("#history .title").nth(1)).to_have_text(title)
    assert page.evaluate("document.activeElement.className") == "title"  # the next one


def test_rules_are_sent_and_kept_in_the_address(open_page, server):
    page = open_page(address())
    sliders = {"k": 0, "half_life": 5, "per_category": 4, "diversity": 3, "calibration": 8}
    sliders["near_duplicates"] = 2
    for name, step in sliders.items():
        page.locator(f"#rule-{name}").evaluate(
            "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input')); }",
            step,
        )
    page.get_by_role("button", name="sports").click()
    rules = {"k": 5, "half_life": 12, "per_category": 2, "categories": ["sports"]}
    settled(page, expected(server, **rules))
    sent = server.asked[-1][1]
    kept = {name: value for name, value in sent.items() if name not in ("history", "explain")}
    assert kept == rules | {"diversity": 0.3, "calibration": 0.8, "near_duplicates": 0.95}
    other = open_page(page.url.removeprefix(server.url))
    assert titles(other) == titles(page)
    assert other.locator("#rule-half_life-value").inner_text() == "12 h"
    other.get_by_role("button", name="Reset").click()
    settled(other, expected(server))


def test_an_address_brings_back_history_and_headline(open_page, server):
    page = open_page(address(headline="Rovers%20sell%20homes", tab="headline"))
    assert history_of(page) == [server.news[i]["title"] for i in HISTORY]
    expect(page.locator("#headline")).to_have_value("Rovers sell homes")
    page.locator("#history .remove").first.click()
    expect(page.locator("#history li")).to_have_count(2)
    assert "h=N6&h=N10" in page.url
    assert "headline=Rovers+sell+homes" in page.url


def test_a_headline_gets_its_place_among_the_other_news_and_its_neighbours(open_page, server):
    title = "Rovers raise interest in storm coast"
    page = open_page(address(tab="headline"))
    page.fill("#headline", title)
    others = [news["score"] for news in expected(server, k=100)]
    score = server.place({"title": title, "history": HISTORY})["score"]
    place = sum(other > score for other in others) + 1
    expect(page.locator("#placed .big")).to_contain_text(f"Place {place} of {len(others) + 1}")
    near = server.place({"title": title, "history": HISTORY})["near"]
    expect(page.locator("#placed .near .title")).to_have_text([news["title"] for news in near])
    assert titles(page).index(title) == place - 1
    page.locator("#placed .near .title").first.click()
    expect(page.locator("#history li")).to_have_count(len(HISTORY) + 1)


def test_a_replay_goes_click_by_click_and_marks_what_was_clicked(open_page, server):
    page = open_page(address([], tab="replay"))
    page.select_option("#user", "data-0")
    shares = []
    for history, clicked in ([], "N1"), (["N1"], "N3"), (["N1", "N3"], "N5"):
        others = expected(server, history, k=100)
        score = server.scored(server.news[clicked], history)["score"]
        above = sum(news["score"] > score for news in others)
        shares.append(above / (len(others) - 1))
        expect(page.locator("#step-text")).to_contain_text(f"place {above + 1} of {len(others)}")
        expect(page.locator("#history li")).to_have_count(len(history))
        places = {news["news_id"]: place for place, news in enumerate(others, 1)}
        hit = page.locator("#recommended .hit")
        expect(hit).to_have_count(int(places[clicked] <= 10))
        if places[clicked] <= 10:
            expect(hit.locator(".title")).to_have_text(server.news[clicked]["title"])
            expect(hit.locator(".mark")).to_have_text("clicked next")
            expect(hit.locator(".place")).to_have_text(re.compile(rf"^Place {places[clicked]}\D*"))
        page.click("#next")
    shown = EXAMPLES[0]["impressions"][0]
    ranked = server.recommend(shown | {"history": ["N1", "N3", "N5"]})["news"]
    place = [news["news_id"] for news in ranked].index("N2") + 1
    shares.append((place - 1) / 3)
    expect(page.locator("#step-text")).to_contain_text(f"clicked place {place} of 4")
    expect(page.locator("#recommended .hit .mark")).to_have_text("clicked")
    mean = round(100 * sum(shares) / len(shares))
    expect(page.locator("#running")).to_contain_text(f"stood {mean} % down the list")
    page.click("#next")
    expect(page.locator("#history li")).to_have_count(4)
    assert "u=data-0&step=4" in page.url
    other = open_page(page.url.removeprefix(server.url))
    expect(other.locator("#step-text")).to_contain_text("After the last click")
    other.locator("#history .remove").first.click()  # a change of one's own leaves the user
    expect(other.locator("#steps")).to_be_hidden()
    assert "u=" not in other.url


def test_a_replay_plays_by_itself_and_has_users_of_the_store(open_page, server):
    server.users = {"U/7 é": ["N2", "N5"]}
    page = open_page(address([], tab="replay"))
    page.clock.install()
    page.select_option("#user", "store-U/7 é")
    expect(page.locator("#step-text")).to_contain_text("Click 1 of 2")
    page.click("#play")
    for name in ("Click 2 of 2", "After the last click"):
        page.clock.run_for(1600)
        expect(page.locator("#step-text")).to_contain_text(name)
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")


def wide(page):
    """Return what makes the page scroll sideways."""
    return page.evaluate(
        """(width) => document.documentElement.scrollWidth <= width ? [] :
        [...document.querySelectorAll("body *")]
        .filter((one) => one.getBoundingClientRect().right > width)
        .map((one) => one.cloneNode().outerHTML)""",
        page.viewport_size["width"],
    )


@pytest.mark.parametrize("width", [1280, 360])
def test_hostile_titles_stay_text_and_break_no_layout(open_page, server, width):
    for n, title in enumerate(HOSTILE):
        news = {"news_id": f"H{n}<&\"'", "title": title, "category": title[:400]}
        server.news[news["news_id"]] = news | {"subcategory": "", "published": None}
    ids = [i for i in server.news if i.startswith("H")]
    page = open_page(viewport={"width": width, "height": 780})
    page.fill("#query", "w")
    page.locator("#found [role=option]").filter(has_text="<script>").click()
    page.keyboard.press("Escape")
    server.examples = [{"user_id": "W" * 300, "history": ids, "impressions": []}]
    server.users = {HOSTILE[0]: ids}
    for tab in ("search", "replay", "headline"):
        page.click(f"#tab-{tab}")
        assert wide(page) == []
    page.fill("#headline", HOSTILE[1])
    expect(page.locator("#placed .big")).to_be_visible()
    page.evaluate("ids => { location.hash = new URLSearchParams(ids.map((i) => ['h', i])); }", ids)
    expect(page.locator("#history .title")).to_have_count(len(ids))
    assert page.locator("#history .title").all_text_contents() == HOSTILE
    page.locator("#recommended .more").first.click()
    assert wide(page) == []
    assert page.evaluate("window.taken") is None


@pytest.mark.parametrize("tab", ["search", "replay", "headline"])
def test_a_phone_has_no_sideways_scroll(open_page, tab):
    page = open_page(address(tab=tab, u="data-0") if tab == "replay" else address(tab=tab),
                     viewport=PHONE, has_touch=True, is_mobile=True)  # fmt: skip
    page.locator("#rules summary").click()
    page.locator("#recommended .more").first.click()
    page.locator("footer summary").click()
    if tab == "headline":
        page.fill("#headline", "Rovers sell homes")
        expect(page.locator("#placed .big")).to_be_visible()
    if tab == "search":
        page.locator("#query").tap()
        expect(page.locator("#popup")).to_be_visible()
    assert wide(page) == []
    small = page.evaluate(
        "() => [...document.querySelectorAll('button, input, select, summary')]"
        ".filter((one) => one.checkVisibility()).map((one) => [one, one.getBoundingClientRect()])"
        ".filter(([, box]) => box.width < 24 || box.height < 18).map(([one]) => one.outerHTML)"
    )
    assert small == []


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const [r, g, b] = rgba(color).slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
  };
  const contrast = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    if (!node.checkVisibility() || node.closest(":disabled")) continue;
    const style = getComputedStyle(node);
    const hasText = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (hasText) {
      const color = node.closest("svg") ? style.fill : style.color;
      found.push(["text", contrast(color, behind(node)), node.outerHTML.slice(0, 90)]);
    }
    if (node.matches(".bar:not(.age), .dot:not(.age)")) {
      const around = behind(node.parentElement);
      found.push(["shape", contrast(style.backgroundColor, around), node.outerHTML]);
    }
    if (node.matches("input:not([type=range]), select, textarea")) {
      found.push(["shape", contrast(style.borderTopColor, behind(node.parentElement)), node.id]);
    }
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrasts_reach_aa(open_page, scheme):
    page = open_page(address(tab="replay", u="data-0", step=3), color_scheme=scheme)
    expect(page.locator("#running")).not_to_be_empty()
    pages = [page, open_page(address([*HISTORY, "N13", "N15"], half_life=12), color_scheme=scheme)]
    pages[1].locator("#recommended .more").first.click()
    pages[1].fill("#query", "storm")
    pages[1].wait_for_selector("#found li")
    for page in pages:
        found = page.evaluate(CONTRASTS)
        assert len(found) > 50
        least = {"text": 4.5, "shape": 3}
        assert [one for one in found if one[1] < least[one[0]]] == []


def test_dark_and_light_follow_the_system_until_the_user_chooses(open_page):
    colour = "getComputedStyle(document.body).backgroundColor"
    page = open_page(color_scheme="dark")
    assert page.evaluate(colour) == "rgb(20, 23, 27)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(colour) == "rgb(247, 247, 245)"
    expect(page.locator("#theme")).to_have_attribute("aria-pressed", "false")
    page.click("#theme")
    assert page.evaluate(colour) == "rgb(20, 23, 27)"
    page.reload()
    assert page.evaluate(colour) == "rgb(20, 23, 27)"
    expect(page.locator("#theme")).to_have_attribute("aria-pressed", "true")


def test_a_server_with_a_token_is_asked_with_it_and_keeps_it_in_the_tab(open_page):
    with PageServer(token="secret") as server:
        page = open_page(address(), url=server.url, wait="dialog[open]")
        expect(page.locator("#token-problem")).to_contain_text("lacks the token")
        page.fill("#token-field", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-field")).to_have_value("")
        page.wait_for_selector("dialog[open]")
        page.fill("#token-field", "secret")
        page.keyboard.press("Enter")
        settled(page, expected(server))
        assert page.evaluate("[sessionStorage.token, localStorage.token]") == ["secret", None]
        assert "secret" not in page.url
        page.reload()
        settled(page, expected(server))
        expect(page.locator("dialog")).to_be_hidden()
        page.may_say.append("401")
        page.close()  # before its server ends, which would reset a request that is on its way


def test_a_browser_that_keeps_nothing_shows_the_page(open_page, browser):
    with PageServer(token="secret") as server:
        page = open_page(url=server.url, wait="dialog[open]")
        for storage in ("localStorage", "sessionStorage"):
            page.add_init_script(
                f"Object.defineProperty(window, '{storage}', "
                "{ get() { throw new DOMException('no', 'SecurityError'); } })"
            )
        page.reload()
        page.fill("#token-field", "secret")
        page.keyboard.press("Enter")
        settled(page, expected(server, []))
        page.may_say.append("401")
        page.close()  # before its server ends, which would reset a request that is on its way


def test_a_mistake_is_shown_in_the_servers_own_sentence(open_page):
    page = open_page(address(k=1000), wait="#problem:not([hidden])")
    expect(page.locator("#problem")).to_have_text("k is 1000. Give a whole number from 1 to 100.")
    page.may_say.append("422")
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#recommended li")).to_have_count(10)
    expect(page.locator("#problem")).to_be_hidden()


def test_an_empty_catalogue_and_a_server_without_users_are_told(open_page):
    with PageServer(news=[], examples=[]) as server:
        page = open_page(address([], tab="replay"), url=server.url, wait=None)
        expect(page.locator("#note")).to_contain_text("The catalogue is empty.")
        expect(page.locator("#no-users")).to_contain_text("--data.root")
        expect(page.locator("#player")).to_be_hidden()
        page.click("#tab-search")
        page.click("#query")
        expect(page.locator("#found-note")).to_contain_text("The catalogue is empty.")
        expect(page.locator("#pick")).to_be_hidden()
        page.close()


def test_an_empty_history_is_told_and_filled_at_will(open_page):
    page = open_page()
    expect(page.locator("#note")).to_contain_text("No click yet")
    page.get_by_role("button", name="Pick some for me").click()
    expect(page.locator("#history li")).to_have_count(3)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#note")).to_contain_text("No click yet")


def test_unknown_clicks_are_named_and_kept_out_of_the_bars(open_page, server):
    page = open_page(address(["N1", "gone", "N6"]))
    expect(page.locator("#note")).to_contain_text("Not in the catalogue: gone.")
    expect(page.locator("#history .unread .title")).to_have_text("gone")
    page.locator("#history li").nth(2).hover()
    wanted = [news["explanation"]["clicks"][1]["value"] for news in expected(server, ["N1", "N6"])]
    shown = page.locator("#recommended .brought").all_inner_texts()
    assert [float(text) for text in shown] == pytest.approx(wanted, abs=0.006)


def test_a_page_whose_server_is_gone_says_so_and_goes_on_when_it_is_back(open_page):
    with PageServer() as server:
        port = server.server_port
        page = open_page(address(["N1"]), url=server.url)
    page.clock.install()
    page.locator("#recommended .title").first.click()
    expect(page.locator("#offline")).to_contain_text("The server does not answer.")
    with PageServer(port=port) as server:
        page.clock.run_for(3100)
        expect(page.locator("#offline")).to_be_hidden()
        expect(page.locator("#recommended li")).to_have_count(10)
        expect(page.locator("#history li")).to_have_count(2)
    page.may_say.append("ERR_")


def test_a_slow_answer_does_not_replace_a_later_one(open_page, server):
    page = open_page()
    server.delays = {1: 0.5}
    page.fill("#query", "cup final")
    options = page.locator("#found [role=option]")
    expect(options).to_have_count(2)
    options.nth(0).click()
    options.nth(1).click()
    newest = server.find("cup final", 20)
    settled(page, expected(server, [news["news_id"] for news in newest]))
    page.wait_for_timeout(600)
    settled(page, expected(server, [news["news_id"] for news in newest]))


def test_the_times_of_requests_are_shown(open_page):
    page = open_page(address())
    expect(page.locator("#latency")).to_have_text(
        re.compile(r"^[\d.]+ ms server · [\d.]+ ms round trip$")
    )
    page.locator("footer summary").click()
    expect(page.locator("#requests")).to_contain_text("POST /recommend")


def test_every_control_has_a_name_and_ids_are_unique(open_page):
    page = open_page(address(tab="replay", u="data-0"))
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, [role=img]")]
        .filter((one) => !(one.ariaLabel || one.labels?.length || one.textContent.trim()))
        .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    assert page.evaluate(
        "(() => { const ids = [...document.querySelectorAll('[id]')].map((one) => one.id);"
        "return ids.length === new Set(ids).size; })()"
    )


def test_the_link_is_copied(open_page, server):
    page = open_page(address(), permissions=["clipboard-read", "clipboard-write"])
    page.click("#share")
    expect(page.locator("#share")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


@contextmanager
def real_service(export, store, data):
    """Run the service itself, and yield its address."""
    import uvicorn

    from newsrec.serving.examples import Examples
    from newsrec.serving.http import create_app
    from newsrec.serving.http_answers import Service
    from newsrec.serving.http_server import bind
    from newsrec.serving.http_settings import Settings
    from newsrec.serving.live import LiveRecommender

    engine = LiveRecommender.open(export, store, threads=1)
    service = Service(Settings(export), engine)
    service.examples = Examples.of(data)
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        engine.close()


def test_the_page_works_with_the_service_itself(open_page, served, tmp_path):
    pytest.importorskip("uvicorn")
    from newsrec.serving import Recommender

    recommender = Recommender.load(served.export, threads=1)

    def best(history):
        news = recommender.recommend(history, k=recommender.news.num_rows).news_ids
        return [news_id for news_id in news if news_id not in history]

    with real_service(served.export, tmp_path / "store", served.mind) as url:
        page = open_page(address(["N1"], k=5), url=url)
        wanted = [news["title"] for news in recommender.describe(best(["N1"])[:5])]
        expect(page.locator("#recommended .title")).to_have_text(wanted)
        expect(page.locator("#recommended > li > .bars")).to_have_count(5)
        page.click("#tab-headline")
        page.fill("#headline", "A storm closes ports")
        expect(page.locator("#placed .big")).to_contain_text("Place ")
        expect(page.locator("#placed .near li")).to_have_count(5)
        page.click("#tab-replay")
        page.select_option("#user", "data-0")
        expect(page.locator("#step-text")).to_contain_text("Click 1 of")
        user = page.evaluate("fetch('examples/0').then((answer) => answer.json())")
        for place, news_id in enumerate(user["history"]):
            ranked = best(user["history"][:place])
            where = f"place {ranked.index(news_id) + 1} of {len(ranked)}"
            expect(page.locator("#step-text")).to_contain_text(where)
            page.click("#next")
        for number, shown in enumerate(user["impressions"], 1):
            expect(page.locator("#step-text")).to_contain_text(f"Impression {number} of")
            expect(page.locator("#recommended .hit")).to_have_count(len(shown["clicked"]))
            expect(page.locator("#recommended .moved")).to_have_count(0)  # another list
            page.click("#next")
        assert sum(len(shown["clicked"]) for shown in user["impressions"])
        assert page.locator("#catalogue").inner_text().startswith(f"{recommender.news.num_rows:,} ")

"""The page's files: nothing inline, nothing from elsewhere, no text that is read as markup."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "newsrec" / "serving" / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text of scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.inline, self.open = [], "", None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data):
        if self.open in ("script", "style"):
            self.inline += data.strip()


@pytest.fixture(scope="module")
def tags():
    parser = Tags()
    parser.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    assert not parser.inline
    return parser.tags


def test_the_page_has_nothing_inline_and_all_that_it_names(tags):
    for tag, attributes in tags:
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        for name in ("src", "href"):
            target = attributes.get(name, "")
            if tag in ("script", "link"):
                assert not target or (PAGE.parent / target).is_file(), target
            else:
                assert target.startswith("#") or not target


def test_ids_are_unique_and_references_have_their_target(tags):
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for name in ("for", "aria-labelledby", "aria-controls"):
            assert attributes.get(name) in (None, *ids)
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_makes_no_markup_from_text_and_asks_no_other_host(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|\.cssText", text
    )
    assert set(re.findall(r"https?://[^\s\"'`]*", text)) <= {"http://www.w3.org/2000/svg"}
    for name in re.findall(r'^import .* from "(.*?)"', text, re.MULTILINE):
        assert (PAGE / name).is_file()
    assert len(text.splitlines()) <= 320


def test_the_styles_ask_for_nothing():
    assert not re.search(r"url\(|@import|https?:", (PAGE / "style.css").read_text(encoding="utf-8"))

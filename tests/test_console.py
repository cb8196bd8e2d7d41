import io
import json
import logging
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
from conftest import refused, tiny_behaviors, tiny_news, write_mind
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.text import Text

from newsrec.__main__ import main
from newsrec.console import printable, replace_closed_streams, say, show_our_messages, terminal
from newsrec.export.export import describe
from newsrec.files import file_hash
from newsrec.report.pictures import TEMPLATES
from newsrec.serving import Recommender

EVIL = "A\x1b[31mred\x1b]0;title\x07\x00\x7f\x9b31m\u202egnp\u2066x\u2069\nnews\ttwo"


def acts_on_a_terminal(text):
    """Whether anything but text and ends of lines is in it, by Unicode's own tables."""
    turns = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return [
        c
        for c in text
        if (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t")
        or unicodedata.bidirectional(c) in turns
    ]


TEXTS = st.text(
    st.one_of(
        st.characters(max_codepoint=0xA0),
        st.characters(min_codepoint=0x2020, max_codepoint=0x2070),
        st.characters(categories=["Cs", "L"]),
    )
)


ON_A_PAGE = TEMPLATES.from_string("{{ text }}")


@settings(max_examples=200)
@given(TEXTS)
@example(EVIL)
def test_printable_text_does_nothing_to_a_terminal(text):
    line, lines = printable(text), printable(text, lines=True)
    assert not acts_on_a_terminal(line)
    assert not acts_on_a_terminal(lines)
    assert len(line.splitlines()) <= 1
    line.encode()
    assert printable(line) == line
    plain = [c for c in text if c.isalnum() or c in "\U0001f388-_"]
    assert [c for c in line if c in plain] == plain
    html = ON_A_PAGE.render(text=text)
    assert not acts_on_a_terminal(html)
    assert not set(html) & set("<>\"'")


def test_text_of_any_language_stays_as_it_is():
    for text in (
        "Café — “a walk” 日本語 🎈 e\u0301",
        "עברית \u200f שלום",
        "نص\u200c عربي",
        "👩\u200d💻",
    ):
        assert printable(text) == text
    assert printable("two\r\nlines\tand\x0bmore") == "two lines and more"


def test_messages_and_logs_do_nothing_to_a_terminal(capsys):
    say(EVIL, EVIL, sep="\n")
    say(EVIL, error=True)
    show_our_messages()
    logging.getLogger("newsrec.x").warning("of %s", EVIL)
    terminal().print(EVIL)
    found = capsys.readouterr()
    assert "red" in found.out
    assert "gnp" in found.err
    assert not acts_on_a_terminal(found.out + found.err)


def test_a_table_keeps_its_own_styles():
    file = io.StringIO()
    terminal(file=file, force_terminal=True, color_system="standard").print(
        Text("bold\x1b[5m", style="bold")
    )
    assert file.getvalue() == "\x1b[1mbold[5m\x1b[0m\n"


@pytest.fixture(scope="module")
def serve(exported_encoders, tmp_path_factory):
    """Gives a recommender of two news items, one of them as one likes."""
    module, encoders, _ = exported_encoders
    folder = Path(shutil.copytree(encoders, tmp_path_factory.mktemp("console") / "export"))
    files = {path.name: file_hash(path) for path in folder.iterdir()}
    manifest = describe(module, ["title"], folder) | {"files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    recommender = Recommender.load(folder, threads=1)
    empty = recommender._catalogue

    def filled(title, category, news_id):
        recommender._catalogue = empty
        recommender.add_news([news_id, "other"], [title, "Rain"], [category, "weather"])
        return recommender

    return filled


WHOLE = TEXTS.filter(lambda text: not re.search("[\ud800-\udfff]", text))
IDS = WHOLE.filter(lambda text: text != "other" and not text.startswith("-"))  # not an option


@pytest.mark.slow
@settings(
    max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(WHOLE, WHOLE, IDS, TEXTS)
@example(EVIL, EVIL, EVIL, EVIL)
def test_recommend_prints_text_and_nothing_else(serve, capsys, title, category, news_id, unknown):
    recommender = serve(title, category, news_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recommender, "load", lambda folder: recommender)
        for options in (["-k", "2"], ["--candidates", f"X{unknown}", news_id or "other"]):
            main(["recommend", "export", *options])
            found = capsys.readouterr()
            assert not acts_on_a_terminal(found.out + found.err)
        main(["recommend", "export", "-k", "2", "--json"])
    text = capsys.readouterr().out
    assert text.isascii()
    assert not acts_on_a_terminal(text)
    news = {item["news_id"]: item for item in json.loads(text)["news"]}
    assert news[news_id]["title"] == title
    assert news[news_id]["category"] == category


def test_no_command_over_a_data_folder_lets_control_characters_through(tmp_path, capsys):
    evil = re.sub("[\\n\\t\\0]", "", EVIL)
    news, behaviors = tiny_news(), tiny_behaviors()
    for rows in news.values():
        for row in rows:
            row[1], row[3] = row[1] + evil, row[3] + evil
    for rows in behaviors.values():
        rows[0][1] += evil.replace(" ", "")
    mind = write_mind(tmp_path / "mind", news, behaviors)
    of, a, b = [f"--data.root={mind}", "--split=dev"], tmp_path / "a", tmp_path / "b"
    commands = [
        ["prepare", of[0]],
        ["evaluate", "--scorer=category", *of, f"--output={a}", "--trainer.accelerator=cpu"],
        ["evaluate", "--scorer=random", *of, f"--output={b}", "--trainer.accelerator=cpu"],
        ["compare", str(a), str(b)],
        ["check-submission", str(a / "prediction.zip"), *of],
    ]
    for command in commands:
        main(command)
        found = capsys.readouterr()
        assert not acts_on_a_terminal(found.out + found.err), command
    page = (tmp_path / "a" / "report.html").read_text()
    assert "gnp" in page
    assert not acts_on_a_terminal(page)
    (mind / "dev" / "news.tsv").write_bytes(f"{EVIL}\n".encode())
    said = refused(capsys, "prepare", "--data.root", mind)
    assert not acts_on_a_terminal(said)
    assert not acts_on_a_terminal(refused(capsys, evil.replace("\x00", "")))


def test_a_locale_without_utf_8_shows_a_title_all_the_same(monkeypatch):
    printed = io.BytesIO()
    of_locale_c = io.TextIOWrapper(printed, encoding="ascii", errors="surrogateescape")
    monkeypatch.setattr("sys.stdout", of_locale_c)
    monkeypatch.setattr(logging.getLogger("newsrec"), "handlers", [])
    show_our_messages()
    print("Caf\xe9 l\xe4uft", flush=True)
    assert printed.getvalue().strip() == rb"Caf\xe9 l\xe4uft"


def test_closed_streams_become_the_null_device(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    replace_closed_streams()
    say("out")
    say("error", error=True)
    assert not sys.stderr.isatty()
    assert sys.stdin.read() == ""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()

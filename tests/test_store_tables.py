"""``newsrec store``: Parquet out of a store and into it, and less space."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused
from live_world import START, click, ids_of, item, wait_until, write_export

from newsrec.__main__ import main
from newsrec.errors import UserError
from newsrec.serving import store_tables
from newsrec.serving.live import Click, NewsItem
from newsrec.serving.store_tables import export_store, import_store, vacuum_store

pytestmark = pytest.mark.usefixtures("fake_encoders")
ODD = NewsItem("N'7", 'Tabs\tand "quotes"\n日本', "", "sub", "An abstract.", START)


@pytest.fixture
def live(tmp_path, opened):
    live = opened(write_export(tmp_path / "export", [item(n) for n in range(3)]))
    precise = ODD._replace(news_id="N8", published=datetime(1969, 12, 31, 1, 2, 3, 456_789, UTC))
    live.upsert_news([ODD, precise])
    live.add_clicks([click(1, 2), click(1, 2, 5), Click("日", "N'7", START + timedelta(0, 0, 7))])
    return live


def news_of(live):
    return {one.news_id: one for one in live.find_news("", 1000)}


def test_a_store_comes_back_whole_from_its_files(live, tmp_path, capsys, opened, monkeypatch):
    monkeypatch.setattr(store_tables, "ROWS_AT_ONCE", 2)
    main(["store", "export", str(live.store), f"--output={tmp_path / 'out'}"])
    assert "has 5 news items and 3 clicks" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "out" / "news.parquet")
    assert table.column_names == list(NewsItem._fields)
    assert table["abstract"].to_pylist()[:4] == [None] * 3 + ["An abstract."]  # not known, known
    files = [f"--{name}={tmp_path / 'out' / name}.parquet" for name in ("news", "clicks")]
    main(["store", "import", str(tmp_path / "new"), *files])
    said = capsys.readouterr().out
    assert "of the news, 5 new, 0 replaced, 0 unchanged; of the clicks, 3 new, 0 stored" in said
    again = opened(live.store.parent / "export", tmp_path / "new")
    assert news_of(again) == news_of(live)
    assert again.user("U1") == live.user("U1")
    assert again.user("日").clicks == [("N'7", START + timedelta(0, 0, 7))]
    assert scores_of(again) == pytest.approx(scores_of(live))
    main(["store", "import", str(live.store), *files])
    said = capsys.readouterr().out
    assert "of the news, 0 new, 0 replaced, 5 unchanged; of the clicks, 0 new, 3 stored" in said


def test_news_of_a_file_are_served_at_once(live, tmp_path):
    table = {
        "news_id": [7, 8],
        "title": ["seven", "eight"],
        "published": ["2024-03-01 10:00:00", None],
    }
    pq.write_table(pa.table(table), tmp_path / "news.parquet")
    assert import_store(live.store, tmp_path / "news.parquet").news == (2, 0, 0)
    assert {"7", "8"} < set(ids_of(live))
    assert live.news_item("7").published == datetime(2024, 3, 1, 10, tzinfo=UTC)
    assert live.news_item("8").published is None
    (tmp_path / "news.tsv").write_text("T1\tsports\tgolf\tA title\tIts abstract\t\t\t\n", "utf-8")
    assert import_store(live.store, tmp_path / "news.tsv").news == (1, 0, 0)
    assert live.news_item("T1") == NewsItem("T1", "A title", "sports", "golf", "Its abstract")


def scores_of(live):
    return {one.news_id: one.score for one in live.recommend(["N1", "N8"], k=50).news}


@pytest.mark.parametrize(
    ("name", "columns", "words"),
    [
        ("news", {"news_id": ["a", "b"], "title": ["x", "y" * 20_000]}, "news[1].title has 20,000"),
        ("news", {"news_id": ["a", ""], "title": ["x", "y"]}, "row 1, column news_id: null"),
        ("news", {"news_id": ["a"]}, "has no column title"),
        ("news", {"news_id": ["a", "b"], "title": ["x", "y"], "published": ["2024-01-01", "noon"]},
         "row 1, column published: not a time such as 2019-11-11 09:05:58: 'noon'"),
        ("clicks", {"user_id": ["u", None], "news_id": ["a", "b"], "time": [1, 2]},
         "row 1, column user_id: null, empty or not UTF-8"),
        ("clicks", {"user_id": ["u", "v"], "news_id": ["a", "b"], "time": [1, None]},
         "row 1, column time: not a time"),
        ("clicks", {"user_id": ["u"], "news_id": ["a"]}, "has no column time"),
        ("clicks", {"user_id": ["u", "x" * 999], "news_id": ["a", "b"], "time": [1, 2]},
         "clicks[1].user_id has 999 characters; at most 256"),
    ],
)  # fmt: skip
def test_a_file_is_taken_whole_or_not_at_all(live, tmp_path, capsys, name, columns, words):
    before = news_of(live), live.stats().clicks
    good = {
        "news": {"news_id": ["good"], "title": ["t"]},
        "clicks": {"user_id": ["u"], "news_id": ["a"], "time": [1]},
        name: columns,
    }
    files = []
    for file, content in good.items():
        pq.write_table(pa.table(content), tmp_path / f"{file}.parquet")
        files.append(f"--{file}={tmp_path / file}.parquet")
    said = refused(capsys, "store", "import", live.store, *files)
    assert words in said
    assert f"{name}.parquet" in said
    assert (news_of(live), live.stats().clicks) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["export", "{none}", "--output=x"], "is no store: there is no news.sqlite in it"),
        (["vacuum", "{none}"], "is no store"),
        (["export", "{store}"], "store export needs --output"),
        (["export", "{store}", "--output={store}"], "is not empty"),
        (["switch", "{none}", "--export=x"], "is no store"),
        (["switch", "{store}"], "store switch needs --export"),
        (["switch", "{store}", "--export={none}"], "There is no"),
        (["import", "{store}"], "store import needs --news or --clicks"),
        (["import", "{store}", "--clicks={none}"], "there is no such file"),
        (["import", "{store}", "--news={none}"], "there is no such file"),
        (["import", "{store}", "--output=x"], "--output is no option of store import"),
        (["vacuum", "{store}", "--news=x"], "has --retention_days. Leave it out"),
        (["vacuum", "{store}", "--retention_days=0"], "retention_days is 0.0; it must be above 0"),
        (["empty", "{store}"], "export"),
    ],
)
def test_mistakes_are_told_with_the_next_step(live, tmp_path, capsys, argv, words):
    where = {"none": tmp_path / "none", "store": live.store}
    assert words in refused(capsys, "store", *(text.format(**where) for text in argv))
    assert not (tmp_path / "none").exists()


def test_a_switch_changes_the_export_of_a_service_that_runs(live, tmp_path, capsys):
    live.upsert_news([item(n) for n in range(60)])
    other = write_export(tmp_path / "other", model="second")
    old, news = live.version, news_of(live)
    main(["store", "switch", str(live.store), f"--export={other}"])
    said = capsys.readouterr().out
    wait_until(lambda: live.recommend(k=1).version != old)
    assert live.wait()
    assert f"answers with {other} (version {live.version})" in said
    assert (news_of(live), ids_of(live)) == (news, sorted(news))
    main(["store", "switch", str(live.store), f"--export={live.store.parent / 'export'}"])
    wait_until(lambda: live.recommend(k=1).version == old)


def test_vacuum_frees_space_and_keeps_what_answers(live, tmp_path, capsys):
    live.upsert_news([item(n, "x" * 5000) for n in range(300)])
    for n in range(20, 300):
        live.delete_news(f"N{n}")
    live.add_clicks([Click("new", "N1", datetime.now(UTC))])
    scores, news = scores_of(live), news_of(live)
    before, after = vacuum_store(live.store, retention_days=3)
    assert after < before / 2
    assert live.users() == ["new"]
    assert (scores_of(live), news_of(live)) == (scores, news)
    main(["store", "vacuum", str(live.store)])
    assert "MB; before it had" in capsys.readouterr().out


def test_an_empty_store_writes_no_files_that_cannot_be_read(tmp_path, opened):
    store = opened(write_export(tmp_path / "export")).store
    assert export_store(store, tmp_path / "out") == {"news.parquet": 0, "clicks.parquet": 0}
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(UserError, match="is a file, not a folder"):
        import_store(tmp_path / "export" / "manifest.json", None, None)

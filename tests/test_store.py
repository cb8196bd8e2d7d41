"""The files of a store: what is on the disk, what cannot be used, and what is gone."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from live_world import click, ids_of, item, write_export

from newsrec.errors import StoreError, UserError
from newsrec.serving import clicks as clicks_module
from newsrec.serving import database as database_module
from newsrec.serving.clicks import CLICKS_FILE, ClickStore
from newsrec.serving.database import Database
from newsrec.serving.items import Click, to_micros, to_time
from newsrec.serving.news_rows import NEWS_FILE
from newsrec.serving.store import NewsStore

pytestmark = pytest.mark.usefixtures("fake_encoders")
DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def export(tmp_path):
    return write_export(tmp_path / "export", [item(n) for n in range(3)])


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# what is not a store


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (NEWS_FILE, b"no database at all, but longer than the header" * 99, "is not an SQLite"),
        (CLICKS_FILE, b"\0" * 4096, "file is not a database"),
        (NEWS_FILE, None, "is a database, but not of newsrec"),
    ],
)
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(
    folder, export, opened, name, content, words
):
    folder.mkdir()
    if content is None:
        with sqlite3.connect(folder / name) as db:
            db.execute("CREATE TABLE theirs (x)")
        db.close()
    else:
        (folder / name).write_bytes(content)
    before = files_of(folder)[name]
    with pytest.raises(StoreError, match=words) as raised:
        opened(export, folder)
    assert str(folder / name) in str(raised.value)
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        "PRAGMA user_version = 2",
        "CREATE TRIGGER t AFTER INSERT ON news BEGIN DELETE FROM news; END",
        "ALTER TABLE news ADD COLUMN more TEXT",
        "DROP TABLE changes",
    ],
)
def test_other_tables_than_ours_are_refused(folder, change):
    NewsStore(folder).close()
    db = sqlite3.connect(folder / NEWS_FILE)
    db.execute(change)
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="Use the version of newsrec that wrote it"):
        NewsStore(folder)


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, export, opened, place):
    path = tmp_path / "file"
    path.write_text("x", encoding="utf-8")
    with pytest.raises(StoreError, match="Choose another folder for the store"):
        opened(export, path if place == "file" else path / "store")


def test_a_store_that_may_only_be_read_is_refused(folder, export, opened, monkeypatch):
    opened(export, folder).close()
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **more: connect(f"file:{path}?mode=ro", uri=True, **more)
    )
    with pytest.raises(StoreError, match="cannot be written: allow it, or choose another folder"):
        opened(export, folder)


def test_damage_is_named(folder, export, opened):
    opened(export, folder).close()
    path = folder / NEWS_FILE
    content = bytearray(path.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="It is damaged"):
        opened(export, folder)


@pytest.mark.parametrize("vector", [b"", b"\0" * 12, b"\xff" * 16])
def test_a_vector_that_cannot_be_one_is_named(folder, export, opened, vector):
    opened(export, folder).close()
    db = sqlite3.connect(folder / NEWS_FILE)
    db.execute("UPDATE vectors SET vector = ? WHERE place % 4 = 2", (vector,))
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="the vector of N1 is damaged"):
        opened(export, folder)


# writes


def test_a_full_disk_changes_nothing_and_all_goes_on_with_room(folder, export, opened):
    live = opened(export, folder)
    writers = [live._news.database._writer, live._clicks.database._writer]
    for db in writers:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="Nothing of this call was written, because"):
        live.upsert_news([item(n, "x" * 1000) for n in range(100)])
    with pytest.raises(StoreError, match="disk is full"):
        live.add_clicks([click(n, n) for n in range(10_000)])
    assert (ids_of(live), live.stats().clicks) == (["N0", "N1", "N2"], 0)
    for db in writers:
        db.execute("PRAGMA max_page_count = 100000")
    assert live.upsert_news([item(n, "x" * 1000) for n in range(100)]) == (97, 3, 0)
    assert live.add_clicks([click(n, n) for n in range(10_000)]) == 10_000


def test_a_write_waits_for_another_process_but_not_for_ever(folder, monkeypatch):
    monkeypatch.setattr(database_module, "WAIT_S", 0.2)
    store = NewsStore(folder)
    other = sqlite3.connect(folder / NEWS_FILE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="Another process has been writing"):
        store.upsert([item(1)])
    timer = threading.Timer(0.05, lambda: other.execute("COMMIT"))
    timer.start()
    assert store.upsert([item(1)]) == (1, 0, 0)
    timer.join()
    other.close()
    store.close()


def test_an_error_in_a_transaction_undoes_it(folder):
    store = NewsStore(folder)

    def fail():
        with store.database.write() as db:
            db.execute("INSERT INTO changes (news_id, time) VALUES ('N1', 1)")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with store.database.read() as db:
        assert db.execute("SELECT count(*) FROM changes").fetchone() == (0,)
    store.close()


def test_a_commit_waits_for_the_disk(folder):
    store, clicks = NewsStore(folder), ClickStore(folder)
    for database in (store.database, clicks.database):
        with database.write() as db:
            assert db.execute("PRAGMA synchronous").fetchone() == (2,)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        database.close()


def test_processes_may_create_a_store_at_once(folder):
    code = "import sys, pathlib; from newsrec.serving.clicks import ClickStore as S; "
    code += "s = S(pathlib.Path(sys.argv[1])); s.add([]); s.close()"
    children = [
        subprocess.Popen([sys.executable, "-c", code, folder], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [child.communicate()[1] for child in children] == [b""] * 4


def test_microseconds_of_a_time_lead_back_to_it():
    for time_ in (datetime(1, 1, 1), datetime(1969, 12, 31, 23, 59, 59, 999_999),
                  datetime(2024, 2, 29, 12, 0, 0, 1), datetime(9999, 12, 31, 23, 59)):  # fmt: skip
        aware = time_.replace(tzinfo=UTC)
        assert to_time(to_micros(aware)) == aware


# what is deleted


def rests_of(folder, *texts):
    """The texts that are anywhere in the files of a store."""
    content = b"".join(files_of(folder).values())
    return {text for text in texts if text.encode() in content}


def test_no_byte_of_a_deleted_user_is_left(folder):
    """Clicks of many users lie in the same pages, of which SQLite moves rows about."""
    clicks, now = ClickStore(folder), datetime.now(UTC)
    users = [f"user-{n * 7919 % 100_003:06d}-secret" for n in range(60)]
    for round_ in range(20):
        made = [
            Click(user, f"N{(round_ * 31 + n) % 50}", now - n * DAY / 99 - round_ * DAY)
            for n, user in enumerate(users * 3)
        ]
        clicks.add(made[round_ % 7 :: 2])
    assert rests_of(folder, *users) == set(users)
    for user in users[::6]:
        assert clicks.delete(user)
        assert rests_of(folder, user) == set()
    assert not clicks.delete(users[0])
    assert rests_of(folder, *users) == set(users) - set(users[::6])
    assert clicks.counts()[0] == 50
    clicks.close()


def test_rests_that_a_killed_process_left_are_removed_at_the_next_start(folder, monkeypatch):
    clicks = ClickStore(folder)
    clicks.add([click(n, n) for n in range(500)])
    with monkeypatch.context() as patch:
        patch.setattr(Database, "rebuild", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            clicks.delete("U77")
    copy = shutil.copytree(folder, folder.parent / "killed")
    clicks.close()
    assert rests_of(copy, "U77") == {"U77"}
    ClickStore(copy).close()
    assert rests_of(copy, "U77") == set()


def test_old_clicks_count_no_more_and_are_gone_from_the_disk_within_a_day(folder, monkeypatch):
    now = datetime(2024, 3, 10, 15, tzinfo=UTC)
    monkeypatch.setattr(clicks_module.time, "time", lambda: now.timestamp())
    clicks = ClickStore(folder, retention_days=7)
    given = [Click("a-user", "N1", now - 8 * DAY), Click("a-user", "N2", now - 6.9 * DAY)]
    given += [Click("old-user", "N3", now - 6.5 * DAY), Click("new-user", "N4", now)]
    assert clicks.add(given) == 3
    now += DAY / 2  # the last clicks of two users are too old now
    assert [news_id for news_id, _ in clicks.of("a-user")] == []
    assert clicks.users(9) == ["new-user", "old-user"]
    assert clicks.purge() == 1  # the limit moves at midnight
    now += DAY
    assert clicks.purge() == 1
    assert rests_of(folder, "a-user", "old-user", "new-user") == {"new-user"}
    assert clicks.purge() == 0
    clicks.close()
    with pytest.raises(UserError, match="retention_days is 0; it must be above 0"):
        ClickStore(folder, retention_days=0)


def test_the_service_deletes_old_clicks_by_itself(folder, export, opened, monkeypatch):
    monkeypatch.setattr("newsrec.serving.live.PURGE_S", 0.01)
    live = opened(export, folder, retention_days=1)
    live.add_clicks([Click("a-user", "N1", datetime.now(UTC))])
    later = time.time() + 3 * 86_400
    monkeypatch.setattr(clicks_module.time, "time", lambda: later)
    end = time.monotonic() + 20
    while live.stats().clicks:
        assert time.monotonic() < end
        time.sleep(0.01)

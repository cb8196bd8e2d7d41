"""Several processes and several exports on one store."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from live_world import FakeEncoders, ids_of, item, wait_until, write_export

from newsrec.errors import StoreError, UserError
from newsrec.serving import engine as engine_module
from newsrec.serving import news_rows
from newsrec.serving.engine import AT_ONCE
from newsrec.serving.live import NewsItem
from newsrec.serving.store import NewsStore

pytestmark = pytest.mark.usefixtures("fake_encoders")
WORKER = Path(__file__).with_name("live_world.py")
MANY = 3 * AT_ONCE


@pytest.fixture
def exports(tmp_path):
    """Three exports of different models; the first has news."""
    first = write_export(tmp_path / "first", [item(n) for n in range(MANY)])
    others = [write_export(tmp_path / name, model=name) for name in ("second", "third")]
    return [first, *others]


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def process():
    """A function that starts a process on a store, and returns a function that makes it work."""
    children = []

    def start(export, store):
        child = subprocess.Popen(
            [sys.executable, WORKER, str(export or ""), str(store)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(WORKER.parents[1])},
        )  # fmt: skip
        children.append(child)
        assert child.stdout.readline() == "open\n"

        def work(*line):
            child.stdin.write(json.dumps(line) + "\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        work.child = child
        return work

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def gate(monkeypatch):
    """Lets as many blocks of ten news be encoded in the background as it is released."""
    gate, encode = threading.Semaphore(0), FakeEncoders.news

    def wait(self, texts):
        if threading.current_thread() is not threading.main_thread():
            gate.acquire()
        return encode(self, texts)

    monkeypatch.setattr(engine_module, "BLOCK", 10)
    monkeypatch.setattr(engine_module.random, "randint", lambda first, last: first)
    monkeypatch.setattr(FakeEncoders, "news", wait)
    yield gate
    gate.release(1000)


def test_a_write_in_one_process_is_seen_by_the_next_call_in_another(
    exports, store, process, opened
):
    live = opened(exports[0], store)
    work = process(None, store)
    assert work("news")[0] == live.version
    assert work("upsert", "X1", "a title", "news") == [1, 0, 0]
    assert "X1" in ids_of(live)
    assert live.news_item("X1").title == "a title"
    live.upsert_news([NewsItem("X1", "another title"), NewsItem("X2", "more")])
    ranked = live.rank(["X1", "X2", "N3"], [])
    assert work("rank", ["X1", "X2", "N3"], []) == json.loads(json.dumps(ranked))
    assert work("news")[1] == ids_of(live)
    assert live.delete_news("X2")
    assert work("delete_news", "N3")
    assert (
        work("news")[1] == ids_of(live) == sorted({"X1", *(f"N{n}" for n in range(MANY))} - {"N3"})
    )
    assert work("click", "U'1", "N2") == 1
    assert live.user("U'1").clicks[0][0] == "N2"
    assert live.delete_user("U'1")
    assert work("user", "U'1") is None


def test_a_switch_answers_with_the_old_export_until_all_vectors_are_made(
    exports, store, opened, gate
):
    live = opened(exports[0], store)
    old = live.version
    live.switch(exports[1])
    gate.release(4)
    wait_until(lambda: live.stats().encoded >= 10)
    assert (live.version, live.ready, len(ids_of(live))) == (old, True, MANY)
    building = live.stats()
    assert (building.encoding != old, building.encode_total) == (True, MANY)
    with pytest.raises(UserError, match="Another export is being prepared"):
        live.switch(exports[2])
    gate.release(1)
    assert live.delete_news("N1")
    assert live.upsert_news([item(0, "changed")]) == (0, 1, 0)  # by the old export, too
    gate.release(100)
    wait_until(lambda: live.version != old)
    assert live.version == building.encoding
    assert ids_of(live) == sorted(f"N{n}" for n in range(MANY) if n != 1)
    wait_until(lambda: live.stats().encoding is None)
    fresh = write_export(
        store.parent / "fresh", [item(0, "changed"), *map(item, range(2, MANY))], "second"
    )
    expected = opened(fresh).recommend(["N5", "N0"], k=50)
    assert live.recommend(["N5", "N0"], k=50).news == expected.news


def test_other_processes_change_too_and_a_new_one_takes_the_export_that_answers(
    exports, store, process, opened
):
    live = opened(exports[0], store)
    work = process(exports[0], store)
    old = live.version
    live.switch(exports[1])
    wait_until(lambda: live.version != old)
    wait_until(lambda: work("news")[0] == live.version)
    assert work("news")[1] == ids_of(live)
    assert opened(None, store).version == live.version
    back = opened(exports[0], store)  # whoever names an export gets it, and so do all others
    assert (back.version, FakeEncoders.encoded) == (old, MANY)  # the old vectors are still there
    wait_until(lambda: (work("news")[0], live.recommend(k=1).version) == (old, old))


def test_vectors_of_the_last_two_exports_are_kept(exports, store, opened):
    live = opened(exports[0], store)
    for export in (exports[1], exports[2]):
        old = live.version
        live.switch(export)
        wait_until(lambda old=old: live.version != old)
        wait_until(lambda: live.stats().encoding is None)
    with NewsStore(store).database.read() as db:
        places = db.execute("SELECT place >> 40, count(*) FROM vectors GROUP BY 1").fetchall()
    assert places == [(2, MANY), (3, MANY)]


def test_an_export_that_is_opened_on_old_news_uses_what_vectors_it_has(exports, store, opened):
    opened(exports[0], store).upsert_news([item(n) for n in range(MANY, MANY + 5)])
    encoded = FakeEncoders.encoded
    news = [item(n, "other" if n < 3 else None) for n in range(MANY + 2)]
    live = opened(write_export(store.parent / "fourth", news, model="fourth"), store)
    assert FakeEncoders.encoded == encoded + 3 + 3  # other titles, and news that it lacks
    assert ids_of(live) == sorted(f"N{n}" for n in range(MANY + 5))


def test_a_kill_while_vectors_are_made_loses_only_the_block(exports, store, process, opened, gate):
    first = opened(exports[0], store)
    old = first.version
    live = opened(exports[1], store)  # the old export answers
    assert live.version == old
    gate.release(5)
    wait_until(lambda: live.stats().encoded >= 10)
    copy = shutil.copytree(store, store.parent / "killed")  # as a kill would leave it
    gate.release(1000)
    made = FakeEncoders.encoded
    again = opened(exports[1], copy)
    wait_until(lambda: again.version != old)
    wait_until(lambda: live.version != old)
    assert FakeEncoders.encoded - made <= 2 * (MANY - 10) + 10
    assert again.recommend(["N1"], k=20) == live.recommend(["N1"], k=20)


def test_without_the_old_export_answers_grow_until_it_is_ready(
    exports, store, opened, gate, caplog
):
    opened(exports[0], store)
    shutil.rmtree(exports[0])
    live = opened(exports[1], store)
    assert "cannot answer any more" in caplog.text
    assert (live.ready, ids_of(live)) == (False, [])
    gate.release(3)
    wait_until(lambda: 10 <= len(ids_of(live)) <= 30)
    assert not live.ready
    assert live.stats().lag_seconds > 0
    gate.release(1000)
    wait_until(lambda: live.ready)
    assert len(ids_of(live)) == MANY
    assert live.stats().lag_seconds == 0


def test_news_that_others_store_without_vectors_are_encoded(exports, store, opened):
    live = opened(exports[0], store)
    other = NewsStore(store)
    other.upsert([item(n, "imported") for n in range(5)])
    assert len(ids_of(live)) == MANY
    assert FakeEncoders.encoded == 5
    other.upsert([item(n) for n in range(MANY, 3 * MANY)])
    wait_until(lambda: len(ids_of(live)) == 3 * MANY)
    assert FakeEncoders.encoded <= 5 + 2 * MANY + AT_ONCE  # a call may help with the last ones
    other.close()


def test_a_process_far_behind_reads_all_news(exports, store, opened, monkeypatch):
    monkeypatch.setattr(news_rows, "LOG_KEPT", 5)
    live, other = opened(exports[0], store), opened(exports[0], store)
    for n in range(20):
        other.delete_news(f"N{n}")
    other.upsert_news([item(3, "again")])
    assert ids_of(live) == ids_of(other) == sorted(["N3", *(f"N{n}" for n in range(20, MANY))])
    with NewsStore(store).database.read() as db:
        assert db.execute("SELECT count(*) FROM changes").fetchone() == (5,)


def test_an_export_without_a_news_encoder_serves_the_news_that_it_has(tmp_path, opened):
    news = [item(n) for n in range(3)]
    live = opened(write_export(tmp_path / "first", news, encoder=False))
    assert ids_of(live) == ["N0", "N1", "N2"]
    with pytest.raises(UserError, match="no news encoder"):
        live.upsert_news([item(5)])
    assert live.upsert_news([item(0, published=1)]) == (0, 1, 0)  # the same text
    bare = write_export(tmp_path / "bare", news[:1], model="bare", encoder=False)
    words = "without news_encoder.onnx, and has no vectors of 2 of the 3 news items"
    for call in (live.switch, lambda export: opened(export, live.store)):
        with pytest.raises(UserError, match=words):
            call(bare)
    assert live.recommend(k=1).version == live.version


def test_exports_that_cannot_be_used_are_named(exports, store, tmp_path, opened, caplog):
    with pytest.raises(UserError, match="There is no"):
        opened(tmp_path / "none")
    assert not (tmp_path / "none.store").exists()
    with pytest.raises(UserError, match="export and store are None"):
        opened(None)
    with pytest.raises(StoreError, match="has never served an export; name one"):
        opened(None, store)
    with pytest.raises(UserError, match="which is only read"):
        opened(exports[0], exports[0] / "store")
    live = opened(exports[0], store)
    with pytest.raises(UserError, match="There is no"):
        live.switch(tmp_path / "none")
    live.switch(exports[0])  # answers already
    shutil.rmtree(exports[0])
    shutil.copytree(exports[1], exports[0])
    with pytest.raises(StoreError, match="is not the export"):
        opened(None, store)


def test_a_failure_in_the_background_leaves_the_old_export(exports, store, opened, caplog):
    live = opened(exports[0], store)
    old = live.version

    def fail(self, texts):
        raise UserError("The encoder is broken.")

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(FakeEncoders, "news", fail)
        live.switch(exports[1])
        wait_until(lambda: "The encoder is broken." in caplog.text)
    wait_until(lambda: live.stats().encoding is None)
    assert live.version == old
    live.switch(exports[1])
    wait_until(lambda: live.version != old)


def test_threads_write_and_read_at_once(exports, store, opened):
    live, wrong = opened(exports[0], store), []

    def write(thread):
        for n in range(20):
            live.upsert_news([NewsItem(f"T{thread}-{n}", f"title {n % 3}")])
            if f"T{thread}-{n}" not in ids_of(live):
                wrong.append(n)
            if n % 3 == 0:
                live.delete_news(f"T{thread}-{n}")

    def read():
        for _ in range(100):
            answer = live.recommend(["N1", "N2"], k=30)
            scores = [one.score for one in answer.news]
            if scores != sorted(scores, reverse=True) or len(scores) != 30:
                wrong.append(scores)

    threads = [threading.Thread(target=write, args=(t,)) for t in range(3)]
    threads += [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(ids_of(live)) == MANY + 3 * 13


@pytest.mark.slow
def test_no_write_that_was_acknowledged_is_lost_by_a_kill(exports, store, process, opened):
    """``tests/benchmarks/store.py`` kills 200 times."""
    expected = {f"N{n}" for n in range(MANY)}
    opened(exports[0], store).close()
    for kill in range(5):
        work = process(None, store)
        for n in range(1 + 3 * kill):
            assert work("upsert", f"K{kill}-{n}", "title", "news") == [1, 0, 0]
            expected.add(f"K{kill}-{n}")
        assert work("delete_news", f"N{kill}")
        expected.remove(f"N{kill}")
        work.child.stdin.write(json.dumps(["upsert", f"Z{kill}", "in between", "x"]) + "\n")
        work.child.stdin.flush()
        work.child.send_signal(signal.SIGKILL)
        work.child.wait()
        live = opened(None, store)
        assert set(ids_of(live)) - {f"Z{kill}" for kill in range(5)} == expected
        live.close()

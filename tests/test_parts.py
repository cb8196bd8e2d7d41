"""Impressions compiled in parts: the files are the same as by one process, or none are left."""

import contextlib
import json
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_clicks
from conftest import refused
from processes import command_of, is_running, killed_when, processes

from newsrec.__main__ import main
from newsrec.data import parts
from newsrec.data.arrays import read_table
from newsrec.data.dataset import open_mind
from newsrec.data.readers import clicks, parquet
from newsrec.data.readers.parquet_impressions import Part
from newsrec.errors import UserError

START = datetime(2019, 11, 9)
ORDER = ("train", "dev", "test")


def impressions(rng, rows, labels=True, users=6):
    """Return rows that share few users and histories."""
    histories = [[f"N{rng.randrange(12)}" for _ in range(n % 4)] for n in range(7)]
    shown = [[f"N{rng.randrange(12)}" for _ in range(rng.randint(1, 4))] for _ in range(rows)]
    columns = {
        "impression_id": pa.array([rng.randrange(10**6) for _ in range(rows)], pa.int64()),
        "user_id": pa.array([f"U{rng.randrange(users)}" for _ in range(rows)], pa.string()),
        "time": pa.array([START + timedelta(hours=rng.randrange(90)) for _ in range(rows)],
                         pa.timestamp("s")),
        "history": pa.array([rng.choice(histories) for _ in range(rows)], pa.list_(pa.string())),
        "candidates": pa.array(shown, pa.list_(pa.string())),
        "labels": pa.array([[rng.randrange(2) for _ in row] for row in shown],
                           pa.list_(pa.int8())),
    }  # fmt: skip
    return pa.table(columns if labels else {n: columns[n] for n in columns if n != "labels"})


def write(root, seed=0, train=(0, 9, 1, 0, 14, 0), dev=(5,), test=(3, 1), group=4):
    """Write splits with a file for each number of rows."""
    rng = random.Random(seed)
    news = pa.table(
        {"news_id": [f"N{i}" for i in range(10)], "title": [f"T{i}" for i in range(10)]}
    )
    for split, sizes in (("train", train), ("dev", dev), ("test", test)):
        table = root / split / "impressions.parquet"
        table.mkdir(parents=True)
        pq.write_table(news.slice(0, 9 if split == "train" else 10), root / split / "news.parquet")
        for number, rows in enumerate(sizes):
            path = table / f"{number}.parquet"
            pq.write_table(impressions(rng, rows, split != "test"), path, row_group_size=group)
    return root


def backwards(job):
    """Compile the last part first, in this process, as another one would get it."""
    job = pickle.loads(pickle.dumps(job))
    for number in reversed(range(len(job.parts))):
        yield json.loads(json.dumps(parts.compile_part(job, number)))


def compiled(root, engine=None, on_bad_line="error"):
    """Compile a folder anew; return the name and files of the result."""
    shutil.rmtree(root / ".newsrec", ignore_errors=True)
    cache = open_mind(root, on_bad_line, engine).cache
    return cache.name, {path.name: path.read_bytes() for path in cache.iterdir()}


class Found(NamedTuple):
    """What is said of a folder with bad rows."""

    error: str
    warnings: list[str]
    counts: dict[str, dict[str, int]]


def as_by_one_process(root, caplog, engine=backwards):
    """Check that parts refuse bad rows, and leave them out, as one process does."""
    said, found, engines = [], [], (None, engine)
    for engine in engines:
        with pytest.raises(UserError) as error:
            compiled(root, engine)
        said.append(str(error.value))
        assert not [path for path in (root / ".newsrec").iterdir() if path.is_dir()]
    assert said[0] == said[1]
    caplog.set_level(logging.WARNING)
    for engine in engines:
        caplog.clear()
        found.append((compiled(root, engine, "drop"), caplog.messages.copy()))
    assert found[0] == found[1]
    (_, files), warnings = found[0]
    return Found(said[0], warnings, json.loads(files["meta.json"])["counts"])


@pytest.mark.parametrize("most_bytes", [1, 2000, 1 << 30])
@pytest.mark.parametrize("group", [1, 4, 100])
def test_parts_of_every_size_give_the_same_bytes(tmp_path, monkeypatch, most_bytes, group):
    monkeypatch.setattr(parts, "PART_BYTES", most_bytes)
    root = write(tmp_path, seed=group, group=group)
    numbers = []

    def engine(job):
        numbers.append(len(job.parts))
        yield from backwards(job)

    assert compiled(root, engine) == compiled(root)
    expected = {1: {1: 24 + 5 + 4, 4: 3 + 1 + 4 + 2 + 2, 100: 3 + 1 + 2}, 1 << 30: {}}
    if most_bytes != 2000:
        assert numbers == [expected[most_bytes].get(group, 3)]


@pytest.mark.parametrize("seed", range(5))
def test_splits_of_any_sizes_give_the_same_bytes(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    sizes = [[rng.choice([0, 1, 2, 9]) for _ in range(rng.randint(1, 5))] for _ in range(3)]
    for some in sizes:
        some[rng.randrange(len(some))] = rng.randint(1, 12)
    monkeypatch.setattr(parts, "PART_BYTES", rng.choice([1, 1000, 3000]))
    root = write(tmp_path, seed, *sizes, group=rng.randint(1, 9))
    assert compiled(root, backwards) == compiled(root)


def test_parts_that_killed_workers_left_are_no_part_of_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(tmp_path)

    def engine(job):
        for number in range(len(job.parts)):
            parts.compile_part(job, number)  # made, but the worker died before it said so
            half = Path(job.folder) / parts.PARTS / f"{number}-half"
            half.mkdir()
            (half / "time.npy").write_bytes(b"cut o")
            yield parts.compile_part(job, number)

    assert compiled(root, engine) == compiled(root)


def test_one_row_is_one_part(tmp_path):
    root = write(tmp_path, train=(1,), dev=(1,), test=(1,))
    assert compiled(root, backwards) == compiled(root)


def spoil(root, number, rows):
    """Remove the user from some rows of a file of train."""
    path = root / "train" / "impressions.parquet" / f"{number}.parquet"
    table = pq.read_table(path)
    users = ["" if row in rows else user for row, user in enumerate(table["user_id"].to_pylist())]
    table = table.set_column(table.column_names.index("user_id"), "user_id", pa.array(users))
    pq.write_table(table, path, row_group_size=4)


def test_bad_rows_are_named_or_left_out_as_by_one_process(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(tmp_path)
    spoil(root, 1, {2, 7})
    spoil(root, 4, set(range(14)))
    found = as_by_one_process(root, caplog)
    assert "impressions.parquet, row 2, column user_id: null, empty" in found.error
    assert "rows dropped: 16" in found.warnings[0]
    assert found.counts["train"]["impressions"] == 8


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:4] + b"\0" * (len(raw) - 2000) + raw[4 - 2000 :],
        lambda raw: b"news_id,title\n1,x\n",
    ],
    ids=["empty", "half", "zeros", "csv"],
)
def test_a_damaged_file_is_named_as_by_one_process(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(tmp_path, train=(5, 9, 5), group=100)
    path = root / "train" / "impressions.parquet" / "1.parquet"
    path.write_bytes(damage(path.read_bytes()))
    said = []
    for engine in (None, backwards):
        with pytest.raises(UserError) as error:
            compiled(root, engine)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert str(path) in said[0]
    assert not [path for path in (root / ".newsrec").iterdir() if path.is_dir()]


def test_a_table_without_rows_is_named_as_by_one_process(tmp_path):
    root = write(tmp_path, train=(0, 0))
    for engine in (None, backwards):
        with pytest.raises(UserError, match=r"train/impressions\.parquet has no rows"):
            compiled(root, engine)


def test_no_file_is_read_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    rows = []

    read = Part.read

    def counted(part, ids):
        table, blocks = read(part, ids)

        def each():
            for block in blocks:
                rows.extend(block.rows.lines.tolist())
                yield block

        return table, each()

    monkeypatch.setattr(Part, "read", counted)
    compiled(write(tmp_path, dev=(2,), test=(1,)), backwards)
    assert sorted(rows) == sorted([*range(24), 0, 1, 0])


def test_the_news_are_read_once_for_all_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    read = []
    monkeypatch.setattr(parts, "read_table", lambda path: read.append(path) or read_table(path))
    compiled(write(tmp_path), backwards)
    assert [path.name for path in read] == ["news.arrow"]


@pytest.mark.parametrize("per_part", [1, 30, 1000])
def test_moments_of_clicks_are_divided(tmp_path, monkeypatch, per_part):
    monkeypatch.setattr(clicks, "BLOCK", 16)
    monkeypatch.setattr(parquet, "CLICKS_PER_PART", per_part)
    root = test_clicks.write(tmp_path, test_clicks.splits_of(3), history=4)
    numbers = []

    def engine(job):
        numbers.append(len(job.parts))
        yield from backwards(job)

    assert compiled(root, engine) == compiled(root)
    rows = [pq.read_metadata(root / split / "clicks.parquet").num_rows for split in ORDER]
    assert numbers == [sum(max(n // per_part, 1) for n in rows)]


def test_bad_clicks_are_named_or_left_out_as_by_one_process(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(clicks, "BLOCK", 16)
    monkeypatch.setattr(parquet, "CLICKS_PER_PART", 20)
    root = test_clicks.write(tmp_path, test_clicks.splits_of(4))
    path = root / "dev" / "clicks.parquet"
    table = pq.read_table(path)
    users = ["" if row in (5, 40) else u for row, u in enumerate(table["user_id"].to_pylist())]
    pq.write_table(table.set_column(0, "user_id", pa.array(users)), path)
    found = as_by_one_process(root, caplog)
    assert "dev/clicks.parquet, row 5, column user_id: null, empty" in found.error
    assert "rows dropped: 2" in found.warnings[0]


def test_the_clicks_are_read_once_for_all_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(clicks, "BLOCK", 16)
    monkeypatch.setattr(parquet, "CLICKS_PER_PART", 20)
    root = test_clicks.write(tmp_path, {"train": test_clicks.log(random.Random(0), 90, 0)})
    read = []
    whole = clicks._read
    monkeypatch.setattr(clicks, "_read", lambda *given: read.append(1) or whole(*given))
    compiled(root, backwards)
    assert read == [1]


def test_options_that_cannot_work_are_refused(mind_dir, capsys, monkeypatch):
    argv = ("prepare", "--data.root", str(mind_dir))
    assert "--jobs is 0; it must be at least 1." in refused(capsys, *argv, "--jobs", "0")
    said = refused(capsys, *argv, "--engine", "ray", "--ray_address", "")
    assert "--ray_address is empty. Give the address of a cluster" in said
    said = refused(capsys, *argv, "--ray_address", "auto")
    assert "--ray_address is for --engine ray, and --engine is local" in said
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refused(capsys, *argv, "--engine", "ray")
    assert "--engine ray needs the package ray" in said
    assert not list(mind_dir.glob(".newsrec/mind-*"))


def test_a_worker_that_cannot_write_reports_the_folder(tmp_path):
    job = parts.Job((("train", None),), {}, {"train": 0}, str(tmp_path / "nowhere"), "error")
    (line,) = parts.PartCompiler(job)(pa.table({"part": [0]}))["done"].to_pylist()
    found = json.loads(line)
    assert found["number"] == 0
    assert f"Check that each machine has {tmp_path / 'nowhere'}" in found["error"]


def test_a_daemonic_process_which_may_start_no_other_compiles_alone(monkeypatch):
    assert parts.make_engine("local", 2) is not None
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert parts.make_engine("local", 2) is None


def test_processes_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(tmp_path)
    expected = compiled(root)
    shutil.rmtree(root / ".newsrec")
    main(["prepare", "--data.root", str(root), "--jobs", "3"])
    (cache,) = (path for path in (root / ".newsrec").iterdir() if path.is_dir())
    assert (cache.name, {path.name: path.read_bytes() for path in cache.iterdir()}) == expected
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_killed_process_leaves_no_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(tmp_path)

    def kill():
        while not multiprocessing.active_children():
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGTERM)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    said = refused(capsys, "prepare", "--data.root", str(root), "--jobs", "2")
    thread.join()
    assert "A process that compiled a part was killed" in said
    assert "Run again with fewer than --jobs 2." in said
    assert not [path for path in (root / ".newsrec").iterdir() if path.is_dir()]
    assert not multiprocessing.active_children()


def test_a_stopped_command_does_not_wait_for_its_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(tmp_path)
    ended = []

    def engine(job):
        with contextlib.closing(parts.make_engine("local", 2)(job)) as results:
            yield next(results)
            workers = multiprocessing.active_children()
            with contextlib.suppress(KeyboardInterrupt):
                results.throw(KeyboardInterrupt)
            ended.extend(worker.exitcode for worker in workers)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled(root, engine)
    assert ended == [-signal.SIGKILL] * 2
    assert not [path for path in (root / ".newsrec").iterdir() if path.is_dir()]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_command_leaves_no_files(tmp_path, monkeypatch, sent):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(tmp_path)

    def engine(job):
        os.kill(os.getpid(), sent)
        yield {}

    before = signal.signal(sent, signal.SIG_DFL)  # as at the start of the command
    try:
        with pytest.raises(SystemExit) as ended:
            compiled(root, engine)
    finally:
        signal.signal(sent, before)
    assert ended.value.code == 128 + sent
    assert not [path for path in (root / ".newsrec").iterdir() if path.is_dir()]


@pytest.mark.engines
@pytest.mark.parametrize("jobs", [1, 3])
def test_actors_of_ray_give_the_same_bytes(tmp_path, monkeypatch, jobs):
    pytest.importorskip("ray", reason='ray is missing: pip install "newsrec[ray]"')
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(tmp_path)
    assert compiled(root, parts.make_engine("ray", jobs)) == compiled(root)
    if jobs == 1:
        return
    spoil(root, 1, {2})
    said = []
    for engine in (None, parts.make_engine("ray", jobs)):
        with pytest.raises(UserError) as error:
            compiled(root, engine)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert not [path for path in (root / ".newsrec").iterdir() if path.is_dir()]


@pytest.mark.engines
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_actor_of_ray_is_replaced(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason='ray is missing: pip install "newsrec[ray]"')
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(tmp_path, train=(90, 90), group=2)
    expected = compiled(root)
    shutil.rmtree(root / ".newsrec")
    with killed_when(
        lambda: list(root.glob(".newsrec/.building-*/parts/?*[5-9]-*")), "ray::MapWorker"
    ):
        found = compiled(root, parts.make_engine("ray", 2))
    assert found == expected


@pytest.mark.engines
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_of_ray_outlives_the_process_that_used_it(tmp_path, monkeypatch):
    """Ray's agents alone would look for its server for a minute."""
    pytest.importorskip("ray", reason='ray is missing: pip install "newsrec[ray]"')
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(tmp_path, train=(90, 90), group=2)
    of_ray = []

    def kill():
        while not list(root.glob(".newsrec/.building-*/parts/?*")):
            time.sleep(0.01)
        of_ray.extend(p for p in processes(os.getpid(), "") if "ray" in command_of(p))
        (driver,) = multiprocessing.active_children()
        driver.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(UserError, match="the process that used it was ended"):
        compiled(root, parts.make_engine("ray", 2))
    thread.join()
    assert of_ray
    end = time.monotonic() + 10
    while left := [command_of(pid) for pid in of_ray if is_running(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert [path.name for path in (root / ".newsrec").iterdir()] == ["lock"]

"""Ray and Spark give the rows that one process gives, also after kills: ``pytest -m engines``."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_clicks
import test_ebnerd
from batch_world import users_of, write_export, write_users
from conftest import tiny_behaviors, tiny_news, write_mind
from processes import command_of, is_running, killed_when, processes
from test_parts import as_by_one_process
from test_xmind import translate

from newsrec.__main__ import main
from newsrec.data import parts
from newsrec.data.readers import parquet, tsv
from newsrec.errors import UserError
from newsrec.files import file_hash
from newsrec.on_ray import RAY_VARIABLES
from newsrec.serving.batch import BatchScorer
from newsrec.serving.batch_run import run_batch

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
WAIT_FOR_GCS = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's variable for the time that a process looks for a lost cluster; 60 s by default."""
MANY = 8_000
"""News items, so that a part takes a moment."""


@pytest.fixture(scope="module")
def ray():
    """Ray with two CPUs on this machine alone."""
    os.environ.update(RAY_VARIABLES)
    ray = pytest.importorskip("ray", reason='ray is missing: pip install "newsrec[ray]"')
    pytest.importorskip("ray.data", reason='ray is missing: pip install "newsrec[ray]"')
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False,
             object_store_memory=100 << 20, _node_ip_address="127.0.0.1")  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def spark():
    """Spark with two tasks at a time on this machine alone."""
    sql = pytest.importorskip("pyspark.sql", reason='pyspark is missing: "newsrec[spark]"')
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = sql.SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false")
    for name in ("spark.driver.bindAddress", "spark.driver.host"):
        builder = builder.config(name, "127.0.0.1")
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_export(root / "export")
    write_users(root / "users")
    write_export(root / "many", news=MANY)
    write_users(root / "many_users", sizes=(1000, 1000), news=MANY)
    return root


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """What one process writes for many users."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return run_batch(world / "many", world / "many_users", output, k=7, users_per_part=100)


def scored(root, output, engine, per_part, workers, **options):
    """Return what a run writes: the hash of each part, which covers every bit of it."""
    manifest = run_batch(
        root / "export", root / "users", output, engine=engine, workers=workers, k=7,
        users_per_part=per_part, **options,
    )  # fmt: skip
    return manifest["parts"], manifest["counts"]


@pytest.mark.parametrize(("workers", "per_part"), [(1, 103), (3, 1), (3, 37)])
def test_actors_of_ray_write_the_files_of_one_process(ray, world, tmp_path, workers, per_part):
    result = {"result": "ranks" if per_part == 37 else "news"}
    if per_part == 1:  # a part of one user each; the first three are enough
        pq.write_table(users_of(0, 3), tmp_path / "users")
        (tmp_path / "export").symlink_to(world / "export")
        world = tmp_path
    local = scored(world, tmp_path / "local", "local", per_part, 2, **result)
    assert scored(world, tmp_path / "ray", "ray", per_part, workers, **result) == local


@pytest.mark.parametrize("per_part", [103, 37])
def test_tasks_of_spark_write_the_files_of_one_process(spark, world, tmp_path, per_part):
    result = {"result": "vectors" if per_part == 37 else "news"}
    local = scored(world, tmp_path / "local", "local", per_part, 1, **result)
    assert scored(world, tmp_path / "spark", "spark", per_part, 2, **result) == local


def test_the_scorer_is_a_class_for_ray_data(ray, world):
    """As docs/batch.md shows it, with batches that Ray chooses."""
    found = ray.data.read_parquet(str(world / "users")).map_batches(
        BatchScorer, fn_constructor_args=(str(world / "export"),), fn_constructor_kwargs={"k": 7},
        batch_format="pyarrow", batch_size=13, compute=ray.data.ActorPoolStrategy(size=2),
    )  # fmt: skip
    rows = sorted((row for row in found.iter_rows()), key=lambda row: int(row["user_id"][1:]))
    expected = BatchScorer(world / "export", k=7)(users_of(0, 103)).to_pylist()
    for row, other in zip(rows, expected, strict=True):
        assert {name: list(v) if name in ("news_ids", "scores") else v for name, v in row.items()}\
            == other  # fmt: skip


def test_the_scorer_runs_under_map_in_arrow(spark, world):
    export = str(world / "export")

    def score(batches):
        scorer = BatchScorer(export, k=7)
        for batch in batches:
            yield from scorer(pa.Table.from_batches([batch])).to_batches()

    schema = "user_id string, news_ids array<string>, scores array<float>, num_unknown_history int"
    users = spark.read.schema(
        "user_id string, history array<string>, candidates array<string>"
    ).parquet(*[str(world / "users" / f"{number}.parquet") for number in (0, 2, 3)])
    rows = [row.asDict() for row in users.mapInArrow(score, schema).collect()]
    rows.sort(key=lambda row: int(row["user_id"][1:]))
    assert rows == BatchScorer(world / "export", k=7)(users_of(0, 103)).to_pylist()


def test_a_mistake_of_the_user_is_one_sentence_on_every_engine(ray, spark, world, tmp_path):
    table = pa.table({"user_id": ["U1", "U2"], "history": [["N1"], None]})
    pq.write_table(table, tmp_path / "users.parquet")
    for engine in ("local", "ray", "spark"):
        with pytest.raises(UserError, match=r"users\.parquet, row 1, column history: null"):
            run_batch(
                world / "export", tmp_path / "users.parquet", tmp_path / "out", engine=engine, k=7
            )
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


def test_a_run_of_ray_whose_worker_is_killed_is_complete_and_equal(ray, world, whole, tmp_path):
    work = tmp_path / "ray.unfinished"
    with killed_when(lambda: len(list(work.glob("part-*"))) >= 2, "ray::MapWorker"):
        many = run_batch(world / "many", world / "many_users", tmp_path / "ray", engine="ray",
                         workers=2, k=7, users_per_part=100)  # fmt: skip
    assert many["parts"] == whole["parts"]


def write_log(root, form):
    """Write a log in a format, with a bad row."""
    if form == "clicks":
        test_clicks.write(root, test_clicks.splits_of(4))
        path = root / "dev" / "clicks.parquet"
        table = pq.read_table(path)
        users = ["" if row == 5 else u for row, u in enumerate(table["user_id"].to_pylist())]
        pq.write_table(table.set_column(0, "user_id", pa.array(users)), path)
    elif form == "ebnerd":
        rows = test_ebnerd.behaviors(test_ebnerd.TRAIN)
        test_ebnerd.write(root, test_ebnerd.changed(rows, "user_id", 2, None))
        test_ebnerd.in_groups(root)
    else:
        write_mind(root, tiny_news(), tiny_behaviors())
        path = root / "train" / "behaviors.tsv"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:30], b"cut\n", *lines[30:]]))
        if form == "xmind":
            translate(root, "swh")


@pytest.mark.parametrize("form", ["mind", "xmind", "ebnerd", "clicks"])
def test_actors_of_ray_prepare_every_format_as_one_process(
    ray, tmp_path, monkeypatch, caplog, form
):
    class InSmallBlocks(parts.PartCompiler):
        def __init__(self, job):
            tsv.BLOCK_BYTES = 400  # also in the actor's process
            super().__init__(job)

    monkeypatch.setattr(parts, "PartCompiler", InSmallBlocks)
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 400)
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    monkeypatch.setattr(parquet, "CLICKS_PER_PART", 50)
    write_log(tmp_path, form)
    numbers = []

    def engine(job):
        numbers.append(len(job.parts))
        yield from parts.make_engine("ray", 2)(job)

    found = as_by_one_process(tmp_path, caplog, engine)
    assert min(numbers) > 3
    assert sum(counts["dropped_lines"] for counts in found.counts.values()) == 1


def kill_batch_when(argv, is_time):
    """Start ``batch`` on Ray, kill it when it is time; all its processes end."""
    pytest.importorskip("ray", reason='ray is missing: pip install "newsrec[ray]"')
    driver = subprocess.Popen([sys.executable, "-m", "newsrec", *argv, "--engine", "ray"])
    try:
        while not is_time(driver.pid):
            assert driver.poll() is None
            time.sleep(0.02)
        below = processes(driver.pid, "")
    finally:
        driver.kill()
    driver.wait(30)
    end = time.monotonic() + 20
    while left := [pid for pid in below if is_running(pid)]:
        assert time.monotonic() < end, [command_of(pid) for pid in left]
        time.sleep(0.1)


def test_a_run_of_ray_whose_driver_is_killed_is_resumed(world, whole, tmp_path):
    argv = ["batch", str(world / "many"), "--users", str(world / "many_users"), "-k", "7",
            "--users_per_part", "100", "--output", str(tmp_path / "out")]  # fmt: skip
    work = tmp_path / "out.unfinished"
    kill_batch_when([*argv, "--workers", "2"], lambda _: len(list(work.glob("part-*"))) >= 3)
    assert not (tmp_path / "out").exists()
    kept = len(list(work.glob("part-*")))
    assert 3 <= kept < 20
    main([*argv, "--resume"])  # on another engine
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["parts"] == whole["parts"]
    assert {name: file_hash(tmp_path / "out" / name) for name in whole["parts"]} == whole["parts"]


def test_nothing_of_ray_outlives_a_run_that_is_killed_while_ray_starts(world, tmp_path):
    """Ray's agents would look for its server for a minute, which has ended before they notice."""

    def agents_start(pid):
        if any(command_of(p).endswith("/raylet") for p in processes(pid, "")):
            time.sleep(0.5)
            return True
        return False

    argv = ["batch", str(world / "many"), "--users", str(world / "many_users"), "-k", "7"]
    kill_batch_when([*argv, "--output", str(tmp_path / "out")], agents_start)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["ray", "spark"])
def test_sigterm_says_how_many_parts_are_kept(world, tmp_path, engine):
    module = {"ray": "ray", "spark": "pyspark"}[engine]
    pytest.importorskip(module, reason=f'{module} is missing: pip install "newsrec[{engine}]"')
    argv = ["batch", str(world / "many"), "--users", str(world / "many_users"), "-k", "7",
            "--users_per_part", "20", "--output", str(tmp_path / "out")]  # fmt: skip
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "newsrec", *argv, "--engine", engine, "--workers", "2"],
            stderr=said,
        )
    work = tmp_path / "out.unfinished"
    while len(list(work.glob("part-*"))) < 3 and run.poll() is None:
        time.sleep(0.02)
    run.terminate()
    assert run.wait(60) == 128 + signal.SIGTERM
    kept = len(list(work.glob("part-*")))
    assert 3 <= kept < 100
    told = f"{work} keeps {kept} of 100 parts. The same command with --resume continues."
    assert told in (tmp_path / "said").read_text().splitlines()  # among Spark's own lines


@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_a_run_whose_cluster_is_lost_ends_with_a_sentence(world, whole, tmp_path, process):
    pytest.importorskip("ray", reason='ray is missing: pip install "newsrec[ray]"')
    argv = ["batch", str(world / "many"), "--users", str(world / "many_users"), "-k", "7",
            "--users_per_part", "100", "--output", str(tmp_path / "out")]  # fmt: skip
    run = subprocess.Popen(
        [sys.executable, "-m", "newsrec", *argv, "--engine", "ray", "--workers", "2"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {WAIT_FOR_GCS: "5"},
    )  # fmt: skip
    work = tmp_path / "out.unfinished"
    while len(list(work.glob("part-*"))) < 6 and run.poll() is None:
        time.sleep(0.02)
    below = processes(run.pid, "")
    (lost,) = [pid for pid in below if command_of(pid).endswith(f"/{process}")]
    os.kill(lost, signal.SIGKILL)
    said = run.communicate(timeout=200)[1].strip().splitlines()
    assert run.returncode == 2
    assert "newsrec: error: --engine ray: Ray or its cluster ended before all parts" in said[-1]
    assert "The same command with --resume continues." in said[-2]
    assert len(said) == 2
    assert not (tmp_path / "out").exists()
    for pid in below:  # Ray's own agents may outlive a raylet that was killed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    main([*argv, "--resume"])
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["parts"] == whole["parts"]

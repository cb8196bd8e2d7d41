"""Engines that score the parts of a batch run: this process, actors of Ray, or tasks of Spark."""

import importlib
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pyarrow as pa

from newsrec.errors import MissingPackageError, UserError
from newsrec.serving.batch import BatchScorer
from newsrec.serving.batch_parts import Advance, Job, score_part

ENGINES = ("local", "ray", "spark")
Engine = Callable[[Job, BatchScorer, list[int], Advance], Iterator[dict[str, Any]]]
"""Scores parts, by their numbers, and yields what ``score_part`` returns for each."""
RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine unasked
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its remarks are of no use to a user
    "RAY_worker_niceness": "0",  # like the other engines; by default all else goes first
}
RAY_STORE = 128 << 20
"""Bytes of Ray's object store on one machine: only numbers and counts of parts pass through it."""
SECONDS_TO_CONNECT = 5


def make_engine(name: str, workers: int | None = None, address: str | None = None) -> Engine:
    """Return an engine.

    Args:
        name: One of ``ENGINES``.
        workers: Users scored at once: threads of this process, actors, or tasks; None takes all
            cores of this machine or of the cluster.
        address: Address of a cluster of Ray or master of Spark; None starts one on this machine.

    Raises:
        UserError: If the engine is not installed, or an argument is invalid.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; it must be at least 1.")
    if name == "local":
        return _local
    package = {"ray": "ray", "spark": "pyspark"}[name]
    try:
        importlib.import_module("ray.data" if name == "ray" else "pyspark.sql")
    except ImportError as error:
        raise MissingPackageError.of(f"--engine {name}", package, name) from error
    return partial({"ray": _ray, "spark": _spark}[name], workers=workers, address=address)


def _local(
    job: Job, scorer: BatchScorer, numbers: list[int], advance: Advance
) -> Iterator[dict[str, Any]]:
    for number in numbers:
        yield score_part(job, number, scorer, advance)


class PartScorer:
    """A stateful actor for Ray Data: reads, scores and writes parts, and returns what it did.

    The users do not pass through Ray's object store: each part is read where it is scored.

    Args:
        job: What is scored.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.scorer: BatchScorer | None = None
        self.error = ""
        try:
            self.scorer = job.scorer()
        except UserError as error:  # an engine would retry an error raised here forever
            self.error = str(error)

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Score parts by their numbers."""
        done = []
        for number in parts["part"].to_pylist():
            part: dict[str, Any] = {"number": number, "error": self.error}
            if self.scorer is not None:
                part = score_part(self.job, number, self.scorer)
            done.append(json.dumps(part))
        return pa.table({"done": pa.array(done, pa.string())})


def _ray(
    job: Job,
    scorer: BatchScorer,
    numbers: list[int],
    advance: Advance,
    *,
    workers: int | None,
    address: str | None,
) -> Iterator[dict[str, Any]]:
    for name, value in RAY_VARIABLES.items():
        os.environ.setdefault(name, value)
    ray: Any = importlib.import_module("ray")
    data: Any = importlib.import_module("ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)  # ray gives it its own
    mine = not ray.is_initialized()
    if mine:
        _start_ray(ray, workers, address)
    try:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False  # newsrec has its own
        context.print_on_execution_start = False
        actors = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(numbers)) or 1
        parts = data.from_items([{"part": n} for n in numbers], override_num_blocks=len(numbers))
        done = parts.map_batches(
            PartScorer,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=actors),
            num_cpus=1,
        )
        yield from _told((row["done"] for row in done.iter_rows()), job, advance)
    finally:
        if mine:
            ray.shutdown()


def _start_ray(ray: Any, workers: int | None, address: str | None) -> None:
    """Connect to a cluster, or start one on this machine that only this machine can reach.

    Raises:
        UserError: If there is no cluster, or it has another version of Ray.
    """
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(
            address="local",
            num_cpus=workers or os.cpu_count(),
            include_dashboard=False,
            object_store_memory=RAY_STORE,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
        return
    try:
        host = re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)
        if host:  # Ray itself tries for minutes
            socket.create_connection((host[1], int(host[2])), SECONDS_TO_CONNECT).close()
        ray.init(address=address, **quiet)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        problem = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(
            f"--ray_address {address}: Ray {ray.__version__} cannot use this cluster ({problem}). "
            "Start it by `ray start --head` with this version, or leave the option out."
        ) from error


def _spark(
    job: Job,
    scorer: BatchScorer,
    numbers: list[int],
    advance: Advance,
    *,
    workers: int | None,
    address: str | None,
) -> Iterator[dict[str, Any]]:
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    mine = SparkSession.getActiveSession() is None
    builder = SparkSession.builder.appName("newsrec batch")
    if address is not None:
        builder = builder.master(address)
    elif mine and "SPARK_MASTER" not in os.environ:
        builder = builder.master(f"local[{workers or '*'},4]")  # tries a task up to four times
        for name in ("spark.driver.bindAddress", "spark.driver.host"):
            builder = builder.config(name, "127.0.0.1")
    try:
        spark = builder.config("spark.ui.enabled", "false").getOrCreate()
    except Exception as error:
        raise UserError(
            f"--engine spark: Spark did not start ({' '.join(str(error).split())[:300]}). It needs "
            "Java 17 or later; check JAVA_HOME and --spark_master."
        ) from error
    try:
        # One part for each task, so that a killed task loses one part only.
        rows = spark.sparkContext.parallelize([(n,) for n in numbers], max(len(numbers), 1))
        frame = spark.createDataFrame(rows, "part long")
        done = frame.mapInArrow(partial(_score_batches, job), "done string").collect()
        yield from _told((row["done"] for row in done), job, advance)
    finally:
        if mine:
            spark.stop()


_part_scorer = cache(PartScorer)  # Spark uses a process for several tasks


def _score_batches(job: Job, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        scored = _part_scorer(job)(pa.Table.from_batches([batch]))
        yield from scored.to_batches()


def _told(lines: Iterator[str], job: Job, advance: Advance) -> Iterator[dict[str, Any]]:
    for line in lines:
        part = json.loads(line)
        counts = part.get("counts", {})
        advance(counts.get("users", 0) + counts.get("bad_rows", 0))
        yield part

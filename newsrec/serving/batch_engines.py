"""Engines that score the parts of a batch run: this machine, actors of Ray, or tasks of Spark."""

import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import pyarrow as pa

from newsrec.cores import usable_cores
from newsrec.errors import MissingPackageError, UserError
from newsrec.on_processes import Advance, run_in_processes
from newsrec.on_ray import require_address, require_ray, run_on_ray
from newsrec.serving.batch import BatchScorer
from newsrec.serving.batch_parts import Job, score_part

ENGINES = ("local", "ray", "spark")
USERS_PER_PROCESS = 2000
"""With fewer users for each, starting a process costs more than it saves."""
Results = Generator[dict[str, Any], None, None]
Engine = Callable[[Job, BatchScorer, list[int], Advance], Results]
"""Scores parts, by their numbers, and yields what ``score_part`` returns for each."""


def make_engine(name: str, workers: int | None = None, address: str | None = None) -> Engine:
    """Return an engine.

    Args:
        name: One of ``ENGINES``.
        workers: Users scored at once: processes and threads of this machine, actors, or tasks;
            None takes all cores of this machine or of the cluster.
        address: Address of a cluster of Ray or master of Spark; None starts one on this machine.

    Raises:
        UserError: If the engine is not installed, or an argument is invalid.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; it must be at least 1.")
    require_address("--spark_master" if name == "spark" else "--ray_address", address)
    if name == "local":
        return partial(_local, workers=workers)
    if name == "ray":
        require_ray()
        return partial(_ray, workers=workers, address=address)
    try:
        importlib.import_module("pyspark.sql")
    except ImportError as error:
        raise MissingPackageError.of(f"--engine {name}", "pyspark", name) from error
    return partial(_spark, workers=workers, address=address)


def _local(
    job: Job, scorer: BatchScorer, numbers: list[int], advance: Advance, *, workers: int | None
) -> Results:
    workers = workers or usable_cores()
    users = min(len(numbers) * job.users_per_part, job.users.num_rows)
    processes = min(workers, len(numbers), users // USERS_PER_PROCESS)
    # A daemonic process of multiprocessing may start no other.
    if processes < 2 or job.is_in_memory or multiprocessing.current_process().daemon:
        for number in numbers:
            yield score_part(job, number, scorer, advance)
        return
    killed = (
        "A process that scored users was killed, perhaps because the memory was full. Continue "
        f"with --resume, and with fewer than --workers {workers}."
    )
    threads = workers // processes
    work = partial(_score, threads=threads)
    yield from run_in_processes(
        work, job, numbers, processes, killed=killed, advance=advance, threads=threads
    )


def _score(job: Job, number: int, advance: Advance, *, threads: int) -> dict[str, Any]:
    return _part_scorer(job, threads).score(number, advance)


class PartScorer:
    """Reads, scores and writes parts, and returns what it did; a stateful actor for Ray Data.

    The users do not pass through Ray's object store: each part is read where it is scored.

    Args:
        job: What is scored.
        threads: As in ``newsrec.serving.batch.BatchScorer``.
    """

    def __init__(self, job: Job, threads: int = 1) -> None:
        self.job = job
        self.scorer: BatchScorer | None = None
        self.error = ""
        try:
            self.scorer = job.scorer(threads)
        except UserError as error:  # an engine would retry an error raised here forever
            self.error = str(error)

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Score parts by their numbers."""
        done = [json.dumps(self.score(number)) for number in parts["part"].to_pylist()]
        return pa.table({"done": pa.array(done, pa.string())})

    def score(self, number: int, advance: Advance = lambda users: None) -> dict[str, Any]:
        """Score one part; returns what ``score_part`` does."""
        if self.scorer is None:
            return {"number": number, "error": self.error}
        return score_part(self.job, number, self.scorer, advance)


def _ray(
    job: Job,
    scorer: BatchScorer,
    numbers: list[int],
    advance: Advance,
    *,
    workers: int | None,
    address: str | None,
) -> Results:
    yield from _told(run_on_ray(PartScorer, job, numbers, workers, address), job, advance)


def _spark(
    job: Job,
    scorer: BatchScorer,
    numbers: list[int],
    advance: Advance,
    *,
    workers: int | None,
    address: str | None,
) -> Results:
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
    with ThreadPoolExecutor(1) as collecting:  # a signal need not wait for Spark's answer
        try:
            # One part for each task, so that a killed task loses one part only.
            rows = spark.sparkContext.parallelize([(n,) for n in numbers], max(len(numbers), 1))
            frame = spark.createDataFrame(rows, "part long")
            done = frame.mapInArrow(partial(_score_batches, job), "done string")
            lines = [row["done"] for row in collecting.submit(done.collect).result()]
            yield from _told(iter(lines), job, advance)
        finally:
            if mine:
                spark.stop()


_part_scorer = cache(PartScorer)  # Spark uses a process for several tasks


def _score_batches(job: Job, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        scored = _part_scorer(job)(pa.Table.from_batches([batch]))
        yield from scored.to_batches()


def _told(lines: Iterator[str], job: Job, advance: Advance) -> Results:
    for line in lines:
        part = json.loads(line)
        counts = part.get("counts", {})
        advance(counts.get("users", 0) + counts.get("bad_rows", 0))
        yield part

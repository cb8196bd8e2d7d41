"""Compiles impressions in parts: by processes of this machine, or by actors of Ray.

Each part is some of a split's impressions, as its reader divides them. A worker writes the arrays
of a part into a separate folder, with users and histories numbered within the part. One process
joins the parts in order and numbers users and histories again. So the arrays are the same to the
byte as if one process had read all files.
"""

import contextlib
import json
import logging
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from newsrec.data.arrays import ImpressionArrays, Written, read_table
from newsrec.data.cache import remove_shared
from newsrec.data.readers.base import BadLine, Divided, Part, Pass, Reader
from newsrec.data.readers.source import SourceFile
from newsrec.errors import DataError, UserError
from newsrec.on_processes import run_in_processes
from newsrec.on_ray import require_address, require_ray, run_on_ray

log = logging.getLogger(__name__)

ENGINES = ("local", "ray")
PART_BYTES = 8 << 20
"""A part ends with the first row group or block that brings it to this size in the files."""
MOST_PARTS = 1000
"""Rough limit of the number of parts, since joining a part copies the table of histories."""
NEWS = "news.arrow"
PARTS = "parts"


class Job(NamedTuple):
    """All that a process needs to compile a part."""

    parts: tuple[tuple[str, Part], ...]
    """The split of each part, and the part."""
    splits: Mapping[str, tuple[SourceFile, ...]]
    """Files of each split."""
    num_news: Mapping[str, int]
    """Number of news that each split knows."""
    folder: str
    """Folder with the table of news, and the folder ``PARTS``, in which the parts are made."""
    on_bad_line: str


Results = Generator[dict[str, Any], None, None]
Engine = Callable[[Job], Results]
"""Compiles all parts, and yields in any order what ``compile_part`` returns for each."""


def make_engine(name: str, jobs: int | None = None, address: str | None = None) -> Engine | None:
    """Return an engine; None if this process alone compiles.

    Args:
        name: One of ``ENGINES``.
        jobs: Processes of this machine, or actors of Ray; None is 1, with Ray one for each CPU.
        address: Address of a cluster of Ray; None starts one on this machine.

    Raises:
        UserError: If Ray is not installed, or an argument is invalid.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs is {jobs}; it must be at least 1.")
    require_address("--ray_address", address)
    if name == "ray":
        require_ray()
        return partial(_ray, jobs=jobs, address=address)
    if address is not None:
        raise UserError(f"--ray_address is for --engine ray, and --engine is {name}. Leave it out.")
    # A daemonic process of multiprocessing may start no other.
    alone = multiprocessing.current_process().daemon
    return partial(_local, jobs=jobs) if jobs and jobs > 1 and not alone else None


@dataclass
class CompiledParts:
    """The parts of a split; once they are joined, a ``Pass`` over all that was read."""

    whole: Pass
    files: tuple[SourceFile, ...]
    results: Iterator[dict[str, Any]]
    """What ``compile_part`` returned for each part, in order."""
    cut_off: bool = False
    hashes: dict[SourceFile, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.file, self.unit, self.advice = self.whole.file, self.whole.unit, self.whole.advice

    def join(self, arrays: ImpressionArrays, advance: Callable[[int], None]) -> Iterator[Written]:
        """Append each part to ``arrays``, and remove its folder."""
        for result in self.results:
            if "error" in result:
                raise DataError(result["error"])
            self.hashes |= {self.files[number]: sha256 for number, sha256 in result["hashes"]}
            self.cut_off |= result["cut_off"]
            arrays.join(Path(result["folder"]))
            shutil.rmtree(result["folder"])
            advance(result["num_bytes"])
            bad = [BadLine(*line) for line in result["bad"]]
            yield Written(result["counts"], bad, result["num_bad"])


@contextlib.contextmanager
def compile_parts(
    reader: Reader,
    splits: Mapping[str, tuple[SourceFile, ...]],
    num_news: Mapping[str, int],
    folder: Path,
    on_bad_line: str,
    engine: Engine | None,
) -> Iterator[dict[str, CompiledParts]]:
    """Let an engine compile the splits that can be divided; yield their parts by split.

    Raises:
        UserError: If no split can be divided.
    """
    if engine is None:
        yield {}
        return
    total = sum(file.size for files in splits.values() for file in files)
    most = max(PART_BYTES, total // MOST_PARTS)
    found = {split: reader.divide(files, most) for split, files in splits.items()}
    divided = {split: some for split, some in found.items() if isinstance(some, Divided)}
    reasons = [reason for reason in found.values() if isinstance(reason, str)]
    if not divided:
        raise UserError(f"--engine and --jobs have no use here: {reasons[0]}. Leave them out.")
    for reason in reasons:
        log.info("not divided: %s", reason)
    parts = tuple((split, part) for split, some in divided.items() for part in some.parts)
    job = Job(parts, splits, num_news, str(folder), on_bad_line)
    made = folder / PARTS
    made.mkdir()
    try:
        with contextlib.closing(_in_order(engine, job)) as results:
            yield {
                split: CompiledParts(some.whole, splits[split], islice(results, len(some.parts)))
                for split, some in divided.items()
            }
    finally:
        remove_shared(made)  # a killed worker may leave a part, which another made again


def _in_order(engine: Engine, job: Job) -> Results:
    early: dict[int, dict[str, Any]] = {}
    with contextlib.closing(engine(job)) as results:
        for number in range(len(job.parts)):
            while number not in early:
                result = next(results)
                early[result["number"]] = result
            yield early.pop(number)


def compile_part(job: Job, number: int) -> dict[str, Any]:
    """Compile a part into a separate folder, and return what is needed to join it.

    A mistake in the data is returned as ``error``, since Ray would wrap a raised error in its own.
    """
    split, part = job.parts[number]
    ids = _news_ids(job.folder)[: job.num_news[split]]
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{number}-", dir=Path(job.folder) / PARTS))
        done, blocks = part.read(ids)
        with contextlib.closing(ImpressionArrays(folder)) as arrays:
            written = Written.total(map(arrays.add, blocks), job.on_bad_line)
            arrays.finish()
        # Numbers of files, since Ray passes results on as JSON.
        hashes = [(job.splits[split].index(file), h) for file, h in done.hashes.items()]
    except UserError as error:
        return {"number": number, "error": str(error)}
    return {
        "number": number,
        "folder": str(folder),
        "num_bytes": part.num_bytes,
        "hashes": hashes,
        "cut_off": done.cut_off,
        **written._asdict(),
    }


@lru_cache(maxsize=1)
def _news_ids(folder: str) -> pa.Array:
    """Return the ids of all news; a process reads them once for all its parts."""
    return read_table(Path(folder) / NEWS)["news_id"].combine_chunks()


def _local(job: Job, *, jobs: int) -> Results:
    killed = (
        "A process that compiled a part was killed, perhaps because the memory was full. Nothing "
        f"was kept. Run again with fewer than --jobs {jobs}."
    )
    numbers = list(range(len(job.parts)))
    return run_in_processes(_compile, job, numbers, jobs, killed=killed)


def _compile(job: Job, number: int, advance: Callable[[int], None]) -> dict[str, Any]:
    return compile_part(job, number)  # it counts when it is joined


class PartCompiler:
    """An actor for Ray Data that compiles parts.

    Args:
        job: What is compiled.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Compile parts by their numbers."""
        done = []
        for number in parts["part"].to_pylist():
            try:
                result = compile_part(self.job, number)
            except OSError as error:
                problem = f"a worker could not read or write ({error})"
                step = f"Check that each machine has {self.job.folder}, and space on its disk."
                result = {"number": number, "error": f"--engine ray: {problem}. {step}"}
            done.append(json.dumps(result))
        return pa.table({"done": pa.array(done, pa.string())})


def _ray(job: Job, *, jobs: int | None, address: str | None) -> Results:
    numbers = list(range(len(job.parts)))
    with contextlib.closing(run_on_ray(PartCompiler, job, numbers, jobs, address)) as lines:
        yield from map(json.loads, lines)

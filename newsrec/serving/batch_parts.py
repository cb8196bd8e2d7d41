"""The parts of a batch run: ranges of users, counted through all files.

Whichever engine scores a part, the same code reads it, scores it and writes its file whole. So a
part is the same to the byte on every engine.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from newsrec.aside import MARK
from newsrec.errors import DataError, ModelError, UserError
from newsrec.files import file_hash
from newsrec.filesystems import Place, find_place
from newsrec.on_processes import Advance
from newsrec.serving.batch import BatchScorer
from newsrec.serving.batch_files import Users, read_users
from newsrec.serving.folder import ExportFolder
from newsrec.serving.manifest import MANIFEST

PLAN = "_plan.json"
"""File with the settings of an output that is not complete."""
WRITER = "writer"
"""Key of the plan: the command that writes it, in an object store, which has no locks."""


class Job(NamedTuple):
    """All that a process needs to score a part; plain values, to be sent to other processes."""

    export: str
    export_hash: str
    users: Users
    folder: str
    """Folder that the parts are written to."""
    result: str
    k: int
    exclude_history: bool
    users_per_part: int
    on_bad_line: str
    writer: str = ""
    """Name of the command in the plan; empty where a lock protects the folder."""

    @property
    def common(self) -> dict[str, Any]:
        """What all parts have in common; see ``newsrec.serving.batch_run.OPTIONS``."""
        return {
            "export": self.export_hash,
            "users": self.users.fingerprint,
            "result": self.result,
            "k": self.k if self.result == "news" else None,
            "exclude_history": self.exclude_history if self.result == "news" else None,
            "users_per_part": self.users_per_part,
        }

    @property
    def is_in_memory(self) -> bool:
        """Whether users or output are in the memory of this process, which no other reads."""
        return any(place.startswith("memory:") for place in (self.users.place, self.folder))

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-self.users.num_rows // self.users_per_part)

    def part_name(self, number: int) -> str:
        """Return the file name of a part; names sort as the numbers do."""
        digits = max(5, len(str(self.num_parts - 1)))
        return f"part-{number:0{digits}d}.parquet"

    def scorer(self, threads: int = 1) -> BatchScorer:
        """Return a scorer.

        Raises:
            UserError: If the export is not the one of the job.
        """
        if export_hash(self.export) != self.export_hash:
            raise ModelError(
                f"{self.export} is another export on this machine, or was changed during the run. "
                "Put the same folder at the same path on all machines, and do not change it."
            )
        return BatchScorer(
            self.export,
            self.result,
            self.k,
            exclude_history=self.exclude_history,
            threads=threads,
        )


def score_part(
    job: Job, number: int, scorer: BatchScorer, advance: Advance = lambda users: None
) -> dict[str, Any]:
    """Score one part and write its file; return its name, hash and counts.

    A mistake of the user is returned as ``error``: raised, it would be lost among an engine's own.
    """
    start = number * job.users_per_part
    stop = min(start + job.users_per_part, job.users.num_rows)
    counts: Counter[str] = Counter(users=0, bad_rows=0)
    schema = scorer.schema
    if job.users.time is not None:
        schema = schema.insert(1, pa.field("time", job.users.time))
    folder = find_place(job.folder, "--output")
    target = folder / job.part_name(number)
    try:
        with (
            target.write() as stream,
            pq.ParquetWriter(stream, schema, compression="zstd") as writer,
        ):
            for path, rows in read_users(job.users, start, stop):
                good = scorer.check(rows)
                if good.num_bad and job.on_bad_line == "error":
                    raise DataError(
                        f"{path}, {good.bad[0].in_words('row')}. Correct the row (rows count "
                        "from 0, as in pandas) and write the file again, or leave such rows "
                        "out by --on_bad_line drop."
                    )
                table = scorer.score(good.table)
                writer.write_table(table)
                counts.update(users=len(table), bad_rows=good.num_bad)
                for name in table.schema.names:
                    if name.startswith("num_"):
                        counts[name.removeprefix("num_")] += pc.sum(table[name]).as_py() or 0
                advance(rows.num_rows)
            kept = {"common": job.common, "number": number, "counts": counts}
            writer.add_key_value_metadata({"newsrec": json.dumps(kept)})
            require_ours(folder, job)
    except UserError as error:
        return {"number": number, "error": str(error)}
    except OSError as error:
        code = error.errno or 0  # Arrow repeats what it means
        reason = os.strerror(code) if code > 0 else error
        problem = f"{target.given} could not be written ({reason}). Check the disk there, and "
        return {"number": number, "error": problem + "continue with --resume."}
    return described(target, number, counts)


def described(target: Place, number: int, counts: Counter[str]) -> dict[str, Any]:
    """Return what an engine returns for a part that is written."""
    name = target.path.rpartition("/")[2]
    return {"number": number, "name": name, "sha256": target.hash(), "counts": dict(counts)}


def parts_done(work: Place, job: Job) -> dict[int, dict[str, Any]]:
    """Describe the parts that are complete, and remove half-written files."""
    found: dict[int, dict[str, Any]] = {}
    names = {job.part_name(number): number for number in range(job.num_parts)}
    remove_half_written(work)
    for info in work.files():
        name = info.path.rpartition("/")[2]
        if name not in names:
            continue
        try:
            with work.filesystem.open_input_file(info.path) as file:
                kept = json.loads(pq.read_metadata(file).metadata[b"newsrec"])
            counts = Counter(kept["counts"])
            fits = kept["common"] == job.common and kept["number"] == names[name]
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            continue  # damaged, or of another program: written again
        if counts["bad_rows"] and job.on_bad_line == "error":
            continue  # scored again, so that the message can name its first bad row
        if fits:
            found[names[name]] = described(work / name, names[name], counts)
    return found


@contextlib.contextmanager
def only_one(work: Place) -> Iterator[None]:
    """Let one command at a time write a folder; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # Windows
        fcntl = None  # type: ignore[assignment]
    if not work.is_local or fcntl is None:
        yield
        return
    handle = os.open(work.path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = f"Another command is writing {work.given}. Wait until it ends."
            raise UserError(told) from None
        yield
    finally:
        os.close(handle)


def remove_half_written(work: Place) -> None:
    """Remove what killed processes left in a folder; no process may be writing there."""
    if work.is_local:
        for info in work.files():
            if MARK in info.path.rpartition("/")[2]:
                with contextlib.suppress(OSError):
                    os.unlink(info.path)


def require_ours(folder: Place, job: Job) -> None:
    """Refuse to write into an object store that another command began to write later.

    Raises:
        UserError: If the plan names another command, or is gone since that is complete.
    """
    if job.writer and (
        (folder / PLAN).info().type != fs.FileType.File
        or read_json(folder / PLAN).get(WRITER) != job.writer
    ):
        raise UserError(
            f"Another command began to write {folder.given}, so this one ended. Wait until the "
            "other ends."
        )


def read_json(place: Place) -> dict[str, Any]:
    """Return the content of a plan or manifest; UserError if it is damaged."""
    try:
        value = json.loads(place.read())
    except ValueError:
        raise damaged(place) from None
    if not isinstance(value, dict):
        raise damaged(place)
    return value


def damaged(place: Place) -> UserError:
    """Return the error of a plan or manifest that cannot be used."""
    folder = place.given.rpartition("/")[0]
    return UserError(
        f"{place.given} is damaged. Remove {folder}, and run the command without --resume."
    )


def export_hash(export: str) -> str:
    """Return a hash of an exported folder: of its manifest, which has the hashes of its files.

    Raises:
        ModelError: If it is not an exported folder.
    """
    return file_hash(ExportFolder(export).path / MANIFEST)

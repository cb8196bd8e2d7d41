"""Scores the users of Parquet files part by part, on one of several engines, and resumes.

Parts are written to a folder beside the output, which gets the output's name when all are complete.
So a run that was killed can be continued with the missing parts, also on another engine.
"""

import contextlib
import json
import logging
import os
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from pyarrow import fs

from newsrec import __version__
from newsrec.aside import stopped_by_signals
from newsrec.console import progress
from newsrec.cores import usable_cores
from newsrec.errors import UserError
from newsrec.files import require_empty, require_replaceable, require_writable
from newsrec.filesystems import Place, find_place, named
from newsrec.serving.batch import BatchScorer
from newsrec.serving.batch_engines import Engine, make_engine
from newsrec.serving.batch_files import find_users
from newsrec.serving.batch_parts import (
    PLAN,
    WRITER,
    Job,
    damaged,
    export_hash,
    only_one,
    parts_done,
    read_json,
    remove_half_written,
    require_ours,
)

log = logging.getLogger(__name__)

DONE = "_manifest.json"
UNFINISHED = ".unfinished"
"""Ending of the folder that parts are written to; ``--resume`` continues there."""
SLOW = 2000
"""Fewer users need no progress bar."""
OPTIONS = {
    "export": "the export is another one, or was changed",
    "users": "the users are others, or were written again",
    "result": "--result was {}",
    "k": "-k was {}",
    "exclude_history": "--exclude_history was {}",
    "users_per_part": "--users_per_part was {}",
}
"""Settings that all parts of an output share, and what is said where one differs."""


def run_batch(
    export: str | Path,
    users: str | Path,
    output: str | Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    result: str = "news",
    k: int = 100,
    exclude_history: bool = True,
    users_per_part: int = 20_000,
    on_bad_line: str = "error",
    resume: bool = False,
) -> dict[str, Any]:
    """Score the users of Parquet files and write Parquet, whole or not at all.

    Args:
        export: The exported folder.
        users: As in ``newsrec.serving.batch_files.find_users``.
        output: Folder to write, absent or empty.
        engine: As in ``newsrec.serving.batch_engines.make_engine``; so are the following.
        workers: Likewise.
        address: Likewise.
        result: As in ``newsrec.serving.batch.BatchScorer``; so are the following.
        k: Likewise.
        exclude_history: Likewise.
        users_per_part: Users of one file of the output.
        on_bad_line: ``error`` or ``drop``, for users that cannot be scored.
        resume: Whether to keep the parts that an earlier run finished.

    Returns:
        The manifest of the output.

    Raises:
        UserError: If an input cannot be used, or the output exists and cannot be resumed.
    """
    if users_per_part < 1:
        raise UserError(f"--users_per_part is {users_per_part}; it must be at least 1.")
    export, users, output = str(export), str(users), str(output)
    hashed = export_hash(export)  # says at once what is wrong with the export
    place, source = _find_places(export, users, output, engine)
    work = place.beside(UNFINISHED) if place.is_local else place
    job = Job(
        os.path.abspath(export),
        hashed,
        find_users(users, result),
        work.path if place.is_local else output,
        result,
        k,
        exclude_history,
        users_per_part,
        on_bad_line,
    )
    run = make_engine(engine, workers, address)
    # Made before anything is written, because it refuses invalid settings.
    scorer = job.scorer(workers or usable_cores() if engine == "local" else 1)
    finished = _finished(place, job, resume)
    if finished is not None:
        log.info("%s is complete already; nothing was left to do.", place.given)
        return finished
    job = _begin(place, work, job, resume)
    with only_one(work), stopped_by_signals():
        done = parts_done(work, job)
        try:
            _score_missing(job, run, scorer, done)
            model = scorer.folder.manifest["model_hash"]
            manifest = _manifest(job, export, source.given, model, done)
            _publish(place, work, job, manifest)
        except BaseException:
            _keep_or_remove(work, job)
            raise
    return manifest


def _find_places(export: str, users: str, output: str, engine: str) -> tuple[Place, Place]:
    """Return the places of the output and of the users; UserError if one cannot be used."""
    place, source = find_place(output, "--output"), find_place(users, "--users")
    exported = find_place(export, "EXPORT_DIR")
    for folder, wrong in (
        (source, f"--users {source.given}, and would be read as users"),
        (exported, f"the export {export}, which no command changes"),
    ):
        if place.lies_in(folder):
            raise UserError(f"--output {place.given} lies in {wrong}. Choose another --output.")
    for option, found in (("--output", place), ("--users", source)):
        if engine != "local" and found.given.startswith("memory:"):
            raise UserError(
                f"{option} {found.given} is in the memory of this process, which workers of "
                f"--engine {engine} cannot read. Name a folder or an object store."
            )
    return place, source


def _manifest(
    job: Job, export: str, users: str, model_hash: str, done: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """Return what ``_manifest.json`` says of a complete output."""
    counts: Counter[str] = Counter()
    for part in done.values():
        counts.update(part["counts"])
    return {
        "format": 1,
        "newsrec": __version__,
        "export": {"path": export, "manifest_sha256": job.export_hash, "model_hash": model_hash},
        "source": {"path": users, "files": len(job.users.files)},
        **{name: value for name, value in job.common.items() if name != "export"},
        "counts": dict(sorted(counts.items())),
        "parts": {done[n]["name"]: done[n]["sha256"] for n in sorted(done)},
    }


def _score_missing(
    job: Job, engine: Engine, scorer: BatchScorer, done: dict[int, dict[str, Any]]
) -> None:
    """Score the parts that are not in ``done``, and add them to it."""
    missing = [number for number in range(job.num_parts) if number not in done]
    if done:
        log.info("%d of %d parts are there already.", len(done), job.num_parts)
    last = job.users.num_rows - (job.num_parts - 1) * job.users_per_part
    left = sum(last if n == job.num_parts - 1 else job.users_per_part for n in missing)
    with (
        progress("scoring", left, SLOW, lambda rate: f"{rate:,.0f} users/s") as advance,
        contextlib.closing(engine(job, scorer, missing, advance)) as parts,
    ):
        for part in parts:
            if "error" in part:
                raise UserError(part["error"])
            done[part["number"]] = part
    assert len(done) == job.num_parts, "an engine lost a part"


def _publish(place: Place, work: Place, job: Job, manifest: dict[str, Any]) -> None:
    """Make the parts the output: write the manifest, and rename a local folder."""
    require_ours(work, job)
    if place.is_local:
        require_empty(Path(place.path), "Remove it, and run the command again with --resume.")
        require_replaceable(Path(place.path))
    with named(work.given):
        _write_json(work / DONE, manifest)
    if place.is_local:  # renamed with its plan, which --resume needs if this ends here
        os.rename(work.path, place.path)
        Path((place / PLAN).path).unlink(missing_ok=True)
    else:
        work.filesystem.delete_file((work / PLAN).path)


def _finished(place: Place, job: Job, resume: bool) -> dict[str, Any] | None:
    """Return the manifest of a complete output to resume; None if there is none."""
    if resume and (place / DONE).info().type == fs.FileType.File:
        manifest = read_json(place / DONE)
        try:
            found = {**manifest, "export": manifest["export"]["manifest_sha256"]}
            parts, left_out = manifest["parts"].items(), manifest["counts"]["bad_rows"]
        except (AttributeError, KeyError, TypeError):
            raise damaged(place / DONE) from None
        _require_same(found, job, place.given)
        if left_out and job.on_bad_line == "error":
            raise UserError(
                f"--resume: {place.given} was written with --on_bad_line drop, which left out "
                f"{left_out:,} rows. Give the same as then, or choose another --output."
            )
        for name, sha256 in parts:
            part = place / name
            if part.info().type != fs.FileType.File or part.hash() != sha256:
                raise UserError(
                    f"--resume: {part.given} is missing or was changed since it was written. "
                    f"Remove {place.given}, and run the command again."
                )
        if place.is_local:
            Path((place / PLAN).path).unlink(missing_ok=True)  # of a run killed at its very end
        return manifest
    if place.is_local:
        require_empty(Path(place.path), "Choose another --output, or remove it.")
    elif (place / DONE).info().type == fs.FileType.File:
        raise UserError(f"--output {place.given} is complete. Choose another --output.")
    return None


def _begin(place: Place, work: Place, job: Job, resume: bool) -> Job:
    """Create the folder that parts are written to, or check that it is of the same job.

    Returns:
        The job, whose ``writer`` is now named by the plan unless a lock protects the folder.
    """
    plan = work / PLAN
    if not work.is_local:
        job = job._replace(writer=uuid.uuid4().hex)
    content = job.common | ({WRITER: job.writer} if job.writer else {})
    if plan.info().type == fs.FileType.File:
        if not resume:
            raise UserError(
                f"{work.given} has the parts of a run that did not end. Continue it with --resume, "
                "or remove it."
            )
        _require_same(read_json(plan), job, work.given)
        if job.writer:
            _write_json(plan, content)
        return job
    if place.is_local:
        require_replaceable(Path(place.path))
        if Path(work.path).exists() and any(Path(work.path).iterdir()):
            raise UserError(f"{work.given} is in the way. Remove it, or choose another --output.")
        require_writable(Path(work.path))
    elif work.info().type == fs.FileType.Directory and work.files():
        raise UserError(f"--output {work.given} is not empty. Choose another --output.")
    if resume:
        log.info("There is nothing to resume: %s starts from the beginning.", place.given)
    with named(work.given):
        work.filesystem.create_dir(work.path, recursive=True)
        _write_json(plan, content)
    return job


def _require_same(found: dict[str, Any], job: Job, where: str) -> None:
    for name, value in job.common.items():
        if found.get(name) != value:
            told = OPTIONS[name].format(found.get(name))
            raise UserError(
                f"--resume: {where} was written with other settings: {told}. Use those again, or "
                "choose another --output."
            )


def _keep_or_remove(work: Place, job: Job) -> None:
    """Say what a run that failed leaves, or remove a folder in which no part is whole.

    An engine may not have reported all parts that it wrote.
    """
    with contextlib.suppress(OSError, UserError):
        require_ours(work, job)
        remove_half_written(work)
        found = {info.path.rpartition("/")[2] for info in work.files()}
        whole = found.intersection(map(job.part_name, range(job.num_parts)))
        if whole:
            told = "%s keeps %d of %d parts. The same command with --resume continues."
            log.warning(told, work.given, len(whole), job.num_parts)
            return
        work.filesystem.delete_file((work / PLAN).path)
        if not work.files():
            work.filesystem.delete_dir(work.path)


def _write_json(place: Place, value: Any) -> None:
    with place.write() as stream:
        stream.write((json.dumps(value, indent=1) + "\n").encode())

"""Read the folders that ``evaluate`` wrote, and pair the runs of two sides by impression."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from newsrec.console import counted
from newsrec.errors import UserError
from newsrec.evaluation.results import USER_NUMBER
from newsrec.metrics import METRICS
from newsrec.places import looked_for

METRICS_FILE = "metrics.json"
IMPRESSIONS_FILE = "per_impression.parquet"
SLICE = "slice/"
"""Prefix of the columns that hold groups."""
BEYOND = "beyond/"
"""Prefix of the columns that hold metrics beyond accuracy."""
TOP = "top"
"""Column of the best-ranked candidates."""
AGAIN = "Evaluate again with this version."
CHECKPOINT = "checkpoint"
"""The scorer that has a training seed."""


class EvaluatedRun(NamedTuple):
    """Content of a folder that ``evaluate`` wrote for a labelled split."""

    folder: Path
    metrics: dict[str, Any]
    """Content of ``metrics.json``."""
    impression_id: NDArray[np.int64]
    """Impression ids in the order of the file ``[impressions]``."""
    user: pa.ChunkedArray
    """User ids ``[impressions]``."""
    number: NDArray[np.integer]
    """Number of each impression's user ``[impressions]``."""
    values: NDArray[np.float64]
    """Metrics; NaN where an impression has no clicked or no skipped candidate
    ``[metrics, impressions]``."""
    slices: dict[str, pa.ChunkedArray]
    """Group of each impression by the name of the slice; null where it has none."""
    beyond: dict[str, NDArray[np.floating]]
    """Metrics beyond accuracy by name, NaN where an impression has none ``[impressions]``."""
    top: NDArray[np.integer] | None
    """Best-ranked candidates ``[impressions, best]``; None if they are not known."""


class SavedSlice(NamedTuple):
    """A division of the impressions into groups."""

    groups: list[str]
    """Names of the groups, in the order in which they are shown."""
    code: NDArray[np.integer]
    """Number of each impression's group, negative where it has none ``[impressions]``."""


class Paired(NamedTuple):
    """The same impressions in the runs of two sides."""

    a: NDArray[np.float64]
    """Metrics of side A ``[runs, metrics, evaluated]``."""
    b: NDArray[np.float64]
    """Metrics of side B ``[runs, metrics, evaluated]``."""
    users: NDArray[np.integer]
    """Number of each impression's user ``[evaluated]``."""
    slices: dict[str, SavedSlice]
    """Slices that all runs have with the same groups, of the evaluated impressions."""
    unlike: list[str]
    """Names of the other slices, sorted."""
    impressions: int
    """Impressions of the split; all other fields leave out those without metrics."""


def read_run(folder: Path) -> EvaluatedRun:
    """Read a folder that ``evaluate`` wrote for a split with metrics; refuse any other."""
    if not folder.is_dir():
        what, near = (
            ("is a file", "") if folder.exists() else ("does not exist", looked_for(folder))
        )
        said = f"{folder} {what}. Give a folder that evaluate wrote (its --output). {near}"
        raise UserError(said.strip())
    path = folder / METRICS_FILE
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        split = metrics["split"]
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {METRICS_FILE}. Give a folder that evaluate wrote (its --output)."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error!r}. {AGAIN}") from None
    if "auc" not in metrics:
        lacks, advice = "labels", "that has them (--split dev)"
        if "evaluated" in metrics:
            lacks = "impression with a clicked and a skipped candidate"
            advice = "that has some"
        raise UserError(
            f"{folder}: {split} has no {lacks}, so there is nothing to compare. Evaluate on a "
            f"split {advice}."
        )
    path = folder / IMPRESSIONS_FILE
    try:
        table = pq.read_table(path)
        user = table["user"].cast(pa.string())
        number = user.combine_chunks().dictionary_encode().indices
        if USER_NUMBER in table.column_names:  # older versions did not write it
            number = table[USER_NUMBER]
        return EvaluatedRun(
            folder,
            metrics,
            table["impression_id"].cast(pa.int64()).to_numpy(),
            user,
            number.to_numpy(),
            np.stack([table[metric].cast(pa.float64()).to_numpy() for metric in METRICS]),
            {
                name.removeprefix(SLICE): table[name]
                for name in table.column_names
                if name.startswith(SLICE)
            },
            {
                name.removeprefix(BEYOND): table[name].cast(pa.float64()).to_numpy()
                for name in table.column_names
                if name.startswith(BEYOND)
            },
            _rows_of(table[TOP]) if TOP in table.column_names else None,
        )
    except FileNotFoundError:
        raise UserError(f"{folder} has no {IMPRESSIONS_FILE}. {AGAIN}") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"{path} cannot be read: {text}. {AGAIN}") from None


def pair(a: Sequence[EvaluatedRun], b: Sequence[EvaluatedRun]) -> Paired:
    """Pair the runs of two sides by impression.

    Raises UserError if the runs are not of the same impressions, a side has the same run twice or
    several folders of a baseline, or the evaluated impressions have fewer than two users.
    """
    for side in (a, b):
        _check_distinct(side)
    first, *others = [*a, *b]
    for other in others:
        _check_same(first, other)
    kept = ~np.any([np.isnan(run.values).any(axis=0) for run in (*a, *b)], axis=0)
    user = first.number[kept]
    number = len(np.unique(user))
    if number < 2:
        raise UserError(
            f"{first.folder}: {counted(len(user), 'impression')} with a clicked and a skipped "
            f"candidate, of {counted(number, 'user')}. An interval needs two users, "
            "and some dozens to mean anything: evaluate a larger split."
        )
    alike = {
        name: column
        for name, column in first.slices.items()
        if all(name in run.slices and _alike(column, run.slices[name]) for run in others)
    }
    return Paired(
        np.stack([run.values[:, kept] for run in a]),
        np.stack([run.values[:, kept] for run in b]),
        user,
        {name: _slice(column, kept) for name, column in alike.items()},
        sorted({name for run in (*a, *b) for name in run.slices} - set(alike)),
        len(kept),
    )


def has_seed(run: EvaluatedRun) -> bool:
    """Return whether the scores depend on a training seed; those of baselines do not."""
    return run.metrics.get("scorer", CHECKPOINT) == CHECKPOINT


def _check_distinct(side: Sequence[EvaluatedRun]) -> None:
    """Refuse folders of one side that are not different runs: they falsify the seeds' spread."""
    seen: dict[Any, EvaluatedRun] = {}
    for run in side:
        if len(side) > 1 and not has_seed(run):
            raise UserError(
                f"{run.folder} is of the baseline {run.metrics['scorer']}, which has no training "
                "seed. Several folders on a side are runs of one model: give only this one."
            )
        keys = [run.folder.resolve(), _origin(run)]
        for key in keys:
            if key in seen:
                other = seen[key].folder
                what = "is given twice" if key == keys[0] else f"and {other} are one checkpoint"
                raise UserError(f"{run.folder} {what} on one side. Give each training run once.")
        seen |= {key: run for key in keys if key is not None}


def _origin(run: EvaluatedRun) -> Any:
    """Return what identifies a checkpoint, or an ensemble of some in any order; else None."""
    found = run.metrics.get("checkpoint_sha256")
    if isinstance(found, list):
        return run.metrics.get("ensemble"), *sorted(found)
    return found


def _check_same(a: EvaluatedRun, b: EvaluatedRun) -> None:
    """Refuse runs that do not have the same impressions of the same users."""
    for key, what, advice in (
        ("split", "the split", "with the same --split"),
        ("data_fingerprint", "data of fingerprint", "with the same --data.root"),
    ):
        of_a, of_b = a.metrics.get(key), b.metrics.get(key)
        if of_a != of_b:
            raise UserError(
                f"{a.folder} is of {what} {_window(of_a, a)}, {b.folder} of {what} "
                f"{_window(of_b, b)}. Evaluate both {advice}."
            )
    one, other, said = a.impression_id, b.impression_id, ""
    if len(one) != len(other):
        said = f"{a.folder} has {counted(len(one), 'impression')}, {b.folder} {len(other):,}"
    elif (one != other).any():
        row = np.flatnonzero(one != other)[0]
        said = f"{IMPRESSIONS_FILE}, row {row + 1:,}: impression {one[row]} in {a.folder}, "
        said += f"{other[row]} in {b.folder}"
    elif not a.user.equals(b.user):
        said = f"The users of the impressions differ between {a.folder} and {b.folder}"
    if said:
        raise UserError(f"{said}. Evaluate both with the same --data.root.")


def _window(value: Any, run: EvaluatedRun) -> str:
    window = run.metrics.get("window")
    return f"{value} ({window})" if window else str(value)


def _rows_of(column: pa.ChunkedArray) -> NDArray[np.integer]:
    """Return lists of one length as rows."""
    whole = column.combine_chunks()
    return np.asarray(whole.flatten()).reshape(len(whole), -1)


def _alike(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Return whether two columns hold the same groups, however they are encoded."""
    return one.cast(pa.string()).equals(other.cast(pa.string()))


def _slice(column: pa.ChunkedArray, kept: NDArray[np.bool_]) -> SavedSlice:
    """Return the groups of the kept impressions; groups keep the order of the column's list."""
    whole = column.combine_chunks()
    if not pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_encode()
    code = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return SavedSlice(whole.dictionary.to_pylist(), code[kept])

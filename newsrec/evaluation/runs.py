"""What ``evaluate`` wrote of several runs, read again and held against each other."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from newsrec.errors import UserError
from newsrec.metrics import METRICS
from newsrec.places import looked_for

METRICS_FILE = "metrics.json"
IMPRESSIONS_FILE = "per_impression.parquet"
SLICE = "slice/"
"""How the name of a column with groups begins."""
AGAIN = "Evaluate again with this version."
CHECKPOINT = "checkpoint"
"""The scorer that has a training seed."""


class EvaluatedRun(NamedTuple):
    """One folder that ``evaluate`` wrote of a split with labels."""

    folder: Path
    metrics: dict[str, Any]
    """What ``metrics.json`` holds."""
    impression_id: NDArray[np.int64]
    """In the order of the file ``[impressions]``."""
    user: pa.ChunkedArray
    """User ids ``[impressions]``."""
    values: NDArray[np.float64]
    """NaN where the impression has no click or no skip ``[metrics, impressions]``."""
    slices: dict[str, pa.ChunkedArray]
    """Group of each impression, null where it has none, by the slice's name."""


class SavedSlice(NamedTuple):
    """A division of the impressions into groups."""

    groups: list[str]
    """In the order in which they are shown."""
    code: NDArray[np.integer]
    """Number of each impression's group, negative where it has none ``[impressions]``."""


class Paired(NamedTuple):
    """The same impressions in the runs of two sides."""

    a: NDArray[np.float64]
    """``[runs, metrics, evaluated]``"""
    b: NDArray[np.float64]
    """``[runs, metrics, evaluated]``"""
    users: NDArray[np.integer]
    """A number for each user ``[evaluated]``."""
    slices: dict[str, SavedSlice]
    """Over the same impressions, those that all runs have alike."""
    unlike: list[str]
    """Slices that are not so, in the order of their names."""
    impressions: int
    """Of the split; those that no metric is defined for are left out of all else."""


def read_run(folder: Path) -> EvaluatedRun:
    """Read what ``evaluate`` wrote.

    Args:
        folder: Its ``--output``.

    Raises:
        UserError: If it is not such a folder, or of a split without labels.
    """
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
            lacks, advice = "impression with a click and a skip", "that has some"
        raise UserError(
            f"{folder}: {split} has no {lacks}, so there is nothing to compare. Evaluate on a "
            f"split {advice}."
        )
    path = folder / IMPRESSIONS_FILE
    try:
        table = pq.read_table(path)
        return EvaluatedRun(
            folder,
            metrics,
            table["impression_id"].cast(pa.int64()).to_numpy(),
            table["user"].cast(pa.string()),
            np.stack([table[metric].cast(pa.float64()).to_numpy() for metric in METRICS]),
            {
                name.removeprefix(SLICE): table[name]
                for name in table.column_names
                if name.startswith(SLICE)
            },
        )
    except FileNotFoundError:
        raise UserError(f"{folder} has no {IMPRESSIONS_FILE}. {AGAIN}") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"{path} cannot be read: {text}. {AGAIN}") from None


def pair(a: Sequence[EvaluatedRun], b: Sequence[EvaluatedRun]) -> Paired:
    """Hold the runs of two sides against each other.

    Args:
        a: One side's.
        b: The other side's.

    Raises:
        UserError: If the runs are not of the same impressions, one is given twice on a side, or the
            impressions do not suffice.
    """
    for side in (a, b):
        _check_distinct(side)
    first, *others = [*a, *b]
    for other in others:
        _check_same(first, other)
    kept = ~np.any([np.isnan(run.values).any(axis=0) for run in (*a, *b)], axis=0)
    user = first.user.combine_chunks().dictionary_encode().indices.to_numpy()[kept]
    number = len(np.unique(user))
    if number < 2:
        raise UserError(
            f"{first.folder}: the {len(user):,} impressions that have a click and a skip are of "
            f"{number} users. An interval needs two, and some dozens to mean anything: evaluate a "
            "larger split."
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
    """Return whether another training seed would have given other scores: not so of baselines."""
    return run.metrics.get("scorer", CHECKPOINT) == CHECKPOINT


def _check_distinct(side: Sequence[EvaluatedRun]) -> None:
    """Refuse what is not another seed: it would seem that these change little, or much."""
    seen: dict[Any, EvaluatedRun] = {}
    for run in side:
        if len(side) > 1 and not has_seed(run):
            raise UserError(
                f"{run.folder} is of the baseline {run.metrics['scorer']}, which has no training "
                "seed. Several folders on a side are runs of one model: give this one alone."
            )
        keys = [run.folder.resolve(), _origin(run)]
        for key in keys:
            if key in seen:
                other = seen[key].folder
                what = "is given twice" if key == keys[0] else f"and {other} are one checkpoint"
                raise UserError(f"{run.folder} {what} on one side. Give each training run once.")
        seen |= {key: run for key in keys if key is not None}


def _origin(run: EvaluatedRun) -> Any:
    """Return what identifies a run's scorer, whatever the order of an ensemble's checkpoints."""
    found = run.metrics.get("checkpoint_sha256")
    if isinstance(found, list):
        return run.metrics.get("ensemble"), *sorted(found)
    return found


def _check_same(a: EvaluatedRun, b: EvaluatedRun) -> None:
    """Refuse runs that are not of the same impressions of the same users."""
    for key, what, advice in (
        ("split", "the split", "with the same --split"),
        ("data_fingerprint", "data of fingerprint", "with the same --data.root"),
    ):
        one, other = a.metrics.get(key), b.metrics.get(key)
        if one != other:
            raise UserError(
                f"{a.folder} is of {what} {_window(one, a)}, {b.folder} of {what} "
                f"{_window(other, b)}. Evaluate both {advice}."
            )
    if len(a.impression_id) != len(b.impression_id):
        raise UserError(
            f"{a.folder} has {len(a.impression_id):,} impressions, {b.folder} "
            f"{len(b.impression_id):,}. Evaluate both with the same --data.root."
        )
    wrong = np.flatnonzero(a.impression_id != b.impression_id)
    if len(wrong):
        row = wrong[0]
        raise UserError(
            f"{IMPRESSIONS_FILE}, row {row + 1:,}: impression {a.impression_id[row]} in "
            f"{a.folder}, {b.impression_id[row]} in {b.folder}. Evaluate both with the same "
            "--data.root."
        )
    if not a.user.equals(b.user):
        raise UserError(
            f"The users of the impressions differ between {a.folder} and {b.folder}. Evaluate both "
            "with the same --data.root."
        )


def _window(value: Any, run: EvaluatedRun) -> str:
    window = run.metrics.get("window")
    return f"{value} ({window})" if window else str(value)


def _alike(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Return whether two columns hold the same groups, however they are encoded."""
    return one.cast(pa.string()).equals(other.cast(pa.string()))


def _slice(column: pa.ChunkedArray, kept: NDArray[np.bool_]) -> SavedSlice:
    """Return the groups of the impressions that are kept, in the order of the column's own list."""
    whole = column.combine_chunks()
    if not pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_encode()
    code = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return SavedSlice(whole.dictionary.to_pylist(), code[kept])

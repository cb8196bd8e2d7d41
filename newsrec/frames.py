"""MIND's metrics of a table: pandas, polars, pyarrow, Hugging Face ``datasets``, or a dict."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from newsrec.metrics import mind_metrics

LISTS = (list, tuple, np.ndarray)


def metrics_of_table(
    table: Any, *, score: str = "score", label: str = "label", impression: str = "impression_id"
) -> dict[str, Any]:
    """Return MIND's metrics of a table's scores, averaged over impressions.

    A row is a candidate, or an impression whose score and label are lists. Only ``table[name]`` is
    used. Rows of one impression need not follow each other; candidates with equal scores are ranked
    in the order of their rows.

    Args:
        table: A pandas or polars data frame, a pyarrow table, a ``datasets.Dataset`` or a dict.
        score: Column of the scores, higher is better.
        label: Column of the labels, 1 clicked, 0 skipped.
        impression: Column that identifies the impression; not used if rows hold lists.

    Returns:
        The result of ``mind_metrics``.

    Raises:
        ValueError: If a column is missing, columns or lists differ in length, only some values are
            lists, an impression is missing, a score is NaN, or a label is not 0 or 1.
    """
    scores, labels = _column(table, score), _column(table, label)
    _same_length({score: scores, label: labels})
    if _has_lists({score: scores, label: labels}):
        lengths = np.array([len(row) for row in scores])
        wrong = np.flatnonzero(lengths != [len(row) for row in labels])
        if len(wrong):
            row = wrong[0]
            raise ValueError(
                f"Row {row} has {lengths[row]} values in {score!r} and {len(labels[row])} in "
                f"{label!r}."
            )
        flat = [np.concatenate([np.asarray(row) for row in rows]) for rows in (scores, labels)]
        return mind_metrics(flat[0], flat[1], np.r_[0, np.cumsum(lengths)])
    owners = _column(table, impression)
    _same_length({score: scores, impression: owners})
    owner, names = pd.factorize(owners)
    missing = np.flatnonzero(owner < 0)
    if len(missing):
        raise ValueError(f"Row {missing[0]} has no value in {impression!r}.")
    order = np.argsort(owner, kind="stable")
    offsets = np.r_[0, np.cumsum(np.bincount(owner, minlength=len(names)))]
    return mind_metrics(scores[order].astype(np.float64), labels[order].astype(float), offsets)


def _same_length(columns: dict[str, NDArray[Any]]) -> None:
    (one, a), (other, b) = columns.items()
    if len(a) != len(b):
        raise ValueError(f"{one!r} has {len(a)} rows and {other!r} has {len(b)}.")


def _has_lists(columns: dict[str, NDArray[Any]]) -> bool:
    """Return whether all values are lists; refuse columns in which only some are."""
    if all(column.ndim == 1 and column.dtype != object for column in columns.values()):
        return False
    kinds = {name: [isinstance(row, LISTS) for row in column] for name, column in columns.items()}
    found = next(iter(kinds.values()))[:1] == [True]
    for name, column in kinds.items():
        if (not found) in column:
            row = column.index(not found)
            what = "a list" if not found else "no list"
            raise ValueError(
                f"Row {row} has {what} in {name!r}. Give lists in all rows of both columns, or in "
                "none."
            )
    return found


def _column(table: Any, name: str) -> NDArray[Any]:
    """Return a column as an array; one of lists as an array of lists."""
    try:
        column = table[name]
    except Exception as error:  # each library raises its own type
        if table is None or isinstance(table, str):
            raise TypeError(f"{table!r} is no table. Give a data frame or a dict.") from error
        for names in ("column_names", "columns"):
            table = getattr(table, names, table)
        names = ", ".join(map(repr, table))
        raise ValueError(f"The table has no column {name!r}. It has {names}.") from error
    if hasattr(column, "__array__"):
        return np.asarray(column)
    values = list(column)
    if any(isinstance(value, LISTS) for value in values):
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    array = np.asarray(values)
    return np.asarray(values, dtype=object) if array.dtype.kind == "U" else array

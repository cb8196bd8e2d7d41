"""MIND's metrics of a table: pandas, polars, pyarrow, Hugging Face ``datasets``, or a dict."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.metrics import mind_metrics


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
        ValueError: If a column is missing, lists differ in length, a score is NaN, or a label is
            not 0 or 1.
    """
    scores, labels = _column(table, score), _column(table, label)
    if len(scores) and isinstance(scores[0], list | tuple | np.ndarray):
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
    names, owner = np.unique(_column(table, impression), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    offsets = np.r_[0, np.cumsum(np.bincount(owner, minlength=len(names)))]
    return mind_metrics(scores[order].astype(np.float64), labels[order].astype(float), offsets)


def _column(table: Any, name: str) -> NDArray[Any]:
    """Return a column as an array; one of lists as an array of lists."""
    try:
        column = table[name]
    except Exception as error:  # each library raises its own type
        for names in ("column_names", "columns"):
            table = getattr(table, names, table)
        names = ", ".join(map(repr, table))
        raise ValueError(f"The table has no column {name!r}. It has {names}.") from error
    if hasattr(column, "__array__"):
        return np.asarray(column)
    values = list(column)
    if values and isinstance(values[0], list | tuple | np.ndarray):
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    return np.asarray(values)

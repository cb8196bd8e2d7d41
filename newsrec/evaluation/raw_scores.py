"""Write ``scores.parquet``: every candidate's score, for combining or calibrating scores."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData

BLOCK = 1 << 16
"""Impressions in a row group; memory depends on this, not on the size of the split."""
SCHEMA = pa.schema(
    {
        "impression_id": pa.int64(),
        "user": pa.string(),
        "candidates": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int8()),
    }
)


def write_scores(path: Path, data: NewsData, split: str, scores: NDArray[np.floating]) -> None:
    """Write a row for each impression, in the order of the split's file.

    Columns: ``impression_id`` and ``user`` as in the file; ``candidates``, the news ids in the
    order of the file, null where news.tsv lacks the id; ``scores`` and ``labels`` (1 clicked,
    0 skipped) in the same order. ``labels`` is null in a split without labels.
    """
    part = data.split(split)
    real = data.news["news_id"].cast(pa.string()).combine_chunks()
    ids = pa.concat_arrays([pa.nulls(FIRST_NEWS, pa.string()), real])
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for start in range(0, len(part.history), BLOCK):
            rows = slice(start, min(start + BLOCK, len(part.history)))
            bounds = np.asarray(part.candidates.offsets[rows.start : rows.stop + 1])
            own = slice(int(bounds[0]), int(bounds[-1]))
            offsets = pa.array((bounds - bounds[0]).astype(np.int32))
            candidates = ids.take(pa.array(np.asarray(part.candidates.values[own])))
            labels: pa.Array = pa.nulls(rows.stop - rows.start, SCHEMA.field("labels").type)
            if part.labels is not None:
                labels = pa.ListArray.from_arrays(offsets, pa.array(np.asarray(part.labels[own])))
            columns = [
                pa.array(np.asarray(part.impression_id[rows])),
                data.users.take(pa.array(np.asarray(part.user[rows]))).cast(pa.string()),
                pa.ListArray.from_arrays(offsets, candidates),
                pa.ListArray.from_arrays(offsets, pa.array(scores[own].astype(np.float32))),
                labels,
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))

"""Times of publication, from Parquet of news."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types
from numpy.typing import NDArray

from newsrec.data.readers.parquet_columns import NO_TIME, as_seconds, as_text, shown_value
from newsrec.errors import DataError
from newsrec.places import looked_for
from newsrec.serving.items import to_time


def read_published(path: Path) -> dict[str, datetime]:
    """Return when news was published, by news id; news without a time is left out.

    Args:
        path: Parquet with the columns ``news_id`` and ``published``, such as a store's export.

    Raises:
        UserError: If the file cannot be used.
    """
    if not path.is_file():
        said = f"{path}: there is no such file. {looked_for(path)}".strip()
        said = f"{path} is a folder." if path.is_dir() else said
        raise DataError(f"{said} Name Parquet with the columns news_id and published.")
    try:
        found = more_of(path)[0]
    except (OSError, pa.ArrowException) as error:  # OSError: pages that cannot be decompressed
        said = str(error).strip().rstrip(".")
        raise DataError(f"{path} cannot be read: {said}. Write it again.") from None
    times = {news_id: time for news_id, time in found.items() if time is not None}
    if not times:
        raise DataError(
            f"{path} has no times of news. It needs to be Parquet with the columns news_id and "
            "published."
        )
    return times


def more_of(path: Path) -> tuple[dict[str, Any], set[str]]:
    """Return the times of publication, and which news have no abstract that is known."""
    try:
        names = set(pq.read_schema(path).names)
    except pa.ArrowInvalid:  # no Parquet
        return {}, set()
    if "news_id" not in names:  # EB-NeRD's articles
        return {}, set()
    given = [name for name in ("news_id", "published", "abstract") if name in names]
    table = pq.ParquetFile(path).read(given).combine_chunks()
    column = {name: table[name].combine_chunks() for name in given}
    ids = as_text(column["news_id"]).to_pylist()
    times: dict[str, Any] = {}
    if "published" in column:
        values = column["published"]
        micros, good = as_micros(values)
        wrong = np.flatnonzero(~good & np.asarray(values.is_valid()))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{path}, row {row}, column published: {NO_TIME}: "
                f"{shown_value(values[row])!r}. Correct the row (rows count from 0), or leave the "
                "time out."
            )
        found = zip(ids, micros.tolist(), good.tolist(), strict=True)
        for news_id, time, there in found:
            times.setdefault(news_id, to_time(time) if there else None)
    abstracts = (
        column["abstract"].is_null().to_pylist() if "abstract" in column else [True] * len(ids)
    )
    return times, {news_id for news_id, lacks in zip(ids, abstracts, strict=True) if lacks}


def as_micros(values: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return times in microseconds since 1970, and which of them are times ``[rows]``."""
    seconds, good = as_seconds(values)
    micros = seconds.astype(np.int64) * 10**6
    if types.is_timestamp(values.type):
        ticks = values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(pa.int64())
        micros = np.where(good, ticks.fill_null(0).to_numpy(), 0)
    return micros, good

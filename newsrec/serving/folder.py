"""Reads the folder that ``export`` writes, without PyTorch.

``manifest.json`` lists every other file with its SHA-256. A file is hashed before it is first used,
so a file that was changed or cut off is refused.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.errors import ModelError
from newsrec.files import file_hash
from newsrec.hub import find_folder
from newsrec.serving.manifest import (
    AGAIN,
    KNOWN_FILES,
    MANIFEST,
    NEWS,
    VECTORS,
    WEIGHTS_BESIDE,
    read_manifest,
    reading,
)

NEWS_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "news_id": pa.string(),
        "title": pa.string(),
        "category": pa.string(),
        "subcategory": pa.string(),
        "text_hash": pa.string(),
    }
)
"""Columns of ``news.parquet``. ``row`` is the row in ``news_vectors.npy``; ``text_hash`` is the
hash of the text that this vector was made from."""


class StoredNews(NamedTuple):
    """News and their vectors."""

    table: pa.Table
    """One line per real news item, with ``NEWS_SCHEMA``; line ``i`` has row ``FIRST_NEWS + i``."""
    vectors: NDArray[np.float32]
    """Row 0 is zeros, row 1 the unknown news: the mean of the real news ``[news, dim]``."""


class ExportFolder:
    """An exported folder, whose manifest is read and checked.

    Args:
        path: The folder.
        within: Its files may be links into this folder; None is the folder itself.

    Raises:
        ModelError: If it is not an exported folder, or has another format.
    """

    def __init__(self, path: str | Path, within: Path | None = None) -> None:
        self.path = Path(path)
        self._within = (within or self.path).resolve()
        self.manifest = read_manifest(self.path)

    @classmethod
    def find(
        cls, name: str | Path, revision: str | None = None, files: Collection[str] = KNOWN_FILES
    ) -> "ExportFolder":
        """Return a local folder, or a repository of the hub; only ``files`` are downloaded.

        Args:
            name: A folder, or the id of a repository on the Hugging Face hub.
            revision: Branch, tag or commit of the repository.
            files: Files of ``KNOWN_FILES`` that are needed, if the folder has them.

        Raises:
            HubError: If the hub cannot be read.
            UserError: As for the class.
        """
        return cls(*find_folder(name, revision, {*files, MANIFEST}))

    def has(self, name: str) -> bool:
        """Return whether the manifest lists this file."""
        return name in self.manifest["files"]

    def file(self, name: str) -> Path:
        """Check that a file, and its weights beside it if any, are unchanged; return its path.

        Raises:
            ModelError: If a file is missing or was changed.
        """
        for part in (name, name + WEIGHTS_BESIDE):
            path = self.path / part
            if part != name and not self.has(part):
                continue
            with reading(path):
                if not path.is_file():
                    raise ModelError(f"{path} is missing. {AGAIN}")
                if not path.resolve().is_relative_to(self._within):
                    raise ModelError(
                        f"{path} is a link to {path.resolve()}, outside of the folder. "
                        "`cp -rL FOLDER COPY` makes a copy without links."
                    )
                if file_hash(path) != self.manifest["files"].get(part):
                    raise ModelError(f"{path} is not the file that {MANIFEST} names. {AGAIN}")
        return self.path / name

    def read_news(self) -> StoredNews:
        """Return the news, with memory-mapped vectors; no news if the folder has none.

        Raises:
            ModelError: If a file was changed, or the table and the vectors do not match.
        """
        dim = self.manifest["dim"]
        if not self.has(VECTORS):
            return StoredNews(NEWS_SCHEMA.empty_table(), np.zeros((FIRST_NEWS, dim), np.float32))
        path = self.file(VECTORS)
        with reading(path):  # not np.load, which would also open an archive
            vectors = np.lib.format.open_memmap(path, mode="r")
        table = _read_table(self.file(NEWS), len(vectors) if vectors.ndim else 0)
        check_news(StoredNews(table, vectors), dim, path)
        return StoredNews(table, vectors)


def _read_table(path: Path, rows: int) -> pa.Table:
    """Return the columns ``NEWS_SCHEMA`` of ``news.parquet``.

    Args:
        path: The file.
        rows: Number of vectors; a file with more lines is refused before it is read.

    Raises:
        ModelError: If the file cannot be read, has more lines, or has another schema.
    """
    with reading(path), pq.ParquetFile(path) as file:
        missing = [name for name in NEWS_SCHEMA.names if name not in file.schema_arrow.names]
        if missing:
            raise ModelError(f"{path} has no column {missing[0]}. {AGAIN}")
        if file.metadata.num_rows > rows:
            raise ModelError(
                f"{path} has {file.metadata.num_rows:,} lines, and {VECTORS} {rows:,} rows. {AGAIN}"
            )
        # read_table would import pandas if it is installed.
        table = file.read(NEWS_SCHEMA.names).select(NEWS_SCHEMA.names).cast(NEWS_SCHEMA)
        table.validate(full=True)  # finds invalid UTF-8, which would fail later
        for name in ("row", "news_id"):
            if table[name].null_count:
                raise ModelError(f"{path}: {name} is empty in a line. {AGAIN}")
    return table


def check_news(news: StoredNews, dim: int, path: Path) -> None:
    """Check that news can be scored.

    Args:
        news: News and vectors.
        dim: Size of the model's vectors.
        path: File of the vectors, for messages.

    Raises:
        ModelError: If shapes or rows do not match, a vector has NaN or infinity, or an id is there
            twice.
    """
    table, vectors = news
    shape = (FIRST_NEWS + len(table), dim)
    if vectors.shape != shape or vectors.dtype != np.float32:
        raise ModelError(
            f"{path} holds {vectors.dtype} {list(vectors.shape)}; {NEWS} and {MANIFEST} ask for "
            f"float32 {list(shape)}. {AGAIN}"
        )
    finite = np.isfinite(vectors.sum(axis=1))  # a sum with NaN or infinity is not finite
    if not finite.all():
        raise ModelError(
            f"{path}: row {int(np.argmin(finite))} holds NaN or infinity. The model has gone wrong "
            "in training; export another checkpoint."
        )
    # Compare lists, since pyarrow's conversions to and from arrays import pandas.
    if table["row"].to_pylist() != list(range(FIRST_NEWS, len(vectors))):
        raise ModelError(
            f"{path.parent / NEWS}: row must count up from {FIRST_NEWS}, line by line. {AGAIN}"
        )
    ids = table["news_id"].to_pylist()
    if len(set(ids)) < len(ids):
        twice = next(news_id for news_id, number in Counter(ids).items() if number > 1)
        raise ModelError(f"{path.parent / NEWS}: the news item {twice} occurs twice. {AGAIN}")


def write_news(news: StoredNews, folder: Path) -> None:
    """Write ``news_vectors.npy`` and ``news.parquet`` into a folder."""
    check_news(news, news.vectors.shape[1], folder / VECTORS)
    np.save(folder / VECTORS, news.vectors)
    pq.write_table(news.table, folder / NEWS)


def with_unknown(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vectors of real news with rows 0 (zeros) and 1 (mean) before ``[news, dim]``."""
    above = np.zeros((FIRST_NEWS, vectors.shape[1]), np.float32)
    if len(vectors):
        above[FIRST_NEWS - 1] = vectors.mean(axis=0, dtype=np.float64)
    return np.concatenate([above, vectors])

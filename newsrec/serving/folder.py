"""Reads the folder that ``export`` writes, without PyTorch.

``manifest.json`` lists every other file with its SHA-256. A file is hashed before it is first used,
so a file that was changed or cut off is refused.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

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
    FLOAT32,
    KNOWN_FILES,
    MANIFEST,
    NEWS,
    SCALES,
    VECTORS,
    WEIGHTS_BESIDE,
    read_manifest,
    reading,
)
from newsrec.serving.vectors import (
    Packed,
    Vectors,
    blocks,
    concatenate,
    finite_rows,
    kind_of,
    mean,
    pack,
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
    vectors: Vectors
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
        dim, kind = self.manifest["dim"], self.manifest.get("vectors", FLOAT32)
        if not self.has(VECTORS):
            none = np.zeros((FIRST_NEWS, dim), np.float32)
            return StoredNews(NEWS_SCHEMA.empty_table(), pack(none, kind))
        path = self.file(VECTORS)
        scales = _mapped(self.file(SCALES)) if self.has(SCALES) else None

        def vectors() -> Vectors:
            return _mapped(path) if kind == FLOAT32 else Packed(_mapped(path), scales)

        rows = vectors().shape
        table = _read_table(self.file(NEWS), rows[0] if rows else 0)
        # The check reads each page; the process should not count those that it does not use.
        check_news(StoredNews(table, vectors()), dim, kind, path)
        return StoredNews(table, vectors())


def _mapped(path: Path) -> NDArray[Any]:
    """Return the array in a file, memory-mapped."""
    with reading(path):  # not np.load, which would also open an archive
        # A plain array view, since indexing a memmap object is slow; the data stay memory-mapped.
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))


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
                f"{path} has {file.metadata.num_rows:,} lines, but {VECTORS} has "
                f"{rows:,} rows. {AGAIN}"
            )
        # read_table would import pandas if it is installed.
        table = file.read(NEWS_SCHEMA.names).select(NEWS_SCHEMA.names).cast(NEWS_SCHEMA)
        table.validate(full=True)  # finds invalid UTF-8, which would fail later
        for name in ("row", "news_id"):
            if table[name].null_count:
                raise ModelError(f"{path}: {name} is empty in a line. {AGAIN}")
    return table


def check_news(news: StoredNews, dim: int, kind: str, path: Path) -> None:
    """Check that news can be scored.

    Args:
        news: News and vectors.
        dim: Size of the model's vectors.
        kind: Type that the vectors should have.
        path: File of the vectors, for messages.

    Raises:
        ModelError: If shapes or rows do not match, a vector has NaN or infinity, or an id is there
            twice.
    """
    table, vectors = news
    packed = vectors if isinstance(vectors, Packed) else Packed(vectors)
    values, scales = packed.values, packed.scales
    shape = (FIRST_NEWS + len(table), dim)
    if values.shape != shape or values.dtype != kind:
        raise ModelError(
            f"{path} holds {values.dtype} {list(values.shape)}; {NEWS} and {MANIFEST} ask for "
            f"{kind} {list(shape)}. {AGAIN}"
        )
    if scales is not None:
        path = path.with_name(SCALES)
        if scales.shape != shape[:1] or scales.dtype != np.float32 or (scales < 0).any():
            raise ModelError(
                f"{path} holds {scales.dtype} {list(scales.shape)}; it should hold "
                f"float32 {list(shape[:1])}, 0 or more. {AGAIN}"
            )
        values = scales[:, None]  # in the rows themselves every int8 is a number
    for rows in blocks(values):
        finite = finite_rows(values[rows])
        if not finite.all():
            raise ModelError(
                f"{path}: row {rows.start + int(np.argmin(finite))} holds NaN or infinity. The "
                "model has gone wrong in training; export another checkpoint."
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


def write_news(news: StoredNews, folder: Path) -> list[str]:
    """Write the vectors and ``news.parquet`` into a folder; return the names of the files."""
    table, vectors = news
    check_news(news, vectors.shape[1], kind_of(vectors), folder / VECTORS)
    packed = vectors if isinstance(vectors, Packed) else Packed(vectors)
    np.save(folder / VECTORS, packed.values)
    if packed.scales is not None:
        np.save(folder / SCALES, packed.scales)
    pq.write_table(table, folder / NEWS)
    return [VECTORS, NEWS, *([] if packed.scales is None else [SCALES])]


def with_unknown(vectors: Vectors) -> Vectors:
    """Return the vectors of real news with rows 0 (zeros) and 1 (mean) before ``[news, dim]``."""
    above = np.zeros((FIRST_NEWS, vectors.shape[1]), np.float32)
    above[FIRST_NEWS - 1] = mean(vectors)
    return concatenate([pack(above, kind_of(vectors)), vectors])

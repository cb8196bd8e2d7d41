"""MIND's tab-separated files as Arrow tables of strings; every line is read or reported."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv

from newsrec.errors import UserError

NEWS_COLUMNS = (
    "news_id",
    "category",
    "subcategory",
    "title",
    "abstract",
    "url",
    "title_entities",
    "abstract_entities",
)
BEHAVIORS_COLUMNS = ("impression_id", "user_id", "time", "history", "candidates")

BLOCK_BYTES = 16 << 20


def read_tsv(path: Path, columns: Sequence[str], keep: Sequence[str] | None = None) -> pa.Table:
    """Read a file without a header line into strings; row ``i`` is line ``i + 1``.

    Titles may begin with a quote and the last columns may be empty: nothing is quoted, escaped,
    stripped or taken for a missing value.

    Args:
        path: The file.
        columns: Names of all its columns.
        keep: Columns to return; all of them if None.

    Raises:
        UserError: If a line has another number of columns, a NUL byte or is not UTF-8, naming
            the line.
    """
    if not path.stat().st_size:
        raise UserError(f"{path} is empty. Unpack or copy the file again.")
    with path.open("rb") as file:  # a damaged disk or download leaves zeros in place of lines
        if any(b"\0" in block for block in iter(lambda: file.read(BLOCK_BYTES), b"")):
            raise _explain(path, columns, "it holds NUL bytes")
    try:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=columns, block_size=BLOCK_BYTES),
            parse_options=csv.ParseOptions(
                delimiter="\t", quote_char=False, double_quote=False, ignore_empty_lines=False
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=False,
                include_columns=keep or columns,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _explain(path, columns, str(error)) from None


def bad_line(path: Path, line: int, column: str | None, text: str, problem: str) -> UserError:
    """Return the error for a line that cannot be read, its text cut to 80 characters."""
    place = f"{path}, line {line}, " + (f"column {column}: " if column else "")
    shown = text if len(text) <= 80 else text[:77] + "..."
    return UserError(
        f"{place}{problem}: {shown!r}. Correct the line, or unpack the file again from its zip."
    )


def _explain(path: Path, columns: Sequence[str], error: str) -> UserError:
    """Find the line that stopped the reader, by reading slowly."""
    with path.open("rb") as file:
        for number, line in enumerate(file.read().splitlines(), start=1):
            try:
                fields = line.decode("utf-8").split("\t")
            except UnicodeDecodeError as wrong:
                text = line[max(wrong.start - 20, 0) : wrong.start + 20].decode(errors="replace")
                return bad_line(path, number, None, text, "not UTF-8")
            if b"\0" in line:
                return bad_line(path, number, None, line.decode().strip("\0"), "NUL bytes")
            if len(fields) != len(columns):
                problem = f"{len(fields)} columns instead of {len(columns)}"
                return bad_line(path, number, None, line.decode(), problem)
    return UserError(f"{path} cannot be read: {error}")

"""Reads a file of voices: the named entities that count, their groups, and the minorities."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from newsrec.data.cache import digest
from newsrec.errors import DataError, MissingDataError
from newsrec.places import looked_for

NAME, GROUP, MINORITY = "name", "group", "minority"
FLAGS = {"true": True, "1": True, "false": False, "0": False, "": None}
"""Values of the column ``minority``, in lower case."""
_Rows = tuple[list[str], list[dict[str, Any]]]
"""Columns, and rows by the names of the columns."""


class Voices(NamedTuple):
    """The named entities that representation and alternative voices count."""

    path: Path
    """The file."""
    names: pa.Array
    """Names, each once ``[names]``."""
    groups: pa.Array
    """Group of each, null for none ``[names]``."""
    minority: pa.Array
    """True for a minority voice, False for a majority voice, null for neither ``[names]``."""

    def described(self, found: int) -> dict[str, Any]:
        """Return the field ``beyond.voices`` of ``metrics.json``.

        ``found`` is the number of names that the news mention.
        """
        rows = sorted(zip(*(column.to_pylist() for column in self[1:]), strict=True))
        return {
            "file": str(self.path),
            "names": len(self.names),
            "found": found,
            "digest": digest(rows),
        }


def read_voices(path: str | Path) -> Voices:
    """Read a file of voices: Parquet, CSV with a header, or JSON with a list of objects.

    It has the column ``name`` and ``group`` (text), ``minority`` (true or false) or both; values of
    the last two may be empty. Other columns are ignored.

    Raises:
        UserError: If the file is missing or cannot be read; the message names row and column.
    """
    path = Path(path)
    columns, rows = _read(path)
    kinds = [name for name in (GROUP, MINORITY) if name in columns]
    if NAME not in columns or not kinds:
        has = f"only {', '.join(columns)}" if columns else "since it has no columns"
        lacks = NAME if NAME not in columns else f"{GROUP} or {MINORITY}"
        raise DataError(
            f"--voices {path} has no column {lacks}, {has}. It needs {NAME} with {GROUP}, "
            f"{MINORITY} or both (docs/evaluate.md)."
        )
    if not rows:
        raise DataError(f"--voices {path} has no rows. Write a row for each name that counts.")
    known: dict[str, int] = {}
    groups, minority = [], []
    for number, row in enumerate(rows, start=1):
        name = _text(path, number, NAME, row.get(NAME))
        if not name:
            raise DataError(
                f"{_place(path, number, NAME)} is empty. Write a name, or remove the row."
            )
        if name in known:
            raise DataError(
                f"{_place(path, number, NAME)} is {name!r}, as in row {known[name]}. Keep one of "
                "them."
            )
        known[name] = number
        groups.append(_text(path, number, GROUP, row.get(GROUP)) or None)
        minority.append(_flag(path, number, row.get(MINORITY)))
    if not any(groups) and set(minority) == {None}:
        raise DataError(
            f"--voices {path} has no value in {' or '.join(kinds)}. Write at least one."
        )
    names, grouped = (pa.array(texts, pa.string()) for texts in (known, groups))
    return Voices(path, names, grouped, pa.array(minority, pa.bool_()))


def _read(path: Path) -> _Rows:
    """Read a file in the format that its name ends in."""
    if path.exists() and not path.is_file():
        raise DataError(f"--voices {path} is no file. Write the names into a file, and name that.")
    if not path.is_file():
        near = looked_for(path)
        raise MissingDataError(
            f"--voices {path}: there is no such file.{' ' if near else ''}{near} Name a file as "
            "docs/evaluate.md describes it (Beyond accuracy)."
        )
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(
            f"--voices {path}: the name ends in none of {', '.join(_READERS)}. Write the file in "
            "one of these formats, with this ending."
        )
    try:
        return read(path)
    except (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        problem = str(error).partition("\n")[0].rstrip(".")
        raise DataError(
            f"--voices {path} cannot be read as {path.suffix[1:]}: {problem}. Write it again."
        ) from None


def _text(path: Path, number: int, column: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{_place(path, number, column)} is {value!r}, which is not text. Write it as text."
        )
    return value.strip()


def _flag(path: Path, number: int, value: Any) -> bool | None:
    written = "" if value is None else str(value).strip().lower()
    if written not in FLAGS:
        raise DataError(
            f"{_place(path, number, MINORITY)} is {value!r}. Write true for a minority voice, "
            "false for a majority voice, or nothing for neither."
        )
    return FLAGS[written]


def _place(path: Path, number: int, column: str) -> str:
    return f"--voices {path}: the {column} in row {number}"


def _read_csv(path: Path) -> _Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    if len(set(columns)) < len(columns):
        raise ValueError("it has two columns of one name")
    for number, row in enumerate(rows, start=1):
        if None in row:  # DictReader's key for the values that have no column
            raise ValueError(f"row {number} has more values than columns; quote text with commas")
    return columns, rows


def _read_json(path: Path) -> _Rows:
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    json.dumps(rows, ensure_ascii=False).encode()  # refuses half a character, such as "\\ud800"
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            'it is not a list of objects such as {"name": "Ann Lee", "group": "Greens"}'
        )
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _read_parquet(path: Path) -> _Rows:
    table = pq.read_table(path)
    return table.column_names, table.to_pylist()


_READERS: dict[str, Callable[[Path], _Rows]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".parquet": _read_parquet,
}

"""Checks that a split is MIND's: zip checksums and numbers of lines."""

import stat
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from newsrec.console import counted
from newsrec.data.readers.mind_files import NAMES, find_splits
from newsrec.data.readers.source import SPLITS, SourceFile
from newsrec.data.readers.zips import DAMAGE
from newsrec.errors import DataError, UserError

LINES = {
    # Lines of news.tsv and behaviors.tsv. Two builds of the small zips exist, with the same lines.
    "MINDsmall_train": (51_282, 156_965),
    "MINDsmall_dev": (42_416, 73_152),
    "MINDlarge_train": (101_527, 2_232_748),
    "MINDlarge_dev": (72_023, 376_471),
    "MINDlarge_test": (120_961, 2_370_727),
}


def check(root: Path, name: str) -> Path | None:
    """Read a split completely, and compare it with MIND's; in a zip all members are read.

    ``name`` is MIND's name of the split, a key of ``LINES``. Returns its zip or folder; None if
    ``root`` does not have it. Refuses a zip that is damaged or unsafe to unpack, and files that are
    not MIND's.
    """
    split = name.rpartition("_")[2]
    patterns = [p for s in SPLITS for p in (s, f"{s}.zip", f"MIND*_{s}", f"MIND*_{s}.zip")]
    if not any(any(root.glob(pattern)) for pattern in patterns):
        return None
    try:
        found = find_splits(root)
        if split not in found:
            return None
        place = root / found[split].news.path.relative_to(root).parts[0]
        if place.name.startswith("MIND") and place.name not in (name, f"{name}.zip"):
            raise DataError(f"{place} is not {name}.")
        if place.is_dir():
            lines = {file: _count_lines(file.open()) for file in found[split]}
        else:
            lines = _read_zip(place)
    except UserError:
        raise
    except DAMAGE as error:
        raise DataError(f"{name} in {root} is damaged or cannot be read ({error}).") from None
    for file, tsv, expected in zip(found[split], NAMES, LINES[name], strict=True):
        if lines[file] != expected:
            raise DataError(
                f"{place} is not {name}: its {tsv} has {counted(lines[file], 'line')}, "
                f"not {expected:,}."
            )
    return place


def _read_zip(path: Path) -> dict[SourceFile, int]:
    lines = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if _leads_outside(member):
                raise DataError(f"{path} would unpack {member.filename!r} outside its folder.")
            # zipfile compares a member's checksum when it is read to the end.
            lines[SourceFile(path, member.filename)] = _count_lines(archive.open(member))
    return lines


def _leads_outside(member: zipfile.ZipInfo) -> bool:
    # Treat backslashes as separators, as Windows does. zipfile cleans filename, not orig_filename.
    name = member.orig_filename.replace("\\", "/")
    absolute = name.startswith("/") or bool(PureWindowsPath(name).drive)
    return absolute or ".." in PurePosixPath(name).parts or stat.S_ISLNK(member.external_attr >> 16)


def _count_lines(stream: IO[bytes]) -> int:
    lines, end = 0, b"\n"
    with stream:
        while block := stream.read(1 << 20):
            lines += block.count(b"\n")
            end = block[-1:]
    return lines + (end != b"\n")

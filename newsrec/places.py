"""Where a path that is not there was looked for, and what may have been meant."""

import difflib
import itertools
from collections.abc import Iterator
from pathlib import Path

LOOKED_AT = 2000
"""Names that are compared at most: a folder can hold millions."""


def looked_for(path: str | Path) -> str:
    """Say where a path leads that is not there, and which one is much like it.

    Args:
        path: As the user wrote it.

    Returns:
        Sentences such as ``Looked for /home/me/confg/demo.yaml. Did you mean configs/demo.yaml?``.
    """
    path = Path(path)
    near = near_path(path)
    hint = f" Did you mean {near}?" if near is not None else ""
    # One that is absolute says for itself where it leads.
    return hint.strip() if path.is_absolute() else f"Looked for {Path.cwd() / path}.{hint}"


def near_path(path: Path) -> Path | None:
    """Return a path that is there and much like one that is not.

    Either one name on the way is mistyped, or the path begins a folder or two further down, as
    ``demo.yaml`` does of ``configs/demo.yaml``.
    """
    try:
        return _mistyped(path) or (None if path.is_absolute() else _further_down(path))
    except OSError:  # a folder that cannot be read has no hint to give
        return None


def _mistyped(path: Path) -> Path | None:
    for ancestor in path.parents:
        if not ancestor.is_dir():
            continue
        wrong, *rest = path.relative_to(ancestor).parts
        names = [entry.name for entry in _some(ancestor.iterdir())]
        for name in difflib.get_close_matches(wrong, names, n=3, cutoff=0.7):
            found = ancestor.joinpath(name, *rest)
            if found.exists():
                return found
        return None
    return None


def _further_down(path: Path) -> Path | None:
    here = Path()
    folders = [f for f in _some(here.iterdir()) if f.is_dir() and not f.name.startswith(".")]
    inner = [g for f in folders for g in _some(f.iterdir()) if g.is_dir()]
    return next((f / path for f in (*sorted(folders), *sorted(inner)) if (f / path).exists()), None)


def _some(entries: Iterator[Path]) -> Iterator[Path]:
    return itertools.islice(entries, LOOKED_AT)

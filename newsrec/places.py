"""Hints about a missing path: where it was looked for, and which path may have been meant.

Also the folder for the user's caches.
"""

import difflib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

LOOKED_AT = 2000
"""Most names compared in a folder, which can hold millions."""


def user_cache() -> Path:
    """Return ``XDG_CACHE_HOME``, or its default if it is relative, as its specification says."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".cache"


def looked_for(path: str | Path) -> str:
    """Return a hint where a missing path was looked for, and which similar path exists.

    Such as ``Looked for /home/me/confg/demo.yaml. Did you mean configs/demo.yaml?``.
    """
    path = Path(path)
    near = near_path(path)
    hint = f" Did you mean {near}?" if near is not None else ""
    # An absolute path needs no sentence about where it was looked for.
    return hint.strip() if path.is_absolute() else f"Looked for {Path.cwd() / path}.{hint}"


def near_path(path: Path) -> Path | None:
    """Return an existing path that is similar to a missing one, or None.

    Either one name in the path is mistyped, or one or two folders at its start are missing, such as
    ``demo.yaml`` for ``configs/demo.yaml``.
    """
    try:
        return _mistyped(path) or (None if path.is_absolute() else _further_down(path))
    except OSError:  # no hint from a folder that cannot be read
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

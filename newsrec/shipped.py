"""The presets and the demo: at the top of a clone, or in the installed package.

``setup.py`` copies ``configs/`` and ``data/demo`` into the package when a wheel is built.
"""

import difflib
import re
from pathlib import Path

from newsrec.errors import UserError

PACKAGE = Path(__file__).parent
INSTALLED = PACKAGE / "shipped"
"""Folder of the files in an installed package; a clone does not have it."""
DEMO = Path("data/demo")
LIST = "`python -m newsrec configs` lists the presets."


def shipped(path: str | Path) -> Path:
    """Return the place of a file that comes with newsrec, such as ``configs/demo.yaml``."""
    return (INSTALLED if INSTALLED.is_dir() else PACKAGE.parent) / path


def presets() -> dict[str, Path]:
    """Return the file of each preset, by name."""
    return {path.stem: path for path in sorted(shipped("configs").glob("*.yaml"))}


def preset(name: str) -> Path:
    """Return the file of a preset; UserError, which names similar ones, if there is none."""
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"There is no preset {name!r}.{hint} {LIST}")
    return known[name]


def config_file(given: str) -> str:
    """Return the file of a preset's name, and any other value as it is.

    If a file or folder has the name of a preset, the preset is used. If there is no file at a path
    such as ``configs/demo.yaml``, the file that comes with newsrec is used.
    """
    path = Path(given)
    if given in presets() or (re.fullmatch(r"[\w-]+", given) and not path.exists()):
        return str(preset(given))
    return shipped_config(given)


def shipped_config(given: str) -> str:
    """Return a shipped file in place of a path below ``configs/`` that is not there."""
    path = Path(given)
    is_one = path.parts[:1] == ("configs",) and ".." not in path.parts and path.suffix == ".yaml"
    return str(shipped(path)) if is_one and not path.exists() and shipped(path).is_file() else given


def data_folder(root: str | Path) -> Path:
    """Return a data folder's path; if there is no ``data/demo``, that is newsrec's own.

    The folder at an address such as ``s3://bucket/data`` is a ``newsrec.store_path.StorePath``,
    which is read as a path is.
    """
    if isinstance(root, str) and "://" in root:
        from newsrec.store_path import open_root  # imports pyarrow

        return open_root(root)
    if not isinstance(root, str | Path):
        return root
    root = Path(root)
    return shipped(DEMO) if root == DEMO and not root.exists() else root


def is_installed(folder: Path) -> bool:
    """Return whether a folder belongs to the installed package, in which nothing is written."""
    return INSTALLED.is_dir() and folder.resolve().is_relative_to(INSTALLED.resolve())

"""The best metrics that a simulated world allows, and what its oracles reach.

Reports show them as an extra, so a file that cannot be read is a warning and never an error.
"""

import json
import logging
from pathlib import Path
from typing import Any

from newsrec.metrics import METRICS

log = logging.getLogger(__name__)


def read_ceiling(root: Path, split: str) -> dict[str, float] | None:
    """Return the metrics that a simulated world's true click probabilities reach on a split.

    None if the folder is not a simulated world, or, with a warning, if its ``world.json`` cannot be
    read.
    """
    path = root / "world.json"
    try:
        found = _read(path, "ceiling", split)
    except ValueError as error:
        log.warning("%s %s: no ceiling is shown", path, error)
        return None
    if found is None:
        return None
    if not isinstance(found, dict) or not all(_is_share(found.get(name)) for name in METRICS):
        log.warning("%s has no four metrics as ceiling of %s: none is shown", path, split)
        return None
    return {name: float(found[name]) for name in METRICS}


def read_oracles(root: Path, split: str) -> dict[str, float]:
    """Return the AUC of each oracle of a simulated world on a split, by the oracle's name.

    Empty where ``world.json`` has none or cannot be read; ``read_ceiling`` warns of that.
    """
    try:
        found = _read(root / "world.json", "oracles", split)
    except ValueError:
        return {}
    values = found if isinstance(found, dict) else {}
    return {str(name): float(auc) for name, auc in values.items() if _is_share(auc)}


def _read(path: Path, *places: str) -> Any:
    """Return the value at a place in ``world.json``, None if the file or the place is absent.

    Raises:
        ValueError: If the file does not describe a world; the message continues one that begins
            with the path.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        problem = getattr(error, "strerror", None) or "not JSON"
        raise ValueError(f"cannot be read ({problem})") from error
    for name in places:
        if not isinstance(found, dict):
            raise ValueError("is no description of a world")
        if name not in found:
            return None
        found = found[name]
    return found


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1

"""The best metrics that a simulated world allows.

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
        if not path.is_file():
            return None
        world = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problem = getattr(error, "strerror", None) or "not JSON"
        log.warning("%s cannot be read (%s): no ceiling is shown", path, problem)
        return None
    found: Any = world
    for name in ("ceiling", split):
        if not isinstance(found, dict):
            log.warning("%s is no description of a world: no ceiling is shown", path)
            return None
        if name not in found:
            return None
        found = found[name]
    if not isinstance(found, dict) or not all(_is_share(found.get(name)) for name in METRICS):
        log.warning("%s has no four metrics as ceiling of %s: none is shown", path, split)
        return None
    return {name: float(found[name]) for name in METRICS}


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1

"""Facts about this machine: its name, and measurements kept for it."""

import hashlib
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from newsrec.files import write_text
from newsrec.places import user_cache

log = logging.getLogger(__name__)

MEASUREMENTS_FORMAT = 1
"""Version of the file of measurements; a file of another version is ignored."""
KEPT = 200
"""Most measurements in the file; the oldest are dropped first."""
CPUINFO = Path("/proc/cpuinfo")


class Machine(NamedTuple):
    """The CPU or GPU that computes."""

    name: str
    """Model name of the CPU or GPU."""
    identity: str
    """All facts that may affect its speed; measurements are kept under it."""


def this_machine(device: torch.device, cpuinfo: Path = CPUINFO) -> Machine:
    """Return the machine that a device belongs to; it does not depend on the host name."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return Machine(found.name, f"{found.name} {found.major}.{found.minor} {torch.version.cuda}")
    facts = _cpu_facts(cpuinfo)
    name = facts.get("model name") or platform.processor() or platform.machine()
    if device.type == "mps":
        return Machine(f"{name}, MPS", f"mps {name} {platform.release()}")
    masks = {key: os.environ.get(key) for key in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")}
    capability = torch.backends.cpu.get_cpu_capability()
    return Machine(name, json.dumps([name, facts, capability, masks], sort_keys=True))


def _cpu_facts(cpuinfo: Path) -> dict[str, str]:
    """Return Linux's description of the first core; empty on other systems."""
    wanted = ("model name", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    facts: dict[str, str] = {}
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return facts
    for line in text.partition("\n\n")[0].splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in wanted:
            facts[key] = value
    return facts


def cache_folder() -> Path:
    """Return the user's folder for measurements; ``NEWSREC_CACHE`` sets another one."""
    given = os.environ.get("NEWSREC_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = user_cache()
    return base / "newsrec"


def measurement_key(*facts: Any) -> str:
    """Return a key for a measurement under the given circumstances."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def recall(key: str, names: Sequence[str]) -> dict[str, float] | None:
    """Return an earlier measurement of these names; None if it lacks one, or a value above 0."""
    found = _read().get(key)
    if not isinstance(found, dict):
        return None
    values: dict[str, Any] = {name: found.get(name) for name in names}
    if not all(isinstance(v, int | float) and 0 < v < math.inf for v in values.values()):
        return None
    return {name: float(value) for name, value in values.items()}


def remember(key: str, values: dict[str, Any]) -> None:
    """Store a measurement; if it cannot be stored, the next run measures again."""
    kept = _read()
    kept.pop(key, None)
    kept[key] = values
    newest = dict(list(kept.items())[-KEPT:])
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": MEASUREMENTS_FORMAT, "measured": newest}, indent=1)
        write_text(folder / "machine.json", text + "\n")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        log.debug("what was measured is not kept: %s", error)


def _read() -> dict[str, Any]:
    try:
        found = json.loads((cache_folder() / "machine.json").read_text(encoding="utf-8"))
        measured = found["measured"] if found["format"] == MEASUREMENTS_FORMAT else {}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return {}
    return measured if isinstance(measured, dict) else {}

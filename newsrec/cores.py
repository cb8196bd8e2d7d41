"""How many cores this process may use; standard library only."""

import math
import os
from pathlib import Path

CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores(cgroup: Path = CGROUP, own: Path = OWN_CGROUP) -> int:
    """Return how many cores this process may use, by its affinity and its container's quota.

    ``os.cpu_count`` would count the whole machine, of which a container may have only a share.
    ``cgroup`` has Linux's quotas, of control groups version 2 or 1, ``own`` the control groups of
    this process.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS and Windows
        cores = os.cpu_count() or 1
    quotas = [quota for group in _groups(cgroup, own) if (quota := _quota(group)) is not None]
    return max(1, min(cores, *(math.floor(quota) for quota in quotas))) if quotas else cores


def _groups(cgroup: Path, own: Path) -> list[Path]:
    """Return the folders whose quotas apply to this process: its group's and its parents'."""
    groups = [cgroup, cgroup / "cpu"]  # in a container, the root is the container's own group
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return groups
    for line in lines:
        if line.startswith("0::/"):
            inner = Path(line.removeprefix("0::/").strip())
            groups += [cgroup / part for part in (inner, *inner.parents) if ".." not in part.parts]
    return groups


def _quota(group: Path) -> float | None:
    """Return the number of cores that a control group may use; None if there is no limit."""
    try:
        limit, period = (group / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            limit = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8")
        except OSError:
            return None
    try:
        cores = float(limit) / float(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return cores if cores > 0 else None  # version 1 has -1 for no limit

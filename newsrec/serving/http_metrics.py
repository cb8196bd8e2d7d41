"""Counts and latencies of requests, in arrays of a fixed size.

Latencies are counted in buckets that grow by 9 %, so a quantile is right to 5 %, and the counts of
several workers can be summed. Each worker writes an array of its own, a file if there are several
workers, and any of them sums all files for ``/metrics``. Only the event loop's thread writes.
"""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FASTEST, PER_DOUBLING = 1e-5, 8
"""Upper bound of the first bucket in seconds, and buckets until a bound doubles."""
BUCKETS = 24 * PER_DOUBLING
"""The last one has all above 2 minutes."""
WINDOW = 5
"""Quantiles are of this many minutes, and of the minute that has begun."""
CLASSES = ("2xx", "3xx", "4xx", "5xx")
QUANTILES = (0.5, 0.95, 0.99)
OTHER = ("*", "other")
"""Label of requests that no route takes."""

Route = tuple[str, str]
"""Method and path with names for its parts."""


class Gauge(NamedTuple):
    """A number that goes up and down."""

    name: str
    about: str
    value: float


class Metrics:
    """What one worker counted, and the sum over all workers.

    Args:
        routes: Routes that are counted one by one.
        folder: Folder of the workers' files; None for a single worker.
    """

    def __init__(self, routes: Iterable[Route], folder: Path | None = None) -> None:
        self.routes = [*dict.fromkeys(routes), OTHER]
        self._row = {route: row for row, route in enumerate(self.routes)}
        self._layout = np.dtype(
            [
                ("requests", np.int64, (len(self.routes), len(CLASSES))),
                ("seconds", np.float64, len(self.routes)),
                ("minute", np.int64, WINDOW + 1),
                ("latency", np.int64, (WINDOW + 1, len(self.routes), BUCKETS)),
            ]
        )
        self._folder = folder
        self._own: NDArray[np.void]
        if folder is None:
            self._own = np.zeros(1, self._layout)
        else:
            path = folder / f"{os.getpid()}-{time.time_ns()}.counts"
            self._own = np.memmap(path, self._layout, "w+", shape=1)

    def add(self, route: Route, status: int, seconds: float, now: float | None = None) -> None:
        """Count a request; ``now`` is the time of its end since 1970."""
        row, own = self._row.get(route, len(self.routes) - 1), self._own[0]
        own["requests"][row, min(max(status // 100, 2), 5) - 2] += 1
        own["seconds"][row] += seconds
        minute = int((time.time() if now is None else now) // 60)
        slot = minute % (WINDOW + 1)
        if own["minute"][slot] != minute:
            own["latency"][slot] = 0
            own["minute"][slot] = minute
        own["latency"][slot, row, bucket_of(seconds)] += 1

    def _all(self) -> list[NDArray[np.void]]:
        if self._folder is None:
            return [self._own]
        files = [p for p in self._folder.glob("*.counts") if p.stat().st_size]
        return [np.fromfile(path, self._layout, 1) for path in files]

    def text(self, gauges: Sequence[Gauge] = (), now: float | None = None) -> str:
        """Return all counts in Prometheus' text format.

        Args:
            gauges: Further numbers.
            now: The time since 1970.
        """
        workers = self._all()
        minute = int((time.time() if now is None else now) // 60)
        requests = sum(worker[0]["requests"] for worker in workers)
        seconds = sum(worker[0]["seconds"] for worker in workers)
        latency = np.zeros((len(self.routes), BUCKETS), np.int64)
        for worker in workers:
            recent = worker[0]["minute"] >= minute - WINDOW
            latency += worker[0]["latency"][recent].sum(0)
        lines = _head("newsrec_requests_total", "counter", "Requests answered since the start.")
        names = [f'method="{method}",route="{path}"' for method, path in self.routes]
        for name, counts in zip(names, requests, strict=True):
            for status, count in zip(CLASSES, counts, strict=True):
                lines.append(f'newsrec_requests_total{{{name},status="{status}"}} {count}')
        about = f"Latency: quantiles of the last {WINDOW} minutes; sum and count since the start."
        lines += _head("newsrec_request_seconds", "summary", about)
        for row, name in enumerate(names):
            for quantile in QUANTILES:
                value = quantile_of(latency[row], quantile)
                lines.append(f'newsrec_request_seconds{{{name},quantile="{quantile}"}} {value:.4g}')
            lines.append(f"newsrec_request_seconds_sum{{{name}}} {seconds[row]:.6f}")
            lines.append(f"newsrec_request_seconds_count{{{name}}} {requests[row].sum()}")
        for name, about, value in gauges:
            lines += [*_head(name, "gauge", about), f"{name} {value:g}"]
        return "\n".join([*lines, ""])


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]


def bucket_of(seconds: float) -> int:
    """Return the number of the bucket whose upper bound is the first that is not smaller."""
    if seconds <= FASTEST:
        return 0
    return min(int(np.ceil(np.log2(seconds / FASTEST) * PER_DOUBLING)), BUCKETS - 1)


def quantile_of(counts: NDArray[np.int64], quantile: float) -> float:
    """Return a quantile of latencies in seconds from the counts of the buckets; NaN without any."""
    total = counts.sum()
    if not total:
        return float("nan")
    bucket = int(np.searchsorted(np.cumsum(counts), quantile * total))
    middle: float = FASTEST * 2 ** ((bucket - 0.5) / PER_DOUBLING)
    return middle

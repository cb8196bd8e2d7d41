"""Templates of the page and its small pictures, which use the page's colours (``var(--ink)``).

Pictures are 360 units wide, the width of a phone, so their text is readable there and no smaller
than the page's text on a desktop.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from newsrec.console import printable

WIDTH = 360
ROW = 22
LEFT, RIGHT = 138, 306
"""Where the axis of the dots begins and ends; labels are left of it, numbers right of it."""
LABEL_LETTERS = 21
FAR = 0.12
"""Furthest that the axis reaches beyond the dots; longer intervals are cut off there."""
MAX_POINTS = 240
"""Most points of a line; more would not be visible."""
TALL = 150


def _without_controls(value: object) -> object:
    return value if isinstance(value, Markup) else printable(str(value), lines=True)


def _interval(bounds: Sequence[float], form: str = "{:.4f} to {:.4f}") -> str:
    return form.format(*bounds)


TEMPLATES = Environment(
    loader=PackageLoader("newsrec.report", ""),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_without_controls,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "px": "{:.1f}".format,
    "num": "{:.4f}".format,
    "signed": "{:+.4f}".format,
    "count": "{:,}".format,
    "interval": _interval,
    "capital": lambda text: text[:1].upper() + text[1:],
}


def render(template: str, **values: Any) -> Markup:
    """Return a template filled with values, which are escaped and lose control characters."""
    return Markup(TEMPLATES.get_template(template).render(values))


class Dot(NamedTuple):
    """A number with its interval."""

    label: str
    value: float
    interval: Sequence[float] | None = None
    kind: str = ""
    """``strong`` for the one to compare the others with, ``faint`` for an unreliable one."""


def dots(rows: Sequence[Dot], about: str, reference: float | None = None) -> Markup:
    """Return a picture with a row for each number: label, dot, interval and the number itself.

    ``about`` is for screen readers; a dashed vertical line marks ``reference``.
    """
    low, high = _range(rows, reference)

    def at(value: float) -> float:
        return LEFT + (min(max(value, low), high) - low) / (high - low) * (RIGHT - LEFT)

    return render(
        "dots.svg.j2",
        **{"rows": rows, "about": about, "reference": reference, "low": low, "high": high},
        **{"at": at, "ticks": _ticks(low, high), "width": WIDTH, "letters": LABEL_LETTERS},
        **{"row_height": ROW, "bottom": ROW * len(rows) + 8},
    )


def line(x: NDArray[np.float64], y: NDArray[np.float64], about: str, x_name: str) -> Markup:
    """Return a picture of a curve; its axes span the values, and the ends of ``x`` are labelled.

    ``x`` rises ``[points]``; ``about`` is for screen readers.
    """
    if len(x) > MAX_POINTS:
        edges = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)
        x, y = (np.array([v[a:b].mean() for a, b in itertools.pairwise(edges)]) for v in (x, y))
    left, right, top = 46, WIDTH - 14, 8
    low, high = float(y.min()), float(y.max())
    margin = (high - low) * 0.06 or max(abs(high) * 0.05, 1e-6)
    low, high = low - margin, high + margin
    across = (x - x.min()) / (np.ptp(x) or 1) * (right - left) + left
    ticks = np.array(_ticks(low, high))
    down, at = (TALL - (v - low) / (high - low) * (TALL - top) for v in (y, ticks))
    return render(
        "line.svg.j2",
        **{"about": about, "left": left, "right": right, "width": WIDTH, "tall": TALL},
        **{"points": list(zip(across, down, strict=True)), "x_name": x_name},
        **{"ticks": list(zip(ticks, at, strict=True))},
        **{"first": _end(x.min(), np.ptp(x)), "last": _end(x.max(), np.ptp(x))},
    )


def _end(value: float, size: float) -> str:
    """Format an end of an axis of a size: whole numbers on a long axis."""
    return f"{value:,.0f}" if size >= 10 else f"{value:.3g}"


def _range(rows: Sequence[Dot], reference: float | None) -> tuple[float, float]:
    values = [row.value for row in rows] + ([] if reference is None else [reference])
    sure = [row.interval for row in rows if row.interval and row.kind != "faint"]
    ends = [end for interval in sure for end in interval] + values
    low = max(min(ends), min(values) - FAR)
    high = min(max(ends), max(values) + FAR)
    margin = (high - low) * 0.05 or 0.01
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers between two."""
    step = 10 ** np.floor(np.log10((high - low) / 2))
    while (high - low) / step > 4.5:
        step *= 2 if round(float(step / 10 ** np.floor(np.log10(step)))) != 2 else 2.5
    first = np.ceil(low / step)
    # + 0.0 turns -0.0, which would be written "-0", into 0.0.
    return [float(step * i) + 0.0 for i in np.arange(first, np.floor(high / step) + 1)]

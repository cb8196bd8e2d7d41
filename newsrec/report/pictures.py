"""Templates of the page, and its small pictures, whose colours are the page's (``var(--ink)``).

Pictures are drawn 360 units wide, a phone's width, so that their letters are readable there and no
smaller than the page's on a desk.
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
"""Where the dots' axis begins and ends: labels stand before it, numbers behind it."""
LABEL_LETTERS = 21
FAR = 0.12
"""An interval that reaches further than this from all dots is cut at the edge of the picture."""
MAX_POINTS = 240
"""Of a line, more would not be seen."""
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
    """Return a template with its values, which are escaped and freed of control characters."""
    return Markup(TEMPLATES.get_template(template).render(values))


class Dot(NamedTuple):
    """A number with its interval."""

    label: str
    value: float
    interval: Sequence[float] | None = None
    kind: str = ""
    """``strong``: the one that the others are held against; ``faint``: of little weight."""


def dots(rows: Sequence[Dot], about: str, reference: float | None = None) -> Markup:
    """Return a picture with a line for each number: its label, a dot, its interval, the number.

    Args:
        rows: From top to bottom.
        about: What it shows, for those who do not see it.
        reference: Where a dashed line runs from top to bottom.
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
    """Return a picture of a line, its axes from the least to the most, the ends of ``x`` written.

    Args:
        x: Rising ``[points]``.
        y: ``[points]``.
        about: What it shows, for those who do not see it.
        x_name: What ``x`` counts.
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
        **{"first": f"{x.min():,.0f}", "last": f"{x.max():,.0f}"},
    )


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
    # Plus zero, for there is a negative one, which would be written "-0".
    return [float(step * i) + 0.0 for i in np.arange(first, np.floor(high / step) + 1)]

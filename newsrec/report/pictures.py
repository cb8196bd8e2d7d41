"""Small pictures as SVG text, for a page whose colours they take (``var(--ink)`` and so on).

They are drawn 360 units wide, a phone's width, so that their letters are readable there and no
smaller than the page's on a desk.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.console import html_text

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


class Dot(NamedTuple):
    """A number with its interval."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    kind: str = ""
    """``strong``: the one that the others are held against; ``faint``: of little weight."""


def dots(rows: Sequence[Dot], about: str, reference: float | None = None) -> str:
    """Return a picture with a line for each number: its label, a dot, its interval, the number.

    Args:
        rows: From top to bottom.
        about: What it shows, for those who do not see it.
        reference: Where a dashed line runs from top to bottom.
    """
    low, high = _range(rows, reference)

    def at(value: float) -> float:
        return LEFT + (min(max(value, low), high) - low) / (high - low) * (RIGHT - LEFT)

    bottom = ROW * len(rows) + 8
    parts = [_axis(tick, at(tick), bottom) for tick in _ticks(low, high)]
    if reference is not None:
        x = at(reference)
        parts.append(f'<line class="ref" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{bottom}"/>')
    for number, row in enumerate(rows):
        y = ROW * number + ROW / 2 + 4
        kind = f' class="{row.kind}"' if row.kind else ""
        parts.append(f"<g{kind}>{_text(0, y + 4, _short(row.label), 'start', row.label)}")
        if row.interval is not None:
            parts.append(_whisker(row.interval, at, low, high, y))
        parts.append(f'<circle class="dot" cx="{at(row.value):.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(_text(WIDTH - 2, y + 4, f"{row.value:.4f}", "end", kind="num") + "</g>")
    return _svg(bottom + 18, about, parts)


def line(x: NDArray[np.float64], y: NDArray[np.float64], about: str, x_name: str) -> str:
    """Return a picture of a line, its axes from the least to the most, the ends of ``y`` written.

    Args:
        x: Rising ``[points]``.
        y: ``[points]``.
        about: What it shows, for those who do not see it.
        x_name: What ``x`` counts.
    """
    if len(x) > MAX_POINTS:
        edges = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)
        x = np.array([x[a:b].mean() for a, b in itertools.pairwise(edges)])
        y = np.array([y[a:b].mean() for a, b in itertools.pairwise(edges)])
    left, right, top = 46, WIDTH - 14, 8
    low, high = float(y.min()), float(y.max())
    margin = (high - low) * 0.06 or max(abs(high) * 0.05, 1e-6)
    low, high = low - margin, high + margin
    x_low, x_high = float(x.min()), float(x.max())
    across = (x - x_low) / ((x_high - x_low) or 1) * (right - left) + left
    down = TALL - (y - low) / (high - low) * (TALL - top)
    parts = []
    for tick in _ticks(low, high):
        at = TALL - (tick - low) / (high - low) * (TALL - top)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(left - 6, at + 4, f"{tick:.4g}", "end", kind="num"))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    parts.append(f'<polyline class="line" points="{points}"/>')
    if len(x) <= 12:
        parts += [
            f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="3"/>'
            for a, b in zip(across, down, strict=True)
        ]
    parts.append(_text(left, TALL + 16, f"{x_low:,.0f}", "start", kind="tick"))
    parts.append(_text((left + right) / 2, TALL + 16, x_name, "middle", kind="tick"))
    parts.append(_text(right, TALL + 16, f"{x_high:,.0f}", "end", kind="tick"))
    return _svg(TALL + 22, about, parts)


def _range(rows: Sequence[Dot], reference: float | None) -> tuple[float, float]:
    values = [row.value for row in rows] + ([] if reference is None else [reference])
    sure = [row.interval for row in rows if row.interval and row.kind != "faint"]
    ends = [end for interval in sure for end in interval] + values
    low = max(min(ends), min(values) - FAR)
    high = min(max(ends), max(values) + FAR)
    margin = (high - low) * 0.05 or 0.01
    return low - margin, high + margin


def _whisker(
    interval: tuple[float, float],
    at: Callable[[float], float],
    low: float,
    high: float,
    y: float,
) -> str:
    parts = [
        f'<line class="whisker" x1="{at(interval[0]):.1f}" x2="{at(interval[1]):.1f}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>'
    ]
    for end in interval:
        if low <= end <= high:  # one that is cut off has no cap
            x = f"{at(end):.1f}"
            parts.append(
                f'<line class="whisker" x1="{x}" x2="{x}" y1="{y - 4:.1f}" y2="{y + 4:.1f}"/>'
            )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers between two."""
    step = 10 ** np.floor(np.log10((high - low) / 2))
    while (high - low) / step > 4.5:
        step *= 2 if round(float(step / 10 ** np.floor(np.log10(step)))) != 2 else 2.5
    first = np.ceil(low / step)
    return [float(step * i) for i in np.arange(first, np.floor(high / step) + 1)]


def _axis(tick: float, x: float, bottom: float) -> str:
    grid = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{bottom}"/>'
    return grid + _text(x, bottom + 14, f"{tick:.4g}", "middle", kind="tick")


def _text(
    x: float, y: float, text: str, anchor: str, hover: str | None = None, kind: str = "label"
) -> str:
    title = f"<title>{html_text(hover)}</title>" if hover not in (None, text) else ""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{title}{html_text(text)}</text>"
    )


def _short(text: str) -> str:
    return text if len(text) <= LABEL_LETTERS else text[: LABEL_LETTERS - 1].rstrip() + "…"


def _svg(height: float, about: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html_text(about)}">'
        f"{''.join(parts)}</svg>"
    )

"""Templates of the pages and their small pictures, which use the page's colours (``var(--ink)``).

Dots and whiskers are drawn in a cell of a table, whatever its width: places along an axis are
percentages. Lines are 360 units wide, the width of a phone, so their text is readable there.
"""

import base64
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from newsrec.console import counted, printable

WIDTH = 360
LONG_TEXT = 300
"""Longest text, in letters, that has no box of its own."""
MAX_POINTS = 240
"""Most points of a line; more would not be visible."""
TALL = 150
MARGIN = 0.05
"""Room at both ends of an axis, as a share of what it covers."""
NEAR_END = 0.04
"""Share of an axis that half a number may need."""
NONE = "–"  # noqa: RUF001
"""Shown in place of a number that is not known."""


def _without_controls(value: object) -> object:
    return value if isinstance(value, Markup) else printable(str(value), lines=True)


def _number(value: float | None, form: str = "{:.4f}") -> str:
    return NONE if value is None or not math.isfinite(value) else form.format(value)


def _interval(bounds: Sequence[float] | None, form: str = "{:.4f} to {:.4f}") -> str:
    return NONE if bounds is None or not all(map(math.isfinite, bounds)) else form.format(*bounds)


def _long(text: str) -> str | Markup:
    """Put a text that would fill the page into a box that scrolls."""
    if len(text) <= LONG_TEXT:
        return text
    box = Markup('<span class="long" tabindex="0">{}</span>')
    return box.format(printable(text, lines=True))


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
    "num": _number,
    "signed": lambda value: _number(value, "{:+.4f}"),
    "count": "{:,}".format,
    "counted": counted,
    "long": _long,
    "interval": _interval,
    "capital": lambda text: text[:1].upper() + text[1:],
}


def render(template: str, **values: Any) -> Markup:
    """Return a template filled with values, which are escaped and lose control characters."""
    return Markup(TEMPLATES.get_template(template).render(values))


def render_page(template: str, **values: Any) -> Markup:
    """Return a page that holds its style and script, and allows nothing else.

    The policy in its head names their hashes, so a browser runs no other script, applies no other
    style and asks no network, whatever text the page quotes.
    """
    assert TEMPLATES.loader is not None
    inside = {
        kind: TEMPLATES.loader.get_source(TEMPLATES, name)[0]
        for kind, name in (("style", "page.css"), ("script", "page.js"))
    }
    hashes = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in inside.items()
    }
    allowed = "".join(f"; {kind}-src 'sha256-{digest}'" for kind, digest in hashes.items())
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'{allowed}"
    texts = {kind: Markup(text) for kind, text in inside.items()}
    return render(template, **texts, policy=Markup(policy), **values)


class Axis(NamedTuple):
    """A range of numbers that rows of dots share."""

    low: float
    high: float
    name: str
    """Id of the axis on its page."""

    @classmethod
    def of(cls, values: Iterable[float | None], name: str) -> "Axis":
        """Return an axis that covers all of the values; None and NaN are no values."""
        known = [value for value in values if value is not None and math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        margin = (high - low) * MARGIN or 0.01 * max(1.0, abs(high))
        return cls(low - margin, high + margin, name)

    @classmethod
    def across(cls, dots: "Iterable[Dot]", name: str) -> "Axis":
        """Return an axis that covers dots with their intervals and marks."""
        return cls.of((end for dot in dots for end in dot.ends), name)

    def at(self, value: float) -> str:
        """Return the place of a number on the axis, such as ``12.50%``."""
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"

    def anchor(self, value: float) -> str:
        """Return which part of a number's text is at its place: no text leaves the picture."""
        place = (value - self.low) / (self.high - self.low)
        return "start" if place < NEAR_END else "end" if place > 1 - NEAR_END else "middle"

    @property
    def ticks(self) -> list[float]:
        """Some round numbers on the axis."""
        return _ticks(self.low, self.high)


class Mark(NamedTuple):
    """A number to see beside a dot."""

    label: str
    value: float
    kind: str = "other"
    """``other``, ``best`` (baseline), ``unseen`` or ``ceiling``."""
    interval: Sequence[float] | None = None
    """Only said, not drawn."""


class Dot(NamedTuple):
    """A number with its interval, a row of a picture."""

    label: str
    value: float
    interval: Sequence[float] | None = None
    kind: str = ""
    """``strong`` for the one to compare the others with, ``faint`` for an unreliable one."""
    marks: Sequence[Mark] = ()
    reference: float | None = None
    """Where a dashed line is drawn."""
    wider: Sequence[float] | None = None
    """An interval that covers more, drawn as a thin line."""

    @property
    def ends(self) -> list[float]:
        """All numbers that the row's axis must cover."""
        known = [
            self.value,
            *(self.interval or ()),
            *(self.wider or ()),
            *(mark.value for mark in self.marks),
        ]
        return known if self.reference is None else [*known, self.reference]


class Bar(NamedTuple):
    """A part of a score, drawn after earlier parts of the same sign; places are percentages."""

    value: float
    name: str
    left: str
    width: str


def bars(parts: Sequence[tuple[float, str]], axis: Axis) -> list[Bar]:
    """Return the bars of numbers that add up to a score, negative ones left of 0."""
    ends, found = [0.0, 0.0], []
    for value, name in parts:
        side = int(value > 0)
        start, ends[side] = ends[side], ends[side] + value
        width = 100 * abs(value) / (axis.high - axis.low)
        found.append(Bar(value, name, axis.at(min(start, ends[side])), f"{width:.2f}%"))
    return found


def bar_axis(all_parts: Iterable[Sequence[tuple[float, str]]]) -> Axis:
    """Return the axis of the bars of several scores; it covers the bars and 0, and no more."""
    sums = [
        sum(value for value, _ in parts if (value > 0) == above)
        for parts in all_parts
        for above in (False, True)
    ]
    return Axis(min([0.0, *sums]), max([0.0, *sums]) or 1.0, "")


def line(x: NDArray[np.float64], y: NDArray[np.float64], about: str, x_name: str) -> Markup:
    """Return a picture of a curve; ``lines`` says what it looks like."""
    return lines({"": (x, y)}, about, x_name)


def lines(
    series: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], about: str, x_name: str
) -> Markup:
    """Return a picture of curves with one pair of axes, which span the values.

    ``series`` has the points of each curve by its name, ``x`` rising ``[points]``; a curve's name
    stands at its end. The ends of ``x`` are labelled; ``about`` is for screen readers.
    """
    series = {name: thinned(x, y) for name, (x, y) in series.items()}
    return _picture(series, about, x_name)


def paths(
    series: Mapping[str, Sequence[tuple[float, float]]],
    hints: Sequence[Sequence[str]],
    about: str,
    x_name: str,
) -> Markup:
    """Return a picture of paths from one common point, which is a ring; each point has a dot.

    ``series`` has the points of each path by its name, in order; a name is not shown. ``hints``
    says what each point is.
    """
    arrays = {name: tuple(np.array(points).T) for name, points in series.items()}
    return _picture(arrays, about, x_name, hints)


def _picture(
    series: Mapping[str, tuple[NDArray[np.float64], ...]],
    about: str,
    x_name: str,
    hints: Sequence[Sequence[str]] = (),
) -> Markup:
    named = list(series) != [""] and not hints
    left, right, top = 46, WIDTH - (72 if named else 14), 8
    every_x, every_y = (np.concatenate(each) for each in zip(*series.values(), strict=True))
    low, high = float(every_y.min()), float(every_y.max())
    margin = (high - low) * 0.06 or max(abs(high) * 0.05, 1e-6)
    low, high = low - margin, high + margin
    ticks = np.array(_ticks(low, high))

    def down(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return TALL - (values - low) / (high - low) * (TALL - top)

    curves = [
        list(zip((x - every_x.min()) / (np.ptp(every_x) or 1) * (right - left) + left, down(y)))  # noqa: B905
        for x, y in series.values()
    ]
    return render(
        "line.svg.j2",
        **{"about": about, "left": left, "right": right, "width": WIDTH, "tall": TALL},
        **{"curves": curves, "labels": _apart(series, curves) if named else []},
        **{"x_name": x_name, "hints": hints, "ticks": list(zip(ticks, down(ticks), strict=True))},
        **{"first": _end(every_x.min()), "last": _end(every_x.max())},
    )


def _end(value: float) -> str:
    """Format an end of an axis, short enough to stand beside the name of the axis."""
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 0
    return f"{round(value, digits):.8g}"


def thinned(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return at most ``MAX_POINTS`` points of a curve, each the mean of neighbours."""
    if len(x) <= MAX_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)
    x, y = (np.array([v[a:b].mean() for a, b in itertools.pairwise(edges)]) for v in (x, y))
    return x, y


def _apart(
    names: Iterable[str], curves: Sequence[Sequence[tuple[float, float]]]
) -> list[tuple[str, float, int]]:
    """Return name, height and number of each curve, names far enough apart to be read."""
    ends = sorted((curve[-1][1], number, name) for number, (name, curve) in
                  enumerate(zip(names, curves, strict=True)) if name)  # fmt: skip
    labels, above = [], -math.inf
    for y, number, name in ends:
        above = max(y, above + 13)
        labels.append((name, above, number))
    return labels


def _ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers between two."""
    step = 10 ** np.floor(np.log10((high - low) / 2))
    while (high - low) / step > 5.5:  # so that there are two at least
        step *= 2 if round(float(step / 10 ** np.floor(np.log10(step)))) != 2 else 2.5
    first = np.ceil(low / step)
    # + 0.0 turns -0.0, which would be written "-0", into 0.0.
    return [float(step * i) + 0.0 for i in np.arange(first, np.floor(high / step) + 1)]


TEMPLATES.globals |= {"bars": bars, "bar_axis": bar_axis}

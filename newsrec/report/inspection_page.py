"""The pictures of ``inspect``: activity by hour, histories, lives of news, clicks by position."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData, Split
from newsrec.data.ragged import to_offsets
from newsrec.errors import UserError
from newsrec.files import publish, require_empty, require_writable, write_bytes
from newsrec.report.data_folder import table_of
from newsrec.report.pictures import render

PICTURE, PAGE = "inspect.png", "inspect.html"
KINDS = (".png", ".html")
POSITIONS = 20
"""Number of positions that are drawn, from the first on."""
BLOCK = 1 << 18
"""Impressions read at once, to bound memory."""
HISTORY_LENGTHS = np.array([0, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 400])
"""For each of these lengths, the impressions with at most so long a history are counted."""


def require_output(output: Path) -> None:
    """Refuse an ``--output`` that cannot be written, before any work is done."""
    if output.suffix in KINDS:
        if output.is_dir():
            raise UserError(f"--output {output} is a folder. Choose another name.")
        require_writable(output.parent)
    elif output.suffix:
        raise UserError(f"--output {output}: name a .png, a .html or a folder for both.")
    else:
        require_empty(output)


def write_page(data: NewsData, lines: Sequence[str], output: Path) -> None:
    """Write the picture, the page with it, or a folder with both.

    Args:
        data: The data folder.
        lines: Sentences above the picture.
        output: A name that ``require_output`` accepts.
    """
    picture = draw(data)
    if output.suffix == ".png":
        write_bytes(output, picture)
        return
    page = render(
        "inspection.html.j2",
        **{"root": str(data.root), "lines": lines, "splits": list(data.splits)},
        **{"rows": table_of(data), "picture": base64.b64encode(picture).decode()},
    ).encode()
    if output.suffix == ".html":
        write_bytes(output, page)
        return

    def build(folder: Path) -> None:
        (folder / PICTURE).write_bytes(picture)
        (folder / PAGE).write_bytes(page)

    publish(output, build)


def by_hour(split: Split) -> NDArray[np.float64]:
    """Return the share of impressions in each hour of the day ``[24]``."""
    time = np.asarray(split.time)
    hour = (time - time.astype("datetime64[D]")).astype(np.int64) // 3600
    share: NDArray[np.float64] = np.bincount(hour, minlength=24) / len(hour)
    return share


def history_shares(split: Split) -> NDArray[np.float64]:
    """Return the share of impressions with histories up to each of ``HISTORY_LENGTHS``."""
    lengths = np.sort(split.histories.lengths[np.asarray(split.history)])
    share: NDArray[np.float64] = np.searchsorted(lengths, HISTORY_LENGTHS, "right") / len(lengths)
    return share


def lives(data: NewsData) -> NDArray[np.float64]:
    """Return the days from first to last impression of each news item shown ``[shown news]``."""
    first = np.full(data.num_news, np.iinfo(np.int64).max)
    last = np.full(data.num_news, np.iinfo(np.int64).min)
    for split in data.splits.values():
        time = np.asarray(split.time).astype(np.int64)
        for begin in range(0, len(time), BLOCK):
            end = min(begin + BLOCK, len(time))
            part = split.candidates.between(begin, end)
            shown = np.repeat(time[begin:end], part.lengths)
            np.minimum.at(first, part.values, shown)
            np.maximum.at(last, part.values, shown)
    seen = last[FIRST_NEWS:] >= first[FIRST_NEWS:]
    days: NDArray[np.float64] = (last - first)[FIRST_NEWS:][seen] / 86400
    return days


def clicks_by_position(split: Split, most: int = POSITIONS) -> NDArray[np.float64]:
    """Return the clicks at each of the first positions, divided by those expected by chance.

    By chance, each candidate of an impression gets the same part of the impression's clicks. A
    value of 1 at all positions means that clicks do not depend on the position. The plain share of
    clicked candidates would fall with the position even then, since impressions with few candidates
    have more clicks per candidate. The value is NaN if no impression with a click has so many
    candidates ``[most]``.
    """
    assert split.labels is not None
    clicked, chance = np.zeros(most), np.zeros(most)
    for begin in range(0, len(split.history), BLOCK):
        part = split.candidates.between(begin, min(begin + BLOCK, len(split.history)))
        start = int(split.candidates.offsets[begin])
        labels = np.asarray(split.labels[start : start + len(part.values)])
        clicks = np.diff(to_offsets(labels)[part.offsets])
        place = np.arange(len(part.values)) - np.repeat(part.offsets[:-1], part.lengths)
        inside = place < most
        for total, weight in (
            (clicked, labels),
            (chance, np.repeat(clicks / part.lengths, part.lengths)),
        ):
            total += np.bincount(place[inside], weights=weight[inside], minlength=most)
    with np.errstate(invalid="ignore"):
        rate: NDArray[np.float64] = clicked / chance
    return rate


def draw(data: NewsData) -> bytes:
    """Return the picture of a data folder as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (hours, lengths), (ages, places) = figure.subplots(2, 2)
    for name, split in data.splits.items():
        hours.plot(np.arange(24), 100 * by_hour(split), marker=".", label=name)
        lengths.plot(100 * history_shares(split), marker=".", label=name)
        if split.labels is not None:
            rates = clicks_by_position(split)
            places.plot(np.arange(1, POSITIONS + 1), rates, marker=".", label=name)
    life = lives(data)
    ages.hist(life, bins=min(60, max(10, int(life.max(initial=0)) * 4)), color="tab:blue")
    if len(life):
        middle = float(np.median(life))
        label = f"median {middle:.1f} days"
        ages.axvline(middle, color="tab:orange", linestyle="--", label=label)
    ticks = list(map(str, HISTORY_LENGTHS))
    lengths.set_xticks(range(len(ticks)), ticks)
    places.axhline(1, color="grey", linestyle="--")
    hours.set_xticks(range(0, 24, 3))
    places.set_xticks([1, 5, 10, 15, 20])
    titles: list[tuple[Any, str, str, str]] = [
        (hours, "Activity by hour", "hour of the day", "% of impressions"),
        (lengths, "Lengths of histories", "at most this many clicks", "% of impressions"),
        (ages, "Lives of news", "days from first to last shown", "news items"),
        (places, "Clicks by position", "position in the list", "clicks, relative to chance"),
    ]
    for axes, title, x, y in titles:
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()

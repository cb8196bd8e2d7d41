"""Writes a simulated world with a known answer, in MIND's format or as Parquet.

``world.py`` describes how its users click. ``world.json`` has the ceiling: the metrics that the
true utilities reach. If a model is below the ceiling, the cause is the model, not the data. The
files have the same difficulties as MIND's: empty histories, missing abstracts, repeated or quoted
titles, and impressions with news that are in no ``news.tsv``. They contain no row of MIND.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from numpy.typing import NDArray

from newsrec.data.dataset import SPLITS
from newsrec.data.ragged import Ragged
from newsrec.data.readers.behaviors import TIME_FORMAT
from newsrec.data.readers.mind_files import find_splits
from newsrec.data.readers.to_parquet import write_parquet
from newsrec.errors import UserError
from newsrec.files import publish, require_empty
from newsrec.metrics import METRICS, mind_metrics
from newsrec.simulation.headlines import compose
from newsrec.simulation.impressions import Impressions, show
from newsrec.simulation.presets import DAYS, PRESETS, Preset
from newsrec.simulation.vocabulary import STYLES
from newsrec.simulation.world import (
    STYLE_SCALE,
    SimulatedNews,
    append_clicks,
    assign_users,
    make_histories,
    make_news,
    make_tastes,
)

Advance = Callable[[int], None]
"""Called with the amount of work done since the last call."""

FORMATS = ("mind", "parquet")
FIRST_DAY = np.datetime64("2019-11-09T00:00:00", "s")
WRITE_BLOCK = 1 << 14
"""Impressions or histories turned into text at a time, to bound memory."""


def simulate(
    output: Path,
    preset: str = "demo",
    seed: int = 0,
    advance: Advance = lambda done: None,
    file_format: str = "mind",
) -> dict[str, Any]:
    """Write a simulated world as ``{train,dev,test}/{news,behaviors}.tsv`` and ``world.json``.

    Args:
        output: A folder that is absent or empty; it is written completely or not at all.
        preset: Name of the sizes in ``PRESETS``; ``small`` has no test split, like MINDsmall.
        seed: The same seed gives the same bytes.
        advance: Called with the number of impressions just simulated, and again when written.
        file_format: One of ``FORMATS``; ``parquet`` writes ``{news,impressions}.parquet`` instead,
            with the same content.

    Returns:
        Contents of ``world.json``: seed, preset, ceiling of dev and test, sizes, style appeals.

    Raises:
        UserError: If there is no such preset or format, the seed is negative, or ``output`` cannot
            be made.
    """
    if file_format not in FORMATS:
        raise UserError(f"No format {file_format!r}. Choose --format from: {', '.join(FORMATS)}.")
    if preset not in PRESETS:
        raise UserError(f"No preset {preset!r}. Choose --preset from: {', '.join(PRESETS)}.")
    if seed < 0:
        raise UserError(f"Seed {seed} is negative. Give --seed a whole number from 0.")
    output = Path(output)
    require_empty(output)
    world: dict[str, Any] = {
        "world": "Simulated by `python -m newsrec simulate`: invented users, news items and "
        "clicks. The ceiling is what the true utilities reach.",
        "preset": preset,
        "seed": seed,
    }

    def build(folder: Path) -> None:
        _write_world(folder, PRESETS[preset], world, advance)
        if file_format == "parquet":
            _turn_into_parquet(folder)

    publish(output, build)
    if not (output / "world.json").is_file():  # a mount point, for example, cannot be replaced
        raise UserError(f"{output} could not be replaced. Choose a folder inside it as --output.")
    return world


class SimulatedSplit(NamedTuple):
    """One split of a simulated world, before it is written."""

    name: str
    """``train``, ``dev`` or ``test``."""
    shown: Impressions
    """The impressions, in the order of the file."""
    user: NDArray[np.int64]
    """Row of each impression's user in ``histories`` ``[impressions]``."""
    histories: Ragged
    """News that each of the split's users clicked before, oldest first."""
    user_numbers: NDArray[np.int64]
    """The number in each user's id ``[users]``."""
    named: NDArray[np.int64]
    """News in the split's news.tsv, in order of their number: listed news that are shown or in a
    history."""


def simulate_splits(
    rng: np.random.Generator,
    sizes: Preset,
    news: SimulatedNews,
    advance: Advance = lambda done: None,
) -> Iterator[SimulatedSplit]:
    """Yield a world's splits as arrays, in order of time.

    Args:
        rng: Random number generator.
        sizes: The preset.
        news: All news, from ``make_news``.
        advance: Called with the number of impressions just simulated.
    """
    split_users = assign_users(rng, sizes)
    num_users = 1 + max(int(users.max()) for users in split_users)
    tastes = make_tastes(rng, sizes, num_users)
    histories = make_histories(rng, sizes, news, tastes, split_users)
    user_numbers = rng.permutation(num_users) + 1
    for name, here, num_impressions in zip(SPLITS, split_users, sizes.impressions, strict=False):
        shown = show(rng, sizes, news, tastes, here, DAYS[name], num_impressions, advance)
        users = np.unique(shown.user)
        read = histories.take(users)
        is_named = np.zeros(len(news.number), dtype=bool)
        is_named[shown.candidates.values] = True
        is_named[read.values] = True
        named = np.flatnonzero(is_named & news.listed)
        named = named[np.argsort(news.number[named])]
        user = np.searchsorted(users, shown.user)
        yield SimulatedSplit(name, shown, user, read, user_numbers[users], named)
        histories = append_clicks(rng, sizes, histories, *shown.clicks())


def _write_world(folder: Path, sizes: Preset, world: dict[str, Any], advance: Advance) -> None:
    """Write all files, and add the results to ``world``, which is written to ``world.json``."""
    rng = np.random.Generator(np.random.PCG64(world["seed"]))
    news = make_news(rng, sizes)
    # A generator of its own for texts lets arrays be made without texts. data/demo predates this.
    lines = compose(rng.spawn(1)[0] if sizes.like_mind else rng, sizes, news)
    ceiling: dict[str, dict[str, float]] = {}
    counts: dict[str, dict[str, int]] = {}
    for split in simulate_splits(rng, sizes, news, advance):
        name, shown = split.name, split.shown
        (folder / name).mkdir()
        text = "".join(lines[row] for row in split.named)
        (folder / name / "news.tsv").write_text(text, encoding="utf-8", newline="")
        _write_behaviors(folder / name / "behaviors.tsv", split, news.number, advance)
        counts[name] = {
            "impressions": len(shown.user),
            "users": len(split.user_numbers),
            "news": len(split.named),
            "candidates": len(shown.candidates.values),
        }
        if name != "train":
            metrics = mind_metrics(shown.utility, shown.labels, shown.candidates.offsets)
            ceiling[name] = {metric: round(metrics[metric], 6) for metric in METRICS}
    world |= {
        "ceiling": ceiling,
        "splits": counts,
        "style_appeal": {style.name: round(style.appeal * STYLE_SCALE, 3) for style in STYLES},
    }
    text = json.dumps(world, indent=1) + "\n"
    (folder / "world.json").write_text(text, encoding="utf-8", newline="")


def _turn_into_parquet(folder: Path) -> None:
    for files in find_splits(folder).values():
        write_parquet(files, files.news.path.parent)
        for file in files:
            file.path.unlink()


def _write_behaviors(
    path: Path, split: SimulatedSplit, news_numbers: NDArray[np.int64], advance: Advance
) -> None:
    """Write one split's impressions; those of test without labels."""
    ids = _prefixed("N", news_numbers)
    ends = ("", "") if split.name == "test" else ("-0", "-1")
    words = pa.concat_arrays([pc.binary_join_element_wise(ids, end, "") for end in ends])
    # A user's history is the same in all impressions of a split, so make its text once.
    texts = pa.chunked_array(
        [_join(ids, split.histories.take(rows)) for rows in _blocks(split.histories.num_rows)]
    ).combine_chunks()
    user_ids = _prefixed("U", split.user_numbers)
    shown = split.shown
    labels = Ragged(shown.labels, shown.candidates.offsets)
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with path.open("wb") as file:
        for rows in _blocks(len(split.user)):
            user = pa.array(split.user[rows])
            candidates = shown.candidates.take(rows)
            word = candidates.values + len(ids) * labels.take(rows).values
            table = pa.table(
                {
                    "impression_id": pa.array(rows + 1),
                    "user_id": user_ids.take(user),
                    "time": _time_strings(shown.day[rows]),
                    "history": texts.take(user),
                    "candidates": _join(words, Ragged(word, candidates.offsets)),
                }
            )
            csv.write_csv(table, file, options)
            advance(len(rows))


def _blocks(num_rows: int) -> Iterator[NDArray[np.int64]]:
    for begin in range(0, num_rows, WRITE_BLOCK):
        yield np.arange(begin, min(begin + WRITE_BLOCK, num_rows))


def _prefixed(letter: str, numbers: NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise(letter, pc.cast(pa.array(numbers), pa.string()), "")


def _join(words: pa.Array, rows: Ragged) -> pa.Array:
    """Return the words of each row, joined by spaces."""
    offsets = pa.array(rows.offsets.astype(np.int32))
    return pc.binary_join(pa.ListArray.from_arrays(offsets, words.take(pa.array(rows.values))), " ")


def _time_strings(days: NDArray[np.float64]) -> pa.Array:
    """Return times as MIND writes them, without zero padding: ``11/9/2019 9:05:58 AM``."""
    seconds = FIRST_DAY + (days * 86400).astype("timedelta64[s]")
    padded = pc.strftime(pa.array(seconds), format=TIME_FORMAT)
    return pc.replace_substring_regex(padded, r"(^|[/ ])0", r"\1")

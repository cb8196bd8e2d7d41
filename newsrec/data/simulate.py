"""A simulated world with a known answer, written as MIND files.

Readers have tastes. Stories have a topic, a headline style whose appeal can be read in the title,
and an appeal of their own that cannot. A reader looks at fresh stories and clicks the best by

    utility = taste for the topic + appeal of the style + hidden appeal - age + Gumbel noise,

so the noiseless utility is the best scorer there can be. Its metrics, the ceiling, are written to
``world.json``: what a model lacks of them is the model's, not the data's.

Lengths, clicks, empty histories and missing texts follow the statistics of MIND (published ones, and
quantiles measured on MIND-small); no row of MIND is in it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from numpy.typing import NDArray

from newsrec.data.cache import publish
from newsrec.data.mind import SPLITS, TIME_FORMAT
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.vocabulary import (
    ABSTRACTS,
    CATEGORY_SHARES,
    PLACES,
    STYLES,
    TIMES,
    TOPICS,
    Style,
    Topic,
)
from newsrec.errors import UserError

FIRST_DAY = np.datetime64("2019-11-09T00:00:00", "s")
DAYS = {"train": (0, 6), "dev": (6, 7), "test": (7, 14)}
"""MIND's weeks: train on November 9 to 14, dev on the 15th, test on the 16th to 22nd."""

# Share of impressions below a length; between two points the length grows geometrically, which
# meets MIND's means of 32 and 38.
HISTORY_QUANTILES = ((0, 1), (0.18, 5), (0.5, 18), (0.81, 50), (0.9, 76), (0.99, 201), (1, 425))
CANDIDATE_QUANTILES = ((0, 2), (0.05, 2), (0.5, 24), (0.9, 93), (0.99, 160), (1, 283))
CLICK_SHARES = (0.724, 0.165, 0.059, 0.024, 0.006, 0.006, 0.006, 0.005, 0.005)
"""MIND's share of impressions with 1, 2, ... clicks; the last 2.8 % spread over 5 to 9."""
EMPTY_HISTORIES = 0.03
MISSING_ABSTRACTS = 0.05
REPEATED_TITLES = 0.02
WITHDRAWN_STORIES = 0.01
"""Stories that impressions name but no news.tsv has."""

# Calibrated on the demo (see tests/test_simulate.py): similarity of topics alone reaches a dev AUC
# of .60 to .65, the ceiling is near .79, and most of the gap can be learned from titles.
TASTE_SCALE = 1.3
STYLE_SCALE = 1.3
HIDDEN_SCALE = 0.35
DECAY_PER_DAY = 0.25
HISTORY_FOCUS = 2.5
"""How strongly tastes shape histories: topics are drawn by ``exp(focus * taste)``."""

BLOCK = 8192
"""Impressions simulated or written at a time, to bound memory."""


@dataclass(frozen=True)
class Preset:
    """Sizes of a world."""

    impressions: tuple[int, int, int]
    """In train, dev and test."""
    users: tuple[int, int, int]
    """In train, dev and test."""
    shared_users: float
    """Share of the users of dev and test whom an earlier split has too."""
    early_stories: int
    """Stories of the month before, which fill the histories."""
    daily_stories: int
    length_scale: float
    """Histories and candidate lists, relative to MIND's."""


PRESETS = {
    # An eighth of dev's users are in train, as in MIND-small.
    "demo": Preset((2000, 500, 500), (650, 340, 350), 0.12, 300, 50, 0.5),
}


class Stories(NamedTuple):
    """All stories, in the order in which they appeared."""

    topic: NDArray[np.int64]
    """Position in ``TOPICS`` ``[stories]``."""
    style: NDArray[np.int64]
    """Position in ``STYLES`` ``[stories]``."""
    appeal: NDArray[np.float64]
    """Style's and hidden appeal, for all readers alike ``[stories]``."""
    exposure: NDArray[np.float64]
    """How often the site shows it while fresh, relative to the others ``[stories]``."""
    birth: NDArray[np.float64]
    """Days after ``FIRST_DAY`` ``[stories]``."""
    death: NDArray[np.float64]
    """When it is shown no more ``[stories]``."""
    listed: NDArray[np.bool_]
    """False for a story that no news.tsv has ``[stories]``."""
    number: NDArray[np.int64]
    """The number in its id, which tells nothing else ``[stories]``."""


class Impressions(NamedTuple):
    """One split, before it is written."""

    user: NDArray[np.int64]
    """``[impressions]``."""
    day: NDArray[np.float64]
    """Time in days after ``FIRST_DAY`` ``[impressions]``."""
    candidates: Ragged
    """Stories shown."""
    labels: NDArray[np.bool_]
    """``[candidates]``."""
    utility: NDArray[np.float64]
    """Without the noise ``[candidates]``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m newsrec simulate``."""
    parser.add_argument("--output", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--preset", default="demo", help=f"size: {', '.join(PRESETS)}")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")


def run(args: argparse.Namespace) -> None:
    """Simulate a world and print what it holds."""
    world = simulate(args.output, args.preset, args.seed)
    for split, counts in world["splits"].items():
        print(f"{split:5}", "  ".join(f"{count} {name}" for name, count in counts.items()))
    ceilings = "  ".join(f"{split} {m['auc']:.4f}" for split, m in world["ceiling"].items())
    print(f"Ceiling AUC (the true utilities): {ceilings}")
    print(
        f"Next: python -m newsrec fit --config configs/demo.yaml --data.root {args.output}",
    )


def simulate(output: Path, preset: str = "demo", seed: int = 0) -> dict[str, Any]:
    """Write a simulated world as ``{train,dev,test}/{news,behaviors}.tsv`` and ``world.json``.

    Args:
        output: A folder that is absent or empty; it appears whole or not at all.
        preset: Name of its sizes in ``PRESETS``.
        seed: The same seed gives the same bytes.

    Returns:
        What ``world.json`` holds: seed, preset, ceiling of dev and test, sizes, style appeals.

    Raises:
        UserError: If there is no such preset, or ``output`` has files.
    """
    if preset not in PRESETS:
        raise UserError(f"No preset {preset!r}. Choose --preset from: {', '.join(PRESETS)}.")
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            f"{output} has files, which simulate will not overwrite. "
            "Remove it, or choose another --output."
        )
    world: dict[str, Any] = {}
    publish(output, lambda folder: world.update(_write_world(folder, preset, seed)))
    return world


def _write_world(folder: Path, preset: str, seed: int) -> dict[str, Any]:
    from newsrec.metrics import METRICS, mind_metrics  # imports torch, which --help does not need

    sizes = PRESETS[preset]
    rng = np.random.Generator(np.random.PCG64(seed))
    stories = _make_stories(rng, sizes)
    news_rows = _compose(rng, stories)
    split_users, num_users = _assign_users(rng, sizes)
    tastes = _make_tastes(rng, num_users)
    histories = _make_histories(rng, sizes, stories, tastes)
    user_numbers = rng.permutation(num_users) + 1

    ceiling, counts = {}, {}
    for split, users, num_impressions in zip(SPLITS, split_users, sizes.impressions, strict=True):
        shown = _show(rng, sizes, stories, tastes, users, DAYS[split], num_impressions)
        (folder / split).mkdir()
        named = np.unique(
            np.concatenate([shown.candidates.values, histories.take(np.unique(shown.user)).values])
        )
        named = named[stories.listed[named]]
        named = named[np.argsort(stories.number[named])]
        text = "".join(news_rows[story] for story in named)
        (folder / split / "news.tsv").write_text(text, encoding="utf-8", newline="")
        _write_behaviors(
            folder / split / "behaviors.tsv",
            shown,
            histories,
            user_numbers,
            stories.number,
            labelled=split != "test",
        )
        counts[split] = {
            "impressions": num_impressions,
            "users": len(np.unique(shown.user)),
            "stories": len(named),
            "candidates": len(shown.candidates.values),
        }
        if split != "train":
            metrics = mind_metrics(shown.utility, shown.labels, shown.candidates.offsets)
            ceiling[split] = {name: round(metrics[name], 6) for name in METRICS}
        histories = _append_clicks(histories, shown)
    world = {
        "world": "Simulated by `python -m newsrec simulate`: invented readers, stories and clicks. "
        "The ceiling is what the true utilities reach.",
        "preset": preset,
        "seed": seed,
        "ceiling": ceiling,
        "splits": counts,
        "style_appeal": {style.name: style.appeal * STYLE_SCALE for style in STYLES},
    }
    text = json.dumps(world, indent=1) + "\n"
    (folder / "world.json").write_text(text, encoding="utf-8", newline="")
    return world


def _make_stories(rng: np.random.Generator, sizes: Preset) -> Stories:
    first, last = -1, DAYS["test"][1]  # a day of warm-up, so that the first morning has fresh news
    num_late = sizes.daily_stories * (last - first)
    birth = np.sort(
        np.concatenate(
            [rng.uniform(-28, first, sizes.early_stories), rng.uniform(first, last, num_late)]
        )
    )
    num_stories = len(birth)
    # Dealt out rather than drawn, early and late ones apart, so that each topic fills histories.
    topic = np.concatenate(
        [
            _deal(rng, topic_shares(), sizes.early_stories),
            _deal(rng, topic_shares(), num_late),
        ]
    )
    style_shares = np.array([style.share for style in STYLES])
    style = _deal(rng, style_shares / style_shares.sum(), num_stories)
    style_appeal = np.array([style.appeal for style in STYLES])[style]
    appeal = STYLE_SCALE * style_appeal + HIDDEN_SCALE * rng.normal(size=num_stories)
    # 85 % of MIND's stories are shown for less than two days.
    life = np.exp(rng.normal(np.log(1.1), 0.6, num_stories))
    listed = rng.random(num_stories) >= WITHDRAWN_STORIES
    exposure = np.exp(rng.normal(0, 0.8, num_stories)) * np.where(listed, 1, 0.2)
    number = rng.permutation(num_stories) + 1
    return Stories(topic, style, appeal, exposure, birth, birth + life, listed, number)


def topic_shares() -> NDArray[np.float64]:
    """Share of stories in each of ``TOPICS``: its category's, divided evenly."""
    categories = [topic.category for topic in TOPICS]
    shares = np.array([CATEGORY_SHARES[c] / categories.count(c) for c in categories])
    return shares / shares.sum()


def _deal(rng: np.random.Generator, shares: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Return ``size`` positions in random order, each as often as its share, within one."""
    points = (np.arange(size) + 0.5) / size
    dealt = np.searchsorted(np.cumsum(shares), points).clip(max=len(shares) - 1)
    return rng.permutation(dealt)


def _compose(rng: np.random.Generator, stories: Stories) -> list[str]:
    """Return each story's line of news.tsv, whatever split it appears in."""
    phrases = {
        topic: [getattr(topic, n).split(" / ") for n in Topic._fields[2:]] for topic in TOPICS
    }

    def pick(options: Sequence[str]) -> str:
        return options[rng.integers(len(options))]

    def fill(template: str, topic: Topic) -> str:
        who, do, things = (pick(options) for options in phrases[topic])
        text = template.format(
            who=who,
            do=do,
            things=things,
            place=pick(PLACES),
            when=pick(TIMES),
            n=rng.integers(3, 22),
        )
        first = 1 if text[0] == '"' else 0
        return text[:first] + text[first].upper() + text[first + 1 :]

    titles: dict[tuple[Topic, Style], list[str]] = {}
    lines = []
    for number, topic_row, style_row in zip(
        stories.number, stories.topic, stories.style, strict=True
    ):
        topic, style = TOPICS[topic_row], STYLES[style_row]
        earlier = titles.setdefault((topic, style), [])
        again = earlier and rng.random() < REPEATED_TITLES
        title = earlier[-1] if again else fill(pick(style.templates), topic)
        earlier.append(title)
        sentences = [fill(pick(ABSTRACTS), topic) for _ in range(rng.integers(1, 3))]
        abstract = "" if rng.random() < MISSING_ABSTRACTS else " ".join(dict.fromkeys(sentences))
        url = f"https://example.org/N{number}"
        fields = (f"N{number}", topic.category, topic.subcategory, title, abstract, url, "[]", "[]")
        lines.append("\t".join(fields) + "\n")
    return lines


def _assign_users(rng: np.random.Generator, sizes: Preset) -> tuple[list[NDArray[np.int64]], int]:
    """Return the users of each split and how many there are in all."""
    splits: list[NDArray[np.int64]] = []
    known = 0
    for split, num_users in zip(SPLITS, sizes.users, strict=True):
        num_shared = 0 if split == "train" else min(round(sizes.shared_users * num_users), known)
        old = rng.choice(known, num_shared, replace=False) if num_shared else np.empty(0, np.int64)
        new = np.arange(known, known + num_users - num_shared)
        known += len(new)
        splits.append(np.concatenate([old, new]))
    return splits, known


def _make_tastes(rng: np.random.Generator, num_users: int) -> NDArray[np.float32]:
    """Return how much each user likes each topic ``[users, topics]``: near 1 for 2 to 4 of them."""
    categories = [topic.category for topic in TOPICS]
    related = np.array([[0.3 * (a == b) for b in categories] for a in categories])
    # The smallest of exponentials divided by shares are a weighted draw without replacement.
    keys = rng.standard_exponential((num_users, len(TOPICS))) / topic_shares() ** 0.5
    rank = keys.argsort(axis=1).argsort(axis=1)
    strong = rank < rng.integers(2, 5, (num_users, 1))
    tastes = np.where(strong, 1.0, strong @ related)
    tastes += 0.25 * rng.normal(size=tastes.shape)
    return tastes.astype(np.float32)


def _make_histories(
    rng: np.random.Generator, sizes: Preset, stories: Stories, tastes: NDArray[np.float32]
) -> Ragged:
    """Return early stories that each user clicked, oldest first; a few come twice, as in MIND."""
    early = np.flatnonzero(stories.birth < 0)
    by_topic = early[np.argsort(stories.topic[early], kind="stable")]
    weights = np.cumsum(np.exp(stories.appeal[by_topic]))
    ends = np.searchsorted(stories.topic[by_topic], np.arange(len(TOPICS)), side="right")
    bounds = np.concatenate([[0], weights[ends - 1]])

    lengths = _draw_lengths(rng, HISTORY_QUANTILES, len(tastes), sizes.length_scale, 1)
    lengths[rng.random(len(tastes)) < EMPTY_HISTORIES] = 0
    owner = np.repeat(np.arange(len(tastes)), lengths)
    values = np.zeros(len(owner), dtype=np.int64)

    mix = topic_shares() * np.exp(HISTORY_FOCUS * tastes)
    mix = np.cumsum(mix / mix.sum(axis=1, keepdims=True), axis=1)
    redraw = np.arange(len(values))
    for _ in range(4):
        for begin in range(0, len(redraw), 64 * BLOCK):
            slots = redraw[begin : begin + 64 * BLOCK]
            topic = (mix[owner[slots], :-1] < rng.random((len(slots), 1))).sum(axis=1)
            place = bounds[topic] + rng.random(len(slots)) * (bounds[topic + 1] - bounds[topic])
            values[slots] = by_topic[np.searchsorted(weights, place, side="right")]
        key = owner * len(stories.topic) + values
        redraw = np.setdiff1d(np.arange(len(key)), np.unique(key, return_index=True)[1])
    return Ragged(values[np.lexsort((values, owner))], to_offsets(lengths))


def _append_clicks(histories: Ragged, shown: Impressions) -> Ragged:
    """Return histories with the clicks of a split behind them, as the next split has them."""
    clicked = np.flatnonzero(shown.labels)
    impression = shown.candidates.owners()[clicked]
    owner = np.concatenate([histories.owners(), shown.user[impression]])
    values = np.concatenate([histories.values, shown.candidates.values[clicked]])
    time = np.concatenate([np.full(len(histories.values), -1.0), shown.day[impression]])
    order = np.lexsort((time, owner))  # stable: old histories keep their order
    lengths = np.bincount(owner, minlength=histories.num_rows)
    return Ragged(values[order], to_offsets(lengths))


def _show(
    rng: np.random.Generator,
    sizes: Preset,
    stories: Stories,
    tastes: NDArray[np.float32],
    users: NDArray[np.int64],
    days: tuple[int, int],
    num_impressions: int,
) -> Impressions:
    """Show fresh stories to a split's users, and let them click."""
    # Every user comes at least once, if there are impressions enough.
    activity = np.cumsum(np.exp(rng.normal(0, 0.8, len(users))))
    more = rng.random(max(num_impressions - len(users), 0)) * activity[-1]
    user = np.concatenate([users, users[np.searchsorted(activity, more)]])[:num_impressions]
    user = rng.permutation(user)
    hour = rng.triangular(0, 14, 24, num_impressions)
    day = np.sort(rng.integers(days[0], days[1], num_impressions) + hour / 24)
    lengths = _draw_lengths(rng, CANDIDATE_QUANTILES, num_impressions, sizes.length_scale, 2)
    clicks = 1 + np.searchsorted(np.cumsum(CLICK_SHARES[:-1]), rng.random(num_impressions))

    blocks = []
    for begin in range(0, num_impressions, BLOCK):
        part = slice(begin, begin + BLOCK)
        blocks.append(
            _show_block(rng, stories, tastes, user[part], day[part], lengths[part], clicks[part])
        )
    values, labels, utility, lengths = (np.concatenate(arrays) for arrays in zip(*blocks))
    candidates = Ragged(values, to_offsets(lengths))
    # In MIND the order of the file is not that of time either.
    order = rng.permutation(num_impressions)
    labels, utility = (
        Ragged(flat, candidates.offsets).take(order).values for flat in (labels, utility)
    )
    return Impressions(user[order], day[order], candidates.take(order), labels, utility)


def _show_block(
    rng: np.random.Generator,
    stories: Stories,
    tastes: NDArray[np.float32],
    user: NDArray[np.int64],
    day: NDArray[np.float64],
    lengths: NDArray[np.int64],
    clicks: NDArray[np.int64],
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return stories, labels and utilities, flat, and lengths of impressions near in time."""
    pool = np.flatnonzero((stories.birth <= day[-1]) & (stories.death > day[0]))
    age = day[:, None] - stories.birth[pool]  # [impressions, pool]
    fresh = (age >= 0) & (day[:, None] < stories.death[pool])
    # A draw without replacement: the first arrivals of independent exponential clocks.
    arrival = rng.standard_exponential(age.shape) / stories.exposure[pool]
    arrival[~fresh] = np.inf
    lengths = np.minimum(lengths, fresh.sum(axis=1))
    longest = int(lengths.max())
    chosen = np.argpartition(arrival, min(longest, len(pool) - 1), axis=1)[:, :longest]
    chosen = np.take_along_axis(
        chosen, np.take_along_axis(arrival, chosen, axis=1).argsort(axis=1), axis=1
    )
    real = np.arange(longest) < lengths[:, None]  # [impressions, longest]

    story = pool[chosen]
    utility = TASTE_SCALE * tastes[user[:, None], stories.topic[story]] + stories.appeal[story]
    utility -= DECAY_PER_DAY * np.take_along_axis(age, chosen, axis=1)
    noisy = np.where(real, utility + rng.gumbel(size=story.shape), -np.inf)
    rank = (-noisy).argsort(axis=1).argsort(axis=1)
    label = rank < np.minimum(clicks, lengths - 1)[:, None]
    # Shuffle, or the most exposed stories would stand first.
    shuffle = np.where(real, rng.random(story.shape), np.inf).argsort(axis=1)
    shuffled = (np.take_along_axis(a, shuffle, axis=1)[real] for a in (story, label, utility))
    return (*shuffled, lengths)


def _draw_lengths(
    rng: np.random.Generator,
    quantiles: Sequence[tuple[float, int]],
    size: int,
    scale: float,
    least: int,
) -> NDArray[np.int64]:
    shares, lengths = np.array(quantiles).T
    drawn = np.exp(np.interp(rng.random(size), shares, np.log(lengths)))
    return np.maximum(np.rint(scale * drawn), least).astype(np.int64)


def _write_behaviors(
    path: Path,
    shown: Impressions,
    histories: Ragged,
    user_numbers: NDArray[np.int64],
    news_numbers: NDArray[np.int64],
    labelled: bool,
) -> None:
    ids = _prefixed("N", news_numbers)
    ends = ("-0", "-1") if labelled else ("", "")
    words = pa.concat_arrays([pc.binary_join_element_wise(ids, end, "") for end in ends])
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with path.open("wb") as file:
        for begin in range(0, len(shown.user), BLOCK):
            rows = np.arange(begin, min(begin + BLOCK, len(shown.user)))
            user = shown.user[rows]
            table = pa.table(
                {
                    "impression_id": pa.array(rows + 1),
                    "user_id": _prefixed("U", user_numbers[user]),
                    "time": _time_strings(shown.day[rows]),
                    "history": _join(ids, histories.take(user)),
                    "candidates": _join(words, _with_labels(shown, len(ids)).take(rows)),
                }
            )
            csv.write_csv(table, file, options)


def _with_labels(shown: Impressions, num_stories: int) -> Ragged:
    """Candidates as rows of a table that has each story skipped, then each story clicked."""
    return Ragged(shown.candidates.values + num_stories * shown.labels, shown.candidates.offsets)


def _prefixed(letter: str, numbers: NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise(letter, pc.cast(pa.array(numbers), pa.string()), "")


def _join(words: pa.Array, rows: Ragged) -> pa.Array:
    """Return each row's words with a space between."""
    offsets = pa.array(rows.offsets.astype(np.int32))
    return pc.binary_join(pa.ListArray.from_arrays(offsets, words.take(pa.array(rows.values))), " ")


def _time_strings(days: NDArray[np.float64]) -> pa.Array:
    """Return times as MIND writes them, without zero padding: ``11/9/2019 9:05:58 AM``."""
    seconds = FIRST_DAY + (days * 86400).astype("timedelta64[s]")
    padded = pc.strftime(pa.array(seconds), format=TIME_FORMAT)
    return pc.replace_substring_regex(padded, r"(^|[/ ])0", r"\1")

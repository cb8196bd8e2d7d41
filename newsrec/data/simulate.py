"""A simulated world with a known answer, written as MIND files.

``world.py`` says how its readers click. The metrics that the true utilities reach, the ceiling, are
written to ``world.json``: what a model lacks of them is the model's, not the data's. Files are as
awkward as MIND's: histories are empty, abstracts missing, titles repeated or quoted, and some
impressions name stories that no ``news.tsv`` has. No row of MIND is in it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from numpy.typing import NDArray

from newsrec.data.cache import publish, require_empty
from newsrec.data.compile import TIME_FORMAT
from newsrec.data.mind import SPLITS
from newsrec.data.ragged import Ragged
from newsrec.data.vocabulary import ABSTRACTS, PLACES, STYLES, TIMES, TOPICS, Style, Topic
from newsrec.data.world import (
    BLOCK,
    STYLE_SCALE,
    Impressions,
    Preset,
    Stories,
    append_clicks,
    assign_users,
    make_histories,
    make_stories,
    make_tastes,
    show,
)
from newsrec.errors import UserError

FIRST_DAY = np.datetime64("2019-11-09T00:00:00", "s")
DAYS = {"train": (0, 6), "dev": (6, 7), "test": (7, 14)}
"""MIND's weeks: train on November 9 to 14, dev on the 15th, test on the 16th to 22nd."""

MISSING_ABSTRACTS = 0.05
REPEATED_TITLES = 0.02

PRESETS = {
    # An eighth of dev's users are in train, as in MIND-small.
    "demo": Preset((2000, 500, 500), (650, 340, 350), 0.12, 210, 55, 0.5),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m newsrec simulate``."""
    parser.add_argument("--output", required=True, help="folder to write, new or empty")
    parser.add_argument("--preset", default="demo", help=f"size: {', '.join(PRESETS)}")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")


def run(args: argparse.Namespace) -> None:
    """Simulate a world and print what it holds."""
    world = simulate(args.output, args.preset, args.seed)
    for split, counts in world["splits"].items():
        print(f"{split:5}", "  ".join(f"{count} {name}" for name, count in counts.items()))
    ceilings = "  ".join(f"{split} {m['auc']:.4f}" for split, m in world["ceiling"].items())
    print(f"Ceiling AUC (the true utilities): {ceilings}")
    print(f"Next: python -m newsrec fit --config configs/demo.yaml --data.root {args.output}")


def simulate(output: Path, preset: str = "demo", seed: int = 0) -> dict[str, Any]:
    """Write a simulated world as ``{train,dev,test}/{news,behaviors}.tsv`` and ``world.json``.

    Args:
        output: A folder that is absent or empty; it appears whole or not at all.
        preset: Name of its sizes in ``PRESETS``.
        seed: The same seed gives the same bytes.

    Returns:
        What ``world.json`` holds: seed, preset, ceiling of dev and test, sizes, style appeals.

    Raises:
        UserError: If there is no such preset, the seed is negative, or ``output`` cannot be made.
    """
    if preset not in PRESETS:
        raise UserError(f"No preset {preset!r}. Choose --preset from: {', '.join(PRESETS)}.")
    if seed < 0:
        raise UserError(f"Seed {seed} is negative. Give --seed a whole number from 0.")
    output = Path(output)
    require_empty(output)
    world: dict[str, Any] = {}
    publish(output, lambda folder: world.update(_write_world(folder, preset, seed)))
    if not (output / "world.json").is_file():  # a mount point, say, which no rename can replace
        raise UserError(f"{output} could not be replaced. Choose a folder inside it as --output.")
    return world


def _write_world(folder: Path, preset: str, seed: int) -> dict[str, Any]:
    from newsrec.metrics import METRICS, mind_metrics  # imports torch, which --help does not need

    sizes = PRESETS[preset]
    rng = np.random.Generator(np.random.PCG64(seed))
    stories = make_stories(rng, DAYS["test"][1], sizes)
    news_rows = _compose(rng, stories)
    split_users, num_users = assign_users(rng, sizes)
    tastes = make_tastes(rng, num_users)
    histories = make_histories(rng, sizes, stories, tastes)
    user_numbers = rng.permutation(num_users) + 1

    ceiling: dict[str, dict[str, float]] = {}
    counts: dict[str, dict[str, int]] = {}
    for split, users, num_impressions in zip(SPLITS, split_users, sizes.impressions, strict=True):
        shown = show(rng, sizes, stories, tastes, users, DAYS[split], num_impressions)
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
        histories = append_clicks(histories, shown)
    world = {
        "world": "Simulated by `python -m newsrec simulate`: invented readers, stories and clicks. "
        "The ceiling is what the true utilities reach.",
        "preset": preset,
        "seed": seed,
        "ceiling": ceiling,
        "splits": counts,
        "style_appeal": {style.name: round(style.appeal * STYLE_SCALE, 3) for style in STYLES},
    }
    text = json.dumps(world, indent=1) + "\n"
    (folder / "world.json").write_text(text, encoding="utf-8", newline="")
    return world


def _compose(rng: np.random.Generator, stories: Stories) -> list[str]:
    """Return each story's line of news.tsv, whatever split it appears in."""
    phrases = {
        topic: [getattr(topic, n).split(" / ") for n in Topic._fields[2:]] for topic in TOPICS
    }

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    def fill(template: str, topic: Topic) -> str:
        who, do, things = (pick(options) for options in phrases[topic])
        others = pick([option for option in phrases[topic][2] if option != things])
        text = template.format(
            who=who,
            do=do,
            things=things,
            others=others,
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

"""Writes a simulated world with a known answer, in MIND's format, as Parquet, or in EB-NeRD's.

``world.py`` describes how its users click. ``world.json`` has the ceiling: the metrics that the
true utilities reach. If a model is below the ceiling, the cause is the model, not the data. The
files have the same difficulties as MIND's: empty histories, missing abstracts, repeated or quoted
titles, and impressions with news that are in no ``news.tsv``. They contain no row of MIND.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data.dataset import SPLITS
from newsrec.data.ragged import Ragged
from newsrec.data.readers.news_file import read_news
from newsrec.errors import UserError
from newsrec.files import file_hash, publish, require_empty
from newsrec.simulation.dataset_card import write_card
from newsrec.simulation.ebnerd_files import turn_into_ebnerd
from newsrec.simulation.effects import EFFECTS
from newsrec.simulation.files import (
    Advance,
    SimulatedSplit,
    turn_into_parquet,
    write_json,
    write_split,
)
from newsrec.simulation.headlines import compose
from newsrec.simulation.impressions import Impressions, show
from newsrec.simulation.oracles import oracle_aucs
from newsrec.simulation.presets import DAYS, PRESETS, Preset
from newsrec.simulation.tastes import make_generators, make_world, show_splits
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

FORMATS: dict[str, Callable[[Path], None]] = {
    "mind": lambda folder: None,
    "parquet": turn_into_parquet,
    "ebnerd": turn_into_ebnerd,
}
"""For each format, the function that converts the folder with MIND's files."""


def simulate(
    output: str | Path,
    preset: str = "demo",
    seed: int = 0,
    advance: Advance = lambda done: None,
    file_format: str = "mind",
    *,
    titles: str | Path | None = None,
    without: Collection[str] = (),
    on_bad_line: str = "error",
) -> dict[str, Any]:
    """Write a simulated world as ``{train,dev,test}/{news,behaviors}.tsv`` and ``world.json``.

    ``README.md`` is a card, with which ``datasets.load_dataset(output)`` reads the files; a world
    in EB-NeRD's format has none.

    Args:
        output: A folder that is absent or empty; it is written completely or not at all.
        preset: Name of the sizes in ``PRESETS``; ``small`` has no test split, like MINDsmall.
        seed: The same seed gives the same bytes.
        advance: Called with the number of impressions just simulated, and again when written.
        file_format: One of ``FORMATS``: ``parquet`` writes ``{news,impressions}.parquet`` and
            ``ebnerd`` the files of EB-NeRD instead, with the same content.
        titles: A file of news whose texts a world of tastes takes instead of inventing them.
        without: Names of the ``EFFECTS`` that a world of tastes leaves out.
        on_bad_line: What to do with a line of ``titles`` that cannot be read: error or drop.

    Returns:
        Contents of ``world.json``: seed, preset, ceiling of dev and test, sizes, and style appeals
        or, for a world of tastes, the AUC of the oracles.

    Raises:
        UserError: If there is no such preset, format or effect, the seed is negative, ``output``
            cannot be made, or the preset cannot use ``titles`` or their content.
    """
    output, titles = Path(output), None if titles is None else Path(titles)
    sizes = _checked_preset(preset, seed, file_format, titles, without)
    require_empty(output)
    table = None if titles is None else (str(titles), read_news(titles, on_bad_line))
    world: dict[str, Any] = {
        "world": "Simulated by `python -m newsrec simulate`: invented users, news items and "
        "clicks. The ceiling is what the true utilities reach.",
        "preset": preset,
        "seed": seed,
    }
    if sizes.tastes:
        world["without"] = [name for name in EFFECTS if name in without]
        world["titles"] = None if titles is None else file_hash(titles)

    def build(folder: Path) -> None:
        if sizes.tastes:
            _write_tastes(folder, sizes, world, advance, table)
        else:
            _write_world(folder, sizes, world, advance)
        FORMATS[file_format](folder)
        if file_format != "ebnerd":  # `datasets` cannot read EB-NeRD's files as such splits
            unlabelled = [] if sizes.tastes else [n for n in world["splits"] if n == "test"]
            write_card(folder, world, file_format, titles, without, unlabelled)

    publish(output, build)
    if not (output / "world.json").is_file():  # a mount point, for example, cannot be replaced
        raise UserError(f"{output} could not be replaced. Choose a folder inside it as --output.")
    return world


def _checked_preset(
    preset: str, seed: int, file_format: str, titles: Path | None, without: Collection[str]
) -> Preset:
    """Return the preset, after refusing options that cannot work."""
    if file_format not in FORMATS:
        raise UserError(f"No format {file_format!r}. Choose --format from: {', '.join(FORMATS)}.")
    if preset not in PRESETS:
        raise UserError(f"No preset {preset!r}. Choose --preset from: {', '.join(PRESETS)}.")
    if seed < 0:
        raise UserError(f"Seed {seed} is negative. Give --seed a whole number from 0.")
    sizes = PRESETS[preset]
    if not sizes.tastes and (titles is not None or without):
        able = ", ".join(name for name, other in PRESETS.items() if other.tastes)
        option = "--without" if titles is None else "--titles"
        raise UserError(f"Preset {preset!r} cannot use {option}. Choose --preset from: {able}.")
    unknown = [name for name in without if name not in EFFECTS]
    if unknown:
        raise UserError(
            f"No effect {unknown[0]!r}. Choose those of --without from: {', '.join(EFFECTS)}."
        )
    if titles is not None and Path(titles).is_dir():
        raise UserError(f"--titles {titles} is a folder. Name a news.tsv as MIND has them.")
    return sizes


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
        yield _pack(name, shown, histories, user_numbers, news.number, news.listed)
        histories = append_clicks(rng, sizes, histories, *shown.clicks())


def _pack(
    name: str,
    shown: Impressions,
    histories: Ragged,
    user_numbers: NDArray[np.int64],
    news_numbers: NDArray[np.int64],
    listed: NDArray[np.bool_],
) -> SimulatedSplit:
    """Return a split with its own users and news alone, from arrays of all users and news."""
    users = np.unique(shown.user)
    read = histories.take(users)
    is_named = np.zeros(len(news_numbers), dtype=bool)
    is_named[shown.candidates.values] = True
    is_named[read.values] = True
    named = np.flatnonzero(is_named & listed)
    named = named[np.argsort(news_numbers[named])]
    user = np.searchsorted(users, shown.user)
    return SimulatedSplit(name, shown, user, read, user_numbers[users], named)


def _write_world(folder: Path, sizes: Preset, world: dict[str, Any], advance: Advance) -> None:
    """Write all files, and add the results to ``world``, which is written to ``world.json``."""
    rng = np.random.Generator(np.random.PCG64(world["seed"]))
    news = make_news(rng, sizes)
    # A generator of its own for texts lets arrays be made without texts. data/demo predates this.
    lines = compose(rng.spawn(1)[0] if sizes.like_mind else rng, sizes, news)
    world |= {"ceiling": {}, "splits": {}}
    for split in simulate_splits(rng, sizes, news, advance):
        write_split(folder, split, lines, news.number, split.name != "test", world, advance)
    world["style_appeal"] = {s.name: round(s.appeal * STYLE_SCALE, 3) for s in STYLES}
    write_json(folder, world)


def _write_tastes(
    folder: Path,
    sizes: Preset,
    world: dict[str, Any],
    advance: Advance,
    titles: tuple[str, pa.Table] | None,
) -> None:
    """Write all files of a world of tastes, as ``_write_world`` does; all splits have labels."""
    rngs = make_generators(world["seed"])
    made = make_world(rngs, sizes, [e for e in EFFECTS if e not in world["without"]], titles)
    news, lines = made.news, made.news.lines()
    world |= {"ceiling": {}, "oracles": {}, "splits": {}}
    for split in show_splits(rngs, sizes, made, advance):
        packed = _pack(
            split.name, split.shown, split.histories, made.user_numbers, news.number, news.listed
        )
        write_split(folder, packed, lines, news.number, True, world, advance)
        if split.name != "train":
            aucs = oracle_aucs(made, split)
            world["oracles"][split.name] = {name: round(auc, 6) for name, auc in aucs.items()}
    write_json(folder, world)

"""What ``inspect`` says about a data folder: format, oddities, gaps and the next command."""

import shlex
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from newsrec.data.dataset import NewsData
from newsrec.data.readers.formats import reader_of
from newsrec.data.readers.source import SPLITS
from newsrec.data.readers.xmind import LANGUAGES
from newsrec.evaluation.names import data_notes
from newsrec.shipped import data_folder
from newsrec.store_path import address_of

FORMATS = {
    "mind": "MIND's format",
    "parquet": "own data as Parquet",
    "ebnerd": "EB-NeRD",
    "xmind": "xMIND, MIND's impressions with translated news",
}
MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
"""The PLM that is proposed for news that is not in English."""
FOREIGN = 0.01
"""Titles with a higher share of letters outside of ASCII are not taken for English."""
SMALL = 20_000
"""If train has at most this many impressions, the quick preset is proposed."""
LOOKED_AT = 5000
"""Number of titles that are looked at to guess the language."""


def describe(data: NewsData) -> list[str]:
    """Return what to know about a folder besides its counts: format, gaps, language."""
    reader = reader_of(data.root)
    lines = [f"Format: {FORMATS[reader.name]}; {data.cache.name} has the arrays."]
    missing = [name for name in SPLITS if name not in data.splits]
    if missing:
        lines.append(f"Missing: {', '.join(missing)}. {_without(missing)}")
    hidden = [split.name for split in data.splits.values() if split.labels is None]
    if hidden:
        lines.append(f"Without clicks: {', '.join(hidden)}, to be ranked for a leaderboard.")
    for split in data.splits.values():
        lines += data_notes(split.name, split.counts)
    lines.append(_language(data, reader.name))
    return lines


def next_command(data: NewsData) -> str:
    """Return the command to run next for a folder."""
    labelled = [split.name for split in data.splits.values() if split.labels is not None]
    root = shlex.quote(address_of(data.root))
    if "train" not in labelled:
        split, output = (labelled or list(data.splits))[0], "results/recent"
        options = f"--scorer recent --data.root {root} --split {split} --output {output}"
        return f"python -m newsrec evaluate {options}"
    small = data.split("train").counts["impressions"] <= SMALL
    config = "demo" if small else "mind_small_top2"
    plm = f" --model.plm {MULTILINGUAL}" if _is_foreign(data, reader_of(data.root).name) else ""
    val = "" if "dev" in labelled else " --data.val last_day"
    return f"python -m newsrec fit --config configs/{config}.yaml --data.root {root}{plm}{val}"


def _without(missing: list[str]) -> str:
    if "train" in missing:
        return "Without train, only baselines and checkpoints from elsewhere can be evaluated."
    if "dev" in missing:
        return "Without dev, --data.val last_day chooses the checkpoint on the last day of train."
    return "Test is only needed for a submission or a final evaluation."


def _language(data: NewsData, name: str) -> str:
    share = f"{foreign_letters(data.news['title']):.1%} of the letters of titles are not in ASCII"
    told = ", ".join(_languages(data)) if name == "xmind" else ""
    if told.count(",") > 0:
        told += ", each news item in one of them, drawn by its id"
    told = "Danish" if _is_danish(data, name) else told
    said = f"Language: {told}; {share}" if told else f"Language: {share}"
    if not _is_foreign(data, name):
        return f"{said}, as in English, which the default PLM reads."
    return f"{said}. The default PLM reads English: set --model.plm {MULTILINGUAL}."


def _is_foreign(data: NewsData, name: str) -> bool:
    if name == "xmind" or _is_danish(data, name):
        return True
    return foreign_letters(data.news["title"]) > FOREIGN


def _is_danish(data: NewsData, name: str) -> bool:
    """Return whether it is EB-NeRD itself; simulated news is English."""
    return name == "ebnerd" and not (data_folder(data.root) / "world.json").is_file()


def _languages(data: NewsData) -> list[str]:
    """Return the names of the languages of the translations that are read."""
    splits = reader_of(data.root).find_splits(data.root).values()
    parts = (file.path.absolute().parts for files in splits for file in files[2:])
    codes = [code for part in parts for code in map(str.lower, part[-3:]) if code in LANGUAGES]
    return [LANGUAGES[code] for code in dict.fromkeys(codes)]


def foreign_letters(titles: pa.ChunkedArray) -> float:
    """Return the share of letters outside of ASCII."""
    count: Counter[bool] = Counter()
    for title in pc.drop_null(titles.slice(0, LOOKED_AT)).to_pylist():
        count.update(letter.isascii() for letter in title if letter.isalpha())
    return count[False] / max(count.total(), 1)

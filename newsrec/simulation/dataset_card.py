"""The card of a simulated world, which tells ``datasets.load_dataset`` how to read the files."""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from newsrec.data.readers.base import NEWS_TABLE
from newsrec.data.readers.mind_files import BEHAVIORS_COLUMNS, NEWS_COLUMNS

CARD = "README.md"
TEXT, NUMBER, LIST = {"dtype": "string"}, {"dtype": "int64"}, {"list": "string"}
IMPRESSIONS = [
    ("impression_id", NUMBER),
    ("user_id", TEXT),
    ("time", {"dtype": "timestamp[s]"}),
    ("history", LIST),
    ("candidates", LIST),
    ("labels", {"list": "bool"}),
]
NEWS = [(name, TEXT) for name in NEWS_TABLE]
MIND_NEWS = [(name, TEXT) for name in NEWS_COLUMNS]
MIND_IMPRESSIONS = [
    (name, NUMBER if name == "impression_id" else TEXT) for name in BEHAVIORS_COLUMNS
]
READ_TSV = {"sep": "\t", "quoting": 3, "keep_default_na": False}
"""How ``datasets`` reads MIND's files: without header, quotes or missing values."""
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}
SIZES |= {10**7: "1M<n<10M", 10**8: "10M<n<100M"}


def write_card(
    folder: Path,
    world: dict[str, Any],
    file_format: str,
    titles: Path | None,
    without: Collection[str],
    unlabelled: Collection[str],
) -> None:
    """Write ``README.md`` into a world's folder.

    Args:
        folder: The folder, with all other files.
        world: Content of ``world.json``.
        file_format: ``mind`` or ``parquet``.
        titles: File from which the texts are taken, if any.
        without: Effects that the world does not have.
        unlabelled: Splits without labels. As Parquet these lack a column, so they are a
            configuration of their own.
    """
    apart = list(unlabelled) if file_format == "parquet" else []
    configs, infos = [], []
    labelled = [name for name in world["splits"] if name not in apart]
    kinds = {"impressions": labelled, "unlabelled": apart, "news": world["splits"]}
    for name, splits in kinds.items():
        if not splits:
            continue
        counted = "news" if name == "news" else "impressions"
        features, stem = (NEWS, "news") if name == "news" else (IMPRESSIONS, "impressions")
        if name == "unlabelled":
            features = IMPRESSIONS[:-1]
        file, more = f"{stem}.parquet", {}
        if file_format == "mind":
            features, stem = (
                (MIND_NEWS, "news") if name == "news" else (MIND_IMPRESSIONS, "behaviors")
            )
            file, more = f"{stem}.tsv", READ_TSV | {"names": [key for key, _ in features]}
        files = [{"split": split, "path": f"{split}/{file}"} for split in splits]
        default = {"default": True} if name == "impressions" else {}
        configs.append({"config_name": name, "data_files": files, **default, **more})
        counts = [{"name": s, "num_examples": world["splits"][s][counted]} for s in splits]
        listed = [{"name": key, **kind} for key, kind in features]
        infos.append({"config_name": name, "features": listed, "splits": counts})
    shown = sum(split["impressions"] for split in world["splits"].values())
    front = {
        "pretty_name": f"Simulated news clicks, {world['preset']}, seed {world['seed']}",
        "license": "apache-2.0" if titles is None else "other",
        "tags": ["news-recommendation", "synthetic"],
        "size_categories": [next(kind for end, kind in SIZES.items() if shown < end)],
        "configs": configs,
        "dataset_info": infos,
    }
    text = yaml.safe_dump(front, sort_keys=False, width=100)
    text = f"---\n{text}---\n\n{_words(world, file_format, titles, without)}"
    (folder / CARD).write_text(text, encoding="utf-8", newline="")


def _words(
    world: dict[str, Any], file_format: str, titles: Path | None, without: Collection[str]
) -> str:
    command = ["--output", "DIR", "--preset", world["preset"], "--seed", str(world["seed"])]
    command += ["--format", file_format] if file_format != "mind" else []
    command += ["--titles", Path(titles).name] if titles is not None else []
    command += ["--without", *without] if without else []
    counts = [
        f"| {name} | {count['impressions']:,} | {count['users']:,} | {count['news']:,} |"
        for name, count in world["splits"].items()
    ]
    ceilings = ", ".join(f"{m['auc']:.4f} on {name}" for name, m in world["ceiling"].items())
    licence = (
        "Apache-2.0, like newsrec. The files contain no row of MIND."
        if titles is None
        else f"That of {Path(titles).name}, whose titles, categories and abstracts these are. Only "
        "users and clicks are simulated."
    )
    rows = "\n".join(counts)
    return f"""# Simulated news clicks

Users, news and clicks are invented, with a known answer. This command of newsrec made the files:

```sh
python -m newsrec simulate {shlex.join(command)}
```

| split | impressions | users | news |
|---|---|---|---|
{rows}

The true utilities, from which the clicks were drawn, reach an AUC of
{ceilings}. `world.json` has all ceilings.

```python
from datasets import load_dataset

impressions = load_dataset("DIR")  # this folder
news = load_dataset("DIR", "news")
```

## Licence

{licence}
"""

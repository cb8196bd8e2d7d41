"""The command ``encode-news``: a day's new stories, added to a copy of an exported folder."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from newsrec.console import say
from newsrec.data.readers.news import read_news
from newsrec.errors import UserError
from newsrec.files import file_hash, publish, require_empty
from newsrec.serving.folder import StoredNews, write_news
from newsrec.serving.manifest import MANIFEST, NEWS, VECTORS
from newsrec.serving.recommend import Recommender

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: "ArgumentParser") -> None:
    """Add the command's options."""
    parser.add_argument("export_dir", help="folder that export or encode-news wrote")
    parser.add_argument("--news", required=True, help="file of stories, a news.tsv as MIND's")
    parser.add_argument("--output", required=True, help="folder to write, absent or empty")
    parser.add_argument(
        "--on_bad_line",
        choices=("error", "drop"),
        default="error",
        help="what to do with a line that cannot be read: stop, or leave it out",
    )


def run(args: "Namespace") -> None:
    """Encode what is new, and write all of it with the rest of the export.

    A story whose id and text are in the export keeps its vector; with another text it is encoded
    again. Both are of this very model: the vectors in a folder are all made by the encoder in it.
    """
    output, source = Path(args.output), Path(args.export_dir)
    require_empty(output)
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--output {output} lies in {source}, which is copied. Choose another.")
    recommender = Recommender.load(source)
    table = read_news(args.news, args.on_bad_line)
    news_ids, titles, categories, subcategories, abstracts = (
        table[name].to_pylist()
        for name in ("news_id", "title", "category", "subcategory", "abstract")
    )
    added = recommender.add_news(news_ids, titles, categories, subcategories, abstracts)
    manifest = dict(recommender.folder.manifest)

    def build(folder: Path) -> None:
        files = dict(manifest["files"])
        for name in files.keys() - {VECTORS, NEWS}:
            shutil.copy2(recommender.folder.file(name), folder / name)
        write_news(StoredNews(recommender.news, recommender.news_vectors), folder)
        files |= {name: file_hash(folder / name) for name in (VECTORS, NEWS)}
        line = {
            "file": Path(args.news).name,
            "sha256": file_hash(Path(args.news)),
            **added._asdict(),
        }
        changed = {"files": files, "added_news": [*manifest.get("added_news", []), line]}
        text = json.dumps(manifest | changed, indent=1)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    publish(output, build)
    say(
        f"{output} holds {len(recommender.news):,} stories: {added.added:,} new, "
        f"{added.replaced:,} with another text than before, {added.unchanged:,} as they were."
    )

"""Copies an exported folder and adds news to the copy."""

import json
import shutil
from pathlib import Path

from newsrec.data.readers.news_file import read_news
from newsrec.errors import UserError
from newsrec.files import file_hash, publish, require_empty
from newsrec.serving.folder import write_news
from newsrec.serving.manifest import CARD, CATALOGUE_FILES, MANIFEST
from newsrec.serving.recommend import Recommender
from newsrec.serving.results import AddedNews


def extend_export(
    source: Path, news_file: Path, output: Path, on_bad_line: str = "error"
) -> tuple[int, AddedNews]:
    """Encode the news of a file, and write a copy of an export that also has these news.

    If the export has a news item with the same id and text, its vector is kept. If the text
    differs, it is encoded again. So all vectors in a folder come from the encoder in that folder,
    and they have one type.

    Args:
        source: The exported folder, which is not changed.
        news_file: A news.tsv or a news.parquet.
        output: Folder to write, absent or empty.
        on_bad_line: As in ``newsrec.data.readers.news_file.read_news``.

    Returns:
        Number of news in the copy, and how many of the file's news were added, replaced or
        unchanged.

    Raises:
        UserError: If a folder or the file cannot be used.
    """
    require_empty(output)
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--output {output} lies in {source}, the folder to copy. Choose another.")
    recommender = Recommender.load(source)
    table = read_news(news_file, on_bad_line)
    names = ("news_id", "title", "category", "subcategory", "abstract")
    added = recommender.add_news(*(table[name].to_pylist() for name in names))
    manifest = dict(recommender.folder.manifest)

    def build(folder: Path) -> None:
        files = dict(manifest["files"])
        for name in files.keys() - CATALOGUE_FILES:
            shutil.copy2(recommender.folder.file(name), folder / name)
        card = source / CARD
        if CARD not in files and card.is_file() and not card.is_symlink():
            shutil.copy2(card, folder / CARD)
        written = write_news(recommender.stored_news, folder)
        files |= {name: file_hash(folder / name) for name in written}
        line = {"file": news_file.name, "sha256": file_hash(news_file), **added._asdict()}
        changed = {"files": files, "added_news": [*manifest.get("added_news", []), line]}
        text = json.dumps(manifest | changed, indent=1)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    publish(output, build)
    return len(recommender.news), added

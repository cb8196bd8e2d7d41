"""Recommends news from an exported folder, without PyTorch.

    from newsrec.serving import Recommender

    recommender = Recommender.load("exported")
    recommender.recommend(["N1", "N7"], k=10).news_ids

Needs numpy, pyarrow and onnxruntime, and tokenizers to encode news. A history is a list of the ids
of the news that a user clicked, oldest first; the list is empty for a user without clicks.
"""

import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.fields import Texts
from newsrec.errors import UserError
from newsrec.serving.arguments import require_strings
from newsrec.serving.catalogue import Catalogue, news_table, require_same_number, texts_of
from newsrec.serving.folder import ExportFolder, StoredNews
from newsrec.serving.manifest import SERVED_FILES
from newsrec.serving.publish import push
from newsrec.serving.ranking import Ranker
from newsrec.serving.results import AddedNews
from newsrec.serving.sessions import Encoders
from newsrec.serving.shortlist import Shortlists

SHOWN = ("title", "category", "subcategory")
"""Fields that ``describe`` returns."""


class Recommender(Ranker):
    """Scores news for users; ``Recommender.load`` makes one from an exported folder.

    Threads may share a recommender: each call uses the catalogue as it was when the call began.

    Args:
        folder: The exported folder.
        threads: As in ``load``.
        shortlist: As in ``load``.
    """

    def __init__(
        self, folder: ExportFolder, threads: int | None = None, *, shortlist: bool = False
    ) -> None:
        self.folder = folder
        self._shortlists = Shortlists(threads, wanted=shortlist)
        self._encoders = Encoders(folder, threads)
        self._catalogue = Catalogue.of(folder.read_news())
        self._adding = threading.Lock()

    @classmethod
    def load(
        cls, folder: str | Path, threads: int | None = None, *, shortlist: bool = False
    ) -> "Recommender":
        """Read an exported folder; the news encoder is read when it is first needed.

        Args:
            folder: Folder that ``python -m newsrec export`` wrote.
            threads: Threads of the encoders; None uses all cores. OMP_NUM_THREADS sets numpy's.
            shortlist: Whether the first search also keeps an int8 copy of the vectors, with which
                searches for one user are faster and find the same; each ``add_news`` makes it anew.

        Raises:
            UserError: If it is not an exported folder, has another format, or was changed.
        """
        return cls(ExportFolder(folder), threads, shortlist=shortlist)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        threads: int | None = None,
        *,
        shortlist: bool = False,
    ) -> "Recommender":
        """Read a folder, as ``load`` does, or a repository on the Hugging Face hub.

        Args:
            name: The folder, or the repository's id, such as ``me/news``.
            revision: Branch, tag or commit of the repository.
            threads: As in ``load``.
            shortlist: As in ``load``.
        """
        return cls(ExportFolder.find(name, revision, SERVED_FILES), threads, shortlist=shortlist)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        news: bool = False,
    ) -> str:
        """Publish the folder on the hub as it is on the disk; see ``newsrec.serving.publish``."""
        return push(self.folder, repo_id, private, revision, commit_message, news)

    @property
    def news(self) -> pa.Table:
        """The catalogue, a table with the schema ``folder.NEWS_SCHEMA``."""
        return self._catalogue.table

    @property
    def known_ids(self) -> Collection[str]:
        """The ids of ``news``, for fast membership tests."""
        return self._catalogue.rows.keys()

    @property
    def news_vectors(self) -> NDArray[np.float32]:
        """Row 0 (zeros), row 1 (the unknown news), then the rows of ``news`` ``[news, dim]``.

        Vectors that the folder has in float16 or int8 are decoded anew each time.
        """
        return np.asarray(self._catalogue.vectors)

    @property
    def stored_news(self) -> StoredNews:
        """The catalogue as a folder stores it, for ``newsrec.serving.folder.write_news``."""
        return StoredNews(self._catalogue.table, self._catalogue.vectors)

    def describe(self, news_ids: Sequence[str]) -> list[dict[str, str | None]]:
        """Return ``title``, ``category`` and ``subcategory`` of each id; all None if unknown."""
        catalogue = self._catalogue
        texts, rows = catalogue.table.select(SHOWN), catalogue.rows
        known = (texts.slice(rows[i] - FIRST_NEWS, 1) if i in rows else None for i in news_ids)
        return [dict.fromkeys(SHOWN) if one is None else one.to_pylist()[0] for one in known]

    def add_news(
        self,
        news_ids: Sequence[str],
        titles: Sequence[str],
        categories: Sequence[str] | None = None,
        subcategories: Sequence[str | None] | None = None,
        abstracts: Sequence[str | None] | None = None,
    ) -> AddedNews:
        """Add news to the catalogue in memory; the folder is not changed.

        A news item with a known id is left unchanged if the text that the model reads is the same,
        and replaced otherwise; fields that are not given become empty. The vector of the unknown
        news becomes the mean of all news again. Each call copies all vectors, so add many news in
        one call.

        Args:
            news_ids: Id for each title.
            titles: As in ``encode_news``; so are the following.
            categories: Also used by ``recommend`` to select categories.
            subcategories: Also kept in ``news``.
            abstracts: Only used for encoding, not kept.

        Returns:
            Numbers of added, replaced and unchanged news.

        Raises:
            UserError: As in ``encode_news``, and if an id is given twice with different texts.
        """
        ids = require_strings(news_ids, "news_ids")
        table = news_table(titles, categories, subcategories, abstracts)
        require_same_number(ids, "news_ids", table["title"], "titles")
        texts = texts_of(table, self.fields, self.reads_abstracts, tuple(self.category_names))
        hashes = texts.hashes()
        first: dict[str, int] = {}
        for place, news_id in enumerate(ids):
            if hashes[first.setdefault(news_id, place)] != hashes[place]:
                raise UserError(
                    f"news_ids holds {news_id!r} twice, with different texts. Give each item once."
                )
        with self._adding:
            catalogue = self._catalogue
            known = catalogue.text_hashes()
            places = [place for i, place in first.items() if known.get(i) != hashes[place]]
            if places:
                columns = {"news_id": pa.array(ids, pa.string())}
                for field in ("title", "category", "subcategory"):
                    given = field in table.column_names
                    columns[field] = table[field] if given else pa.array([""] * len(ids))
                columns["text_hash"] = pa.array(hashes, pa.string())
                vectors = self._encoders.news(texts.take(places))
                self._catalogue = catalogue.updated(pa.table(columns).take(places), vectors)
        replaced = sum(ids[place] in known for place in places)
        return AddedNews(len(places) - replaced, replaced, len(first) - len(places))

    @property
    def fields(self) -> list[str]:
        """Fields of a news item that make up its title's text."""
        return list(self.folder.manifest["fields"])

    @property
    def reads_abstracts(self) -> bool:
        """Whether the model reads the abstract as a text of its own."""
        return self._encoders.abstract_tokens > 0

    @property
    def category_names(self) -> dict[str, list[str]]:
        """Categories and subcategories that have a learned vector; others add nothing."""
        return self._encoders.category_names

    def _encode_texts(self, texts: Texts) -> NDArray[np.float32]:
        return self._encoders.news(texts)

"""Recommends news from an exported folder, without PyTorch.

    from newsrec.serving import Recommender

    recommender = Recommender.load("exported")
    recommender.recommend(["N1", "N7"], k=10).news_ids

Needs numpy, pyarrow and onnxruntime, and tokenizers to encode news. A history is a list of the ids
of the news that a user clicked, oldest first; the list is empty for a user without clicks.
"""

import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS, UNKNOWN_NEWS
from newsrec.data.fields import Texts
from newsrec.errors import UserError
from newsrec.reranking import check_threshold
from newsrec.serving.arguments import (
    Found,
    look_up,
    require_list,
    require_one_user,
    require_strings,
)
from newsrec.serving.catalogue import (
    Catalogue,
    news_table,
    of_categories,
    require_same_number,
    texts_of,
)
from newsrec.serving.encoding import TextEncoder
from newsrec.serving.folder import ExportFolder
from newsrec.serving.manifest import SERVED_FILES
from newsrec.serving.matching import Users, match_all
from newsrec.serving.publish import push
from newsrec.serving.results import AddedNews, Ranking, Recommendations
from newsrec.serving.search import excluded_rows, search
from newsrec.serving.sessions import Encoders

log = logging.getLogger(__name__)

VECTORS_AT_ONCE = 2**16
"""Vectors of users in memory at once, 64 MiB with 256 numbers each; at least those of one user."""
SHOWN = ("title", "category", "subcategory")
"""Fields that ``describe`` returns."""


class Recommender(TextEncoder):
    """Scores news for users; ``Recommender.load`` makes one from an exported folder.

    Threads may share a recommender: each call uses the catalogue as it was when the call began.

    Args:
        folder: The exported folder.
        threads: As in ``load``.
    """

    def __init__(self, folder: ExportFolder, threads: int | None = None) -> None:
        self.folder = folder
        self._encoders = Encoders(folder, threads)
        self._catalogue = Catalogue.of(folder.read_news())
        self._adding = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> "Recommender":
        """Read an exported folder; the news encoder is read when it is first needed.

        Args:
            folder: Folder that ``python -m newsrec export`` wrote.
            threads: Threads of the encoders; None uses all cores. OMP_NUM_THREADS sets numpy's.

        Raises:
            UserError: If it is not an exported folder, has another format, or was changed.
        """
        return cls(ExportFolder(folder), threads)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, revision: str | None = None, threads: int | None = None
    ) -> "Recommender":
        """Read a folder, as ``load`` does, or a repository on the Hugging Face hub.

        Args:
            name: The folder, or the repository's id, such as ``me/news``.
            revision: Branch, tag or commit of the repository.
            threads: As in ``load``.
        """
        return cls(ExportFolder.find(name, revision, SERVED_FILES), threads)

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
        """Row 0 (zeros), row 1 (the unknown news), then the rows of ``news`` ``[news, dim]``."""
        return self._catalogue.vectors

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
        texts = texts_of(table, self.fields, self.reads_abstracts)
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

    def user_vector(self, history_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the user vector for one history ``[dim]``; see ``user_vectors``."""
        require_one_user(history_ids, "history_ids", "user_vectors")
        vector: NDArray[np.float32] = self.user_vectors([history_ids])[0]
        return vector

    def user_vectors(self, histories: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """Return the user vector for each history ``[users, dim]``.

        For a model with several interests it is their mean, and with ``late`` it lacks the clicks
        that a score depends on: the product with a news vector is then not the score of ``rank``.
        Unknown ids are left out and logged. The last ``max_history`` of the known ids are used.

        Raises:
            UserError: If an id is not a string.
        """
        catalogue = self._catalogue
        found = catalogue.look_up_all(histories)
        unknown = list(dict.fromkeys(i for history in found for i in history.unknown))
        if unknown:
            log.warning(
                "%d ids of histories are not in the catalogue and were left out: %s",
                len(unknown),
                ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else ""),
            )
        return self._encoders.user_vectors([history.rows for history in found], catalogue.vectors)

    def rank(self, history_ids: Sequence[str], candidate_ids: Sequence[str]) -> Ranking:
        """Score one user's candidates, and sort them by score.

        A candidate that is not in the catalogue is scored by the mean vector of the catalogue, and
        is listed in ``unknown_candidates``. With dot products this is the user's mean score over
        the whole catalogue; with ``late`` and ``interests`` it is at most that.

        Args:
            history_ids: Ids of the news that the user clicked, oldest first; may be empty.
            candidate_ids: Ids of the news to rank, each once.

        Raises:
            UserError: If an id is not a string, or a candidate is given twice.
        """
        require_one_user(history_ids, "history_ids", "rank_many")
        require_one_user(candidate_ids, "candidate_ids", "rank_many", once=True)
        return self.rank_many([history_ids], [candidate_ids])[0]

    def rank_many(
        self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]
    ) -> list[Ranking]:
        """Do the same as ``rank`` for several users, with a history and candidates for each."""
        catalogue = self._catalogue
        found = catalogue.look_up_all(histories)
        require_list(candidates, "candidates")
        require_same_number(histories, "histories", candidates, "candidates")
        each = (part[i : i + 1] for part in self._users(catalogue, found) for i in range(len(part)))
        results = []
        for number, (user, ids) in enumerate(zip(each, candidates, strict=True)):
            unknown = look_up(ids, catalogue.rows, f"candidates[{number}]", once=True).unknown
            rows = [catalogue.rows.get(news_id, UNKNOWN_NEWS) for news_id in ids]
            scores = match_all(user, catalogue.vectors[rows])[0]
            order = np.argsort(-scores, kind="stable")
            ranked = [ids[place] for place in order]
            lacking = found[number].unknown, unknown
            results.append(Ranking(list(ids), scores, ranked, scores[order], *lacking))
        return results

    def recommend(
        self,
        history_ids: Sequence[str],
        k: int = 10,
        exclude_history: bool = True,
        categories: Sequence[str] | None = None,
        skip_repeats: float | None = None,
    ) -> Recommendations:
        """Score the whole catalogue for one user, and return the ``k`` best news.

        Args:
            history_ids: Ids of the news that the user clicked, oldest first; may be empty.
            k: Number of news; fewer are returned if fewer are allowed.
            exclude_history: Whether news of the history are left out.
            categories: Categories to recommend from; None allows all.
            skip_repeats: Leave out news whose vector has at least this cosine with the vector of a
                clicked news item, such as near-duplicates; None leaves out none.

        Raises:
            UserError: If the catalogue is empty, or an argument is invalid.
        """
        require_one_user(history_ids, "history_ids", "recommend_many")
        rules = exclude_history, categories, skip_repeats
        return self.recommend_many([history_ids], k, *rules)[0]

    def recommend_many(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_history: bool = True,
        categories: Sequence[str] | None = None,
        skip_repeats: float | None = None,
    ) -> list[Recommendations]:
        """Do the same as ``recommend`` for several users, with a history for each."""
        catalogue = self._catalogue
        if not catalogue.ids:
            raise UserError(
                f"{self.folder.path} holds no news. Add some by add_news, or export the "
                "checkpoint again with its data (`export --data.root`)."
            )
        if not isinstance(k, int | np.integer) or not 1 <= k <= len(catalogue.ids):
            raise UserError(
                f"k is {k!r}; it must be from 1 to the number of news, {len(catalogue.ids):,}."
            )
        if skip_repeats is not None:
            check_threshold(skip_repeats, "skip_repeats")
        allowed = None if categories is None else of_categories(catalogue.table, categories)
        found = catalogue.look_up_all(histories)
        results: list[Recommendations] = []
        news = catalogue.vectors[FIRST_NEWS:]
        for users in self._users(catalogue, found):
            part = found[len(results) : len(results) + len(users)]
            clicks = [[row - FIRST_NEWS for row in history.rows] for history in part]
            excluded = excluded_rows(news, clicks, exclude_history, skip_repeats)
            best = search(users, news, k, excluded, allowed)
            results += [
                Recommendations([catalogue.ids[row] for row in top], scores, history.unknown)
                for (top, scores), history in zip(best, part, strict=True)
            ]
        return results

    def _users(self, catalogue: Catalogue, found: Sequence[Found]) -> Iterator[Users]:
        """Yield the users of these histories, in blocks that bound memory."""
        vectors = self._encoders.matching.num_vectors(self._encoders.max_history)
        at_once = max(1, VECTORS_AT_ONCE // vectors)
        for start in range(0, len(found), at_once):
            rows = [history.rows for history in found[start : start + at_once]]
            yield self._encoders.users(rows, catalogue.vectors)

    @property
    def fields(self) -> list[str]:
        """Fields of a news item that make up its title's text."""
        return list(self.folder.manifest["fields"])

    @property
    def reads_abstracts(self) -> bool:
        """Whether the model reads the abstract as a text of its own."""
        return self._encoders.abstract_tokens > 0

    def _encode_texts(self, texts: Texts) -> NDArray[np.float32]:
        return self._encoders.news(texts)

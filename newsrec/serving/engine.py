"""An export's encoders over the news of a store, with the vectors in memory."""

import hashlib
import json
import logging
import random
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.fields import FIELDS, Texts, read_texts
from newsrec.errors import StoreError, UserError
from newsrec.serving.folder import ExportFolder
from newsrec.serving.items import NewsItem
from newsrec.serving.manifest import (
    LATER,
    NEWS_ENCODER,
    SERVED_FILES,
    SETTINGS,
    TOKENIZER,
    USER_ENCODER,
    VECTORS,
    WEIGHTS_BESIDE,
)
from newsrec.serving.matching import Users
from newsrec.serving.proposals import Proposals
from newsrec.serving.results import AddedNews
from newsrec.serving.sessions import Encoders
from newsrec.serving.slots import Slots, View
from newsrec.serving.store import NewsStore, ToEncode

log = logging.getLogger(__name__)

BLOCK = 64
"""Number of news items that are encoded before the store is read again."""
AT_ONCE = 32
"""Most news items that a call encodes if others stored them without a vector of this export."""
ADOPTED_AT_ONCE, LOADED_AT_ONCE = 4096, 8192
"""News that are taken over from an export in one transaction, and from the store in one change."""
VERSION_DIGITS = 12

Made = list[tuple[NewsItem, str, NDArray[np.float32]]]
"""News with the hashes of their texts and their vectors."""


class Engine:
    """Answers from one export's vectors; threads may share it.

    Args:
        store: The news.
        folder: The exported folder.
        threads: Threads of the encoders; None uses all cores.
        index_above: Number of news above which an index proposes what is scored; None scores all.

    Raises:
        UserError: If the folder cannot be used.
    """

    def __init__(
        self,
        store: NewsStore,
        folder: ExportFolder,
        threads: int | None = None,
        index_above: int | None = None,
    ) -> None:
        self.store, self.folder = store, folder
        self.encoders = Encoders(folder, threads)
        self.proposals = None
        if index_above is not None:
            self.proposals = Proposals(index_above, self.encoders.matching)
        self.version = version_of(folder)
        self.slots = Slots(self.encoders.dim)
        self.pending: dict[str, float] = {}
        """News that cannot be recommended yet, since they lack a vector, and since when."""
        self._refreshing = threading.Lock()
        self._seen: int | None = None
        self._seq: int | None = None
        self.export = store.register(self.version, folder.path)

    def texts(self, items: Sequence[NewsItem]) -> Texts:
        """Return what the model reads of news."""
        columns = {name: [getattr(item, name) or "" for item in items] for name in FIELDS}
        table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
        fields = self.folder.manifest["fields"]
        named = tuple(self.encoders.category_names)
        return read_texts(table, fields, self.encoders.abstract_tokens > 0, named)

    def upsert(self, items: Sequence[NewsItem]) -> AddedNews:
        """Encode and store news, then show them."""
        texts = self.texts(items)
        hashes = texts.hashes()
        made: dict[str, bytes] = {}
        known = (self.slots.text_hash(item.news_id) for item in items)
        lacking = [place for place, found in enumerate(known) if found != hashes[place]]
        while True:  # repeats only if another thread or process changes the same news
            if lacking:
                vectors = self.encoders.news(texts.take(lacking))
                made |= {hashes[p]: v.tobytes() for p, v in zip(lacking, vectors, strict=True)}
            done = self.store.upsert(items, self.export, hashes, made)
            if isinstance(done, AddedNews):
                self.refresh()
                return done
            lacking = done

    def refresh(self) -> int:
        """Take in what was written since the last call, by this process or another.

        Returns:
            The store's version, which each write changes.

        Raises:
            StoreError: If the store cannot be read.
        """
        with self._refreshing:
            version = self.store.database.version()
            if version == self._seen:
                return version
            self._take_in()
            if 0 < len(self.pending) <= AT_ONCE and self.can_encode:
                try:
                    self._encode(self.store.lacking(self.export, 0, AT_ONCE))
                    self._take_in()
                except UserError:  # those who only read get their answers
                    log.exception("%d news items could not be encoded.", len(self.pending))
            self._seen = version
        return version

    def _take_in(self) -> None:
        with self.store.changes(self.export, self._seq) as changes:
            slots = Slots(self.encoders.dim) if changes.all else self.slots
            now, before = time.time(), self.pending
            pending = {} if changes.all else dict(before)
            gone: list[str] = []
            made: Made = []
            for news_id, stored in changes.news:
                pending.pop(news_id, None)
                if stored is None or stored.vector is None:
                    gone.append(news_id)
                    if stored is not None:
                        pending[news_id] = before.get(news_id, now)
                    continue
                vector = np.frombuffer(stored.vector, np.float32)
                made.append((stored.item, stored.text_hash or "", vector))
                if changes.all and len(made) == LOADED_AT_ONCE:
                    slots.put(self._checked(made))
                    made = []
            rows = slots.put(self._checked(made), gone)
            self.slots, self.pending, self._seq = slots, pending, changes.seq
        if self.proposals is not None:
            self.proposals.update(slots, rows)

    def _checked(self, made: Made) -> Made:
        for item, _, vector in made:
            if len(vector) != self.encoders.dim or not np.isfinite(vector).all():
                raise StoreError(
                    f"{self.store.database.path}: the vector of {item.news_id} is damaged. Put a "
                    "copy of the file in its place, or remove it and import the news again."
                )
        return made

    def view(self, *ids: Sequence[str]) -> AbstractContextManager[View]:
        """Return the news of this moment, and the rows of ids; see ``Slots.view``."""
        return self.slots.view(*ids)

    @property
    def can_encode(self) -> bool:
        """Whether the export has a news encoder."""
        return self.folder.has(NEWS_ENCODER)

    def fill(self) -> None:
        """Take over the export's news and vectors, if the store never had news."""
        if not self.folder.has(VECTORS):
            return
        news = self.folder.read_news()
        items = [
            NewsItem(news_id, title or "", category or "", subcategory or "", None)
            for news_id, title, category, subcategory in zip(
                *(news.table[name].to_pylist() for name in list(NewsItem._fields)[:4]), strict=True
            )
        ]
        hashes = news.table["text_hash"].to_pylist()  # of equal hashes, the vectors are equal
        vectors = dict(zip(hashes, np.asarray(news.vectors)[FIRST_NEWS:], strict=True))
        self.store.upsert(items, self.export, hashes, vectors, if_new=True)

    def complete(self, stop: threading.Event) -> None:
        """Make the vectors that the export lacks, block by block; other processes may help.

        Args:
            stop: Ends it after the block.

        Raises:
            UserError: If the export cannot encode news.
        """
        self.adopt()
        # Processes begin at different places, and go elsewhere where they meet.
        after = random.randint(0, self.store.last_number())
        while not stop.is_set():
            block = self.store.lacking(self.export, after, BLOCK)
            if block and self._encode(block) == BLOCK:
                after = block[-1].number
            elif block:
                after = random.randint(0, self.store.last_number())
            elif after:
                after = 0
            else:
                return

    def _encode(self, news: Sequence[ToEncode]) -> int:
        """Make and store vectors of news; return how many are new."""
        texts = self.texts([item for _, item in news])
        vectors = self.encoders.news(texts)
        return self.store.add_vectors(
            self.export, news, texts.hashes(), [vector.tobytes() for vector in vectors]
        )

    def adopt(self) -> int:
        """Take over the vectors that the export has of the store's news; return how many."""
        if not self.folder.has(VECTORS) or not self.store.lacking(self.export, 0, 1):
            return 0
        news = self.folder.read_news()
        columns = ("news_id", "title", "category", "subcategory", "text_hash")
        rows = zip(*(news.table[name].to_pylist() for name in columns), strict=True)
        known = {row[0]: (number, row) for number, row in enumerate(rows, FIRST_NEWS)}
        after = added = 0
        while block := self.store.lacking(self.export, after, ADOPTED_AT_ONCE):
            after = block[-1].number
            hashes = self.texts([item for _, item in block]).hashes()
            taken = []
            for one, text_hash in zip(block, hashes, strict=True):
                place, row = known.get(one.item.news_id, (0, ()))
                # An export has no abstracts, so the hash of a text with one cannot be compared.
                same = one.item.abstract is None and [t or "" for t in row[:4]] == [*one.item[:4]]
                if row and (same or row[4] == text_hash):
                    taken.append((one, row[4], np.asarray(news.vectors[place]).tobytes()))
            if taken:
                added += self.store.add_vectors(self.export, *zip(*taken, strict=True))
        return added

    def lag(self) -> float:
        """Return the age in seconds of the oldest write that answers do not show; 0 for none."""
        waiting = [time.time() - since for since in self.pending.values()]
        return max([0.0, self.store.lag(self._seq or 0), *waiting])

    def users(self, view: View, rows: Sequence[int]) -> Users:
        """Encode a user from the rows of the clicks, oldest first."""
        read = view.vectors[list(rows[-self.encoders.max_history :])]
        padding = np.zeros((1, self.encoders.dim), np.float32)
        return self.encoders.users([range(1, len(read) + 1)], np.concatenate([padding, read]))


def version_of(folder: ExportFolder) -> str:
    """Return a short hash of what decides an export's vectors and scores."""
    manifest = folder.manifest
    read = {USER_ENCODER, NEWS_ENCODER, TOKENIZER} if folder.has(NEWS_ENCODER) else SERVED_FILES
    read = read | {name + WEIGHTS_BESIDE for name in read}
    files = sorted(item for item in manifest["files"].items() if item[0] in read)
    names = (*SETTINGS, "matching", *LATER)
    settings = [manifest.get(name) for name in names]
    text = json.dumps([files, settings])
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_DIGITS]

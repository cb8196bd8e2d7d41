"""An export whose encoders are a few lines of numpy, for tests of stores and live recommenders.

A news vector is drawn by the hash of the text and of the model, and a user vector is the mean of
the clicks. Run as a script, it does to a store what the lines of its input say.
"""

import hashlib
import json
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from newsrec.data import FIRST_NEWS
from newsrec.data.fields import read_texts
from newsrec.errors import UserError
from newsrec.serving import engine
from newsrec.serving.folder import NEWS_SCHEMA, StoredNews, with_unknown, write_news
from newsrec.serving.live import Click, LiveRecommender, NewsItem
from newsrec.serving.matching import Matching, Users

DIM, MAX_HISTORY = 4, 3
START = datetime(2024, 2, 29, 12, tzinfo=UTC)


class FakeEncoders:
    """Encodes like ``newsrec.serving.sessions.Encoders``, but at once."""

    encoded = 0
    """Texts that were encoded in this process."""

    def __init__(self, folder, threads=None):
        self.folder, self.dim, self.max_history = folder, DIM, MAX_HISTORY
        self.abstract_tokens = folder.manifest.get("abstract_tokens", 0)
        self.category_names = folder.manifest.get("category_names", {})
        self.matching = Matching(None)

    def news(self, texts):
        if not self.folder.has("news_encoder.onnx"):
            raise UserError("There is no news encoder. Export it.")
        FakeEncoders.encoded += len(texts.titles)
        return vectors_of(self.folder.manifest["model_hash"], texts)

    def users(self, histories, news):
        means = [news[list(rows)].mean(0) if len(rows) else np.ones(DIM) / 8 for rows in histories]
        return Users(np.array(means, np.float32)[:, None])


def vectors_of(model, texts):
    """Return the vector of each text ``[news, dim]``."""
    found = np.empty((len(texts.titles), DIM), np.float32)
    for row, pair in enumerate(texts.pairs()):
        digest = hashlib.sha256("\n".join((model, *pair)).encode()).digest()
        found[row] = np.frombuffer(digest[: 2 * DIM], np.uint16) / 2**16 - 0.5
    return found


def texts_of(items, fields=("title",), abstracts=False):
    """Return what the model reads of news."""
    columns = {name: [getattr(item, name) or "" for item in items] for name in NewsItem._fields[:5]}
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    return read_texts(table, list(fields), abstracts)


def write_export(folder, items=(), model="first", encoder=True, fields=("title",), abstracts=False):
    """Write an exported folder as the fake encoders read it; return it."""
    folder.mkdir()
    texts = texts_of(items, fields, abstracts)
    columns = {name: [getattr(item, name) for item in items] for name in NewsItem._fields[:4]}
    table = pa.table(
        {"row": range(FIRST_NEWS, FIRST_NEWS + len(items)), **columns, "text_hash": texts.hashes()},
        schema=NEWS_SCHEMA,
    )
    write_news(StoredNews(table, with_unknown(vectors_of(model, texts))), folder)
    names = ["news.parquet", "news_vectors.npy"]
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    files |= dict.fromkeys(["user_encoder.onnx", "news_encoder.onnx"][: 1 + encoder], "0" * 64)
    matching = {"format": 3, "abstract_tokens": 8, "matching": {"head": "dot"}} if abstracts else {}
    manifest = {"format": 2, "dim": DIM, "max_history": MAX_HISTORY, "max_tokens": 8} | matching
    manifest |= {"fields": list(fields), "model_hash": model, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def item(number, title=None, category="news", published=None, **more):
    """Return a news item with the id ``N{number}``."""
    hours = None if published is None else START + timedelta(hours=published)
    return NewsItem(f"N{number}", title or f"title {number}", category, published=hours, **more)


def click(user, number, minutes=0):
    """Return a click, some minutes after the start."""
    return Click(f"U{user}", f"N{number}", START + timedelta(minutes=minutes))


def ids_of(live, **options):
    """Return the ids of all news that can be recommended, sorted."""
    return sorted(one.news_id for one in live.recommend(k=10**6, **options).news)


def wait_until(condition, seconds=60):
    """Wait until a condition holds; fail if it does not within some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def work(export, store):
    """Do what each line of the input says, and acknowledge it by a line."""
    live = LiveRecommender.open(export, store)
    print("open", flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if name == "upsert":
            found = list(live.upsert_news([NewsItem(*arguments)]))
        elif name == "click":
            found = live.add_clicks([Click(*arguments, START)])
        elif name == "switch":
            found = live.switch(arguments[0])
        elif name == "news":
            found = [live.version, ids_of(live)]
        else:
            found = getattr(live, name)(*arguments)
        print(json.dumps(found), flush=True)
    live.close()


if __name__ == "__main__":
    engine.Encoders = FakeEncoders
    work(sys.argv[1] or None, sys.argv[2])

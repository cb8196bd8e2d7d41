"""What a write to a store costs beside many news, and what a kill loses.

    python tests/benchmarks/store.py --export exports/demo
    python tests/benchmarks/store.py --export exports/demo --news 2000 --kills 5     # a quick look

Prints one JSON object. A store gets ``--news`` news with random vectors. Then one news item at a
time is added: the time of the whole ``upsert_news``, of the encoding in it, and of the rest, beside
``Recommender.add_news``, which copies all vectors and writes nothing. Times are in milliseconds.

Then a process upserts news, deletes news and adds clicks, and is killed (``kill -9``) at a random
time, ``--kills`` times. After each kill, all that it had acknowledged must be in the store. It
encodes by a stand-in, so that nearly all of its time goes into writes.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import live_world

from newsrec.serving import Recommender, engine
from newsrec.serving.catalogue import Catalogue
from newsrec.serving.folder import StoredNews, with_unknown
from newsrec.serving.live import LiveRecommender, NewsItem

WORKER = Path(live_world.__file__)
BLOCK = 10_000


def numbers_of(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile in milliseconds."""
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


def items_of(start: int, stop: int, word: str) -> list[NewsItem]:
    """Return news with titles of usual length."""
    return [
        NewsItem(f"{word}{n}", f"What {word} number {n} means for the coast, and why it matters",
                 f"category{n % 18}", f"subcategory{n % 285}")
        for n in range(start, stop)
    ]  # fmt: skip


def measure_adding(export: Path, folder: Path, news: int, adds: int) -> dict:
    """Return the times of adding one news item to a store and to a plain recommender."""
    live = LiveRecommender.open(export, folder, threads=1)
    serving = live._engines.engine
    rng, dim = np.random.default_rng(0), serving.encoders.dim
    start = time.perf_counter()
    for first in range(0, news, BLOCK):
        items = items_of(first, min(first + BLOCK, news), "old")
        hashes = serving.texts(items).hashes()
        vectors = rng.standard_normal((len(items), dim), dtype=np.float32) / np.float32(dim**0.5)
        serving.store.upsert(items, serving.export, hashes, dict(zip(hashes, vectors, strict=True)))
    filled = time.perf_counter() - start
    live.close()
    start = time.perf_counter()
    live = LiveRecommender.open(export, folder, threads=1)
    opened = time.perf_counter() - start
    encoders = live._engines.engine.encoders
    encode, encoding = encoders.news, []

    def timed(texts):
        start = time.perf_counter()
        vectors = encode(texts)
        encoding.append(time.perf_counter() - start)
        return vectors

    encoders.news = timed
    whole, deleting, answering = [], [], []
    history = [f"old{n}" for n in range(0, min(news, 500), 10)]
    for item in items_of(0, adds, "new"):
        start = time.perf_counter()
        assert live.upsert_news([item]) == (1, 0, 0)
        whole.append(time.perf_counter() - start)
        start = time.perf_counter()
        assert len(live.recommend(history, k=100).news) == 100
        answering.append(time.perf_counter() - start)
    for item in items_of(0, adds, "new"):
        start = time.perf_counter()
        assert live.delete_news(item.news_id)
        deleting.append(time.perf_counter() - start)
    rest = [total - part for total, part in zip(whole, encoding, strict=True)]
    with live._engines.engine.view() as view:
        rows = np.flatnonzero(view.alive)
        table = {"news_id": [view.items[row].news_id for row in rows]}
        vectors = with_unknown(view.vectors[rows])
    live.close()
    return {
        "fill_s": round(filled, 1),
        "open_s": round(opened, 2),
        "add_one": numbers_of(whole),
        "of_that_encoding": numbers_of(encoding),
        "of_that_the_rest": numbers_of(rest),
        "delete_one": numbers_of(deleting),
        "recommend_100": numbers_of(answering),
        "add_news_of_recommender": measure_old(export, table["news_id"], vectors),
    }


def measure_old(export: Path, ids: list[str], vectors: np.ndarray, adds: int = 5) -> dict:
    """Return the times of ``Recommender.add_news`` beside the same news."""
    import pyarrow as pa

    from newsrec.serving.folder import NEWS_SCHEMA

    recommender = Recommender.load(export, threads=1)
    texts = dict.fromkeys(("title", "category", "subcategory", "text_hash"), ids)
    table = pa.table({"row": range(2, 2 + len(ids)), "news_id": ids, **texts}, schema=NEWS_SCHEMA)
    recommender._catalogue = Catalogue.of(StoredNews(table, vectors))
    times = []
    for item in items_of(0, adds, "new"):
        start = time.perf_counter()
        recommender.add_news(*([text] for text in item[:4]))
        times.append(time.perf_counter() - start)
    return numbers_of(times)


def measure_kills(folder: Path, kills: int, seed: int) -> dict:
    """Kill a process that writes, again and again, and count what is lost."""
    engine.Encoders = live_world.FakeEncoders
    chance = random.Random(seed)
    export = live_world.write_export(folder / "export", items_of(0, 20, "N"))
    store = folder / "store"
    LiveRecommender.open(export, store).close()
    news: dict[str, str] = {f"N{n}": item.title for n, item in enumerate(items_of(0, 20, "N"))}
    clicks: set[tuple[str, str]] = set()
    acknowledged = lost = unanswered_but_there = 0
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, WORKER, "", store], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": str(WORKER.parents[1])},
        )  # fmt: skip
        assert child.stdout
        assert child.stdin
        assert child.stdout.readline() == "open\n"
        timer = threading.Timer(chance.uniform(0.01, 1.5), child.kill)
        timer.start()
        before = dict(news), set(clicks)
        try:
            while True:
                before = dict(news), set(clicks)
                name, number = (
                    chance.choice(["upsert", "upsert", "delete_news", "click"]),
                    str(chance.randrange(200)),
                )
                title = f"title {chance.random()}"
                line = {"upsert": [f"N{number}", title], "delete_news": [f"N{number}"],
                        "click": [f"U{number}", f"N{number}"]}[name]  # fmt: skip
                if name == "upsert":
                    news[line[0]] = title
                elif name == "delete_news":
                    news.pop(line[0], None)
                else:
                    clicks.add((line[0], line[1]))
                child.stdin.write(json.dumps([name, *line]) + "\n")
                child.stdin.flush()
                if not child.stdout.readline().endswith("\n"):
                    break
                acknowledged += 1
        except BrokenPipeError:
            pass
        timer.join()
        child.kill()
        child.wait()
        with_last, (old_news, old_clicks) = (news, clicks), before
        live = LiveRecommender.open(None, store)
        found = {one.news_id: one.title for one in live.find_news("", 10**6)}
        ranked = {one.news_id for one in live.recommend(k=10**6).news}
        made = {(user, news_id) for user in live.users(10**6) for news_id, _ in live.user(user)[1]}
        live.close()
        if (found, made) == with_last:
            unanswered_but_there += with_last != before
        elif (found, made) == before:
            news, clicks = old_news, old_clicks
        else:
            lost += len(dict(old_news.items() - found.items())) + len(old_clicks - made)
            lost += len(found.keys() - old_news.keys() - news.keys())
            news, clicks = found, made
        lost += len(found.keys() ^ ranked)
    return {
        "kills": kills,
        "seed": seed,
        "acknowledged_writes": acknowledged,
        "lost": lost,
        "last_write_there_without_answer": unanswered_but_there,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, required=True, help="exported folder")
    parser.add_argument("--news", type=int, default=160_000, help="news beside which one is added")
    parser.add_argument("--adds", type=int, default=100, help="news that are added")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    args = parser.parse_args()
    result: dict = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as temporary:
        if args.news:
            export = Path(shutil.copytree(args.export, Path(temporary, "copy")))
            adding = measure_adding(export, Path(temporary, "adding"), args.news, args.adds)
            result |= {"news": args.news, **adding}
        if args.kills:
            result["kill"] = measure_kills(Path(temporary), args.kills, args.seed)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

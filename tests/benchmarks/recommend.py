"""How fast an exported folder answers: a user vector, a search, a start, and many users.

    python tests/benchmarks/recommend.py
    python tests/benchmarks/recommend.py --users 100 --news 1000     # a quick look

Prints one JSON object. The user encoder is the default model's with random weights, in a folder
as ``export`` writes it; news items are random. A user vector (one user, 50 clicks) is computed by
one thread, beside which stand its bare matrix products, and a search beside a plain product of the
same vectors; numpy's products go by OMP_NUM_THREADS. The start is that of a process which imports,
loads and recommends, Python's own included; the many users have a process of their own too, whose
memory counts from its first breath, the users' ids included. ``types`` has for each type of news
vectors a process that loads and recommends, without and with a shortlist: its resident memory
before and after the load and after a search, and the times of the load and of searches.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

DIM, MAX_HISTORY = 256, 50
K = 100
"""News items that the single search finds."""

WEIGHTS = np.zeros((7, DIM, DIM), dtype=np.float32)

START = """
import sys
from newsrec.serving import Recommender
recommender = Recommender.load(sys.argv[1])
print(len(recommender.recommend(["N1", "N2"], k=10).news_ids))
"""

MANY = """
import json, sys, time
import numpy as np
from newsrec.serving import Recommender

folder, users = sys.argv[1], int(sys.argv[2])
recommender = Recommender.load(folder)
ids = recommender.news["news_id"].to_pylist()
rows = np.random.default_rng(0).integers(0, len(ids), (users, 50)).tolist()
histories = [[ids[row] for row in history] for history in rows]
del rows
start, cpu = time.perf_counter(), time.process_time()
found = recommender.recommend_many(histories, k=10)
seconds = time.perf_counter() - start
assert all(len(one.news_ids) == 10 for one in found)
status = open("/proc/self/status").read() if sys.platform == "linux" else ""
peak = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
print(json.dumps({
    "seconds": round(seconds, 2),
    "users_per_s": round(users / seconds),
    "cpu_s": round(time.process_time() - cpu, 2),
    "peak_mb_of_process": round(peak[0] / 1024) if peak else None,
}))
"""


TYPES = """
import json, sys, time
import numpy as np
from newsrec.serving import Recommender

def resident():
    status = open("/proc/self/status").read() if sys.platform == "linux" else ""
    found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    return round(found[0] / 1024) if found else None

def milliseconds(call):
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3

before, start = resident(), time.perf_counter()
recommender = Recommender.load(sys.argv[1], threads=1, shortlist=sys.argv[2] == "1")
seconds, loaded = time.perf_counter() - start, resident()
history = [f"N{37 * i}" for i in range(50)]
first = milliseconds(lambda: recommender.recommend(history, k=100))
searched = resident()
times = [milliseconds(lambda: recommender.recommend(history, k=100)) for _ in range(50)]
p50, p99 = np.percentile(times, [50, 99])
print(json.dumps({
    "load_s": round(seconds, 2),
    "resident_mb": [before, loaded, searched],
    "first_ms": round(first, 1),
    "recommend_100_p50_ms": round(p50, 2),
    "p99_ms": round(p99, 2),
    "least_ms": round(min(times), 2),
}))
"""


def measure_types(folder: Path) -> dict[str, dict]:
    """Return what a process takes that recommends from each type of vectors."""
    from newsrec.files import file_hash
    from newsrec.serving import Recommender
    from newsrec.serving.folder import StoredNews, write_news
    from newsrec.serving.manifest import VECTORS_FORMAT
    from newsrec.serving.vectors import TYPES as KINDS
    from newsrec.serving.vectors import pack

    news = Recommender.load(folder, threads=1).stored_news
    found = {}
    for kind in KINDS:
        packed = folder.parent / kind
        shutil.copytree(folder, packed)
        if kind != "float32":
            write_news(StoredNews(news.table, pack(news.vectors, kind)), packed)
            manifest = json.loads((packed / "manifest.json").read_text())
            names = [path.name for path in packed.iterdir() if path.name != "manifest.json"]
            manifest |= {"format": VECTORS_FORMAT, "vectors": kind, "matching": {"head": "dot"}}
            manifest["files"] = {name: file_hash(packed / name) for name in names}
            (packed / "manifest.json").write_text(json.dumps(manifest))
        size = sum(path.stat().st_size for path in packed.glob("news_*.npy")) / 2**20
        found[kind] = {"vectors_mb": round(size, 1)} | {
            name: json.loads(run_process(TYPES, packed, shortlist))
            for name, shortlist in (("plain", 0), ("shortlist", 1))
        }
        shutil.rmtree(packed)
    return found


def write_encoder(path: Path) -> None:
    """Write the default model's user encoder with random weights."""
    import torch

    from newsrec.export.graphs import USER_NAMES, trace_user_encoder, write_onnx
    from newsrec.model.fastformer import FastformerConfig
    from newsrec.model.user_encoders import UserEncoder

    torch.manual_seed(0)
    encoder = UserEncoder(DIM, FastformerConfig(positions="recency"), MAX_HISTORY, residual=True)
    torch.nn.init.constant_(encoder.gate, 0.5)  # closed, the stack would count for nothing
    write_onnx(trace_user_encoder(encoder, MAX_HISTORY), path, USER_NAMES)


def write_export(folder: Path, encoder: Path, news: int) -> None:
    """Write an export of a user encoder and random news items."""
    import pyarrow as pa

    from newsrec.data import FIRST_NEWS
    from newsrec.files import file_hash
    from newsrec.serving.folder import NEWS_SCHEMA, StoredNews, with_unknown, write_news
    from newsrec.serving.manifest import MANIFEST_FORMAT

    folder.mkdir()
    shutil.copy(encoder, folder / "user_encoder.onnx")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((news, DIM), dtype=np.float32) / np.sqrt(DIM)
    columns = {
        "row": np.arange(FIRST_NEWS, FIRST_NEWS + news),
        "news_id": [f"N{i}" for i in range(news)],
        "title": [f"What happened on day {i}, and why it matters" for i in range(news)],
        "category": [f"category{i % 18}" for i in range(news)],
        "subcategory": [f"subcategory{i % 285}" for i in range(news)],
        "text_hash": [f"{i:016x}" for i in range(news)],
    }
    table = pa.table(columns, schema=NEWS_SCHEMA)
    write_news(StoredNews(table, with_unknown(vectors.astype(np.float32))), folder)
    manifest = {
        "format": MANIFEST_FORMAT,
        "dim": DIM,
        "max_history": MAX_HISTORY,
        "max_tokens": 32,
        "fields": ["title"],
        "model_hash": "random",
        "files": {path.name: file_hash(path) for path in folder.iterdir()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def milliseconds(call: Callable[[], object], times: int) -> dict[str, float]:
    """Return percentiles of a call's time, and the mean and percentiles of its CPU time."""
    for _ in range(min(times, 5)):
        call()
    measured = []
    for _ in range(times):
        start, cpu = time.perf_counter(), time.process_time()
        call()
        measured.append((time.perf_counter() - start, time.process_time() - cpu))
    walls, cpus = np.array(measured).T * 1e3
    found = {
        "p50_ms": np.percentile(walls, 50),
        "p99_ms": np.percentile(walls, 99),
        "cpu_ms": cpus.mean(),
        "cpu_p50_ms": np.percentile(cpus, 50),
        "cpu_p95_ms": np.percentile(cpus, 95),
    }
    return {name: round(float(value), 3) for name, value in found.items()}


def matrix_products() -> None:
    """Do the matrix products of the default user encoder for one user, and nothing else.

    Query, key, transform and output of the attention, two of the feed-forward part, the pooling's.
    """
    clicks = np.ones((MAX_HISTORY, DIM), dtype=np.float32)
    for weight in WEIGHTS:
        clicks @ weight


def measure_vector_and_search(folder: Path, calls: int) -> dict:
    """Return the times of a user vector, of a search, and of a plain product beside it."""
    from newsrec.data import FIRST_NEWS
    from newsrec.serving import Recommender
    from newsrec.serving.search import search

    recommender = Recommender.load(folder, threads=1)
    ids = recommender.news["news_id"].to_pylist()
    history = np.random.default_rng(1).choice(ids, MAX_HISTORY).tolist()
    user = recommender.user_vector(history)
    news = np.array(recommender.news_vectors[FIRST_NEWS:])
    k = min(K, len(news))
    (best,) = search(user[None, None], news, k)
    scores = news @ user
    expected = np.argsort(-scores, kind="stable")[:k]
    np.testing.assert_allclose(best.scores, scores[expected], rtol=1e-5, atol=1e-5)
    searches = max(calls // 20, 3)
    return {
        "user_vector": milliseconds(lambda: recommender.user_vector(history), calls),
        "its_products": milliseconds(matrix_products, calls),
        f"top_{k}": milliseconds(lambda: list(search(user[None, None], news, k)), searches),
        "plain_product": milliseconds(lambda: news @ user, searches),
        f"recommend_{k}": milliseconds(lambda: recommender.recommend(history, k), searches),
        "equal_to_sorting": k,
    }


def run_process(code: str, *arguments: object) -> str:
    """Run Python code in a process of its own and return what it printed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure_starts(folder: Path, times: int = 5) -> dict[str, float]:
    """Return how long a process takes that loads the news items and recommends: the median."""
    walls, cpus = [], []
    for _ in range(times):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        assert run_process(START, folder) == "10\n"
        walls.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"wall_s": round(float(np.median(walls)), 2), "cpu_s": round(float(np.median(cpus)), 2)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=100_000, help="users of the batch")
    parser.add_argument("--news", type=int, default=160_000, help="of a search and a start")
    parser.add_argument("--batch_news", type=int, default=65_000, help="for the batch, at most")
    parser.add_argument("--calls", type=int, default=1000, help="user vectors that are timed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, batch = Path(temporary, "export"), Path(temporary, "batch")
        encoder = Path(temporary, "user_encoder.onnx")
        batch_news = min(args.batch_news, args.news)
        write_encoder(encoder)
        write_export(folder, encoder, args.news)
        write_export(batch, encoder, batch_news)
        starts = measure_starts(folder)
        single = measure_vector_and_search(folder, args.calls)
        types = measure_types(folder)
        many = json.loads(run_process(MANY, batch, args.users))
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "news": args.news,
        "start_process": starts,
        **single,
        "types": types,
        "many_process": {"users": args.users, "news": batch_news, **many},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

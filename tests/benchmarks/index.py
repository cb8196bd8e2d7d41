"""How long a search for 100 news items takes: by all products, and by the index with exact scores.

    python tests/benchmarks/index.py                                       # random news vectors
    python tests/benchmarks/index.py --export exports/demo --data.root data/demo
    python tests/benchmarks/index.py --sizes 160000 --usearch              # pip install usearch

Prints one JSON object. Random news vectors have 256 numbers and are as models make them: in
clusters, longer in some directions than in others, with a common part; a user is the mean of up to
40 of them. With --export, news vectors are drawn around those of the export (the difference of two
others is added, made smaller), and users are those of dev. The times are medians over users, one
after the other; numpy and faiss use OMP_NUM_THREADS threads. The recall is the share of the exact
best 100 that the search finds. --usearch measures that package's graph, too, at several numbers of
news items that a search keeps in view. The last size is not measured: its times continue the line
through the logarithms of the two sizes before it.
"""

import argparse
import json
import math
import resource
import time

import numpy as np

from newsrec.data.dataset import open_mind
from newsrec.serving import Recommender
from newsrec.serving.index import Index

DIM, CLUSTERS, USERS, K = 256, 400, 100, 100
CHANGED = 500
"""News items that are deleted and added one by one."""
BLOCK = 1 << 16
IN_VIEW = (128, 512, 2048)


def random_world(number, rng):
    """News vectors of a made-up model, and users."""
    size = (1 / np.sqrt(1 + np.arange(DIM) / 8)).astype(np.float32)
    common = rng.normal(size=DIM) * size / 2
    centres = rng.normal(size=(CLUSTERS, DIM)) * size
    shares = rng.dirichlet(np.full(CLUSTERS, 0.5))
    news = np.empty((number, DIM), np.float32)
    for start in range(0, number, BLOCK):
        part = news[start : start + BLOCK]
        part[:] = 0.8 * rng.normal(size=part.shape) * size
        part += common + centres[rng.choice(CLUSTERS, len(part), p=shares)]
    users = [news[rng.integers(0, number, rng.integers(1, 40))].mean(axis=0) for _ in range(USERS)]
    return news, np.array(users)


def exported_world(number, rng, recommender, root):
    """News vectors around those of an export, and the vectors of dev's users."""
    real = recommender.news_vectors[2:]
    news = np.empty((number, real.shape[1]), np.float32)
    for start in range(0, number, BLOCK):
        part = news[start : start + BLOCK]
        one, two, other = (real[rows] for rows in rng.integers(0, len(real), (3, len(part))))
        part[:] = one + 0.3 * (two - other)
    data = open_mind(root)
    dev = data.split("dev")
    ids = data.news["news_id"].to_pylist()
    histories = [
        [ids[row - 2] for row in dev.histories.values[slice(*dev.histories.offsets[i : i + 2])]]
        for i in rng.choice(len(dev.histories.offsets) - 1, USERS, replace=False)
    ]
    return news, recommender.user_vectors(histories)


def timed(work, every):
    """Median milliseconds of some work on each of these, and what it returned."""
    seconds, found = [], []
    for one in every:
        start = time.perf_counter()
        found.append(work(one))
        seconds.append(time.perf_counter() - start)
    return round(1e3 * float(np.median(seconds)), 3), found


def measure_usearch(news, users, exact, gone):
    """Times and recall of usearch's graph, in float16 with exact scores behind it."""
    from usearch.index import Index as Graph

    start = time.perf_counter()
    graph = Graph(ndim=news.shape[1], metric="ip", dtype="f16", expansion_add=128)
    graph.add(np.arange(len(news)), news, threads=1)
    result = {"build_s": round(time.perf_counter() - start, 1), "in_view": {}}

    def by_graph(user):
        rows = graph.search(user, K + K // 8, threads=1).keys.astype(np.int64)
        return rows[np.argsort(-(news[rows] @ user))[:K]]

    for view in IN_VIEW:
        graph.expansion_search = view
        milliseconds, found = timed(by_graph, users)
        pairs = zip(exact, found, strict=True)
        recall = round(float(np.mean([np.isin(a, b).mean() for a, b in pairs])), 4)
        result["in_view"][view] = {"ms": milliseconds, "recall_at_100": recall}
    result["remove_ms"], _ = timed(lambda row: graph.remove(int(row)), gone)
    after = np.concatenate([by_graph(user) for user in users])
    return result | {"removed_found": int(np.isin(after, gone).sum())}


def measure(news, users, rng, usearch=False):
    """Times and recall at one size."""
    buffer = np.empty(len(news), np.float32)

    def exactly(user):
        np.matmul(news, user, out=buffer)
        rows = np.argpartition(-buffer, K)[:K]
        return rows[np.argsort(-buffer[rows])]

    def by_index(user):
        rows = index.search(user[None], K)
        return rows[np.argsort(-(news[rows] @ user))[:K]]

    exact_ms, exact = timed(exactly, users)
    start = time.perf_counter()
    index = Index(np.arange(len(news)), news)
    built = time.perf_counter() - start
    index_ms, found = timed(by_index, users)
    pairs = list(zip(exact, found, strict=True))
    gone = rng.choice(len(news), CHANGED, replace=False)
    removed, _ = timed(lambda row: index.remove(np.array([row])), gone)
    after = np.concatenate([by_index(user) for user in users])
    added, _ = timed(lambda row: index.add(np.array([row]), news[row][None]), gone)
    beside = {"usearch": measure_usearch(news, users, exact, gone)} if usearch else {}
    return {
        "news": len(news),
        "exact_ms": exact_ms,
        "index_ms": index_ms,
        "recall_at_100": round(float(np.mean([np.isin(a, b).mean() for a, b in pairs])), 4),
        "first_found": round(float(np.mean([a[0] == b[0] for a, b in pairs])), 4),
        "lists_read": f"{index.probed} of {index.lists}",
        "build_s": round(built, 1),
        "remove_ms": removed,
        "removed_found": int(np.isin(after, gone).sum()),
        "add_ms": added,
    } | beside


def continued(a, b, number):
    """What the line through two measurements, in logarithms, gives for another size."""
    along = math.log(number / a["news"]) / math.log(b["news"] / a["news"])
    return {"news": number, "computed": True} | {
        name: round(a[name] * (b[name] / a[name]) ** along, 2) for name in ("exact_ms", "index_ms")
    }


def draw(sizes, path):
    """Draw the times over the number of news, both axes logarithmic, and the recall."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (times, recall) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    measured = [row for row in sizes if not row.get("computed")]
    for name, label, marker in (("exact_ms", "all products", "o"), ("index_ms", "index", "s")):
        (line,) = times.plot(*_points(measured, name), marker=marker, label=label)
        style = {"linestyle": "--", "marker": marker, "mfc": "white", "zorder": 1}
        times.plot(*_points(sizes[-2:], name), color=line.get_color(), **style)
    times.set(xscale="log", yscale="log", ylabel="ms for the 100 best (dashed: computed)")
    times.legend()
    recall.plot(*_points(measured, "recall_at_100"), marker="s", color="C1")
    recall.axhline(0.99, color="gray", linestyle=":")
    recall.set(xscale="log", ylim=(0.98, 1), ylabel="recall of the 100 best")
    for axis in (times, recall):
        axis.set(xlabel="news items")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _points(sizes, name):
    return [row["news"] for row in sizes], [row[name] for row in sizes]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 160_000, 1_000_000])
    parser.add_argument("--computed", type=int, default=5_000_000)
    parser.add_argument("--export", help="folder that export wrote; needs --data.root")
    parser.add_argument("--data.root", dest="root")
    parser.add_argument("--usearch", action="store_true", help="also measure usearch's graph")
    parser.add_argument("--figure", help="PNG to draw")
    args = parser.parse_args()
    recommender = Recommender.load(args.export, threads=1) if args.export else None
    sizes = []
    for number in args.sizes:
        rng = np.random.default_rng(0)
        if recommender is None:
            news, users = random_world(number, rng)
        else:
            news, users = exported_world(number, rng, recommender, args.root)
        sizes.append(measure(news, users, rng, args.usearch))
        del news
    if len(sizes) > 1:
        sizes.append(continued(*sizes[-2:], args.computed))
    if args.figure:
        draw(sizes, args.figure)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"sizes": sizes, "peak_gib": round(peak, 2)}, indent=1))


if __name__ == "__main__":
    main()

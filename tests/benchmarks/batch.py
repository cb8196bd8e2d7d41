"""How fast ``batch`` scores users on each engine, beside the bare products and top k.

    python tests/benchmarks/batch.py --users 20000
    python tests/benchmarks/batch.py --users 100 --news 1000     # a quick look

Prints one JSON object. The user encoder is the default model's with random weights, news and
histories (0 to 50 clicks) are random. Each engine is the command in a process of its own; its
memory is the largest sum of the proportional sizes (PSS) of all its processes. ``bare`` multiplies
the same number of user vectors, at most 2,000, with all news in blocks and takes the top k,
``encoder`` encodes as many users one by one, both in one process; their CPU time is per user.
``cpu_s`` of Ray and Spark does not include the workers.
"""

import argparse
import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from recommend import DIM, write_encoder, write_export

ROWS_AT_ONCE = 50_000

ALONE = """
import json, sys, time
import numpy as np
from newsrec.serving import Recommender
from newsrec.serving.search import search
recommender, users, k = Recommender.load(sys.argv[1], threads=1), int(sys.argv[2]), int(sys.argv[3])
news = np.array(recommender.news_vectors[2:])
vectors = np.random.default_rng(0).standard_normal((users, 1, news.shape[1]), dtype=np.float32)
start = time.process_time()
for best in search(vectors, news, k):
    pass
bare = time.process_time() - start
rng = np.random.default_rng(0)
histories = [rng.integers(2, len(news), n).tolist() for n in rng.integers(0, 51, users)]
start = time.process_time()
for history in histories:
    recommender._encoders.users([history], recommender._catalogue.vectors)
encoder = time.process_time() - start
print(json.dumps({"users": users, "bare_cpu_ms": round(bare / users * 1e3, 2),
                  "encoder_cpu_ms": round(encoder / users * 1e3, 2)}))
"""


def write_users(path: Path, users: int, news: int) -> None:
    """Write users with random histories."""
    rng = np.random.default_rng(0)
    ids = pa.array([f"N{i}" for i in range(news)])
    schema = pa.schema({"user_id": pa.string(), "history": pa.list_(pa.string())})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, users, ROWS_AT_ONCE):
            names = [f"U{i}" for i in range(start, min(start + ROWS_AT_ONCE, users))]
            offsets = np.append(0, rng.integers(0, 51, len(names)).cumsum())
            clicks = ids.take(pa.array(rng.integers(0, news, offsets[-1])))
            history = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), clicks)
            writer.write_table(pa.table([names, history], schema=schema))


def measure(command: list[str]) -> dict[str, float]:
    """Return the seconds and the memory of a command and its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], memory_below(process.pid))
            time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.wait() == 0
    seconds = time.perf_counter() - start
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"seconds": round(seconds, 1), "cpu_s": round(cpu, 1)}
    return found | {"peak_mb": round(peak[0] / 1024)}


def memory_below(root: int) -> int:
    """Return the kilobytes of a process and all below it, shared memory divided among users."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                status = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(status[1])
    total = 0
    for pid in parents:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--news", type=int, default=160_000)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["local", "ray", "spark"])
    parser.add_argument("--folder", type=Path, help="where the export and the users are kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        root.mkdir(exist_ok=True)
        export, users = root / "export", root / f"users-{args.users}.parquet"
        if not export.exists():
            write_encoder(root / "user_encoder.onnx")
            write_export(export, root / "user_encoder.onnx", args.news)
        if not users.exists():
            write_users(users, args.users, args.news)
        few = str(min(args.users, 2000))
        alone = subprocess.run([sys.executable, "-c", ALONE, str(export), few, str(args.k)],
                               check=True, capture_output=True, text=True)  # fmt: skip
        found = {"users": args.users, "news": args.news, "dim": DIM, "k": args.k}
        found |= {"workers": args.workers, "alone": json.loads(alone.stdout)}
        hashes = set()
        for engine in args.engines:
            output = root / f"output-{engine}"
            shutil.rmtree(output, ignore_errors=True)
            command = [sys.executable, "-m", "newsrec", "batch", str(export), "--users", str(users),
                       "--output", str(output), "-k", str(args.k), "--engine", engine,
                       "--workers", str(args.workers), "--users_per_part", "1000"]  # fmt: skip
            taken = measure(command)
            taken["users_per_s"] = round(args.users / taken["seconds"])
            if engine == "local":
                taken["cpu_ms_per_user"] = round(taken["cpu_s"] / args.users * 1e3, 2)
            found[engine] = taken
            hashes.add(json.dumps(json.loads((output / "_manifest.json").read_text())["parts"]))
        found["same_bytes"] = len(hashes) == 1
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

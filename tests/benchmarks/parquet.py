"""How long ``prepare`` takes from Parquet, beside the same rows from TSV and beside pandas.

    python tests/benchmarks/parquet.py                       # simulates 1 million impressions first
    python tests/benchmarks/parquet.py --data.root DIR       # train of a folder in MIND's format

Prints one JSON object. Each measurement of ``prepare`` is a process of its own, and takes in
starting Python; the formats take turns, and the least of the rounds counts. pandas reads the first
rows, makes one value per row of the lists, and looks the ids up. On a busy machine CPU seconds
tell more than seconds.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from newsrec.data.dataset import NewsData, open_mind
from newsrec.data.readers.mind_files import find_splits
from newsrec.data.readers.to_parquet import mind_to_parquet
from newsrec.simulation.presets import PRESETS
from newsrec.simulation.simulate import simulate

REFERENCE_ROWS = 50_000
"""Rows that pandas reads: all of them would need too much memory."""

CHILD = """
import resource, runpy, sys
try:
    runpy.run_module("newsrec", run_name="__main__", alter_sys=True)
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/status") as status:  # ru_maxrss would take in the parent's
        peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    print("used", peak, used.ru_utime + used.ru_stime, file=sys.stderr)
"""


def simulate_train(output: Path, impressions: int, file_format: str = "mind") -> None:
    """Simulate the train split of a world with MIND-large's statistics."""
    large = PRESETS["large"]
    share = impressions / large.impressions[0]
    sizes = dataclasses.replace(
        large,
        impressions=(impressions,),
        users=(max(int(large.users[0] * share), 2),),
        shared_users=(0,),
        empty_histories=large.empty_histories[:1],
        daily_news=large.daily_news[:7],
    )
    PRESETS["benchmark"] = sizes
    try:
        simulate(output, "benchmark", file_format=file_format)
    finally:
        del PRESETS["benchmark"]


def prepare(root: Path) -> dict[str, float]:
    """Return seconds, CPU seconds and peak megabytes of ``prepare`` on a fresh folder."""
    shutil.rmtree(root / ".newsrec", ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, "-c", CHILD, "prepare", "--data.root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    peak, cpu = done.stderr.rsplit("used ", 1)[1].split()
    return {"prepare_s": seconds, "cpu_s": float(cpu), "peak_mb": int(peak) / 1024}


def read_with_pandas(path: Path, data: NewsData) -> tuple[float, float, int]:
    """Return seconds, CPU seconds and rows of reading with pandas; the results are compared."""
    ids = data.news["news_id"].to_pylist()
    start, cpu = time.perf_counter(), time.process_time()
    batch = next(pq.ParquetFile(path).iter_batches(REFERENCE_ROWS))
    frame = pa.Table.from_batches([batch]).to_pandas()
    row = pd.Series(np.arange(len(ids)) + 2, index=ids)
    candidates = frame["candidates"].explode().map(row).fillna(1).to_numpy(np.int32)
    labels = frame["labels"].explode().to_numpy(bool)
    history = frame["history"].explode().map(row).dropna().to_numpy(np.int32)
    users = frame["user_id"].astype("category").cat.codes
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    split = data.split("train")
    offsets = split.candidates.offsets
    end = int(offsets[len(frame)])
    np.testing.assert_array_equal(candidates, split.candidates.values[:end])
    np.testing.assert_array_equal(labels, split.labels[:end])
    own = split.histories.take(split.history[: len(frame)])
    np.testing.assert_array_equal(history, own.values)
    assert len(users) == len(frame)
    return seconds, cpu, len(frame)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data.root", dest="root", help="folder in MIND's format, with train")
    parser.add_argument("--impressions", type=int, default=1_000_000, help="to simulate")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tsv, parquet = Path(folder) / "tsv", Path(folder) / "parquet"
        if args.root is None:
            simulate_train(tsv, args.impressions)
        else:
            (tsv / "train").mkdir(parents=True)
            for file in find_splits(Path(args.root))["train"]:
                (tsv / "train" / file.path.name).symlink_to(file.path.resolve())
        start = time.perf_counter()
        mind_to_parquet(tsv, parquet)
        converted = time.perf_counter() - start
        runs = {"tsv": [], "parquet": []}
        for _ in range(args.rounds):
            for name, root in (("tsv", tsv), ("parquet", parquet)):
                runs[name].append(prepare(root))
        one, other = open_mind(tsv), open_mind(parquet)
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name])
        assert one.news.equals(other.news)
        assert one.users.equals(other.users)
        pandas_s, pandas_cpu, rows = read_with_pandas(
            parquet / "train" / "impressions.parquet", other
        )
        megabytes = {
            name: round(sum(f.stat().st_size for f in root.glob("train/*")) / 1e6)
            for name, root in (("tsv", tsv), ("parquet", parquet))
        }
        impressions = len(other.split("train").history)
    least = {
        name: {what: min(run[what] for run in done) for what in done[0]}
        for name, done in runs.items()
    }
    tsv_run, own_run = least["tsv"], least["parquet"]
    result = {
        "impressions": impressions,
        "megabytes": megabytes,
        "convert_s": round(converted, 2),
        **{name: {k: round(v, 2) for k, v in run.items()} for name, run in least.items()},
        "all_rounds_s": {n: [round(r["prepare_s"], 2) for r in runs[n]] for n in runs},
        "times_as_fast_as_tsv": {
            what: round(tsv_run[f"{what}_s"] / own_run[f"{what}_s"], 2)
            for what in ("prepare", "cpu")
        },
        "pandas": {"rows": rows, "seconds": round(pandas_s, 2), "cpu_s": round(pandas_cpu, 2)},
        "times_as_fast_as_pandas": {
            "prepare": round(impressions / own_run["prepare_s"] / (rows / pandas_s), 1),
            "cpu": round(impressions / own_run["cpu_s"] / (rows / pandas_cpu), 1),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""How long ``prepare`` takes, and how much memory, beside reading the same rows with pandas.

    python tests/benchmarks/prepare.py                      # simulates MIND-large first, 1.4 GB
    python tests/benchmarks/prepare.py --data.root DIR      # train of a folder that is there

Prints one JSON object. Each measurement is a process of its own, and takes in starting Python.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from newsrec.data.dataset import open_mind
from newsrec.data.readers.mind_files import BEHAVIORS_COLUMNS, find_splits
from newsrec.simulation.simulate import simulate

REFERENCE_ROWS = 20_000
"""Rows that the reference reads: it would take too long over all."""

CHILD = """
import resource, runpy, sys
try:
    runpy.run_module("newsrec", run_name="__main__", alter_sys=True)
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def prepare(root: Path) -> tuple[float, float]:
    """Return seconds and peak megabytes of ``python -m newsrec prepare``."""
    start = time.perf_counter()
    command = [sys.executable, "-c", CHILD, "prepare", "--data.root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    return seconds, int(done.stderr.rsplit("peak ", 1)[1]) / 1024


def read_with_pandas(path: Path, news_row: dict[str, int]) -> tuple[float, list[list[int]], int]:
    """Read some rows as most code does: pandas, then Python for each row.

    Returns:
        Seconds, each row's candidates, and the number of bytes read.
    """
    start = time.perf_counter()
    table = pd.read_csv(
        path,
        sep="\t",
        names=list(BEHAVIORS_COLUMNS),
        quoting=3,
        keep_default_na=False,
        dtype=str,
        nrows=REFERENCE_ROWS,
    )
    table["time"] = pd.to_datetime(table["time"], format="%m/%d/%Y %I:%M:%S %p")
    histories = [[news_row.get(n, 1) for n in text.split()] for text in table["history"]]
    pairs = [[word.rsplit("-", 1) for word in text.split()] for text in table["candidates"]]
    candidates = [[news_row.get(n, 1) for n, _ in row] for row in pairs]
    labels = [[int(label) for _, label in row] for row in pairs]
    seconds = time.perf_counter() - start
    assert len(histories) == len(labels)
    with path.open("rb") as file:
        size = sum(len(file.readline()) for _ in range(len(table)))
    return seconds, candidates, size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data.root", dest="root", help="folder with a train split")
    root = parser.parse_args().root
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            simulate(Path(folder) / "large", "large")
            root = Path(folder) / "large"
        files = find_splits(Path(root))["train"]
        own = Path(folder) / "train"
        (own / "train").mkdir(parents=True)
        for file in files:
            (own / "train" / file.path.name).symlink_to(file.path.resolve())
        for file in files:  # into the page cache, for all measurements alike
            with file.open() as stream:
                while stream.read(1 << 24):
                    pass
        first, peak = prepare(own)
        second, _ = prepare(own)
        data = open_mind(own)
        ids = data.news["news_id"].to_pylist()
        news_row = {news_id: 2 + i for i, news_id in enumerate(ids)}
        reference, candidates, size = read_with_pandas(files.behaviors.path, news_row)
        split = data.split("train")
        for row, expected in enumerate(candidates):
            begin, end = split.candidates.offsets[row : row + 2]
            assert split.candidates.values[begin:end].tolist() == expected
        num_bytes = sum(file.size for file in files)
    ratio = (num_bytes / first) / (size / reference)
    result = {
        "impressions": len(split.history),
        "megabytes": round(num_bytes / 1e6),
        "prepare_s": round(first, 2),
        "peak_mb": round(peak),
        "again_s": round(second, 2),
        "megabytes_per_s": round(num_bytes / first / 1e6, 1),
        "times_as_fast_as_pandas": round(ratio, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

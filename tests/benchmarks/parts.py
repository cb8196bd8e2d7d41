"""Cost of ``prepare`` in parts: ``--jobs`` and ``--engine ray``, compared with one process.

    python tests/benchmarks/parts.py --impressions 1000000 --files 16
    python tests/benchmarks/parts.py --format mind --impressions 300000  # or clicks, ebnerd
    python tests/benchmarks/parts.py --data.root DIR  # existing data, compiled elsewhere

Prints one JSON object. Each measurement is a separate process, and includes the start of Python.
``join_cpu_s`` are the CPU seconds of the first process, which joins the parts; more workers do not
reduce them. ``cpu_s`` includes the processes that it started and that ended (not those of Ray). All
compiled files are compared byte by byte.
"""

import argparse
import json
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from newsrec.data.readers.to_parquet import mind_to_parquet

WAYS = {
    "one process": [],
    "--jobs 2": ["--jobs", "2"],
    "--engine ray --jobs 2": ["--engine", "ray", "--jobs", "2"],
}
TABLES = {
    "parquet": "impressions.parquet",
    "clicks": "clicks.parquet",
    "mind": "behaviors.tsv",
    "ebnerd": "behaviors.parquet",
}
"""File or folder with the impressions of a split, by format."""
CHILD = """
import resource, runpy, sys
try:
    runpy.run_module("newsrec", run_name="__main__", alter_sys=True)
finally:
    own, all = (resource.getrusage(getattr(resource, "RUSAGE_" + n)) for n in ("SELF", "CHILDREN"))
    with open("/proc/self/status") as status:  # ru_maxrss would include the parent's
        peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    mine = own.ru_utime + own.ru_stime
    print("used", peak, mine, mine + all.ru_utime + all.ru_stime, file=sys.stderr)
"""


def prepare(root: Path, options: list[str]) -> tuple[dict[str, float], dict[str, bytes]]:
    """Return what ``prepare`` costs on a fresh folder, and the compiled files."""
    shutil.rmtree(root / ".newsrec", ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, "-c", CHILD, "prepare", "--data.root", str(root), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    peak, mine, cpu = done.stderr.rsplit("used ", 1)[1].split()
    cost = {"s": seconds, "cpu_s": float(cpu), "join_cpu_s": float(mine)}
    (cache,) = (path for path in (root / ".newsrec").iterdir() if path.is_dir())
    files = {path.name: path.read_bytes() for path in cache.iterdir()}
    return cost | {"peak_mb": int(peak) / 1024}, files


def divide(files: int, root: Path) -> None:
    """Write train's impressions as a folder of files."""
    path = root / "train" / "impressions.parquet"
    table = pq.read_table(path)
    path.unlink()
    path.mkdir()
    rows = -(-len(table) // files)
    for number in range(files):
        part = table.slice(number * rows, rows)
        pq.write_table(part, path / f"{number:05d}.parquet", row_group_size=100_000)


def keep_clicks(root: Path) -> None:
    """Write train's clicks in place of its impressions."""
    path = root / "train" / TABLES["parquet"]
    table = pq.read_table(path)
    clicked = pc.list_flatten(table["labels"]).cast(pa.bool_())
    rows = table.take(pc.list_parent_indices(table["candidates"]).filter(clicked))
    news = pc.list_flatten(table["candidates"]).filter(clicked)
    clicks = rows.select(["user_id", "time"]).append_column("news_id", news)
    pq.write_table(clicks, root / "train" / TABLES["clicks"], row_group_size=100_000)
    path.unlink()


def files_of(table: Path) -> list[Path]:
    """Return the files of a table."""
    return [table] if table.is_file() else list(table.rglob("*.parquet"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data.root", dest="root", help="data in the format of --format")
    parser.add_argument("--format", choices=TABLES, default="parquet")
    parser.add_argument("--impressions", type=int, default=1_000_000, help="number to simulate")
    parser.add_argument(
        "--files", type=int, default=16, help="number of files of the simulated impressions"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "parquet"
        if args.root is not None:  # whose own compiled data and states are left alone
            root.mkdir()
            for path in Path(args.root).glob("[!.]*"):
                (root / path.name).symlink_to(path.resolve())
        else:
            simulate = runpy.run_path(str(Path(__file__).parent / "parquet.py"))["simulate_train"]
            if args.format in ("mind", "ebnerd"):
                simulate(root, args.impressions, args.format)
            else:
                simulate(Path(folder) / "tsv", args.impressions)
                mind_to_parquet(Path(folder) / "tsv", root)
                (keep_clicks if args.format == "clicks" else partial(divide, args.files))(root)
        table = root / "train" / TABLES[args.format]
        found: dict[str, Any] = {"bytes": sum(path.stat().st_size for path in files_of(table))}
        expected = None
        for way in args.ways:
            found[way], files = prepare(root, WAYS[way])
            expected = expected or files
            assert files == expected, way
        assert expected is not None
        counts = json.loads(expected["meta.json"])["counts"]
        found["impressions"] = counts["train"]["impressions"]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

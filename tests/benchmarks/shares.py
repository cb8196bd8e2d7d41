"""What a process of ``fit`` and ``evaluate`` holds of the compiled data, for each impression.

    python tests/benchmarks/shares.py --data.root data/small [--processes 2]

Prints JSON. ``files``: bytes on the disk for each impression. ``own``: bytes that a piece of work
leaves in a process's own memory, and those at its peak, for each further impression of its split
(``tracemalloc``, with train repeated 4 and 8 times in memory). ``mapped``: the largest share of
each compiled file that was in the address space of each of several processes of ``fit``, for one
epoch, and of ``evaluate`` (``Rss`` in /proc/PID/smaps); the processes of a machine share these
pages. The model and its PLM are tiny.
"""

import argparse
import gc
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.data.datamodule import MindDataModule
from newsrec.data.dataset import NewsData, open_mind, split_of
from newsrec.data.ragged import to_offsets
from newsrec.data.samplers import EvalBatches
from newsrec.data.splits import choose_splits, seen_news
from newsrec.evaluation.results import compute_results
from newsrec.training.callbacks import ScoreCollector

FIT = [
    *("--data.batch_size=2048", "--data.eval_batch_size=4096", "--model.dim=16", "--threads=1"),
    *("--model.news={heads: 2, ffn: 16}", "--model.user={heads: 2, ffn: 16}"),
    *("--trainer.max_epochs=1", "--baselines=false", "--model.precision=fp32"),
    "--data.frozen_states=none",
]
TRAINER = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def watch(argv: list[str], processes: int, cache: Path) -> list[dict[str, int]]:
    """Run a command in processes; return the most bytes of each file that each has mapped."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
    shared |= {"GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    file = re.compile(rf"{re.escape(str(cache))}/(\S+)\n(?:.*\n)*?Rss:\s+(\d+)")
    command, runs = [sys.executable, "-m", "newsrec", *argv, *TRAINER], []
    for rank in range(processes):
        mine = shared | {"TORCHELASTIC_RUN_ID": "shares", "RANK": rank, "LOCAL_RANK": rank}
        mine = os.environ | {name: str(value) for name, value in mine.items()}
        run = subprocess.Popen(command, env=mine, stdout=subprocess.DEVNULL)
        runs.append((run, Path(f"/proc/{run.pid}/smaps"), {}))
    while any(run.poll() is None for run, *_ in runs):
        for run, maps, peaks in runs:
            for name, kib in file.findall(maps.read_text()) if run.returncode is None else ():
                peaks[name] = max(peaks.get(name, 0), int(kib) << 10)
        time.sleep(0.2)
    assert not any(run.returncode for run, *_ in runs)
    return [peaks for *_, peaks in runs]


def repeated(data: NewsData, times: int) -> NewsData:
    """Return data with train alone, whose impressions are repeated."""
    train = data.split("train")
    names = ("impression_id", "user", "time", "history", "labels")
    arrays = {name: np.tile(getattr(train, name), times) for name in names}
    arrays["candidate_values"] = np.tile(train.candidates.values, times)
    arrays["candidate_offsets"] = to_offsets(np.tile(train.candidates.lengths, times))
    arrays |= {f"history_{name}": array for name, array in train.histories._asdict().items()}
    number = len(train.history) * times
    whole = split_of(arrays, "train", 0, number, train.counts, "", train.num_news)
    return data._replace(splits={"train": whole}, arrays=arrays)


def own_memory(data: NewsData, plm: str) -> dict[str, NDArray[np.int64]]:
    """Return the bytes that each piece of work leaves, and those at its peak."""
    found = {}
    split = data.split("train")

    def measure(name: str, work: Callable[[], Any]) -> Any:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = work()
        found[name] = np.array(tracemalloc.get_traced_memory()) - before
        return result

    number = len(split.history)
    measure("open: split", lambda: split_of(data.arrays, "x", 0, number, split.counts, "", 2))
    measure("open: later split", lambda: split_of(data.arrays, "x", 1, number, split.counts, "", 2))
    measure("fit: val last_day", lambda: choose_splits(data, val="last_day"))
    for batches in ("random", "impression", "user"):
        made = MindDataModule(data.root, plm=plm, batches=batches, val="none")
        made.setup("validate")
        made._data = data
        measure(f"fit: samples, {batches}", partial(made.setup, "fit"))
        epoch = iter(measure(f"fit: loader, {batches}", made.train_dataloader).sampler)
        measure(f"fit: order of an epoch, {batches}", partial(next, epoch))
    collector = ScoreCollector()
    for part in measure("evaluate: order", lambda: EvalBatches(split, 4096)):
        scores = np.zeros(split.candidates.lengths[part].sum(), dtype=np.float32)
        collector.parts.append((part, scores))
    alone = SimpleNamespace(world_size=1)
    scores = measure("evaluate: scores of all", lambda: collector.scores(alone, split))
    measure("evaluate: news that train has seen", lambda: seen_news(split, data.num_news))
    measure("evaluate: metrics", lambda: compute_results(data, "train", scores))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data.root", dest="root", required=True, help="with train and dev")
    parser.add_argument("--processes", type=int, default=2, help="0: only own memory")
    args = parser.parse_args()
    data = open_mind(args.root)
    rows = {name: len(split.history) for name, split in data.splits.items()}
    files = {path.name: path.stat().st_size for path in sorted(data.cache.glob("*.npy"))}
    each = {name: round(size / sum(rows.values()), 1) for name, size in files.items()}
    with tempfile.TemporaryDirectory() as folder:
        gpu = runpy.run_path(str(Path(__file__).parent / "gpu.py"))
        plm = gpu["write_plm"](gpu["CASES"]["tiny"].plm, Path(folder) / "plm")
        found: dict[str, Any] = {"impressions": rows, "files": each}
        tracemalloc.start()
        few, many = (own_memory(repeated(data, times), plm) for times in (4, 8))
        tracemalloc.stop()
        found["own"] = {
            name: ((many[name] - few[name]) / (4 * rows["train"])).round(1).tolist() for name in few
        }
        fit = ["fit", f"--output={folder}/run", f"--model.plm={plm}", *FIT]
        evaluate = ["evaluate", f"--ckpt_path={folder}/run/checkpoints/last.ckpt", "--split=dev"]
        for argv in (fit, [*evaluate, f"--output={folder}/dev"]) if args.processes else ():
            mapped = watch([*argv, f"--data.root={args.root}"], args.processes, data.cache)
            found[f"mapped, {argv[0]}"] = {
                name: [round(own.get(name, 0) / size, 2) for own in mapped]
                for name, size in files.items()
            }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

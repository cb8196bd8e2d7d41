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
import re
import runpy
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from newsrec.data.datamodule import MindDataModule
from newsrec.data.dataset import NewsData, open_mind, split_of
from newsrec.data.ragged import to_offsets
from newsrec.data.samplers import EvalBatches
from newsrec.data.splits import choose_splits
from newsrec.evaluation.results import compute_results
from newsrec.training.callbacks import ScoreCollector

FIT = ["--model.dim=16", "--model.news={heads: 2, ffn: 16}", "--model.user={heads: 2, ffn: 16}"]
FIT += ["--data.batch_size=2048", "--trainer.max_epochs=1", "--data.frozen_states=none"]
FIT += ["--baselines=false", "--model.precision=fp32", "--threads=1"]


def watch(argv: list[str], processes: int, cache: Path) -> list[Counter[str]]:
    """Run a command in processes; return the most bytes of each file that each has mapped."""
    file = re.compile(rf"{re.escape(str(cache))}/(\S+)\n(?:.*\n)*?Rss:\s+(\d+)")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launch, "-m", "newsrec", *argv, "--trainer.accelerator=cpu"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    peaks: defaultdict[int, Counter[str]] = defaultdict(Counter)
    while run.poll() is None:
        with suppress(OSError):  # a process has ended
            for child in map(int, children.read_bytes().split()):
                for name, kib in file.findall(Path(f"/proc/{child}/smaps").read_bytes().decode()):
                    peaks[child][name] = max(peaks[child][name], int(kib) << 10)
        time.sleep(0.2)
    assert not run.returncode
    return [peaks[child] for child in sorted(peaks)]


def own_memory(data: NewsData, plm: str, times: int) -> dict[str, Any]:
    """Return the bytes that each piece of work leaves and has at its peak, with train repeated."""
    train = data.split("train")
    arrays = {"candidate_offsets": to_offsets(np.tile(train.candidates.lengths, times))}
    arrays |= {f"history_{name}": array for name, array in train.histories._asdict().items()}
    arrays["candidate_values"] = np.tile(train.candidates.values, times)
    for name in ("impression_id", "user", "time", "history", "labels"):
        arrays[name] = np.tile(getattr(train, name), times)
    number = len(train.history) * times
    split = split_of(arrays, "train", 0, number, train.counts, "", train.num_news)
    data = data._replace(splits={"train": split}, arrays=arrays)
    found = {}

    def measure(name: str, work: Callable[[], Any]) -> Any:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = work()
        found[name] = np.array(tracemalloc.get_traced_memory()) - before
        return result

    measure("fit: val last_day", lambda: choose_splits(data, val="last_day"))
    for batches in ("random", "impression", "user"):
        made = MindDataModule(data.root, plm=plm, batches=batches, val="none")
        made.setup("validate")
        made._data = data
        measure(f"fit: samples, {batches}", partial(made.setup, "fit"))
        epoch = iter(measure(f"fit: groups, {batches}", made.train_dataloader).sampler)
        measure(f"fit: order of an epoch, {batches}", partial(next, epoch))
    collector = ScoreCollector()
    for part in measure("evaluate: order", lambda: EvalBatches(split, 4096)):
        scores = np.zeros(split.candidates.lengths[part].sum(), dtype=np.float32)
        collector.parts.append((part, scores))
    alone = SimpleNamespace(world_size=1)
    scores = measure("evaluate: scores, first process", lambda: collector.scores(alone, split))
    measure("evaluate: metrics, first process", lambda: compute_results(data, "train", scores))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data.root", dest="root", required=True, help="with train and dev")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    data = open_mind(args.root)
    rows = sum(len(split.history) for split in data.splits.values())
    files = {path.name: path.stat().st_size for path in sorted(data.cache.glob("*.npy"))}
    each = {name: round(size / rows, 1) for name, size in files.items()}
    found: dict[str, Any] = {"impressions": rows, "files": each}
    with tempfile.TemporaryDirectory() as folder:
        gpu = runpy.run_path(str(Path(__file__).parent / "gpu.py"))
        plm = gpu["write_plm"](gpu["CASES"]["tiny"].plm, Path(folder) / "plm")
        tracemalloc.start()
        few, many = (own_memory(data, plm, times) for times in (4, 8))
        tracemalloc.stop()
        more = 4 * len(data.split("train").history)
        found["own"] = {name: ((many[name] - few[name]) / more).round(1).tolist() for name in few}
        fit = ["fit", f"--output={folder}/run", f"--model.plm={plm}", *FIT]
        evaluate = ["evaluate", f"--ckpt_path={folder}/run/checkpoints/last.ckpt", "--split=dev"]
        for argv in (fit, [*evaluate, f"--output={folder}/dev"]):
            mapped = watch([*argv, f"--data.root={args.root}"], args.processes, data.cache)
            found[f"mapped, {argv[0]}"] = {
                name: [round(own[name] / size, 2) for own in mapped] for name, size in files.items()
            }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

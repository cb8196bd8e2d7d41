"""How fast ranks become a closed ``prediction.zip``, and how fast that is checked.

    python tests/benchmarks/submission.py [--impressions 376471]

Prints one JSON object. Impressions have about as many candidates as MIND's. The reference is a loop
over lines, on a part of them: it must write the same text, and find the same bad line, or the
benchmark fails. Memory is what the process holds of its own beyond what it held before.
"""

import argparse
import json
import os
import platform
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsrec.data.dataset import Split
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.evaluation.check_submission import inspect
from newsrec.evaluation.submission import write_predictions
from newsrec.metrics import ranks

PART = 20_000
"""Impressions that the reference goes through."""


def random_split(number: int) -> tuple[Split, NDArray[np.int32]]:
    """Return a labelled split of random impressions, and random ranks of its candidates."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(24), 0.94, number), 2, 283).astype(np.int64)
    candidates = Ragged(np.full(int(lengths.sum()), 2, dtype=np.int32), to_offsets(lengths))
    labels = np.zeros(len(candidates.values), dtype=np.int8)
    labels[candidates.offsets[:-1] + rng.integers(0, lengths)] = 1
    zeros = np.zeros(number, dtype=np.int32)
    split = Split(
        name="test",
        impression_id=np.arange(1, number + 1),
        user=zeros,
        time=zeros.astype("datetime64[s]"),
        history=zeros,
        histories=Ragged(zeros[:1], np.array([0, 1])),
        candidates=candidates,
        labels=labels,
        counts={},
        fingerprint="",
        num_news=0,
    )
    scores = rng.random(len(labels), dtype=np.float32)
    return split, ranks(scores, candidates.offsets)


def first_of(split: Split, number: int) -> Split:
    """Return the first impressions of a split."""
    candidates = split.candidates.between(0, number)
    ids, labels = split.impression_id[:number], split.labels[: len(candidates.values)]
    return split._replace(impression_id=ids, candidates=candidates, labels=labels)


def private_memory() -> int:
    """Return the KB that are this process's own; 0 where the system does not tell."""
    status = Path("/proc/self/status")  # Linux alone has it
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if "RssAnon" in line), 0)


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Return wall and processor seconds of a piece of work, and its peak of memory in MB."""
    before = peak = private_memory()
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, private_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    over.set()
    watcher.join()
    return {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "peak_mb": (peak - before) // 1024}


def write_with_a_loop(path: Path, split: Split, rank: NDArray[np.int32]) -> None:
    """Write a submission as most code does."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("prediction.txt", "w") as file,
    ):
        offsets = split.candidates.offsets
        for i, number in enumerate(split.impression_id):
            words = ",".join(str(r) for r in rank[offsets[i] : offsets[i + 1]])
            file.write(f"{number} [{words}]\n".encode())


def check_with_a_loop(path: Path, split: Split) -> int | None:
    """Return the number of the first bad line, None if there is none."""
    lengths = split.candidates.lengths
    with zipfile.ZipFile(path) as archive, archive.open("prediction.txt") as file:
        for i, line in enumerate(file):
            number, ranks_text = line.decode().split()
            right = int(number) == split.impression_id[i]
            right &= sorted(json.loads(ranks_text)) == list(range(1, lengths[i] + 1))
            if not right:
                return i + 1
    assert i + 1 == len(lengths)
    return None


def text_in(path: Path) -> bytes:
    """Return the text of a submission."""
    with zipfile.ZipFile(path) as archive:
        return archive.read("prediction.txt")


def measure(number: int, folder: Path) -> dict:
    """Return all numbers."""
    split, rank = random_split(number)
    part = first_of(split, min(PART, number))
    some = rank[: len(part.candidates.values)]
    path, small, loop = (folder / f"{name}.zip" for name in ("all", "part", "loop"))

    def write(target: Path, which: Split, its: NDArray[np.int32]) -> None:
        write_predictions(target, which.impression_id, its, which.candidates.offsets)

    few = first_of(split, 100)
    write(small, few, rank[: len(few.candidates.values)])  # imports are not measured
    inspect(small, few)
    result = {
        "write": measured(lambda: write(path, split, rank)),
        "check": measured(lambda: inspect(path, split._replace(labels=None))),
        "check_and_score": measured(lambda: inspect(path, split)),
    }
    for numbers in result.values():
        for clock in ("wall", "cpu"):
            numbers[f"impressions_per_{clock}_s"] = round(number / numbers[f"{clock}_s"])
    assert inspect(path, split).accepted

    write(small, part, some)
    reference = {"impressions": len(part.impression_id)}
    for name, work in (
        ("write", lambda: write_with_a_loop(loop, part, some)),
        ("check", lambda: check_with_a_loop(small, part)),
    ):
        seconds = measured(work)["cpu_s"]
        per_second = len(part.impression_id) / seconds
        reference[f"{name}_per_cpu_s"] = round(per_second)
        ratio = result[name]["impressions_per_cpu_s"] / per_second
        reference[f"{name}_is_faster_by"] = round(ratio, 1)
    assert text_in(loop) == text_in(small)
    assert check_with_a_loop(small, part) is None
    for line in (1, len(part.impression_id) // 2, len(part.impression_id)):
        wrong = some.copy()
        wrong[part.candidates.offsets[line - 1]] += 1
        write(small, part, wrong)
        assert check_with_a_loop(small, part) == inspect(small, part).first.number == line
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "impressions": number,
        "candidates_per_impression": round(len(rank) / number, 1),
        "text_mb": round(len(text_in(path)) / 1e6, 1),
        "zip_mb": round(path.stat().st_size / 1e6, 1),
        **result,
        "reference": reference,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--impressions", type=int, default=376_471)
    number = parser.parse_args().impressions
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(number, Path(folder)), indent=1))


if __name__ == "__main__":
    main()

"""How fast samples become batches, without a model: one JSON object on standard output.

    python tests/benchmarks/feed.py [--data.root DIR] [--batch_size 256] ...

Without ``--data.root`` it simulates a world in a temporary folder. Texts are tokenised by the
default PLM's tokenizer. The reference is what a plain Dataset does: look up one sample at a time,
copy the tokens of each of its news items, and stack. It must give the same content as our batches,
or the benchmark fails.

``wait`` is how long a step waits for its batch, made in the step's own thread or ahead in another
one, as for a GPU. A pause of ``--step_ms`` takes the place of a step on a device. The batches have
kept states of the PLM's last layer, in bf16 and memory-mapped, with random values.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch
from newsrec.data.datamodule import MindDataModule
from newsrec.data.options import BATCHES
from newsrec.data.samplers import EvalBatches
from newsrec.data.samples import SampleIndex, index_samples
from newsrec.data.states import TokenStates
from newsrec.plm_source import DEFAULT_PLM
from newsrec.simulation.simulate import simulate

NEWS_AT = 168
"""Batch size at which distinct news items are counted, that of the best public recipe."""

HIDDEN = 384
"""Size of the default PLM's states."""
MASK = 2**64 - 1


class PaddedSample(NamedTuple):
    """One sample as peers make it: the tokens of every appearance, all padded."""

    history: Tensor
    """``[history, tokens]``, or ``[batch, history, tokens]`` when stacked."""
    candidates: Tensor
    """``[candidates, tokens]``, or ``[batch, candidates, tokens]``."""


class PerSample(Dataset[PaddedSample]):
    """The reference: no array operation reaches beyond one sample."""

    def __init__(self, data: MindDataModule, epoch: int) -> None:
        self.split = data.data.split(data.train)
        self.index = data.index
        self.token_ids = data.catalogue.token_ids
        self.max_history = data.max_history
        self.npratio = data.npratio
        self.state = mix(mix(0, data.seed), epoch)

    def __len__(self) -> int:
        return len(self.index.click)

    def __getitem__(self, sample: int) -> PaddedSample:
        impression = int(self.index.impression[sample])
        split = self.split
        start, end = split.candidates.offsets[impression : impression + 2]
        shown = split.candidates.values[start:end].tolist()
        labels = split.labels[start:end].tolist()
        skips = [n for n, y in zip(shown, labels, strict=True) if y == 0 and n >= FIRST_NEWS]
        chosen: list[int] = []
        for draw in range(min(self.npratio, len(skips))):
            uniform = (mix(mix(self.state, sample), draw) >> 11) * 2.0**-53
            place = int(uniform * (len(skips) - draw))
            for earlier in chosen:
                place += place >= earlier
            chosen = sorted([*chosen, place])
        candidates = [int(self.index.click[sample]), *(skips[place] for place in chosen)]
        candidates += [0] * (1 + self.npratio - len(candidates))

        row = split.history[impression]
        start, end = split.histories.offsets[row : row + 2]
        history = split.histories.values[start:end].tolist()[-self.max_history :]
        history += [0] * (self.max_history - len(history))
        return PaddedSample(
            self.token_ids[torch.tensor(history)], self.token_ids[torch.tensor(candidates)]
        )


def mix(state: int, counter: int) -> int:
    """Put one counter through SplitMix64's finaliser, in Python's integers."""
    state = (state + counter + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def check_equal(ours: Batch, theirs: PaddedSample) -> None:
    """Stop if two batches differ in a token of a history or of a candidate."""
    for rows, expected in (
        (ours.history[ours.user], theirs.history),
        (ours.candidates, theirs.candidates),
    ):
        found = torch.zeros_like(expected)
        found[:, : rows.shape[1], : ours.token_ids.shape[1]] = ours.token_ids[rows]
        if not torch.equal(found, expected):
            raise SystemExit("The reference's batch differs from ours: one of them is wrong.")


def seconds_per_batch(batches: Iterable, number: int) -> tuple[float, float]:
    """Return the seconds of each of ``number`` batches, and those until the first."""
    start = time.perf_counter()
    left = iter(batches)
    next(left)
    first = time.perf_counter()
    done = sum(1 for _ in islice(left, number))
    return (time.perf_counter() - first) / done, first - start


def distinct_news(data: MindDataModule, number: int) -> float:
    """Return how many news items a batch mentions on average."""
    batches: Iterator[Batch] = islice(iter(data.train_dataloader()), number)
    return statistics.mean(len(batch.token_lengths) - FIRST_NEWS for batch in batches)


def made_states(data: MindDataModule, folder: Path) -> TokenStates:
    """Return states of the whole catalogue in a file of random bits."""
    lengths = data.catalogue.token_lengths
    path = folder / "states.npy"
    size = int(lengths.sum()), HIDDEN
    values = np.lib.format.open_memmap(path, "w+", np.int16, size)
    for start in range(0, len(values), 1 << 16):
        part = values[start : start + (1 << 16)]
        part[:] = np.random.default_rng(start).integers(0, 1 << 14, part.shape)
    values.flush()
    part = torch.from_numpy(np.load(path, mmap_mode="c")).view(torch.bfloat16)
    starts = lengths.cumsum(0) - lengths
    return TokenStates([part], torch.zeros_like(starts), starts, lengths)


def waiting(data: MindDataModule, number: int, step: float) -> dict[str, float]:
    """Return the ms that a step waits for its batch, made ahead or not, and that making it takes.

    A step is a pause of ``step`` seconds.
    """
    found = {}
    for name, ahead, pause in (
        ("made", False, 0.0),
        ("in_turn", False, step),
        ("ahead", True, step),
    ):
        loader = data.train_dataloader()
        loader.ahead = ahead
        batches, waits = iter(loader), []
        for _ in range(min(number, len(loader))):
            start = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - start)
            time.sleep(pause)
        batches.close()
        found[name] = round(statistics.mean(waits[1:]) * 1e3, 3)  # nothing is ahead of the first
    return found


def private_memory() -> int | None:
    """Return the MB that are this process's own: mapped files belong to the page cache."""
    status = Path("/proc/self/status")  # Linux alone has it
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if "RssAnon" in line), None)


def set_up(root: Path, args: argparse.Namespace, **options: object) -> MindDataModule:
    """Return a data module with the benchmark's options."""
    options = {"batch_size": args.batch_size} | options
    data = MindDataModule(
        root=str(root),
        max_tokens=args.max_tokens,
        max_history=args.max_history,
        npratio=args.npratio,
        seed=42,
        **options,
    )
    data.setup("fit")
    return data


def measure(root: Path, args: argparse.Namespace) -> dict:
    """Return all numbers."""
    data = set_up(root, args)
    split = data.data.split(data.train)
    start = time.perf_counter()
    index: SampleIndex = index_samples(split)
    index_seconds = time.perf_counter() - start
    start = time.perf_counter()
    EvalBatches(split, 512)
    eval_seconds = time.perf_counter() - start

    per_batch, first_batch = {}, {}
    for workers in args.workers:
        data.num_workers = workers
        loader = data.train_dataloader()
        passes = []
        for epoch in range(args.passes):
            loader.sampler.set_epoch(epoch)
            passes.append(seconds_per_batch(loader, args.batches))
        per_batch[workers], first_batch[workers] = map(statistics.median, zip(*passes, strict=True))
        loader._iterator = None  # ends the workers
    data.num_workers = 0
    memory = private_memory()

    keys = list(islice(data.train_dataloader().sampler, args.reference_batches))
    reference = DataLoader(
        PerSample(data, epoch=0), batch_sampler=[k.samples.tolist() for k in keys]
    )
    for key, theirs in zip(keys, reference, strict=True):
        check_equal(data.train_dataloader().dataset[key], theirs)
    passes = [seconds_per_batch(reference, len(keys))[0] for _ in range(args.passes)]
    reference_seconds = statistics.median(passes)

    news = {
        order: distinct_news(
            set_up(root, args, batch_size=NEWS_AT, batches=order),
            args.batches,
        )
        for order in BATCHES
    }
    with tempfile.TemporaryDirectory() as folder:
        data.use_states(made_states(data, Path(folder)))
        wait = waiting(data, args.batches, args.step_ms / 1e3)
        data.use_states(None)
    bound = 2 * args.max_tokens * (args.max_history + args.npratio + 1) + 20_000
    tokens = {}
    for order in BATCHES:
        by_tokens = set_up(root, args, tokens_per_batch=bound, batches=order)
        loader = by_tokens.train_dataloader()
        read = [int(batch.token_lengths.sum()) for batch in islice(iter(loader), args.batches)]
        assert max(read) <= bound
        tokens[order] = {
            "batches": len(loader),
            "samples_per_batch": round(len(index.click) / len(loader), 1),
            "share_of_bound_read": round(statistics.mean(read) / bound, 3),
        }
    ours = args.batch_size / per_batch[args.workers[0]]
    theirs_per_second = args.batch_size / reference_seconds
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "data": {
            "root": args.root or f"simulated {args.preset}",
            "impressions": len(split.history),
            "samples": len(index.click),
            "news": data.data.num_news - FIRST_NEWS,
            "tokenizer": DEFAULT_PLM,
            "mean_tokens": round(
                float(data.catalogue.token_lengths[FIRST_NEWS:].float().mean()), 1
            ),
        },
        "batch": {
            k: getattr(args, k) for k in ("batch_size", "max_history", "npratio", "max_tokens")
        },
        "index_seconds": round(index_seconds, 3),
        "eval_order_seconds": round(eval_seconds, 3),
        "samples_per_second": {w: round(args.batch_size / s) for w, s in per_batch.items()},
        "ms_per_batch": {w: round(s * 1e3, 3) for w, s in per_batch.items()},
        "first_batch_seconds": {w: round(s, 3) for w, s in first_batch.items()},
        "news_per_batch": {
            "batch_size": NEWS_AT,
            **{order: round(number, 1) for order, number in news.items()},
            "reduction_percent": {
                order: round(100 * (1 - news[order] / news["random"]), 1) for order in BATCHES
            },
        },
        "wait": {"step_ms": args.step_ms, "ms": wait},
        "tokens_per_batch": {"bound": bound, **tokens},
        "reference": {
            "samples_per_second": round(theirs_per_second),
            "equal_batches": len(keys),
            "ours_is_faster_by": round(ours / theirs_per_second, 1),
        },
        "private_memory_mb": memory,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data.root", dest="root", help="MIND files; simulated if not given")
    parser.add_argument("--preset", default="demo", help="what to simulate")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--max_history", type=int, default=50)
    parser.add_argument("--npratio", type=int, default=4)
    parser.add_argument("--max_tokens", type=int, default=24)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--batches", type=int, default=200, help="of a pass, at most")
    parser.add_argument("--step_ms", type=float, default=30, help="a step while batches are made")
    parser.add_argument("--reference_batches", type=int, default=8)
    args = parser.parse_args()
    if args.root:
        result = measure(Path(args.root), args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / args.preset
            simulate(root, args.preset)
            result = measure(root, args)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""A training step of the frozen preset: encoders over joined elements against padded ones.

    OMP_NUM_THREADS=1 python tests/benchmarks/fastformer.py                    # data/demo
    OMP_NUM_THREADS=1 python tests/benchmarks/fastformer.py --data.root DIR --dim 256 --heads 16

The same batches go through the same model on kept states, turn by turn in one process: forward,
backward, clipping and AdamW with a learning rate of 0. ``padded`` is what a CPU did before, and
what a GPU does: blocks of similar length, a mask, and PyTorch's own dropout. Without dropout,
losses and gradients must agree. Seconds are of the CPU. The share of the matmul rate is the
operations that matrix products of real tokens and clicks need, over what a square product does in
that time. ``parts`` are shares of a profile. Peak memory is that of a process that runs one way
only. Prints one JSON object.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from newsrec.data.batch import Batch
from newsrec.data.datamodule import MindDataModule
from newsrec.model.plm.load import load_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.training.catalogue import frozen_states
from newsrec.training.hardware.heap import keep_freed_memory
from newsrec.training.losses import LOSSES
from newsrec.training.progress.throughput import _Counts, model_flop

DEMO = Path(__file__).parents[2] / "data" / "demo"
WAYS = ("padded", "joined")
DECIDES = ("newsrec.model.plm.blocks", "newsrec.model.dropout", "newsrec.model.user_encoders")
"""Modules that ask ``runs_on_cpu``."""
PARTS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "random numbers": ("bernoulli_", "random_"),
    "masks": ("masked_fill", "masked_fill_", "where"),
    "copies": ("copy_", "clone", "cat", "index_select", "index"),
}
SIZE = 1024
"""Rows of the square matrices whose product gives the matmul rate."""
TOLERANCE = 1e-5
"""Largest difference of a loss, and of a gradient in parts of the largest gradient."""


@contextmanager
def taking(way: str) -> Iterator[None]:
    """Run stacks over joined or over padded elements."""
    with ExitStack() as stack:
        if way == "padded":
            for name in DECIDES:
                stack.enter_context(mock.patch(f"{name}.runs_on_cpu", return_value=False))
        yield


def made(root: str, args: argparse.Namespace) -> tuple[NewsRecommender, list[Batch]]:
    """Return the model, gates open, and batches with kept states."""
    data = MindDataModule(root, batch_size=args.batch_size, seed=0)
    data.setup("fit")
    torch.manual_seed(0)
    shape = {"heads": args.heads, "ffn": args.dim, "dropout": args.dropout}
    shape |= {"encoder": args.encoder}
    model = NewsRecommender(
        load_plm(data.plm), args.dim, news=shape, user=shape | {"positions": "recency"}
    )
    with torch.no_grad():
        model.news_encoder.gate.fill_(0.1)
        model.user_encoder.gate.fill_(0.1)
    data.use_states(frozen_states(model.news_encoder.cut, data.catalogue, root, "fp32"))
    batches = iter(data.train_dataloader())
    return model, [next(batches) for _ in range(args.steps)]


def stepper(model: NewsRecommender) -> Callable[[Batch], float]:
    """Return a call that takes a step and returns its loss."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)

    def step(batch: Batch) -> float:
        optimizer.zero_grad()
        loss = LOSSES["cross_entropy"](model.encode(batch), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in trained if p.grad is not None], 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def check(model: NewsRecommender, batch: Batch) -> dict[str, float]:
    """Return by how much losses and gradients differ without dropout; refuse too much."""
    found: dict[str, tuple[float, list[torch.Tensor]]] = {}
    model.eval()  # no dropout
    for way in WAYS:
        model.zero_grad()
        with taking(way):
            loss = LOSSES["cross_entropy"](model.encode(batch), batch)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found[way] = float(loss.detach()), gradients
    model.train()
    (loss, expected), (other, gradients) = found.values()
    largest = max(float(x.abs().max()) for x in expected)
    off = max(float((a - b).abs().max()) for a, b in zip(expected, gradients, strict=True))
    differ = {"loss": abs(loss - other), "gradients": off / largest}
    if max(differ.values()) > TOLERANCE:
        raise SystemExit(f"joined and padded differ: {differ}")
    return differ


def parts(step: Callable[[Batch], float], batches: list[Batch]) -> dict[str, float]:
    """Return the shares of kinds of operations in the time of some steps."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for batch in batches:
            step(batch)
    own = {row.key: row.self_cpu_time_total for row in profiled.key_averages()}
    total = sum(own.values())
    seconds = {
        kind: sum(own.get(f"aten::{name}", 0.0) for name in names) for kind, names in PARTS.items()
    }
    shares = {kind: round(value / total, 3) for kind, value in seconds.items()}
    return shares | {"all else": round(1 - sum(shares.values()), 3)}


def measure(root: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers."""
    model, batches = made(root, args)
    step = stepper(model)
    counts = _Counts()
    for batch in batches:
        counts.add(batch)
    flop = model_flop(model, counts, kept_states=True) / len(batches)
    square = torch.randn(SIZE, SIZE)
    taken: dict[str, list[float]] = {way: [] for way in (*WAYS, "product")}

    def timed(name: str, call: Callable[[], Any]) -> None:
        start = time.process_time()
        call()
        taken[name].append(time.process_time() - start)

    for number in range(args.rounds + 1):
        for batch in batches:
            for way in WAYS:
                with taking(way):
                    timed(way, lambda: step(batch))  # noqa: B023
            timed("product", lambda: square @ square)
        if not number:  # the first round warms up
            for values in taken.values():
                values.clear()
    medians = {name: statistics.median(values) for name, values in taken.items()}
    rate = 2 * SIZE**3 / medians["product"]
    result: dict[str, Any] = {
        "differences": check(model, batches[0]),
        "gflop_per_step": round(flop / 1e9, 2),
        "matmul_gflop_per_second": round(rate / 1e9, 1),
        "faster": round(
            statistics.median(a / b for a, b in zip(taken["padded"], taken["joined"], strict=True)),
            2,
        ),
    }
    for way in WAYS:
        with taking(way):
            shares = parts(step, batches)
        result[way] = {
            "step_ms": round(1e3 * medians[way], 1),
            "share_of_matmul_rate": round(flop / medians[way] / rate, 3),
            "peak_memory_mb": alone(root, way, args),
            "parts": shares,
        }
    return result


def alone(root: str, way: str, args: argparse.Namespace) -> int:
    """Return the MB that the steps of one way take above what was held before, in a process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--data.root", root, "--alone", way]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak_of_steps(root: str, args: argparse.Namespace) -> int:
    """Take steps in one way; return the MB by which they raise the most memory held."""
    model, batches = made(root, args)
    step = stepper(model)
    # From here on, the peak begins at what is held now.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = held("VmHWM")
    with taking(args.alone):
        for batch in batches:
            step(batch)
    return (held("VmHWM") - before) // 1024


def held(name: str) -> int:
    """Return a number of KB from Linux's description of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data.root", dest="root", help="data folder; default: a copy of the demo")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--encoder", choices=["fastformer", "transformer"], default="fastformer")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="batches of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()  # as ``fit`` does
    if args.alone:
        print(peak_of_steps(args.root, args))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = args.root
        if root is None:
            ignore = shutil.ignore_patterns(".newsrec")
            root = str(shutil.copytree(DEMO, Path(folder) / "demo", ignore=ignore))
        result = measure(root, args)
    names = ("dim", "heads", "dropout", "encoder", "batch_size", "steps", "rounds")
    options = {name: getattr(args, name) for name in names}
    print(json.dumps({"threads": torch.get_num_threads(), **options, **result}, indent=1))


if __name__ == "__main__":
    main()

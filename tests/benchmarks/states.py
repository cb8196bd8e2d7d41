"""What it saves to keep the states of the PLM's frozen layers: a training step with and without.

    python tests/benchmarks/states.py                       # data/demo
    python tests/benchmarks/states.py --data.root DIR --tune_layers 2 --batch_size 168
    python tests/benchmarks/states.py --tune_layers 0 --abstract_tokens 0 64  # what abstracts cost

The same batches go through the same model, forward and backward, dropout off, once with the whole
PLM and once on the kept states, turn by turn in one process. Losses must agree: exactly but for the
order of sums in fp32, to rounding in bf16. Prints one JSON object.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from newsrec.data.batch import Batch
from newsrec.data.datamodule import MindDataModule
from newsrec.model.plm.load import load_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.training.catalogue import frozen_states

DEMO = Path(__file__).parents[2] / "data" / "demo"
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}
WAYS = ("none", *TOLERANCE)


def step(
    recommender: NewsRecommender, batch: Batch, clock: Callable[[], float]
) -> tuple[float, float]:
    """Return the loss of one step and its seconds, backward pass included."""
    start = clock()
    scores = recommender(batch).masked_fill(batch.candidates == 0, -torch.inf)
    loss = F.cross_entropy(scores, batch.labels.argmax(dim=1))
    recommender.zero_grad()
    loss.backward()
    return loss.item(), clock() - start


def measure(
    root: str,
    tune_layers: int,
    batch_size: int,
    steps: int,
    abstracts: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Return what both ways take, for one number of tuned layers and of an abstract's tokens."""
    options: dict[str, Any] = {"batch_size": batch_size, "seed": 0, "abstract_tokens": abstracts}
    sources = {way: MindDataModule(root, **options) for way in WAYS}
    for data in sources.values():
        data.setup("fit")
    torch.manual_seed(0)
    plm = load_plm(sources["none"].plm)
    recommender = NewsRecommender(plm, tune_layers=tune_layers, abstract_tokens=abstracts)
    for module in recommender.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    result: dict[str, Any] = {"tune_layers": tune_layers, "abstract_tokens": abstracts}
    for way in TOLERANCE:
        start, data = clock(), sources[way]
        states = frozen_states(recommender.news_encoder.cut, data.catalogue, root, way)
        data.use_states(states)
        result[f"first_{way}_s"] = round(clock() - start, 2)
        if states is not None:
            size = sum(part.numel() * part.element_size() for part in states.parts)
            result[f"states_{way}_mib"] = round(size / 2**20, 1)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    loaders = {way: iter(data.train_dataloader()) for way, data in sources.items()}
    for number in range(steps + 1):
        losses = {}
        for way, loader in loaders.items():
            losses[way], taken = step(recommender, next(loader), clock)
            if number:  # the first step warms up
                seconds[way].append(taken)
        for way, tolerance in TOLERANCE.items():
            assert abs(losses[way] - losses["none"]) < tolerance, losses
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    result |= {f"step_{way}_s": round(value, 3) for way, value in medians.items()}
    result["faster"] = {w: round(medians["none"] / medians[w], 2) for w in TOLERANCE}
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data.root", dest="root", help="data folder; default: a copy of the demo")
    parser.add_argument("--tune_layers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--abstract_tokens", type=int, nargs="+", default=[0])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    parser.add_argument("--clock", choices=clocks, default="wall", help="cpu for busy machines")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.root
        if root is None:
            ignore = shutil.ignore_patterns(".newsrec")
            root = str(shutil.copytree(DEMO, Path(folder) / "demo", ignore=ignore))
        runs = [
            measure(root, layers, args.batch_size, args.steps, abstracts, clocks[args.clock])
            for layers in args.tune_layers
            for abstracts in args.abstract_tokens
        ]
    print(
        json.dumps(
            {"batch_size": args.batch_size, "threads": torch.get_num_threads(), "runs": runs}
        )
    )


if __name__ == "__main__":
    main()

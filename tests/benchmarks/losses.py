"""What a training step takes under each loss, from the batch to the gradients.

    python tests/benchmarks/losses.py                       # data/demo
    python tests/benchmarks/losses.py --data.root DIR --batch_size 64 --steps 20

The demo's model (dim 128, frozen MiniLM, kept states) does one step of each loss in turn, so that
other work on the machine slows down all of them. Times are CPU seconds of this process. Prints one
JSON object: of each loss the median milliseconds of making a batch and of its step, and the mean
numbers of samples, distinct news and candidates of a batch.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from newsrec.data.datamodule import MindDataModule
from newsrec.model.plm.load import load_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.training.catalogue import frozen_states
from newsrec.training.losses import LOSSES

DEMO = Path(__file__).parents[2] / "data" / "demo"
SHAPE = {"heads": 8, "ffn": 128, "dropout": 0.3}


def measure(root: str, batch_size: int, steps: int) -> dict[str, Any]:
    """Return what a step takes, by loss."""
    options: dict[str, Any] = {"batch_size": batch_size, "batches": "random"}
    sources = {name: MindDataModule(root, loss=name, **options) for name in LOSSES}
    torch.manual_seed(0)
    first = next(iter(sources.values()))
    user = SHAPE | {"positions": "recency"}
    recommender = NewsRecommender(load_plm(first.plm), 128, news=SHAPE, user=user)
    batches, found = {}, {}
    for name, data in sources.items():
        data.setup("fit")
        cut = recommender.eval().news_encoder.cut
        data.use_states(frozen_states(cut, data.catalogue, root, "fp32", data.news_ends))
        batches[name], found[name] = iter(data.train_dataloader()), []
    recommender.train()
    for _ in range(1 + steps):  # the first is not counted
        for name, loss in LOSSES.items():
            start = time.process_time()
            batch = next(batches[name])
            made = time.process_time()
            recommender.zero_grad()
            loss(recommender.encode(batch), batch).backward()
            done = time.process_time()
            counts = len(batch.labels), len(batch.token_lengths) - 2, batch.candidates.shape[1]
            found[name].append((1e3 * (made - start), 1e3 * (done - made), *counts))
    rows = {}
    for name, values in found.items():
        batch_ms, step_ms, *counts = zip(*values[1:], strict=True)
        rows[name] = {
            "batch_ms": round(statistics.median(batch_ms), 2),
            "step_ms": round(statistics.median(step_ms), 1),
            **{
                what: round(statistics.mean(count), 1)
                for what, count in zip(("samples", "news", "candidates"), counts, strict=True)
            },
        }
    return {"batch_size": batch_size, "steps": steps, "threads": torch.get_num_threads(), **rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data.root", dest="root", default=str(DEMO))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    print(json.dumps(measure(**vars(parser.parse_args())), indent=1))

"""How well a model learns from batches by impression or by user, and their speed. JSON on stdout.

    python tests/benchmarks/batches.py --data.root DIR --output DIR [--seeds 0 1 2] [--steps 250]

The demo's model (frozen MiniLM, kept states) trains for equally many steps, and so on equally many
clicks, with each ``data.batches``. It is scored on dev with its last weights. A difference in AUC
is from ``random`` at the same seeds, impression by impression; its 95 % interval is paired, covers
the choice of users and not of seeds, and is also given for each seed. Clicks per second are of CPU
time, of the steps alone, batches included. Finished runs are kept in the output folder.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning import Callback, Trainer, seed_everything
from numpy.typing import NDArray

from newsrec.data.datamodule import MindDataModule
from newsrec.data.options import BATCHES
from newsrec.evaluation.intervals import paired_interval
from newsrec.metrics import impression_metrics
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.module import RecommenderModule

MODEL = Path(__file__).parents[2] / "configs" / "model" / "demo.yaml"


class CpuTime(Callback):
    """Measures the CPU seconds from the first step to the last."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 1:  # the first step also sets things up
            self.start = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.end = time.process_time()


@torch.no_grad()
def auc_by_impression(module: RecommenderModule, data: MindDataModule) -> NDArray[np.float64]:
    """Return the AUC of each impression of dev ``[impressions]``."""
    model = module.recommender.eval()
    vectors = encode_catalogue(model, data.catalogue, data.states)
    found = np.full(len(data.data.split("dev").user), np.nan)
    for batch in data.val_dataloader():
        metrics = impression_metrics(
            model.score(vectors, batch).numpy(), batch.labels.numpy(), batch.offsets.numpy()
        )
        found[batch.row] = metrics.values[0]
    return found


def train(root: str, batches: str, seed: int, args: argparse.Namespace) -> dict[str, NDArray[Any]]:
    """Train a model and score dev."""
    seed_everything(seed, verbose=False)
    options = yaml.safe_load(MODEL.read_text(encoding="utf-8"))
    module = RecommenderModule(**options | {"user": options["user"] | {"positions": "recency"}})
    data = MindDataModule(
        root, batch_size=args.batch_size, frozen_states="fp32", seed=seed, batches=batches
    )
    clock = CpuTime()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, max_steps=args.steps, limit_val_batches=0,
        gradient_clip_val=1.0, callbacks=[clock], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    seconds = (clock.end - clock.start) / (args.steps - 1)
    auc = auc_by_impression(module, data)
    return {"auc": auc, "seconds": np.array(seconds), "user": data.data.split("dev").user}


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data.root", dest="root", required=True)
    add("--output", type=Path, required=True)
    add("--arms", nargs="+", choices=BATCHES, default=["random", "impression"])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--steps", type=int, default=250)
    add("--batch_size", type=int, default=32)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    runs: dict[str, dict[int, Any]] = {arm: {} for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            path = args.output / f"{arm}-{seed}-{args.steps}x{args.batch_size}.npz"
            if not path.exists():
                np.savez(path, **train(args.root, arm, seed, args))
            runs[arm][seed] = np.load(path)
    result: dict[str, Any] = {"steps": args.steps, "batch_size": args.batch_size}
    for arm, found in runs.items():
        auc = np.array([run["auc"] for run in found.values()])
        speeds = [args.batch_size / float(run["seconds"]) for run in found.values()]
        result[arm] = {
            "auc": round(float(np.nanmean(auc)), 4),
            "auc_by_seed": {s: round(float(np.nanmean(run["auc"])), 4) for s, run in found.items()},
            "clicks_per_cpu_second": [round(speed, 1) for speed in speeds],
        }
        if arm != "random" and "random" in runs:
            user = found[args.seeds[0]]["user"]
            base = np.array([run["auc"] for run in runs["random"].values()])
            pairs = {"all": (auc.mean(axis=0), base.mean(axis=0))}
            pairs |= {str(s): pair for s, *pair in zip(args.seeds, auc, base, strict=True)}
            result[arm]["less_random"] = {
                name: [round(float(x), 4) for x in paired_interval(*pair, user)]
                for name, pair in pairs.items()
            }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""What each part of the model is worth: the same training with one option changed, over seeds.

    python tests/benchmarks/ablation.py --data.root DIR --output DIR [--arms base no-residual ...]

Makes the A/B table of docs/design.md: ``table.md`` and ``table.json`` in the output
folder, renewed after every run; the JSON also on standard output. Every arm trains for as many
steps and is scored on dev as it is at the end: dev chooses nothing. Differences are of AUC averaged
over seeds, impression by impression. Their 95 % interval is paired and covers the choice of users,
not of seeds: the seeds' range stands beside it. "Gates at zero" is the AUC of the same checkpoint
with what it has learned behind its gates taken away. Training time is that of the steps alone, on
the run's share of the cores (``--jobs`` runs at a time).

Finished runs are kept, so the same command goes on where it was killed, and arms or seeds may be
added. After a change of the code use another folder: nothing here notices.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from newsrec.data.dataset import Split, open_mind
from newsrec.evaluation.intervals import paired_interval
from newsrec.metrics import METRICS, impression_metrics

BASE = {
    "model.residual": "true",
    "model.tune_layers": "0",
    "model.dim": "128",
    **{f"model.{part}.heads": "8" for part in ("news", "user")},
    **{f"model.{part}.ffn": "128" for part in ("news", "user")},
    **{f"model.{part}.dropout": "0.3" for part in ("news", "user")},
    "model.user.positions": "none",
    "model.lr": "5e-4",
    "model.weight_decay": "0.1",
    "data.fields": "[category,subcategory,title]",
    "data.max_tokens": "32",
    "data.val": "none",
    "trainer.max_epochs": "-1",  # max_steps alone says when to stop
}
"""Options of ``fit`` that all arms share: those of configs/demo.yaml."""

CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false")
TIMER = "{class_path: lightning.pytorch.callbacks.Timer, init_args: {interval: epoch}}"
SPLIT = "dev"
RUNNING: set[subprocess.Popen] = set()


class Arm(NamedTuple):
    """One variant of the model."""

    question: str
    options: dict[str, str]
    """Options that differ from ``BASE``."""
    plain: str = "base"
    """The arm that differs from it in one thing alone."""


PLAIN = {"model.residual": "false"}
SOFTMAX = {"model.user.encoder": "transformer"}
NO_USER = {"model.user.layers": "0"}
NO_NEWS = {"model.news.layers": "0"}
NO_NORM = {"model.news.norm": "none", "model.user.norm": "none"}
ABSTRACT = {"data.fields": "[category,subcategory,title,abstract]", "data.max_tokens": "64"}
TUNE = {"model.tune_layers": "2", "model.plm_lr": "5e-5"}

ARMS = {
    "base": Arm("What are all others compared with?", {}),
    "no-residual": Arm("Do the PLM's sentence vectors help, past the encoders?", PLAIN),
    "transformer-user": Arm("Is softmax attention over the history better?", SOFTMAX),
    "no-user-attention": Arm("Must clicks see each other?", NO_USER),
    "no-news-fastformer": Arm("Must tokens see each other once more?", NO_NEWS),
    "norm-none": Arm("Is LayerNorm of use?", NO_NORM),
    "positions-recency": Arm("Does recency matter?", {"model.user.positions": "recency"}),
    "positions-learned": Arm("Does the order matter?", {"model.user.positions": "learned"}),
    "title": Arm("Are categories of use?", {"data.fields": "[title]"}),
    "abstract": Arm("Are abstracts of use?", ABSTRACT),
    "tune-2": Arm("Is tuning two layers of the PLM of use?", TUNE),
    "no-residual-transformer": Arm("Softmax, in the plain model?", PLAIN | SOFTMAX, "no-residual"),
    "no-residual-no-user-attention": Arm("Clicks, likewise?", PLAIN | NO_USER, "no-residual"),
    "no-residual-no-news-fastformer": Arm("Tokens, likewise?", PLAIN | NO_NEWS, "no-residual"),
}


class Run(NamedTuple):
    """What one arm reached with one seed."""

    values: NDArray[np.float64]
    """Metrics of each impression ``[4, impressions]``."""
    gates_at_zero: float | None
    seconds: float
    """Of training alone, on the cores that the run had."""


def newsrec(log: Path, threads: int, *command: str) -> None:
    """Run a command of newsrec on some cores; what it says goes to a file."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("a", encoding="utf-8") as file:
        words = (sys.executable, "-m", "newsrec", *command, *CPU)
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=env)
    RUNNING.add(process)
    if process.wait():
        raise SystemExit(
            f"{' '.join(words)}\nfailed. {log} ends in:\n{log.read_text(encoding='utf-8')[-2000:]}"
        )
    RUNNING.discard(process)


def zero_gates(checkpoint_path: Path) -> Path:
    """Save a checkpoint anew with all gates at zero; return the new file."""
    checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    gates = [name for name in checkpoint["state_dict"] if name.endswith("gate")]
    assert gates, f"{checkpoint_path} has no gates"
    for name in gates:
        checkpoint["state_dict"][name].zero_()
    path = checkpoint_path.with_name("gates_at_zero.ckpt")
    torch.save(checkpoint, path)
    return path


def train_and_score(root: str, folder: Path, shape: Mapping[str, str], threads: int) -> None:
    """Make one run; its folder appears once all of it is there, without the checkpoints."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a killed process
    part.mkdir(parents=True)
    data, log = f"--data.root={root}", part / "log.txt"
    options = [f"--{name}={value}" for name, value in shape.items() if "fingerprint" not in name]
    quiet = ("--baselines=false", f"--trainer.callbacks={TIMER}", f"--output={part / 'fit'}")
    newsrec(log, threads, "fit", data, *options, *quiet)
    last = part / "fit" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, map_location="cpu", weights_only=True)
    assert checkpoint["global_step"] == int(shape["trainer.max_steps"])
    seconds = checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"]
    scored = {"results": last}
    if shape["model.residual"] == "true":
        scored["gates_at_zero"] = zero_gates(last)
    for name, path in scored.items():
        where = (f"--ckpt_path={path}", f"--split={SPLIT}", f"--output={part / name}")
        newsrec(log, threads, "evaluate", data, *where)
    (part / "run.json").write_text(json.dumps({"shape": dict(shape), "seconds": seconds}, indent=1))
    shutil.rmtree(last.parent)
    part.rename(folder)


def check_same(folder: Path, shape: Mapping[str, str]) -> None:
    """Stop if a finished run was made with other options, or on other data."""
    before = json.loads((folder / "run.json").read_text())["shape"]
    for name in sorted(shape | before):
        if shape.get(name) != before.get(name):
            raise SystemExit(
                f"{folder} was made with {name} {before.get(name)}, but {shape.get(name)} is asked "
                "for now. Choose another --output, ask as before, or remove that folder."
            )


def read_run(folder: Path, split: Split) -> Run:
    """Return a finished run, its metrics computed anew from the ranks that it wrote."""
    reported = json.loads((folder / "results" / "metrics.json").read_text())
    with zipfile.ZipFile(folder / "results" / "prediction.zip") as archive:
        lines = archive.read("prediction.txt").decode().splitlines()
    ids, ranks = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert list(map(int, ids)) == split.impression_id.tolist()
    scores = -np.concatenate([json.loads(line) for line in ranks])
    metrics = impression_metrics(scores, split.labels, split.candidates.offsets)
    means = metrics.values[:, metrics.valid].mean(axis=1)
    assert np.allclose(means, [reported[name] for name in METRICS], rtol=0, atol=1e-9)
    zero = folder / "gates_at_zero" / "metrics.json"
    gates_at_zero = json.loads(zero.read_text())["auc"] if zero.exists() else None
    seconds = json.loads((folder / "run.json").read_text())["seconds"]
    return Run(metrics.values, gates_at_zero, seconds)


def compare(a: dict[int, Run], b: dict[int, Run], split: Split) -> dict[str, float]:
    """Return the difference in AUC and its interval, over the seeds that both arms have."""
    seeds = a.keys() & b.keys()
    auc = (np.mean([runs[seed].values[0] for seed in seeds], axis=0) for runs in (a, b))
    return dict(zip(("auc", "low", "high"), paired_interval(*auc, split.user), strict=True))


def summarize(done: dict[str, dict[int, Run]], split: Split) -> dict[str, dict]:
    """Return what the table says of every arm that has a run."""
    result = {}
    for name, runs in done.items():
        means = {seed: np.nanmean(run.values, axis=1) for seed, run in sorted(runs.items())}
        zero = [run.gates_at_zero for run in runs.values() if run.gates_at_zero is not None]
        others = {"base", ARMS[name].plain} - {name}
        result[name] = ARMS[name]._asdict() | {
            "auc_by_seed": {seed: float(mean[0]) for seed, mean in means.items()},
            **dict(zip(METRICS, np.mean(list(means.values()), axis=0).tolist(), strict=True)),
            "difference_to": {
                other: compare(runs, done[other], split)
                for other in sorted(others)
                if runs.keys() & done.get(other, {}).keys()
            },
            "gates_at_zero": float(np.mean(zero)) if zero else None,
            "train_seconds": round(float(np.mean([run.seconds for run in runs.values()])), 1),
        }
    return result


def number(value: float | None, sign: str = "") -> str:
    """Return a metric as docs/design.md writes them: ``.6655``, ``+.0352``."""
    return "" if value is None else f"{value:{sign}.4f}".replace("0.", ".", 1)


def markdown(arms: dict[str, dict]) -> str:
    """Return the table, and under it what is compared with another arm than ``base``."""
    lines = [
        "| arm | what differs | AUC (mean of seeds) | min to max over seeds | difference to base "
        "| 95 % interval | gates at zero | train time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    below = []
    for name, arm in arms.items():
        options = ", ".join(f"`{key}={value}`" for key, value in arm["options"].items())
        by_seed = arm["auc_by_seed"].values()
        over_seeds = f"{number(min(by_seed))} to {number(max(by_seed))} ({len(by_seed)})"
        said = {"base": ("", "")}
        for other, found in arm["difference_to"].items():
            interval = f"{number(found['low'], '+')} to {number(found['high'], '+')}"
            said[other] = (number(found["auc"], "+"), interval)
        cells = (name, options, number(arm["auc"]), over_seeds, *said.pop("base"))
        cells += (number(arm["gates_at_zero"]), f"{arm['train_seconds']:.0f} s")
        lines.append(f"| {' | '.join(cells)} |")
        below += [f"- {name} less {o}: {mean}, {bounds}" for o, (mean, bounds) in said.items()]
    return "\n".join([*lines, "", *below]).rstrip() + "\n"


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data.root", dest="root", required=True, help="data folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    data = open_mind(args.root)
    split = data.split(SPLIT)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    common = BASE | {"data.batch_size": str(args.batch_size), "trainer.max_steps": str(args.steps)}
    marks = {f"fingerprint of {name}": data.split(name).fingerprint for name in ("train", SPLIT)}
    shapes = {  # seeds outermost, so that a table cut short compares all arms on fewer seeds
        (name, seed): common | ARMS[name].options | {"seed_everything": str(seed)} | marks
        for seed in args.seeds
        for name in args.arms
    }
    folders = {key: args.output / key[0] / f"seed-{key[1]}" for key in shapes}
    settings = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": threads,
        "seeds": args.seeds,
        "base": common,
        "split": {"name": SPLIT, "impressions": len(split.history)} | marks,
    }
    finished = [key for key, folder in folders.items() if folder.exists()]
    for key in finished:
        check_same(folders[key], shapes[key])
    done: dict[str, dict[int, Run]] = {name: {} for name in args.arms}

    def add(*keys: tuple[str, int]) -> str:
        """Read finished runs and write both tables; return the JSON."""
        for name, seed in keys:
            done[name][seed] = read_run(folders[name, seed], split)
        arms = summarize({name: runs for name, runs in done.items() if runs}, split)
        text = json.dumps({"settings": settings, "arms": arms}, indent=1)
        (args.output / "table.json").write_text(text + "\n")
        (args.output / "table.md").write_text(markdown(arms))
        return text

    args.output.mkdir(parents=True, exist_ok=True)
    text = add(*finished)
    start, pool = time.monotonic(), ThreadPoolExecutor(args.jobs)
    waiting = {
        pool.submit(train_and_score, args.root, folders[key], shape, threads): key
        for key, shape in shapes.items()
        if key not in finished
    }
    try:
        for count, future in enumerate(as_completed(waiting), len(finished) + 1):
            future.result()
            name, seed = waiting[future]
            text = add((name, seed))
            auc, minutes = done[name][seed].values[0], (time.monotonic() - start) / 60
            said = f"{count} of {len(shapes)}: {name}, seed {seed}: AUC {number(np.nanmean(auc))}"
            print(f"{said}; {minutes:.1f} min so far", file=sys.stderr, flush=True)
    finally:  # also when a run has failed, or this process is asked to end
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(RUNNING):
            process.terminate()
    print(text)


if __name__ == "__main__":
    main()

"""What each part of the model is worth: the same training with one option changed, over seeds.

    python tests/benchmarks/ablation.py --data.root DIR --output DIR [--arms base no-residual ...]

Makes the A/B table of docs/design.md: ``table.md`` and ``table.json`` in the output
folder, renewed after every run; the JSON also on standard output. Every arm trains for as many
steps and is scored as it is at the end, so no split chooses anything. It is scored on every split
with labels: dev is the next day, test the week after. Differences are of AUC averaged
over seeds, impression by impression. Their 95 % interval is paired and covers the choice of users,
not of seeds: the seeds' range stands beside it. "Gates at zero" is dev's AUC of the same checkpoint
with what it has learned behind its gates taken away, about what an untrained model reaches. Time is
that of the training steps alone, on the run's share of the cores (``--jobs`` runs at a time), and
memory the peak of the whole process (the host's, also with ``--accelerator gpu``). Below the table
stand the best baseline and, where the folder has a ``world.json``, the ceiling.

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
from collections.abc import Iterable, Mapping
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
    "config": str(Path(__file__).parents[2] / "configs" / "demo.yaml"),
    "data.val": "none",
    "trainer.max_epochs": "-1",  # max_steps alone says when to stop
}
"""Options of ``fit`` that all arms share."""

QUIET = ("--trainer.devices=1", "--trainer.enable_progress_bar=false")
TIMER = "{class_path: lightning.pytorch.callbacks.Timer, init_args: {interval: epoch}}"
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
LORA = {"model.lora.rank": "8"}
OWN_ABSTRACT = {"data.abstract_tokens": "64"}
LATE = {"model.matching": "late"}
EVERYTHING = TUNE | LATE | OWN_ABSTRACT | {"model.appeal": "true"}
INTERESTS = {"model.matching": "interests"}

ARMS = {
    "base": Arm("What are all others compared with?", {}),
    "late": Arm("Must a candidate see the clicks most like it?", LATE),
    "interests": Arm("Has a user several interests?", INTERESTS),
    "in-batch": Arm("Are other users' clicks good negatives?", {"model.loss": "in_batch"}),
    "impression": Arm("Is a softmax over all candidates better?", {"model.loss": "impression"}),
    "appeal": Arm("Do all users like some news more?", {"model.appeal": "true"}),
    "abstract": Arm("Are abstracts of use, as texts of their own?", OWN_ABSTRACT),
    "late-appeal": Arm("Do both add up?", LATE | {"model.appeal": "true"}),
    "no-residual": Arm("Do the PLM's sentence vectors help, past the encoders?", PLAIN),
    "transformer-user": Arm("Is softmax attention over the history better?", SOFTMAX),
    "no-user-attention": Arm("Must clicks see each other?", NO_USER),
    "no-news-fastformer": Arm("Must tokens see each other once more?", NO_NEWS),
    "norm-none": Arm("Is LayerNorm of use?", NO_NORM),
    "positions-none": Arm("Does recency matter?", {"model.user.positions": "none"}),
    "positions-learned": Arm("Does the order matter?", {"model.user.positions": "learned"}),
    "title": Arm("Are categories of use?", {"data.fields": "[title]"}),
    "categories": Arm("Are learned vectors of them of use, too?", {"data.categories": "both"}),
    "abstract-joined": Arm("Are abstracts of use behind the title?", ABSTRACT),
    "tune-2": Arm("Is tuning two layers of the PLM of use?", TUNE),
    "lora-2": Arm("Are adapters in their place better?", TUNE | LORA),
    "tune-2-late": Arm("Do tuned layers and the clicks add up?", TUNE | LATE),
    "tune-2-interests": Arm("Do tuned layers and several interests?", TUNE | INTERESTS),
    "late-abstract": Arm("Do the clicks and abstracts add up?", LATE | OWN_ABSTRACT),
    "all": Arm("Do tuned layers, the clicks, appeal and abstracts?", EVERYTHING),
    "no-residual-transformer": Arm("Softmax, in the plain model?", PLAIN | SOFTMAX, "no-residual"),
    "no-residual-no-user-attention": Arm("Clicks, likewise?", PLAIN | NO_USER, "no-residual"),
    "no-residual-no-news-fastformer": Arm("Tokens, likewise?", PLAIN | NO_NEWS, "no-residual"),
}


class Run(NamedTuple):
    """What one arm reached with one seed."""

    values: dict[str, NDArray[np.float64]]
    """Metrics of each impression ``[4, impressions]``, by split."""
    gates_at_zero: float | None
    seconds: float
    """Of training alone, on the cores that the run had."""
    memory_mib: float
    """Peak of the training process."""


def newsrec(log: Path, threads: int, *command: str) -> float:
    """Run a command on some cores; what it says goes to a file. Returns its peak memory in MiB."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("a", encoding="utf-8") as file:
        words = (sys.executable, "-m", "newsrec", *command, *QUIET)
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=env)
    RUNNING.add(process)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    RUNNING.discard(process)
    if process.returncode:
        raise SystemExit(
            f"{' '.join(words)}\nfailed. {log} ends in:\n{log.read_text(encoding='utf-8')[-2000:]}"
        )
    return usage.ru_maxrss / 1024


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


def train_and_score(
    root: str, splits: Iterable[str], folder: Path, shape: Mapping[str, str], threads: int
) -> None:
    """Make one run; its folder appears once all of it is there, without the checkpoints."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a killed process
    part.mkdir(parents=True)
    data, log = f"--data.root={root}", part / "log.txt"
    device = f"--trainer.accelerator={shape['trainer.accelerator']}"
    options = [f"--{name}={value}" for name, value in shape.items() if "fingerprint" not in name]
    quiet = ("--baselines=false", f"--trainer.callbacks={TIMER}", f"--output={part / 'fit'}")
    memory = newsrec(log, threads, "fit", *options, data, *quiet)
    last = part / "fit" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, map_location="cpu", weights_only=True)
    assert checkpoint["global_step"] == int(shape["trainer.max_steps"])
    seconds = checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"]
    scored = [(split, split, last) for split in splits]
    if checkpoint["hyper_parameters"]["residual"]:
        scored.append(("gates_at_zero", "dev", zero_gates(last)))
    for name, split, path in scored:
        where = (f"--ckpt_path={path}", f"--split={split}", f"--output={part / name}")
        newsrec(log, threads, "evaluate", data, device, "--baselines=false", *where)
    made = {"shape": dict(shape), "seconds": seconds, "memory_mib": memory}
    (part / "run.json").write_text(json.dumps(made, indent=1))
    shutil.rmtree(last.parent)
    part.rename(folder)


def score_baselines(root: str, splits: Iterable[str], folder: Path) -> dict[str, dict[str, float]]:
    """Return the AUC of each baseline on each split; kept in the folder."""
    found: dict[str, dict[str, float]] = {}
    for split in splits:
        output = folder / split
        if not output.exists():  # random, and all others beside it
            where = (f"--data.root={root}", f"--split={split}", f"--output={output}")
            where += ("--trainer.accelerator=cpu",)
            newsrec(folder / "log.txt", 1, "evaluate", "--scorer=random", *where)
        beside = json.loads((output / "metrics.json").read_text())["baselines"]
        for name, metrics in beside.items():
            found.setdefault(name, {})[split] = metrics["auc"]
    return found


def check_same(folder: Path, shape: Mapping[str, str]) -> None:
    """Stop if a finished run was made with other options, or on other data."""
    before = json.loads((folder / "run.json").read_text())["shape"]
    for name in sorted(shape | before):
        if shape.get(name) != before.get(name):
            raise SystemExit(
                f"{folder} was made with {name} {before.get(name)}, but {shape.get(name)} is asked "
                "for now. Choose another --output, ask as before, or remove that folder."
            )


def read_run(folder: Path, splits: Mapping[str, Split]) -> Run:
    """Return a finished run, its metrics computed anew from the ranks that it wrote."""
    values = {name: read_values(folder / name, split) for name, split in splits.items()}
    zero = folder / "gates_at_zero" / "metrics.json"
    gates_at_zero = json.loads(zero.read_text())["auc"] if zero.exists() else None
    made = json.loads((folder / "run.json").read_text())
    return Run(values, gates_at_zero, made["seconds"], made["memory_mib"])


def read_values(folder: Path, split: Split) -> NDArray[np.float64]:
    """Return each impression's metrics, from the ranks in an output of ``evaluate``."""
    reported = json.loads((folder / "metrics.json").read_text())
    with zipfile.ZipFile(folder / "prediction.zip") as archive:
        lines = archive.read("prediction.txt").decode().splitlines()
    ids, ranks = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert list(map(int, ids)) == split.impression_id.tolist()
    scores = -np.concatenate([json.loads(line) for line in ranks])
    metrics = impression_metrics(scores, split.labels, split.candidates.offsets)
    means = metrics.values[:, metrics.valid].mean(axis=1)
    assert np.allclose(means, [reported[name] for name in METRICS], rtol=0, atol=1e-9)
    return metrics.values


def compare(
    a: dict[int, Run], b: dict[int, Run], splits: Mapping[str, Split]
) -> dict[str, dict[str, float]]:
    """Return the difference in AUC and its interval by split, over the seeds that both have."""
    seeds, found = a.keys() & b.keys(), {}
    for name, split in splits.items():
        auc = [np.mean([runs[seed].values[name][0] for seed in seeds], axis=0) for runs in (a, b)]
        interval = paired_interval(*auc, split.user)
        found[name] = dict(zip(("auc", "low", "high"), interval, strict=True))
    return found


def summarize(done: dict[str, dict[int, Run]], splits: Mapping[str, Split]) -> dict[str, dict]:
    """Return what the table says of every arm that has a run."""
    result = {}
    for name, runs in done.items():
        zero = [run.gates_at_zero for run in runs.values() if run.gates_at_zero is not None]
        others = {"base", ARMS[name].plain} - {name}
        by_split = {}
        for split in splits:
            means = {s: np.nanmean(run.values[split], axis=1) for s, run in sorted(runs.items())}
            mean = np.mean(list(means.values()), axis=0).tolist()
            by_seed = {seed: float(values[0]) for seed, values in means.items()}
            by_split[split] = {"auc_by_seed": by_seed, **dict(zip(METRICS, mean, strict=True))}
        result[name] = ARMS[name]._asdict() | {
            **by_split,
            "difference_to": {
                other: compare(runs, done[other], splits)
                for other in sorted(others)
                if runs.keys() & done.get(other, {}).keys()
            },
            "gates_at_zero": float(np.mean(zero)) if zero else None,
            "train_seconds": round(float(np.mean([run.seconds for run in runs.values()])), 1),
            "memory_mib": round(max(run.memory_mib for run in runs.values())),
        }
    return result


def number(value: float | None, sign: str = "") -> str:
    """Return a metric as docs/design.md writes them: ``.6655``, ``+.0352``."""
    return "" if value is None else f"{value:{sign}.4f}".replace("0.", ".", 1)


def markdown(arms: dict[str, dict], splits: Iterable[str], bounds: dict[str, dict]) -> str:
    """Return the table, what is compared with another arm than ``base``, and the bounds."""
    heads = ["arm", "what differs"]
    for split in splits:
        heads += [f"{split} AUC", "seeds", "minus base", "95 % interval"]
    heads += ["gates at zero", "train time", "memory"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    below = []
    for name, arm in arms.items():
        cells = [name, ", ".join(f"`{key}={value}`" for key, value in arm["options"].items())]
        for split in splits:
            by_seed = arm[split]["auc_by_seed"].values()
            over_seeds = f"{number(min(by_seed))} to {number(max(by_seed))} ({len(by_seed)})"
            cells += [number(arm[split]["auc"]), over_seeds]
            said = {"base": ("", "")}
            for other, found in arm["difference_to"].items():
                low, high = (number(found[split][end], "+") for end in ("low", "high"))
                said[other] = (number(found[split]["auc"], "+"), f"{low} to {high}")
            cells += said.pop("base")
            below += [f"- {split}: {name} less {o}: {m}, {b}" for o, (m, b) in said.items()]
        cells += [number(arm["gates_at_zero"]), f"{arm['train_seconds']:.0f} s"]
        lines.append(f"| {' | '.join([*cells, str(arm['memory_mib']) + ' MiB'])} |")
    for name, by_split in bounds.items():
        values = ", ".join(f"{split} {number(auc)}" for split, auc in by_split.items())
        below.append(f"- {name}: {values}")
    return "\n".join([*lines, "", *below]).rstrip() + "\n"


def find_bounds(root: str, splits: Iterable[str], folder: Path) -> dict[str, dict[str, float]]:
    """Return the AUC by split of the best baseline and of a simulated world's oracles."""
    baselines = score_baselines(root, splits, folder)
    best = max(baselines, key=lambda name: np.mean(list(baselines[name].values())))
    bounds = {f"best baseline, {best}": baselines[best]}
    world = Path(root) / "world.json"
    if world.exists():
        said = json.loads(world.read_text(encoding="utf-8"))
        bounds["ceiling"] = {split: said["ceiling"][split]["auc"] for split in splits}
    return bounds


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data.root", dest="root", required=True, help="data folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--accelerator", default="cpu", help="of the Trainer: cpu or gpu")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    data = open_mind(args.root)
    named = {name: data.split(name) for name in data.splits if name != "train"}
    splits = {name: split for name, split in named.items() if split.labels is not None}
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    common = BASE | {"data.batch_size": str(args.batch_size), "trainer.max_steps": str(args.steps)}
    common["trainer.accelerator"] = args.accelerator
    marks = {f"fingerprint of {name}": data.split(name).fingerprint for name in ("train", *splits)}
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
        "splits": {name: len(split.history) for name, split in splits.items()} | marks,
    }
    finished = [key for key, folder in folders.items() if folder.exists()]
    for key in finished:
        check_same(folders[key], shapes[key])
    done: dict[str, dict[int, Run]] = {name: {} for name in args.arms}

    def add(*keys: tuple[str, int]) -> str:
        """Read finished runs and write both tables; return the JSON."""
        for name, seed in keys:
            done[name][seed] = read_run(folders[name, seed], splits)
        arms = summarize({name: runs for name, runs in done.items() if runs}, splits)
        text = json.dumps({"settings": settings, "arms": arms, "bounds": bounds}, indent=1)
        (args.output / "table.json").write_text(text + "\n")
        (args.output / "table.md").write_text(markdown(arms, splits, bounds))
        return text

    (args.output / "baselines").mkdir(parents=True, exist_ok=True)
    bounds = find_bounds(args.root, splits, args.output / "baselines")
    text = add(*finished)
    start, pool = time.monotonic(), ThreadPoolExecutor(args.jobs)
    waiting = {
        pool.submit(train_and_score, args.root, splits, folders[key], shape, threads): key
        for key, shape in shapes.items()
        if key not in finished
    }
    try:
        for count, future in enumerate(as_completed(waiting), len(finished) + 1):
            future.result()
            name, seed = waiting[future]
            text = add((name, seed))
            minutes, values = (time.monotonic() - start) / 60, done[name][seed].values
            aucs = ", ".join(f"{k} {number(np.nanmean(v[0]))}" for k, v in values.items())
            said = f"{count} of {len(shapes)}: {name}, seed {seed}: AUC {aucs}"
            print(f"{said}; {minutes:.1f} min so far", file=sys.stderr, flush=True)
    finally:  # also when a run has failed, or this process is asked to end
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(RUNNING):
            process.terminate()
    print(text)


if __name__ == "__main__":
    main()

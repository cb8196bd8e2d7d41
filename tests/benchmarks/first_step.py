"""How long ``fit`` takes to its first step on a compiled data folder, and each phase of that.

    python tests/benchmarks/first_step.py                   # simulates MIND-large first, 1.4 GB
    python tests/benchmarks/first_step.py --data.root DIR
    python tests/benchmarks/first_step.py --data.root data/demo --config configs/demo.yaml

Without ``--config``, every PLM layer is tuned. Prints one JSON object. Each run is a process of its
own that makes one step without validation. A step begins when the model has its first batch; how
long the step itself takes is the model's affair and given beside it. News items are tokenised, and
states of frozen layers computed, by the first run and read by the second. ``phases`` has the
seconds and the CPU seconds of each phase, in order: Python itself, imports (each without what those
before it have imported), and then the parts of ``fit``, named after what ends them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from newsrec.simulation.simulate import simulate

OPTIONS = (
    "--data.val=none",
    "--trainer.max_steps=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
)

CHILD = """
import importlib, sys, time

def mark(what):
    print("phase", what, time.time(), time.process_time(), file=sys.stderr)

def marked(owner, name, what, after=True):
    method = getattr(owner, name)
    def hook(*args, **options):
        if not after:
            mark(what)
        found = method(*args, **options)
        if after:
            mark(what)
        return found
    setattr(owner, name, hook)

mark("python")
from newsrec.__main__ import main, no_garbage_collection
with no_garbage_collection(freeze=True):
    for name in ("torch", "transformers", "torchmetrics", "torch._dynamo", "lightning"):
        importlib.import_module(name)
        mark(name)
    from newsrec.commands.fit import FitCLI
    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.callbacks import FrozenStates
    from newsrec.training.module import RecommenderModule
    from newsrec.training.run import Run

mark("newsrec")
marked(FitCLI, "instantiate_classes", "options", after=False)
marked(Run, "settle", "precision_and_threads")
marked(MindDataModule, "setup", "data")
marked(RecommenderModule, "configure_model", "model")
marked(FrozenStates, "on_fit_start", "states")
marked(RecommenderModule, "on_fit_start", "residual_path")
marked(RecommenderModule, "on_train_batch_start", "first_batch", after=False)
marked(RecommenderModule, "on_train_batch_end", "step", after=False)
main(sys.argv[1:])
"""


def run(*command: str) -> str:
    """Run a command of newsrec; return what it wrote to stderr."""
    command = (sys.executable, "-c", CHILD, *command)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stderr


def first_step(*options: str) -> dict[str, Any]:
    """Return seconds from the start of Python to the first step, of its phases, and of the step."""
    marks = [("start", time.time(), 0.0)]
    said = [line.split() for line in run("fit", *options, *OPTIONS).splitlines()]
    marks += [(line[1], *map(float, line[2:])) for line in said if line[:1] == ["phase"]]
    phases: dict[str, dict[str, float]] = {}
    for (_, *before), (name, *now) in pairwise(marks):
        one = phases.setdefault(name, {"s": 0.0, "cpu_s": 0.0})
        for unit, begin, end in zip(one, before, now, strict=True):
            one[unit] = round(one[unit] + end - begin, 2)
    step = phases.pop("step")
    return {
        "to_first_step_s": round(sum(phase["s"] for phase in phases.values()), 1),
        "to_first_step_cpu_s": round(sum(phase["cpu_s"] for phase in phases.values()), 1),
        "step_s": round(step["s"], 1),
        "phases": phases,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data.root", dest="root", help="data folder")
    parser.add_argument("--config", help="preset of fit; default: all of the PLM is tuned")
    args = parser.parse_args()
    options = [f"--config={args.config}"] if args.config else ["--model.tune_layers=-1"]
    with tempfile.TemporaryDirectory() as folder:
        if args.root is None:
            simulate(Path(folder) / "large", "large")
            args.root = str(Path(folder) / "large")
        run("prepare", "--data.root", args.root)
        options.append(f"--data.root={args.root}")
        result = {
            name: first_step(*options, f"--output={folder}/{name}")
            for name in ("first_run", "second_run")
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

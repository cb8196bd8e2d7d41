"""How long ``fit`` takes to its first step on a compiled data folder, every PLM layer tuned.

    python tests/benchmarks/first_step.py                   # simulates MIND-large first, 1.4 GB
    python tests/benchmarks/first_step.py --data.root DIR

Prints one JSON object. Each run is a process of its own that makes one step without validation. A
step begins when the model has its first batch; how long the step itself takes is the model's affair
and given beside it. News items are tokenised by the first run and read by the second.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from newsrec.simulation.simulate import simulate

OPTIONS = (
    "--model.tune_layers=-1",
    "--data.val=none",
    "--trainer.max_steps=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
)


CHILD = """
import sys, time
from newsrec.__main__ import main
from newsrec.training.module import RecommenderModule

def say(what):
    def hook(self, *args):
        print(what, time.time(), file=sys.stderr)
    return hook

RecommenderModule.on_train_batch_start = say("begins")
RecommenderModule.on_train_batch_end = say("ends")
main(sys.argv[1:])
"""


def run(*command: str) -> str:
    """Run a command of newsrec; return what it wrote to stderr."""
    command = (sys.executable, "-c", CHILD, *command)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stderr


def first_step(*options: str) -> dict[str, float]:
    """Return seconds from the start of Python to the first step, and of that step."""
    start = time.time()
    said = run("fit", *options, *OPTIONS)
    begins, ends = (
        float(re.search(rf"^{what} (\S+)$", said, re.M)[1]) for what in ("begins", "ends")
    )
    return {"to_first_step_s": round(begins - start, 1), "step_s": round(ends - begins, 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data.root", dest="root", help="data folder")
    root = parser.parse_args().root
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            simulate(Path(folder) / "large", "large")
            root = str(Path(folder) / "large")
        run("prepare", "--data.root", root)
        result = {
            name: first_step(f"--data.root={root}", f"--output={folder}/{name}")
            for name in ("first_run", "second_run")
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""How long ``fit`` takes to its first step on a compiled data folder, every PLM layer tuned.

    python tests/benchmarks/first_step.py                   # simulates MIND-large first, 1.4 GB
    python tests/benchmarks/first_step.py --data.root DIR

Prints one JSON object. What is timed is a whole run of one step without validation, the writing of
its checkpoints included: the first step itself is over a little earlier.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from newsrec.data.simulate import simulate

OPTIONS = (
    "--model.tune_layers=-1",
    "--data.val=none",
    "--trainer.max_steps=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
)


def run(*command: str) -> float:
    """Return the seconds that a command of newsrec took."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "newsrec", *command], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data.root", dest="root", help="data folder")
    root = parser.parse_args().root
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            simulate(Path(folder) / "large", "large")
            root = str(Path(folder) / "large")
        prepared = run("prepare", "--data.root", root)
        result = {"prepare_s": round(prepared, 1)}
        # Tokens are made by the first run and read by the second.
        for name in ("first_run_s", "second_run_s"):
            seconds = run("fit", f"--data.root={root}", f"--output={folder}/{name}", *OPTIONS)
            result[name] = round(seconds, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

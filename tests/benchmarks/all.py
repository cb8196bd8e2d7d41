"""One page on the speed of all parts, compared with another commit in the same run.

    python tests/benchmarks/all.py --output DIR                       # this tree alone
    python tests/benchmarks/all.py --output DIR --against v0.1.0      # and a commit, tag or branch
    python tests/benchmarks/all.py --output DIR --only train start    # some parts

Each part is a benchmark of this folder with small options, run on ``--data.root`` (``data/demo``)
in a process of its own. With ``--against`` the other commit is checked out into a temporary folder,
and its own benchmarks are run with the same options, turn by turn with this tree's. ``ratio`` is
the median over the rounds of the other commit's value divided by this tree's, or the inverse where
more is better: above 1, this tree is better. ``noise`` is the largest ratio of two rounds of one
tree: a ratio within it says nothing. A figure that the other commit does not print has no ratio.

``per GFLOP/s`` divides a speed by the rate of a large float32 product that was measured before each
run, since machines differ. The output folder gets ``speed.json``, ``speed.md`` and ``speed.png``;
the last two are docs/speed.md and its picture.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parents[2]


class Figure(NamedTuple):
    """A number that a benchmark prints."""

    name: str
    key: str
    """Its keys in the printed JSON, divided by dots; ``*`` is any key."""
    unit: str
    more_is_better: bool = False


class Part(NamedTuple):
    """A benchmark, and what is read from it."""

    command: str
    figures: tuple[Figure, ...]


PARTS = {
    "train": Part(
        "losses.py --data.root {root} --steps 20",
        (
            Figure("training step, frozen PLM, 32 clicks", "cross_entropy.step_ms", "ms"),
            Figure("its batch", "cross_entropy.batch_ms", "ms"),
        ),
    ),
    "tuned": Part(
        "train.py --data.root {root} --batches random:32 --arms top2-fp32 full-fp32 "
        "--no-reference --no-memory --steps 2 --clock cpu --max_tokens 24",
        (
            Figure("clicks in training, two layers tuned", "*.arms.top2-fp32.clicks_per_second",
                   "/s", True),
            Figure("clicks in training, PLM tuned", "*.arms.full-fp32.clicks_per_second",
                   "/s", True),
        ),
    ),
    "prepare": Part(
        "prepare.py --data.root {root}",
        (
            Figure("compile train's TSV", "megabytes_per_s", "MB/s", True),
            Figure("memory of the process that compiles", "peak_mb", "MB"),
        ),
    ),
    "feed": Part(
        "feed.py --data.root {root}",
        (Figure("samples to batches, one process", "samples_per_second.0", "/s", True),),
    ),
    "evaluate": Part(
        "evaluate.py --data.root {root} --impressions 100000",
        (
            Figure("impressions of dev to metrics", "model.impressions_per_s", "/s", True),
            Figure("matrix rate reached while news is encoded", "model.news_share", "of 1", True),
            Figure("metrics of 100,000 impressions", "metrics.cpu_s", "s"),
        ),
    ),
    "submission": Part(
        "submission.py --impressions 50000",
        (
            Figure("impressions into prediction.zip", "write.impressions_per_cpu_s", "/s", True),
            Figure("impressions checked", "check.impressions_per_cpu_s", "/s", True),
        ),
    ),
    "start": Part(
        "first_step.py --data.root {root}",
        (Figure("start of fit to its first step", "second_run.to_first_step_s", "s"),),
    ),
    "serve": Part(
        "recommend.py --users 5000 --news 20000 --calls 500",
        (
            Figure("user vector of 50 clicks, one thread", "user_vector.p50_ms", "ms"),
            Figure("its CPU time", "user_vector.cpu_ms", "ms"),
            Figure("its matrix products in numpy, CPU time", "its_products.cpu_ms", "ms"),
            Figure("the 100 best of 20,000", "recommend_100.p50_ms", "ms"),
            Figure("start of a process that recommends", "start_process.cpu_s", "s"),
            Figure("users in a batch", "many_process.users_per_s", "/s", True),
        ),
    ),
}  # fmt: skip


def value_at(result: Any, key: str) -> float | None:
    """Return the number at dotted keys; None if there is none."""
    for name in key.split("."):
        if not isinstance(result, dict):
            return None
        if name == "*":
            result = next((v for v in result.values() if isinstance(v, dict) and "arms" in v), None)
        else:
            result = result.get(name)
    return float(result) if isinstance(result, int | float) else None


def matrix_rate(size: int = 1024, seconds: float = 0.5) -> float:
    """Return the GFLOP/s of a float32 product on the threads of this process, the best of some."""
    import numpy as np

    a, b = np.random.default_rng(0).random((2, size, size), dtype=np.float32)
    end, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def run(tree: Path, part: Part, root: Path) -> dict[str, Any] | None:
    """Run a tree's benchmark and return what it printed; None if it failed."""
    script, *options = part.command.format(root=root).split()
    command = [sys.executable, "-W", "ignore", f"tests/benchmarks/{script}", *options]
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    begin = done.stdout.find("{")
    if done.returncode or begin < 0:
        print(f"{script} in {tree}:\n{done.stderr[-800:]}", file=sys.stderr)
        return None
    printed: dict[str, Any] = json.loads(done.stdout[begin:])
    return printed


def commit_of(tree: Path) -> str:
    """Return the short name of the commit that a tree has."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def measure(
    parts: dict[str, Part], trees: list[Path], root: Path, rounds: int
) -> list[dict[str, Any]]:
    """Run all parts, the trees in turn, and return a row for each figure."""
    rows = []
    for name, part in parts.items():
        printed: list[list[dict[str, Any] | None]] = [[] for _ in trees]
        rates = []
        for number in range(rounds):
            for place in (range(len(trees)), reversed(range(len(trees))))[number % 2]:
                rates.append(matrix_rate())
                printed[place].append(run(trees[place], part, root))
        for figure in part.figures:
            values = [[value_at(one, figure.key) for one in runs] for runs in printed]
            rows.append(row_of(name, figure, values, max(rates)))
            print(line_of(rows[-1]), file=sys.stderr)
    return rows


def row_of(
    part: str, figure: Figure, values: list[list[float | None]], gflops: float
) -> dict[str, Any]:
    """Return a figure's row; ``values`` has the rounds of this tree, then of the other one."""
    known = [[value for value in runs if value] for runs in values]
    median = statistics.median(known[0]) if known[0] else None
    ratios = []
    for ours, *other in zip(*values, strict=True):
        if ours and other and other[0]:
            ratios.append(ours / other[0] if figure.more_is_better else other[0] / ours)
    return {
        "part": part,
        "figure": figure.name,
        "value": median,
        "unit": figure.unit,
        "gflops": round(gflops, 1),
        "per_gflops": median / gflops if median and figure.unit.endswith("/s") else None,
        "ratio": round(statistics.median(ratios), 3) if ratios else None,
        "noise": round(max((max(runs) / min(runs) for runs in known if runs), default=1.0), 3),
        "rounds": values,
    }


def line_of(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    value = "none" if row["value"] is None else f"{row['value']:,.4g} {row['unit']}"
    share = "" if row["per_gflops"] is None else f"{row['per_gflops']:,.3g}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return f"| {row['figure']} | {value} | {share} | {ratio} | {row['noise']:.2f} |"


PAGE = """# Speed

Measured on {date} by `{command}` at commit {commit}, on {machine}, threads: {threads}.
A large float32 product reached {gflops} GFLOP/s. Values are medians of {rounds} rounds. *Per
GFLOP/s* is a speed divided by the rate of that product, measured before each run, since machines
differ.{against}

{table}
"""
AGAINST = """ *Ratio* is how many times as good this commit is as {against}, both measured in
turn. *Noise* is the largest ratio of two rounds of one commit: a ratio within it says nothing. A
figure that {against} did not print has no ratio.

![Ratio of each figure, with its noise](images/speed.png)"""


def page_of(result: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    against = AGAINST.format(**result) if result["against"] else ""
    lines = [
        "| | value | per GFLOP/s | ratio | noise |",
        "|---|---|---|---|---|",
        *map(line_of, result["rows"]),
    ]
    return PAGE.format(**result | {"against": against, "table": "\n".join(lines)})


def draw(rows: list[dict[str, Any]], path: Path, against: str) -> None:
    """Draw each figure's ratio, and around 1 what is noise."""
    from matplotlib.figure import Figure as Picture

    rows = [row for row in rows if row["ratio"]][::-1]
    picture = Picture(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    axis = picture.subplots()
    places = range(len(rows))
    noise = [[1 - 1 / row["noise"] for row in rows], [row["noise"] - 1 for row in rows]]
    axis.errorbar([1] * len(rows), places, xerr=noise, fmt="none", color="silver", lw=6,
                  label="noise")  # fmt: skip
    axis.plot([row["ratio"] for row in rows], places, "o", label="ratio")
    axis.axvline(1, color="gray", lw=0.8)
    axis.set_yticks(places, [row["figure"] for row in rows])
    axis.set(xlabel=f"times as good as {against}", ylim=(-0.7, len(rows) - 0.3))
    picture.legend(loc="outside lower right", ncols=2)
    picture.savefig(path, dpi=150)


def main() -> None:
    """Measure, print the table and write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the table")
    parser.add_argument("--against", metavar="COMMIT", help="commit to compare with")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], help="parts to run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data.root", dest="root", type=Path, default=HERE / "data" / "demo")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        trees = [HERE]
        if args.against:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tree"
            git = ["git", "-C", str(HERE), "worktree"]
            subprocess.run([*git, "add", "-q", "--detach", temporary, args.against], check=True)
            stack.callback(subprocess.run, [*git, "remove", "--force", temporary], check=True)
            trees.append(temporary)
        parts = {name: PARTS[name] for name in args.only}
        rows = measure(parts, trees, args.root.resolve(), args.rounds)
        result = {
            "commit": commit_of(HERE),
            "against": commit_of(trees[1]) if args.against else None,
            "date": time.strftime("%Y-%m-%d"),
            "command": " ".join(["python tests/benchmarks/all.py", *sys.argv[1:]]),
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "gflops": max(row["gflops"] for row in rows),
            "rounds": args.rounds,
            "rows": rows,
        }
    (args.output / "speed.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (args.output / "speed.md").write_text(page_of(result), encoding="utf-8")
    if any(row["ratio"] for row in rows):
        draw(rows, args.output / "speed.png", str(result["against"]))
    print(page_of(result))


if __name__ == "__main__":
    main()

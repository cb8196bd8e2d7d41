"""Time and memory of Fastformer and of its softmax twin, by length of the sequence.

    python tests/benchmarks/attention.py                              # 32 to 16,384 tokens
    python tests/benchmarks/attention.py --lengths 32 256 --figure attention.png

Every batch holds the same number of tokens, cut into sequences of one length; forward and backward,
or forward alone, of one layer and its pooling, in float32. On a CPU both run over joined sequences,
as a model does, and seconds are of the CPU. The softmax never holds all its weights at once (SDPA),
so memory grows linearly in both; time does not. Prints one JSON object. Each measurement is a
process of its own, so that its peak memory is its own.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

ENCODERS = {"fastformer": "Fastformer", "transformer": "softmax attention"}
"""Value of the option ``encoder`` to its name in the picture."""
LENGTHS = [2**n for n in range(5, 15)]
SECONDS = 1.0
"""A measurement repeats its step for so long, or once, and takes the fastest."""


def peak_bytes(device: str) -> int:
    """Return the most memory that this process has held so far."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(encoder: str, length: int, args: argparse.Namespace) -> dict[str, float]:
    """Return what one step costs; to be called in a fresh process."""
    import torch

    from newsrec.model.convert import PooledFastformer
    from newsrec.model.fastformer import FastformerConfig
    from newsrec.model.sequences import Joined

    torch.manual_seed(0)
    config = FastformerConfig(args.heads, ffn=args.dim, encoder=encoder)
    model = PooledFastformer(args.dim, config, length).to(args.device)
    batch = max(args.tokens // length, 1)
    x = torch.randn(batch, length, args.dim, device=args.device)
    mask = torch.ones(batch, length, dtype=torch.bool, device=args.device)
    if args.device == "cpu":  # as in a model
        x, mask = x.flatten(0, 1), Joined.of(torch.full((batch,), length))
    clock = time.process_time if args.device == "cpu" else time.perf_counter

    def step(trains: bool = True) -> float:
        model.zero_grad()
        start = clock()
        with torch.set_grad_enabled(trains):
            total = model(x, mask).sum()
        if trains:
            total.backward()
        if args.device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    def fastest(trains: bool) -> float:
        times = [step(trains)]
        while sum(times) < SECONDS:
            times.append(step(trains))
        return min(times)

    before = peak_bytes(args.device)
    step()  # the first one warms up
    peak = peak_bytes(args.device) - before
    seconds, forward = fastest(True), fastest(False)
    return {
        "threads": torch.get_num_threads(),
        "sequences": batch,
        "seconds": round(seconds, 5),
        "forward_seconds": round(forward, 5),
        "ms_per_sequence": round(1e3 * seconds / batch, 4),
        "peak_mb": round(peak / 2**20, 1),
        "peak_mb_per_sequence": round(peak / 2**20 / batch, 4),
    }


def draw(results: list[dict[str, Any]], path: str) -> None:
    """Draw time and memory of one sequence over its length, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    parts = (("ms_per_sequence", "milliseconds"), ("peak_mb_per_sequence", "MiB at the peak"))
    for axis, (key, label) in zip(axes, parts, strict=True):
        for (encoder, name), marker in zip(ENCODERS.items(), "os", strict=True):
            rows = [row for row in results if row["encoder"] == encoder]
            lengths = [row["length"] for row in rows]
            axis.plot(lengths, [row[key] for row in rows], marker=marker, label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=45)
        axis.minorticks_off()
        axis.set(xlabel="tokens of a sequence", ylabel=f"{label}, one sequence")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle("One layer, forward and backward")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="of sequences")
    parser.add_argument("--tokens", type=int, default=LENGTHS[-1], help="of a batch")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--figure", help="PNG to draw")
    parser.add_argument(
        "--only", choices=[*ENCODERS], help=argparse.SUPPRESS
    )  # one measurement, in a child process
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.lengths[0], args)))
        return
    results = []
    for length in args.lengths:
        for encoder in ENCODERS:
            command = [sys.executable, __file__, "--only", encoder, "--lengths", str(length)]
            for option in ("tokens", "dim", "heads", "device"):
                command += [f"--{option}", str(getattr(args, option))]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append({"encoder": encoder, "length": length, **json.loads(done.stdout)})
    if args.figure:
        draw(results, args.figure)
    found = {(row["encoder"], row["length"]): row for row in results}
    ratios = {
        name: {
            length: round(found["transformer", length][key] / found["fastformer", length][key], 2)
            for length in args.lengths
        }
        for name, key in (("training", "seconds"), ("forward", "forward_seconds"))
    }
    sizes = {name: getattr(args, name) for name in ("tokens", "dim", "heads", "device")}
    sizes["torch"] = version("torch")
    print(json.dumps({**sizes, "transformer_over_fastformer": ratios, "results": results}))


if __name__ == "__main__":
    main()

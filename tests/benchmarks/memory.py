"""Estimated memory of a step beside what a process took for it. JSON on stdout.

    python tests/benchmarks/memory.py [--cases tiny-full-fp32 mini-top2-fp32 ...]

Each case is a process of its own, which makes three steps (forward, backward, AdamW) on the CPU and
tells its peak (``VmHWM``) less what it held before the model was built. The C library is told
to give freed blocks back at once (``MALLOC_MMAP_THRESHOLD_``), or they would count twice.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from newsrec.model.plm.sizes import KNOWN
from newsrec.plm_source import DEFAULT_PLM
from newsrec.training.estimate.step_memory import Shape, batch_of, build, packable, step_cost
from newsrec.training.module import RecommenderModule
from newsrec.training.optimizer import parameter_groups

TINY = KNOWN[DEFAULT_PLM] | {"num_hidden_layers": 2, "vocab_size": 2000}
MPNET = TINY | {"model_type": "mpnet", "max_position_embeddings": 514}
MINI = KNOWN[DEFAULT_PLM]
NEWS = {"tiny": 400, "mpnet": 400, "mini": 822}
"""Distinct news of a batch; 32 samples of MIND mention 822."""
PLMS = {"tiny": TINY, "mpnet": MPNET, "mini": MINI}
TUNED = {"full": -1, "top1": 1, "top2": 2, "frozen": 0, "recomputed": -1}
CASES = [
    *("tiny-full-fp32", "tiny-top1-fp32", "tiny-recomputed-fp32", "mpnet-full-fp32"),
    *("mini-frozen-fp32", "mini-top2-fp32", "mini-full-fp32"),
    *("mini-full-bf16", "mini-recomputed-fp32"),
]


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(options.one))
        return
    rows = []
    for case in options.cases:
        module, plm, shape, bf16, states = parts(case)
        cost = step_cost(module, plm, shape, "cpu", bf16, states)
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--one", case]
        result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        measured = int(result.stdout)
        rows.append(
            {
                "case": case,
                "news": len(shape.lengths),
                "tokens": shape.tokens,
                "estimate_mib": round(cost.peak / 2**20),
                "measured_mib": round(measured / 2**20),
                "ratio": round(cost.peak / measured, 3),
            }
        )
    print(json.dumps({"torch": torch.__version__, "cases": rows}, indent=1))


def parts(case: str) -> tuple[Any, dict[str, Any], Shape, bool, torch.dtype | None]:
    """Return a case's model, PLM, batch, precision, and the kind of its kept states."""
    name, tuned, precision = case.split("-")
    recomputed = tuned == "recomputed"
    module = RecommenderModule(tune_layers=TUNED[tuned], checkpoint_activations=recomputed)
    lengths = np.sort(np.random.default_rng(0).integers(8, 28, NEWS[name]))
    shape = Shape(lengths, users=32, history=50, samples=32, candidates=5)
    states = torch.float32 if TUNED[tuned] != -1 else None
    return module, PLMS[name], shape, precision == "bf16", states


def measure(case: str) -> int:
    """Return the peak of this process in three steps, above what it held before."""
    module, plm, shape, bf16, states = parts(case)
    packs = packable(plm)
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # the library's own buffers
    before = held()
    recommender = build(module, plm, packs)
    groups = parameter_groups(recommender, lr=1e-4, plm_lr=1e-5, gate_lr=1e-2, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups, fused=True)
    batch = batch_of(shape, plm["hidden_size"], states)
    batch.token_ids.fill_(1000)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            scores = recommender(batch).float()
            loss = F.cross_entropy(scores, batch.labels.argmax(dim=1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        del scores, loss
    return peak() - before


def peak() -> int:
    """Return the most bytes that this process has held; ``ru_maxrss`` would count its parent's."""
    with open("/proc/self/status", encoding="utf-8") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def held() -> int:
    """Return the bytes that this process holds now."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()

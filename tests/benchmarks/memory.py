"""Estimated memory of a step beside what a process took for it. JSON on stdout.

    python tests/benchmarks/memory.py [--cases tiny-full-fp32 mini-top2-fp32 ...] [--device cuda]

Each case is a process of its own, which makes two steps (forward, backward, AdamW) and tells its
peak less what it held before the model was built. On a CPU that is ``VmHWM``; the C library is told
to give freed blocks back at once (``MALLOC_MMAP_THRESHOLD_``), or they would count twice. On a GPU
it is what PyTorch's allocator handed out, so neither CUDA's own memory nor gaps between blocks.
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

from newsrec.data.batch import Batch
from newsrec.model.plm.lora import LoraConfig
from newsrec.model.plm.sizes import KNOWN
from newsrec.plm_source import DEFAULT_PLM
from newsrec.training.estimate.step_memory import Shape, batch_of, build, packable, step_cost
from newsrec.training.module import RecommenderModule
from newsrec.training.optimizer import parameter_groups

TINY = KNOWN[DEFAULT_PLM] | {"num_hidden_layers": 2, "vocab_size": 2000}
MPNET = TINY | {"model_type": "mpnet", "max_position_embeddings": 514}
MINI = KNOWN[DEFAULT_PLM]
BASES = {
    "bertbase": KNOWN["thenlper/gte-base"] | {"vocab_size": 2000},
    "mpnetbase": KNOWN["microsoft/mpnet-base"] | {"vocab_size": 2000},
    "robertabase": KNOWN["FacebookAI/roberta-base"] | {"vocab_size": 2000},
}
"""PLMs of 12 layers and hidden size 768, with few words so that a case takes a minute."""
PLMS = {"tiny": TINY, "mpnet": MPNET, "mini": MINI} | BASES
NEWS = {"tiny": 400, "mpnet": 400, "mini": 822} | dict.fromkeys(BASES, 24)
"""Distinct news of a batch; 32 samples of MIND mention 822."""
TUNED = {"full": -1, "top1": 1, "top2": 2, "frozen": 0, "recomputed": -1, "lora8": -1}
CASES = [
    *("tiny-full-fp32", "tiny-top1-fp32", "tiny-recomputed-fp32", "mpnet-full-fp32"),
    *("mini-frozen-fp32", "mini-top2-fp32", "mini-full-fp32"),
    *("mini-full-bf16", "mini-recomputed-fp32", "tiny-lora8-fp32", "mini-lora8-fp32"),
    *(
        f"{name}-{tuned}-{precision}"
        for name in BASES
        for tuned in ("full", "top2", "recomputed", "lora8")
        for precision in ("fp32", "bf16")
    ),
]


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = options.device
    if options.one:
        print(measure(options.one, device))
        return
    rows = []
    for case in options.cases:
        module, plm, shape, bf16, states = parts(case)
        cost = step_cost(module, plm, shape, device, bf16, states)
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--device", device, "--one", case]
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
    print(json.dumps({"torch": torch.__version__, "device": device, "cases": rows}, indent=1))


def parts(case: str) -> tuple[Any, dict[str, Any], Shape, bool, torch.dtype | None]:
    """Return a case's model, PLM, batch, precision, and the kind of its kept states."""
    name, tuned, precision = case.split("-")
    recomputed, rank = tuned == "recomputed", 8 if tuned == "lora8" else 0
    module = RecommenderModule(
        tune_layers=TUNED[tuned], checkpoint_activations=recomputed, lora=LoraConfig(rank=rank)
    )
    lengths = np.sort(np.random.default_rng(0).integers(8, 28, NEWS[name]))
    shape = Shape(lengths, users=32, history=50, samples=32, candidates=5)
    states = torch.float32 if TUNED[tuned] != -1 else None
    return module, PLMS[name], shape, precision == "bf16", states


def measure(case: str, device: str) -> int:
    """Return the peak of this process in two steps on a device, above what it held before."""
    module, plm, shape, bf16, states = parts(case)
    packs = packable(plm)
    torch.randn(64, 64, device=device) @ torch.randn(64, 64, device=device)  # libraries' buffers
    before = held(device)
    recommender = build(module, plm, packs).to(device)
    groups = parameter_groups(recommender, lr=1e-4, plm_lr=1e-5, gate_lr=1e-2, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups, fused=True)
    batch = batch_of(shape, plm["hidden_size"], states)
    batch.token_ids.fill_(1000)
    batch = Batch(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in batch))
    for _ in range(2):  # the second with the optimizer's state
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            scores = recommender(batch).float()
            loss = F.cross_entropy(scores, batch.labels.argmax(dim=1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        del scores, loss
    return peak(device) - before


def peak(device: str) -> int:
    """Return the most bytes that this process has held; ``ru_maxrss`` would count its parent's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status", encoding="utf-8") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def held(device: str) -> int:
    """Return the bytes that this process holds now."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()

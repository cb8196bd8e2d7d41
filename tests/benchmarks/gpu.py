"""Speed, MFU, memory and loader overlap of training on a GPU, by preset. JSON on stdout.

    python tests/benchmarks/gpu.py [--data.root DIR] [--cases small_top2 large_base] [--steps 40]
    python tests/benchmarks/gpu.py --device cpu --cases tiny --steps 6      # a rehearsal

Each case has the shapes of a preset in ``configs/`` and a PLM of that size with random weights, so
that nothing is downloaded but a tokenizer. Without ``--data.root`` a world of MIND-small's
statistics is simulated in a temporary folder. For each case it prints

- ``clicks_per_s`` and ``mfu``: of a real ``Trainer.fit``, loader and optimizer included. Work is
  counted in matrix products of real tokens, as ``model_flop`` of
  ``newsrec.training.progress.throughput`` does; the peak is ``--peak_tflops``, and
  ``matrix_tflops`` what one large product reaches here.
- ``compute_share``: time of the same steps on batches that lie on the device already, divided by
  that of ``fit``. 1 means that the loader is hidden behind the steps.
- ``peak_memory_mb``: what PyTorch's allocator held at most during ``fit`` (0 on a CPU).
"""

import argparse
import json
import logging
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Trainer, seed_everything
from transformers import BertConfig, BertModel

from newsrec.data.datamodule import MindDataModule
from newsrec.plm_source import DEFAULT_PLM, load_tokenizer
from newsrec.simulation.simulate import simulate
from newsrec.training.callbacks import FrozenStates
from newsrec.training.module import RecommenderModule
from newsrec.training.progress.throughput import Throughput, matrix_rate

MINILM = (384, 6, 12, 1536)
BASE = (768, 12, 12, 3072)
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


class Case(NamedTuple):
    """A preset's shapes."""

    plm: tuple[int, int, int, int]
    """Hidden size, layers, heads and width."""
    tune_layers: int
    batch_size: int
    max_tokens: int = 32
    max_history: int = 50
    dim: int = 256
    batches: str = "impression"


CASES = {
    "tiny": Case((64, 2, 4, 128), 1, 8, dim=32),
    "small_frozen": Case(MINILM, 0, 64),
    "small_top2": Case(MINILM, 2, 64),
    "small_full": Case(MINILM, -1, 64),
    "large_base": Case(BASE, -1, 64, max_tokens=48),
    "large_leaderboard": Case((768, 8, 12, 3072), -1, 168, max_history=100, batches="user"),
    "large_512": Case(BASE, -1, 512, batches="user"),
}


def write_plm(shape: tuple[int, int, int, int], folder: Path) -> str:
    """Write a BERT of this shape with random weights, and the default PLM's tokenizer."""
    hidden, layers, heads, width = shape
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=width,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(load_tokenizer(DEFAULT_PLM), encoding="utf-8")
    return str(folder)


def measure(case: Case, root: str, plm: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what one case reaches."""
    seed_everything(0, verbose=False)
    cuda = args.device == "cuda"
    module = RecommenderModule(
        plm=plm,
        tune_layers=case.tune_layers,
        dim=case.dim,
        max_tokens=case.max_tokens,
        max_history=case.max_history,
        torch_compile=args.torch_compile,
    )
    data = MindDataModule(
        root,
        plm=plm,
        max_tokens=case.max_tokens,
        max_history=case.max_history,
        batch_size=case.batch_size,
        batches=case.batches,
        val="none",
        num_workers=args.num_workers,
    )
    throughput = Throughput()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        precision=PRECISIONS[args.precision],
        max_steps=args.steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        callbacks=[FrozenStates(), throughput],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    device = trainer.strategy.root_device
    peak = torch.cuda.max_memory_allocated() // 2**20 if cuda else 0
    rate = throughput.flop / throughput.seconds
    matrix = matrix_rate(device, PRECISIONS[args.precision])
    each = throughput.seconds * case.batch_size / throughput.clicks
    result = {
        "clicks_per_s": round(throughput.clicks / throughput.seconds, 1),
        "tokens_per_s": round(throughput.tokens / throughput.seconds),
        "step_ms": round(1000 * each, 2),
        "compute_share": round(compute_seconds(module, data, trainer, args) / each, 3),
        "model_tflops": round(rate / 1e12, 3),
        "matrix_tflops": round(matrix / 1e12, 3),
        "peak_memory_mb": peak,
        "parameters_trained": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }
    if cuda:
        result["mfu"] = round(rate / (args.peak_tflops * 1e12), 4)
    return result


def compute_seconds(
    module: RecommenderModule, data: MindDataModule, trainer: Trainer, args: argparse.Namespace
) -> float:
    """Return the seconds of a step on batches that lie on the device already."""
    device = trainer.strategy.root_device
    module.to(device).train()
    optimizer = trainer.optimizers[0]
    optimizer.state.clear()  # Lightning moved it to the CPU when fit ended
    loader = iter(data.train_dataloader())
    batches = [next(loader).to(device) for _ in range(min(args.steps, 16))]

    def step(batch: Any) -> None:
        with trainer.precision_plugin.forward_context():
            scores = module(batch).float().masked_fill(batch.candidates == 0, -torch.inf)
            loss = torch.nn.functional.cross_entropy(scores, batch.labels.argmax(dim=1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for batch in batches[:3]:
        step(batch)
    wait(device)
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    wait(device)
    return (time.perf_counter() - start) / len(batches)


def wait(device: torch.device) -> None:
    """Wait for what was asked of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data.root", dest="root", help="MIND files; simulated if not given")
    add("--preset", default="small", help="what to simulate")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--precision", choices=list(PRECISIONS), default="bf16")
    add("--cases", nargs="+", choices=list(CASES), default=list(CASES)[1:])
    add("--steps", type=int, default=40)
    add("--torch_compile", action="store_true")
    add("--num_workers", type=int, default=0)
    add("--peak_tflops", type=float, default=989.0, help="of the GPU: H100, bf16, dense")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    cuda = args.device == "cuda"
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "torch": torch.__version__,
        "precision": args.precision,
        "steps": args.steps,
        "num_workers": args.num_workers,
        "torch_compile": args.torch_compile,
        "data": args.root or f"simulated {args.preset}",
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = args.root
        if root is None:
            root = str(Path(folder) / "world")
            simulate(Path(root), args.preset)
        for name in args.cases:
            place = Path(folder) / name
            place.mkdir()
            result["cases"][name] = measure(
                CASES[name], root, write_plm(CASES[name].plm, place), args
            )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

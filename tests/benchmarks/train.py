"""Training throughput: full steps per arm against encoding every appearance. JSON on stdout.

    python tests/benchmarks/train.py [--data.root DIR] [--batches random:32 user:168] ...
    python tests/benchmarks/train.py --batches random:32 impression:32 --arms frozen-fp32
    python tests/benchmarks/train.py --device cuda --plm_config base --batches user:512

Without ``--data.root`` it simulates a world of MIND-small's statistics in a temporary folder. Arms:

- reference: the same model, its whole PLM tuned, in fp32, that encodes each real news item of each
  sample's history and each candidate anew, padded to the batch's longest text, and makes one user
  vector per sample. Every arm is compared with this one.
- full: the whole PLM tuned, on our batches.
- top2: the PLM's two top layers tuned, on kept states of those below; what it takes to read them
  belongs to the feed and is not in the step.
- frozen: no layer of the PLM tuned, on kept states of the last.
- lora8: adapters of rank 8 in all layers of the PLM, whose own weights are frozen.

A step is forward, backward, AdamW and ``zero_grad``, with dropout off and a learning rate of 0:
all arms then do all the work and stay at the same weights, gates open, so their losses must agree
in every round. Arms take turns, and so do kinds of batches; medians over rounds are compared. The
reference takes some samples
at a time where its memory would not do, and sums gradients. Peak memory is that of a process of its
own that makes one step.

The PLM's share of the matmul rate is what its matrix products alone would take, on the real tokens,
in the same precision (three for each linear map, six for attention), over what it does take.
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
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch
from newsrec.data.datamodule import MindDataModule
from newsrec.data.options import BATCHES
from newsrec.model.matching import match_candidates
from newsrec.model.plm.blocks import length_mask
from newsrec.model.plm.load import build_plm, load_plm
from newsrec.model.plm.lora import LoraConfig
from newsrec.model.plm.masks import run_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.plm_source import DEFAULT_PLM
from newsrec.simulation.simulate import simulate
from newsrec.training.optimizer import parameter_groups

REFERENCE = "reference"
REQUIRED = {
    "random:32": {"full-fp32": 1.8, "full-bf16": 2.7, "top2-fp32": 5, "top2-bf16": 9},
    "user:168": {"full-fp32": 3, "full-bf16": 5, "top2-fp32": 9, "top2-bf16": 16},
}
"""How many times as fast as the reference each arm should be."""
ARMS = [*REQUIRED["random:32"]]
ARMS += [f"{way}-{precision}" for way in ("lora8", "frozen") for precision in ("fp32", "bf16")]
SHARE_AIMS = {"fp32": 0.6, "bf16": 0.4}
"""Of the matmul rate that the PLM should reach."""
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""By which losses may differ; bf16 has 8 bits, and scores of tens are sums of hundreds."""
SHAPES = {"base": (768, 12, 12, 3072), "tiny": (64, 2, 4, 128)}
"""Hidden size, layers, heads and width of PLMs with random weights."""
CLICKS_LARGE = 3_383_656
"""Clicks of MINDlarge's train, an estimate: 2,232,748 impressions with about 1.515 each."""
GATE = 0.1
"""How far gates are open, or only the residual path would count in the loss."""


class Arm(NamedTuple):
    """One way to train."""

    name: str

    @property
    def tune_layers(self) -> int:
        """Top layers that are tuned."""
        return {"top2": 2, "frozen": 0}.get(self.name.partition("-")[0], -1)

    @property
    def lora(self) -> LoraConfig:
        """Adapters of the tuned layers."""
        return LoraConfig(rank=8 if self.name.startswith("lora8") else 0)

    @property
    def precision(self) -> str:
        """Precision of the matrix products."""
        return "bf16" if self.name.endswith("bf16") else "fp32"


class Runner:
    """A model and its optimizer, ready to take steps.

    Args:
        arm: Which way to train.
        args: The benchmark's options.
    """

    def __init__(self, arm: Arm, args: argparse.Namespace) -> None:
        self.arm = arm
        self.device = torch.device(args.device)
        self.samples_at_once = args.samples_at_once
        torch.manual_seed(0)
        self.model = recommender(arm, args).to(self.device)
        groups = parameter_groups(self.model, 0.0, 0.0, 0.0, 0.01, 0.0)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0)

    def prepare(self, batch: Batch) -> Batch:
        """Return a batch on the device, with kept states where the arm has any."""
        batch = batch.to(self.device)
        if self.arm.tune_layers < 0:
            return batch
        lengths = torch.as_tensor(batch.token_lengths)[FIRST_NEWS:]
        token_ids = batch.token_ids[FIRST_NEWS:]
        cut, kept = self.model.news_encoder.cut, []
        for rows in torch.arange(len(lengths)).split(256):
            mask = length_mask(lengths[rows], token_ids.shape[1]).to(self.device)
            kept.append(cut.below(token_ids[rows.to(self.device)], mask)[mask])
        dtype = torch.bfloat16 if self.arm.precision == "bf16" else torch.float32
        return batch._replace(token_states=torch.cat(kept).to(dtype))

    def autocast(self) -> AbstractContextManager:
        """Return the context of the forward pass."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.arm.precision == "bf16"
        )

    def step(self, batch: Batch) -> Tensor:
        """Take a step and return its loss, still on the device."""
        if self.arm.name == REFERENCE:
            loss = self._reference(batch)
        else:
            with self.autocast():
                scores = self.model(batch)
            loss = cross_entropy(scores, batch.candidates, batch.labels, len(batch.labels))
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _reference(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=self.device)
        for samples in torch.arange(len(batch.user), device=self.device).split(
            self.samples_at_once
        ):
            candidates = batch.candidates[samples]
            scores = every_appearance(self.model, batch, samples)
            loss = cross_entropy(scores, candidates, batch.labels[samples], len(batch.user))
            loss.backward()
            total += loss.detach()
        return total


def cross_entropy(scores: Tensor, candidates: Tensor, labels: Tensor, samples: int) -> Tensor:
    """Return what some of a batch's samples add to its mean loss."""
    scores = scores.float().masked_fill(candidates == 0, -torch.inf)
    return F.cross_entropy(scores, labels.argmax(dim=1), reduction="sum") / samples


def every_appearance(model: NewsRecommender, batch: Batch, samples: Tensor) -> Tensor:
    """Score samples as if none shared a news item or a history ``[samples, candidates]``."""
    history, candidates = batch.history[batch.user[samples]], batch.candidates[samples]
    shown = torch.cat([history, candidates], dim=1)
    real = shown >= FIRST_NEWS  # neither padding nor the unknown news item, which have no tokens
    rows = shown[real]
    ids = batch.token_ids[rows]  # as wide as the batch's longest text
    mask = length_mask(torch.as_tensor(batch.token_lengths).to(rows.device)[rows], ids.shape[1])
    encoder = model.news_encoder
    states = run_plm(encoder.plm, ids, mask)
    x = encoder.pooling(encoder.fastformer(encoder.project(states), mask), mask)
    assert encoder.residual is not None
    x = encoder.residual(states, mask) + encoder.gate * x
    news = x.new_zeros(*shown.shape, model.dim)
    news[real] = x
    clicked, offered = news.split([history.shape[1], candidates.shape[1]], dim=1)
    users = model.user_encoder(clicked, history > 0)
    return match_candidates(users, offered)


def recommender(arm: Arm, args: argparse.Namespace) -> NewsRecommender:
    """Return the model without dropout, gates open."""
    if args.plm_config is None:
        plm = load_plm(DEFAULT_PLM)
    else:
        hidden, layers, heads, ffn = SHAPES[args.plm_config]
        shape = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": ffn}
        plm = build_plm({"model_type": "bert", "num_attention_heads": heads, **shape})
    dim = min(256, plm.config.hidden_size)
    model = NewsRecommender(
        plm,
        dim,
        arm.tune_layers,
        max_tokens=args.max_tokens,
        max_history=args.max_history,
        lora=arm.lora,
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.news_encoder.gate.fill_(GATE)
        model.user_encoder.gate.fill_(GATE)
    return model


def matrix_products(runner: Runner, lengths: Tensor) -> Callable[[], None]:
    """Return a call that makes the tuned layers' matrix products on real tokens, nothing else."""
    plm, device = runner.model.news_encoder.plm, runner.device
    dtype = torch.bfloat16 if runner.arm.precision == "bf16" else torch.float32
    tokens, (hidden, heads) = int(lengths.sum()), plm_shape(plm)
    pairs = []
    for linear in tuned_linears(runner):
        out, into = linear.weight.shape
        weight, trained = linear.weight.detach().to(dtype), linear.weight.requires_grad
        pairs.append((weight, torch.randn(tokens, into, device=device).to(dtype), out, trained))
    outputs = {out for _, _, out, _ in pairs}
    gradients = {out: torch.randn(tokens, out, device=device).to(dtype) for out in outputs}
    layers = tuned_layers(runner)
    blocks = []
    for length, number in zip(*lengths.unique(return_counts=True), strict=True):
        shape = int(number) * heads, int(length), hidden // heads
        x = torch.randn(*shape, device=device).to(dtype)
        blocks.append((x, x @ x.mT))

    def run() -> None:
        for weight, x, out, trained in pairs:
            gradient = gradients[out]
            _ = x @ weight.T, gradient @ weight, gradient.T @ x if trained else None
        for _ in range(layers):
            for x, weights in blocks:
                _ = x @ x.mT, x @ x.mT, weights @ x, weights.mT @ x, weights @ x, weights.mT @ x

    return run


def matmul_flops(runner: Runner, lengths: Tensor) -> int:
    """Return the floating-point operations of ``matrix_products``."""
    plm = runner.model.news_encoder.plm
    hidden, _ = plm_shape(plm)
    weights = [linear.weight for linear in tuned_linears(runner)]
    linear = sum((6 if w.requires_grad else 4) * w.numel() for w in weights)
    attention = tuned_layers(runner) * hidden * int(lengths.square().sum())
    return linear * int(lengths.sum()) + 12 * attention


def tuned_linears(runner: Runner) -> list[nn.Linear]:
    """Return the linear maps of a PLM's tuned layers; with adapters, only theirs are trained."""
    layers = runner.model.news_encoder.cut.layers
    return [m for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)]


def tuned_layers(runner: Runner) -> int:
    """Return how many of the PLM's layers are trained."""
    depth = runner.model.news_encoder.plm.config.num_hidden_layers
    return depth if runner.arm.tune_layers < 0 else runner.arm.tune_layers


def plm_shape(plm: Any) -> tuple[int, int]:
    """Return the size of a PLM's states, and its heads."""
    return plm.config.hidden_size, plm.config.num_attention_heads


def plm_step(runner: Runner, batch: Batch) -> Callable[[], None]:
    """Return a call that runs the tuned layers of the PLM alone, forward and backward."""
    encoder = runner.model.news_encoder

    def run() -> None:
        with runner.autocast():
            states = [
                states
                for states, _ in encoder.cut.last_states(
                    batch.token_ids[FIRST_NEWS:],
                    torch.as_tensor(batch.token_lengths)[FIRST_NEWS:],
                    batch.token_states,
                    encoder.tokens_per_pass,
                )
            ]
        torch.autograd.backward(states, [torch.ones_like(x) for x in states])
        runner.optimizer.zero_grad()

    return run


def seconds(run: Callable[[], Any], clock: Callable[[], float], device: str) -> float:
    """Return what a call takes, on the device, too."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def set_up(root: str, order: str, args: argparse.Namespace) -> MindDataModule:
    """Return a data module that makes the batches of ``order``, such as ``user:168``."""
    name, _, size = order.partition(":")
    if name not in BATCHES or not size.isdecimal():
        raise SystemExit(f"--batches has {order!r}. Write one of {', '.join(BATCHES)}, and :N.")
    data = MindDataModule(
        root,
        fields=args.fields,
        max_tokens=args.max_tokens,
        max_history=args.max_history,
        npratio=args.npratio,
        batch_size=int(size),
        batches=name,
        seed=args.seed,
    )
    data.setup("fit")
    return data


def take_batches(root: str, order: str, args: argparse.Namespace) -> list[Batch]:
    """Return the first batches of an epoch: one for each round."""
    batches = iter(set_up(root, order, args).train_dataloader())
    return [next(batches) for _ in range(args.steps)]


def first_samples(batch: Batch, number: int) -> Batch:
    """Return a batch of fewer samples with the same news items, to warm up on."""
    kept = {name: getattr(batch, name)[:number] for name in ("user", "candidates", "labels")}
    return batch._replace(**kept)


def describe(batches: list[Batch]) -> dict[str, Any]:
    """Return the means of what is in the batches, and of what the reference makes of them."""
    found: dict[str, list[int]] = {}
    for batch in batches:
        lengths = torch.as_tensor(batch.token_lengths)[FIRST_NEWS:]
        clicked = (batch.history >= FIRST_NEWS).sum(dim=1)[batch.user]
        appearances = int(clicked.sum() + (batch.candidates >= FIRST_NEWS).sum())
        counts = {
            "distinct_histories": len(batch.history),
            "distinct_news": len(lengths),
            "real_tokens": int(lengths.sum()),
            "longest_text": int(lengths[-1]),
            "reference_news": appearances,
            "reference_tokens": appearances * int(lengths[-1]),
        }
        for name, count in counts.items():
            found.setdefault(name, []).append(count)
    return {name: round(statistics.mean(values), 1) for name, values in found.items()}


def measure(
    root: str, order: str, runners: list[Runner], args: argparse.Namespace
) -> Generator[None, None, dict[str, Any]]:
    """Take turns with other kinds of batches: yield after each round, return what arms take."""
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    batches = take_batches(root, order, args)
    arms = [runner.arm for runner in runners]
    taken: dict[str, list[float]] = {arm.name: [] for arm in arms}
    plm: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    losses: dict[str, list[float]] = {arm.name: [] for arm in arms}
    flops: dict[str, list[int]] = {arm.name: [] for arm in arms}
    for runner in runners:
        runner.step(runner.prepare(first_samples(batches[0], 4)))
        if args.device == "cuda":  # every shape's kernels
            for batch in batches:
                runner.step(runner.prepare(batch))
    for batch in batches:
        for runner in runners:
            name, ready = runner.arm.name, runner.prepare(batch)
            found: list[Tensor] = []
            taken[name].append(
                seconds(lambda: found.append(runner.step(ready)), clock, args.device)  # noqa: B023
            )
            losses[name].append(float(found[0]))
            if name == REFERENCE:
                continue
            expected, tolerance = losses[arms[0].name][-1], TOLERANCE[runner.arm.precision]
            if not abs(losses[name][-1] - expected) <= tolerance:
                raise SystemExit(f"{order}: the losses differ: {losses}")
            if not runner.arm.tune_layers:
                continue
            lengths = torch.as_tensor(batch.token_lengths)[FIRST_NEWS:]
            flops[name].append(matmul_flops(runner, lengths))
            calls = plm_step(runner, ready), matrix_products(runner, lengths)
            plm[name].append(tuple(seconds(call, clock, args.device) for call in calls))
        yield
    samples = int(order.partition(":")[2])
    medians = {name: statistics.median(values) for name, values in taken.items()}
    result: dict[str, Any] = {"batch": describe(batches), "arms": {}}
    for arm in arms:
        name = arm.name
        row: dict[str, Any] = {
            "clicks_per_second": round(samples / medians[name], 2),
            "step_seconds": round(medians[name], 4),
            "losses": [round(loss, 5) for loss in losses[name]],
        }
        if name != REFERENCE and REFERENCE in medians:
            ratios = [a / b for a, b in zip(taken[REFERENCE], taken[name], strict=True)]
            row["faster_than_reference"] = round(statistics.median(ratios), 2)
            row["required"] = REQUIRED.get(order, {}).get(name)
        if plm[name]:
            whole, products = (statistics.median(v) for v in zip(*plm[name], strict=True))
            row["plm"] = {
                "seconds": round(whole, 4),
                "matmul_seconds": round(products, 4),
                "matmul_gflop_per_second": round(statistics.mean(flops[name]) / products / 1e9, 1),
                "share_of_matmul_rate": round(
                    statistics.median(products / whole for whole, products in plm[name]), 3
                ),
                "aim": SHARE_AIMS[arm.precision],
            }
            rates = [n / s for n, s in zip(flops[name], taken[name], strict=True)]
            row["real_tflop_per_second"] = round(statistics.median(rates) / 1e12, 4)
            if args.device == "cuda":
                peak = args.peak_tflops * 1e12
                row["mfu"] = round(statistics.median(rates) / peak, 4)
            row["mind_large_epoch_hours"] = round(CLICKS_LARGE / samples * medians[name] / 3600, 3)
        if args.memory:
            row["peak_memory_mb"] = peak_memory(root, order, arm, args)
        result["arms"][name] = row
    return result


def peak_memory(root: str, order: str, arm: Arm, args: argparse.Namespace) -> int:
    """Return the MB that a process of its own holds at most while it makes one step."""
    argv = [sys.executable, __file__, *args.argv, "--data.root", root]
    argv += ["--batches", order, "--steps", "1", "--peak_memory_of", arm.name]
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return json.loads(out)["peak_memory_mb"]


def make_one_step(args: argparse.Namespace) -> dict[str, int]:
    """Make one step and return the most memory held, in MB."""
    runner = Runner(Arm(args.peak_memory_of), args)
    runner.step(runner.prepare(take_batches(args.root, args.batches[0], args)[0]))
    if args.device == "cuda":
        return {"peak_memory_mb": torch.cuda.max_memory_allocated() // 2**20}
    return {"peak_memory_mb": peak_resident()}


def peak_resident() -> int:
    """Return the MB that this process has held in memory at most."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with that of the process that started this one
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if "VmHWM" in line)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20  # bytes on macOS


def native_bf16(device: str) -> bool:
    """Return whether the hardware multiplies matrices in bfloat16."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def hardware(args: argparse.Namespace) -> dict[str, Any]:
    """Return what this runs on."""
    if args.device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return {
        "name": name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": native_bf16(args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def run(root: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers."""
    names, left_out = args.arms, None
    if names is None:
        names = ["full-bf16"] if args.device == "cuda" else list(REQUIRED["random:32"])
        if not native_bf16(args.device):
            names = [name for name in names if not name.endswith("bf16")]
            left_out = (
                "bf16: this hardware does not multiply in bfloat16, and emulation takes many times "
                "as long as fp32; name these arms in --arms to see it"
            )
    arms = [Arm(name) for name in names]
    if args.reference:
        arms.insert(0, Arm(REFERENCE))
    result: dict[str, Any] = {
        "hardware": hardware(args),
        "clock": args.clock,
        "data": args.root or f"simulated {args.preset}",
        "plm": args.plm_config or DEFAULT_PLM,
        "options": {
            name: getattr(args, name)
            for name in ("fields", "max_tokens", "max_history", "npratio", "samples_at_once")
        },
        "rounds": args.steps,
        "left_out": left_out,
        "tolerance_of_losses": TOLERANCE,
        "mind_large_epoch": f"{CLICKS_LARGE:,} clicks, an estimate: 2,232,748 impressions x 1.515",
    }
    if args.device == "cuda":
        result["peak_tflops"] = args.peak_tflops
    runners = [Runner(arm, args) for arm in arms]
    turns = {order: measure(root, order, runners, args) for order in args.batches}
    while turns:
        for order, turn in list(turns.items()):
            try:
                next(turn)
            except StopIteration as end:
                result[order] = end.value
                del turns[order]
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    yes_or_no = argparse.BooleanOptionalAction
    add("--data.root", dest="root", help="MIND files; simulated if not given")
    add("--preset", default="small", help="what to simulate")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--plm_config", choices=list(SHAPES), help="random weights in place of MiniLM's")
    add("--batches", nargs="+", help="such as impression:64; random:32 user:168 on a CPU")
    add(
        "--arms",
        nargs="+",
        choices=ARMS,
        help="by default what there is, without lora8",
    )
    add("--reference", action=yes_or_no, default=True)
    add("--memory", action=yes_or_no, default=True, help="also measure each arm's peak memory")
    add("--steps", type=int, default=3, help="rounds, each on a batch of its own")
    add("--fields", nargs="+", default=["title"])
    add("--max_tokens", type=int, default=30)
    add("--max_history", type=int, default=50)
    add("--npratio", type=int, default=4)
    add("--samples_at_once", type=int, default=32, help="of the reference")
    add("--seed", type=int, default=0)
    add("--threads", type=int)
    add("--clock", choices=["wall", "cpu"], default="wall", help="cpu where others compute, too")
    add("--peak_tflops", type=float, default=989.0, help="of the GPU: H100, bf16, dense")
    add("--peak_memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.argv = sys.argv[1:]
    if args.batches is None:
        args.batches = ["user:512"] if args.device == "cuda" else ["random:32", "user:168"]
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.peak_memory_of:
        result: dict[str, Any] = make_one_step(args)
    elif args.root:
        result = run(args.root, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / args.preset
            simulate(root, args.preset)
            result = run(str(root), args)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""``fit --dry_run``: estimates the needs of a run from shapes, without training.

Sources of the figures:

- Memory of a step: ``step_cost``, which counts every tensor of a step on tensors without values;
  ``tests/benchmarks/memory.py`` compares it with the memory that processes took. A GPU needs
  ``CONTEXT`` more for its kernels and loses ``FRAGMENTS`` of its memory between blocks. Several
  processes keep gradients twice, because they exchange them in buckets.
- Operations: ``model_flop``, which counts only matrix products.
- Time: operations at ``SHARE`` of a device's peak, or ``LAUNCH`` per kernel of the step if that
  takes longer, as it does for small models, whose kernels run faster than they are launched.
  For a GPU both were measured on one H100; for other GPUs they are assumptions.
- Batches: see ``work``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from newsrec.console import counted
from newsrec.data import mind_statistics as mind
from newsrec.data.datamodule import MindDataModule
from newsrec.model.plm.sizes import plm_sizes
from newsrec.shipped import data_folder
from newsrec.training.estimate.step_memory import StepCost, step_cost, step_flop
from newsrec.training.estimate.work import Work, names_of_categories, published_work, work_of_folder
from newsrec.training.hardware.threads import processes_here
from newsrec.training.progress.throughput import matrix_rate

GIB = 1 << 30
CONTEXT = 1 * GIB
"""Memory that CUDA and its libraries take for themselves: assumed."""
FRAGMENTS = 0.1
"""Share of a GPU's memory that is lost between blocks: assumed."""
SHARE = {"cuda": 0.15, "cpu": 0.5}
"""Share of a device's peak that a step reaches. An H100 reached 15 to 16 % with a base PLM, all
tuned: norms, dropout, casts and sums, one kernel each, take longer than the products. On a CPU the
demo reaches about half."""
LAUNCH = 28e-6
"""Seconds of the host for each GPU kernel, Python and autograd included: the step of the frozen
preset on an H100, which waits for its host, divided by its kernels."""
PEAKS = {
    "an H100": ("cuda", 989e12, 67e12),
    "an RTX 4090": ("cuda", 165e12, 83e12),
    "a CPU of 100 GFLOP/s": ("cpu", 100e9, 100e9),
}
"""Kind, and operations per second in bf16 and fp32, dense; for GPUs from their data sheets."""


class PlannedRun(NamedTuple):
    """Options of the Trainer that the estimate depends on."""

    device: str
    """``cuda`` or ``cpu``."""
    bf16: bool
    processes: int
    accumulate: int


class Estimate(NamedTuple):
    """Memory, disk space and time that a run will need."""

    run: PlannedRun
    work: Work
    cost: StepCost
    """Cost of a step with the largest batch."""
    flop: float
    """Operations of a step with a usual batch."""
    states: int
    """Bytes of kept states on disk."""

    @property
    def many(self) -> str:
        """Words for the number of processes, to follow a number of steps; empty for one."""
        return f" on each of {self.run.processes} processes" if self.run.processes > 1 else ""

    @property
    def memory(self) -> float:
        """Total bytes that a device needs."""
        peak = self.cost.peak
        if self.run.processes > 1:
            peak += self.cost.gradients
        if self.run.accumulate > 1:  # the previous batch's gradients exist in the forward pass
            peak += self.cost.gradients
        return peak if self.run.device == "cpu" else CONTEXT + peak / (1 - FRAGMENTS)

    @property
    def fits(self) -> str:
        """Description of the memory needed, with the smallest GPU that has enough."""
        if self.run.device == "cpu":
            return f"{_gib(self.memory)} of memory besides Python's own"
        for size in (8, 12, 24, 80):
            if self.memory <= size * 1e9:
                return f"{_gib(self.memory)} of a GPU, fits {size} GB"
        return f"{_gib(self.memory)} of a GPU: more than 80 GB"

    def hours(self, kind: str, bf16: float, fp32: float) -> float:
        """Return the hours per epoch on a device; the arguments are a value of ``PEAKS``."""
        seconds = self.flop / (SHARE[kind] * (bf16 if self.run.bf16 else fp32))
        if kind == "cuda":
            seconds = max(seconds, self.cost.kernels * LAUNCH)
        return seconds * self.work.steps / 3600

    def headline(self) -> str:
        """Return the estimate as a line for a preset's header."""
        first = next(name for name, peak in PEAKS.items() if peak[0] == self.run.device)
        disk = f", {_gib(self.states)} of states on disk" if self.states else ""
        steps = f"{counted(self.work.steps, 'step')} of {_flop(self.flop)} an epoch{self.many}"
        return f"{self.fits}{disk}; {steps}: {_time(self.hours(*PEAKS[first]))} on {first}."


def estimates(
    module: Any, data: MindDataModule, trainer: Mapping[str, Any], places: str
) -> list[Estimate]:
    """Estimate the needs of a run for each kind of device that it may run on.

    The module's model need not be built, the data's folder need not exist. ``places`` are the names
    of the config files: ``large`` in them selects MIND-large's statistics. UserError if the PLM's
    sizes are not known, or the data cannot be read.
    """
    config, _ = plm_sizes(module.plm, module.plm_layers)
    chosen = str(trainer["accelerator"])
    devices = {"cpu": ["cpu"], "auto": ["cuda", "cpu"]}.get(chosen, ["cuda"])
    processes = processes_here(trainer) * int(trainer["num_nodes"] or 1)
    if data_folder(data.root).exists():
        work = work_of_folder(data, processes)
    else:
        size = mind.LARGE if "large" in f"{places} {data.root}" else mind.SMALL
        work = published_work(data, processes, size)
    module.category_names = names_of_categories(data)
    found = []
    for device in devices:
        bf16 = _is_bf16(trainer["precision"], module.precision, device)
        run = PlannedRun(device, bf16, processes, int(trainer["accumulate_grad_batches"]))
        kept = module.tune_layers != -1 and data.frozen_states != "none"
        kind = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(data.frozen_states)
        states = kind if kept else None
        cost = step_cost(module, config, work.largest, device, bf16, states)
        flop = step_flop(module, config, work.usual, kept)
        stored = 0 if states is None else work.tokens * config["hidden_size"] * states.itemsize
        found.append(Estimate(run, work, cost, flop, stored))
    return found


def describe(estimate: Estimate) -> str:
    """Return an estimate as lines of text."""
    run, work, cost = estimate.run, estimate.work, estimate.cost
    usual, largest = work.usual, work.largest
    kept = f"{_gib(estimate.states)} (once, beside the data)" if estimate.states else "none"
    device = "GPU" if run.device == "cuda" else "CPU"
    rows = {
        "parameters": f"{cost.trained:,} trained, {cost.frozen:,} frozen: {_gib(cost.weights)}",
        "gradients": f"{_gib(cost.gradients)}, optimizer states {_gib(cost.optimizer)}",
        "batch": f"{counted(usual.samples, 'sample')}, {usual.news:,} distinct news, "
        f"{counted(usual.tokens, 'token')}; the largest {largest.news:,} and "
        f"{largest.tokens:,}",
        "activations": f"{_gib(cost.activations)} of the largest batch",
        "peak of a step": f"{_gib(cost.peak)}; {estimate.fits}",
        "states on disk": kept,
        "data arrays": f"{_gib(work.arrays)} (on disk, memory-mapped)",
        "epoch": f"{counted(work.samples, 'sample')}, {work.steps:,} "
        f"{'batch' if work.steps == 1 else 'batches'}{estimate.many}",
        "work": f"{_flop(estimate.flop)} a step, "
        f"{_flop(estimate.flop * work.steps)} an epoch; {estimate.cost.kernels:,} kernels "
        "a step",
    }
    devices = dict(PEAKS)
    if run.device == "cpu":
        rate = matrix_rate(torch.device("cpu"), "bf16-mixed" if run.bf16 else "32-true")
        devices["this CPU"] = ("cpu", rate, rate)
    for name, (kind, bf16, fp32) in devices.items():
        if kind == run.device:
            rows[name] = (
                f"{_time(estimate.hours(kind, bf16, fp32))} an epoch, assuming {SHARE[kind]:.0%} "
                f"of {_flop(bf16 if run.bf16 else fp32)}/s"
                + (f" and {LAUNCH * 1e6:g} us a kernel" if kind == "cuda" else "")
            )
    head = f"On a {device}, {'bf16-mixed' if run.bf16 else '32-true'}:"
    return "\n".join([head, *(f"  {name:<22}{value}" for name, value in rows.items())])


def dry_run(module: Any, data: MindDataModule, trainer: Mapping[str, Any], places: str) -> str:
    """Return the text that ``fit --dry_run`` prints; same arguments as ``estimates``."""
    found = estimates(module, data, trainer, places)
    _, read = plm_sizes(module.plm, module.plm_layers)
    plm = "its config.json" if read else "sizes known beforehand"
    head = (
        "Nothing is trained: an estimate from shapes, not a measurement.\n"
        f"Data: {found[0].work.source}. PLM {module.plm}: {plm}."
    )
    lines = [f"For a preset's header: {each.headline()}" for each in found]
    return "\n".join([head, *map(describe, found), *lines])


def _is_bf16(trainer: Any, model: str, device: str) -> bool:
    if trainer is not None:
        return str(trainer) in ("bf16", "bf16-mixed", "16", "16-mixed")
    return model == "bf16" or (model == "auto" and device == "cuda")


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.1f} MiB"


def _flop(flop: float) -> str:
    for unit, name in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if flop >= unit:
            return f"{flop / unit:.3g} {name}"
    return f"{flop / 1e9:.3g} GFLOP"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"

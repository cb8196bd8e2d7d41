"""Measures how fast this machine multiplies matrices of the model's shapes, in fp32 and in bf16.

The features that a CPU or GPU reports are no guide: of two machines that report native bf16, one
was slower in bf16 and the other faster.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from newsrec.model.fastformer import FastformerConfig
from newsrec.model.plm.cut import layer_lists

SECONDS = 0.05
"""Time for each side of a comparison; it takes longer only if ``FEWEST`` rounds need more."""
FEWEST, MOST = 5, 25
"""Minimal and maximal number of rounds of a comparison."""
LONG, FEWEST_IF_LONG = 1.0, 3
"""Seconds after which ``FEWEST_IF_LONG`` rounds suffice: large models, slow machines."""
ROWS = {"cuda": 8192, "mps": 4096}
"""Most vectors that are multiplied at once; more would not change the result."""
ROWS_ON_CPU = 512
FULL = 0.5
"""Assumed share of histories and texts that is filled, before the data is known."""


class LinearMap(NamedTuple):
    """Linear maps of one shape, and the number of vectors they multiply in a step."""

    inputs: int
    outputs: int
    number: int
    """Number of maps of this shape in the model."""
    rows: int
    """Vectors that go through each map in a step."""
    backward: bool
    """Whether gradients are computed, which takes two more products."""

    @property
    def flop(self) -> int:
        """Floating-point operations of a step."""
        products = 3 if self.backward else 1
        return 2 * products * self.number * self.rows * self.inputs * self.outputs


class Rates(NamedTuple):
    """Measured speed of matrix products."""

    fp32: float
    """Floating-point operations per second."""
    bf16: float
    """Floating-point operations per second."""
    ratio: float
    """Median over the rounds of how many times as fast bf16 was as fp32."""


def linear_maps(
    model: Any, plm_config: Any, batch_size: int, kept_states: bool, training: bool = True
) -> list[LinearMap]:
    """Return the linear maps that a step of a model goes through, without building the model.

    ``model`` has the options of ``RecommenderModule`` as attributes. With ``kept_states``, the
    states of frozen layers are read instead of computed.
    """
    from transformers import AutoModel

    with torch.device("meta"):
        plm = AutoModel.from_config(plm_config)
    tokens = max(1, round(FULL * model.max_tokens))
    clicks = batch_size * model.max_history
    rows = max(1, round(FULL * clicks)) * tokens
    found: Counter[tuple[int, int, int, bool]] = Counter()

    def add(inputs: int, outputs: int, rows: int, trained: bool) -> None:
        found[inputs, outputs, rows, trained and training] += 1

    tune = model.tune_layers
    tops: list[nn.Module] = [plm] if tune == -1 else []
    if tune > 0:
        tops = [layer for layers in layer_lists(plm, tune) for layer in layers[-tune:]]
    tuned = {module for top in tops for module in top.modules()}
    for name, linear in plm.named_modules():
        runs = linear in tuned or not (kept_states and training)
        if isinstance(linear, nn.Linear) and runs and "pooler" not in name.split("."):
            add(linear.in_features, linear.out_features, rows, linear in tuned)
    dim = model.dim
    add(plm.config.hidden_size, dim, rows, True)
    for shape, vectors in ((model.news, rows), (model.user, clicks)):
        for inputs, outputs in _stack(dim, FastformerConfig.of(shape)):
            add(inputs, outputs, vectors, True)
    return sorted(
        LinearMap(inputs, outputs, number, rows, backward)
        for (inputs, outputs, rows, backward), number in found.items()
    )


def _stack(dim: int, config: FastformerConfig) -> list[tuple[int, int]]:
    """Return inputs and outputs of a stack's linear maps, without maps of few outputs."""
    layer = [(dim, dim)] * 4
    if config.ffn:
        layer += [(dim, config.ffn), (config.ffn, dim)]
    return layer * config.layers + [(dim, dim)]


def measure(maps: Sequence[LinearMap], device: torch.device) -> Rates:
    """Multiply in both precisions, in turns, and return the speed of each.

    The time includes autocast's conversions to bf16 and back. RuntimeError if the device cannot
    multiply in bf16 at all.
    """
    sides = [_products(maps, device, dtype) for dtype in (torch.float32, torch.bfloat16)]
    return rates(interleave(*sides), sum(each.flop for each in maps))


def one_thread_and_many(maps: Sequence[LinearMap], threads: int) -> list[tuple[float, float]]:
    """Return the seconds of fp32 products on the CPU with one thread and with many, by round."""
    products = _products(maps, torch.device("cpu"), torch.float32)
    before = torch.get_num_threads()

    def with_threads(number: int) -> float:
        torch.set_num_threads(number)
        return products()

    try:
        return interleave(lambda: with_threads(1), lambda: with_threads(threads))
    finally:
        torch.set_num_threads(before)


def rates(seconds: Sequence[tuple[float, float]], flop: float) -> Rates:
    """Compute the speed of fp32 and bf16 from the seconds of a step in each, round by round."""
    fp32, bf16 = (flop / statistics.median(side) for side in zip(*seconds, strict=True))
    return Rates(fp32, bf16, statistics.median(one / other for one, other in seconds))


def interleave(
    first: Callable[[], float], second: Callable[[], float]
) -> list[tuple[float, float]]:
    """Time two functions in turns, so that other load on the machine affects both equally.

    Each runs once and returns the seconds it took. Returns the seconds of both for each round,
    without a first round that allocates memory and builds kernels.
    """
    first(), second()
    start = time.perf_counter()
    rounds: list[tuple[float, float]] = []
    while len(rounds) < MOST:
        rounds.append((first(), second()))
        spent = time.perf_counter() - start
        if len(rounds) >= (FEWEST_IF_LONG if spent > LONG else FEWEST) and spent > 2 * SECONDS:
            break
    return rounds


def _products(
    maps: Sequence[LinearMap], device: torch.device, dtype: torch.dtype
) -> Callable[[], float]:
    """Return a function that times products of some rows and returns the seconds of a full step."""
    generator = torch.Generator().manual_seed(0)  # leaves the generator of the training alone
    most = ROWS.get(device.type, ROWS_ON_CPU)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    prepared = []
    for each in maps:
        rows = min(each.rows, most)
        x, weight = matrix(rows, each.inputs), matrix(each.outputs, each.inputs)
        x.requires_grad_(each.backward), weight.requires_grad_(each.backward)
        gradient = matrix(rows, each.outputs).to(dtype)
        prepared.append((each, each.number * each.rows / rows, x, weight, gradient))

    def run() -> float:
        total = 0.0
        for each, times, x, weight, gradient in prepared:
            _wait(device)
            start = time.perf_counter()
            half = dtype == torch.bfloat16
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                y = F.linear(x, weight)
            if each.backward:
                torch.autograd.grad(y, (x, weight), gradient)
            _wait(device)
            total += times * (time.perf_counter() - start)
        return total

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

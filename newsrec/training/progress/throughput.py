"""Measures the speed of a run: clicks, news items and tokens per second, and share of the peak."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from newsrec.console import counted
from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch
from newsrec.model.news_encoder import NewsEncoder
from newsrec.model.plm.lora import lowest_adapted
from newsrec.model.recommender import NewsRecommender
from newsrec.training.lightning_internals import is_logging

FORWARD, FORWARD_AND_BACKWARD = 2, 6
"""Floating-point operations per weight and token: a multiply and an add forward; the backward pass
needs twice as many, for the gradients of the weight and of its input."""
WARM_UP = 2
"""First steps that are not timed: they allocate memory and build kernels."""
LONGEST = 1.0
"""Seconds that the speed of a matrix product may take to measure."""


class Throughput(Callback):
    """Logs clicks, news items and tokens per second of all processes, and the share of repeats.

    This waits for the device only at logged steps, which wait anyway. Time in validations does not
    count.
    """

    def __init__(self) -> None:
        self.clicks = self.tokens = 0
        self.seconds = self.flop = 0.0
        self._window = _Counts()
        self._steps = 0
        self._start: float | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock unless it runs."""
        if self._start is None:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Count a batch; log the rates if the step is logged."""
        self._steps += 1
        if self._steps <= WARM_UP:
            self._start = None
            return
        self._window.add(batch)
        if is_logging(trainer):
            self._log(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._log(trainer, pl_module, logged=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._log(trainer, pl_module, logged=False)

    def _log(self, trainer: Trainer, pl_module: Any, logged: bool = True) -> None:
        window, start = self._window, self._start
        self._window, self._start = _Counts(), None
        if start is None or not window.clicks:
            return
        repeats = 1 - window.news / max(float(window.mentions), 1)  # waits for the device
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.clicks += window.clicks * trainer.world_size
        self.tokens += window.tokens * trainer.world_size
        kept = trainer.datamodule.states is not None  # type: ignore[attr-defined]
        self.flop += model_flop(pl_module.recommender, window, kept)
        if not logged:
            return
        self._start = time.perf_counter()
        each_second = trainer.world_size / seconds
        for name in ("clicks", "news", "tokens"):
            value = float(getattr(window, name) * each_second)
            pl_module.log(f"speed/{name}", value)
        pl_module.log("speed/repeats", repeats)

    def summary(self) -> dict[str, float]:
        """Return clicks, seconds and clicks per second of the timed steps."""
        seconds = round(self.seconds, 3)
        speed = {"clicks_per_s": round(self.clicks / self.seconds, 1)} if self.seconds else {}
        return {"clicks": self.clicks, "seconds": seconds, **speed}

    def describe(self, trainer: Trainer) -> str | None:
        """Return a line on the speed of run and matrix product; None if nothing was timed."""
        if not self.clicks or not self.seconds:
            return None
        rate = self.flop / self.seconds
        peak = matrix_rate(trainer.strategy.root_device, trainer.precision)
        return (
            f"Training: {counted(self.clicks, 'click')} in {self.seconds:,.0f} s, "
            f"{self.clicks / self.seconds:,.0f} clicks/s, {self.tokens / self.seconds:,.0f} "
            f"tokens/s. Model: {rate / 1e9:,.1f} GFLOP/s per process, {rate / peak:.0%} of the "
            f"{peak / 1e9:,.1f} that a matrix product reaches here ({trainer.precision})."
        )


class _Counts:
    """Counts of clicks, news items and tokens in the batches of this process."""

    def __init__(self) -> None:
        self.clicks = self.news = self.tokens = 0
        self.squares = 0
        self.mentions: Tensor | float = 0.0
        self.read: Tensor | float = 0.0

    def add(self, batch: Batch) -> None:
        """Count a batch, without waiting for the device."""
        lengths = batch.token_lengths[FIRST_NEWS:]
        self.clicks += len(batch.labels)
        self.news += batch.num_news - FIRST_NEWS
        self.tokens += int(lengths.sum())
        self.squares += int((lengths * lengths).sum())
        history = (batch.history > 0).sum(dim=1)
        self.read = self.read + history.sum()
        self.mentions = self.mentions + history[batch.user].sum() + (batch.candidates > 0).sum()


def model_flop(recommender: NewsRecommender, counts: Any, kept_states: bool) -> float:
    """Return the floating-point operations that a model needs for some batches.

    As in papers, only matrix products of real tokens count: not padding, softmaxes and norms.
    ``counts`` has the tokens, the sums of squared text lengths, and the clicks that are read in the
    batches. With ``kept_states``, the states of frozen layers are read instead of computed.
    """
    news, user = recommender.news_encoder, recommender.user_encoder
    linear = {m.weight for m in news.plm.modules() if isinstance(m, nn.Linear)}
    depth, hidden = news.plm.config.num_hidden_layers, news.plm.config.hidden_size
    tuned = depth if news.cut.tune_layers == -1 else news.cut.tune_layers
    below = linear & {w for module in news.cut.frozen for w in module.parameters()}
    constant = lowest_adapted(news.cut) if news.lora.rank else set()
    flop = 0.0
    for above, weights in ((True, linear - below), (False, below)):
        if not above and kept_states:
            continue
        each = FORWARD_AND_BACKWARD if above else FORWARD
        # Attention's scores and weighted sums: two products of length x length x hidden.
        layers = tuned if above else depth - tuned
        flop += each * 2 * counts.squares * hidden * layers
        for weight in weights:
            products = each
            if above and not weight.requires_grad:  # frozen; its adapter gets the gradients
                products = FORWARD if weight in constant else FORWARD_AND_BACKWARD - FORWARD
            flop += products * counts.tokens * weight.numel()
    parts = nn.ModuleList([news.project, news.fastformer, news.pooling])
    flop += FORWARD_AND_BACKWARD * counts.tokens * _weights(parts)
    per_click = _weights(user) + _weights(recommender.head)
    return flop + FORWARD_AND_BACKWARD * float(counts.read) * per_click


def encoding_flop(news: NewsEncoder, tokens: int, squares: int) -> float:
    """Return the floating-point operations of encoding texts by the whole PLM, forward only.

    Counted as in ``model_flop``; ``squares`` is the sum of the squared text lengths.
    """
    depth, hidden = news.plm.config.num_hidden_layers, news.plm.config.hidden_size
    weights = _weights(nn.ModuleList([news.plm, news.project, news.fastformer, news.pooling]))
    return FORWARD * (2.0 * squares * hidden * depth + tokens * weights)


def _weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return the floating-point operations per second of a square matrix product, best of five.

    The Trainer's precision bf16-mixed multiplies in bf16, 16-mixed in fp16. After ``LONGEST`` no
    further product is begun: a CPU that only emulates bf16 needs seconds for each.
    """
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=kinds.get(precision, torch.float32))
    seconds: list[float] = []
    with torch.no_grad():
        while len(seconds) < 6 and sum(seconds) < LONGEST:
            start = time.perf_counter()
            torch.mm(a, a)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:] or seconds)

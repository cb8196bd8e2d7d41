"""Stops a run that has gone wrong, and says where and what to try."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from newsrec.data.samples import WHOLE_IMPRESSIONS
from newsrec.errors import UserError
from newsrec.model.plm.recompute import can_recompute
from newsrec.training.lightning_internals import batch_number, is_logging

SHOWN = 8
"""Samples that a message names; it only counts the others."""
NEVER = 1 << 62


class FiniteLoss(Callback):
    """Stops a run whose loss is no longer finite, before a checkpoint is saved.

    The number of the first bad batch stays on the device and is read only at logged steps, since
    reading makes the host wait for the device. The message names ``last``, the last checkpoint.
    """

    def __init__(self, last: Path) -> None:
        self.last = last
        self._first: Tensor | None = None
        self._step = 0

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        """Note the first batch whose loss is not finite; check if the step is logged."""
        loss = outputs["loss"].detach()
        number = batch_number(trainer)
        if self._first is None:
            self._first = torch.full((), NEVER, dtype=torch.int64, device=loss.device)
        here = torch.where(loss.isfinite(), NEVER, number)
        self._first = torch.minimum(self._first, here)
        if is_logging(trainer):
            self.check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before anything is saved."""
        self.check(trainer)

    def check_weights(self, trainer: Trainer) -> None:
        """Check losses and weights before a checkpoint is written: a gradient can spoil weights."""
        weights = trainer.lightning_module.parameters()
        if self._first is not None and not all(bool(w.isfinite().all()) for w in weights):
            self._first.clamp_(max=batch_number(trainer))
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Raise UserError if a loss was not finite; every process calls this at the same step."""
        if self._first is None:
            return
        own = int(self._first)
        first = own
        if trainer.world_size > 1:
            everywhere = self._first.clone()
            torch.distributed.all_reduce(everywhere, torch.distributed.ReduceOp.MIN)
            first = int(everywhere)
        if first == NEVER:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = int(trainer.num_training_batches)
        epoch, batch_idx = divmod(first, batches)
        names: list[Any] = [data.name_samples(epoch, batch_idx) if own == first else []]
        if trainer.world_size > 1:
            everyone: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, names[0])
            names = everyone
        samples = [name for part in names for name in part]
        more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
        module: Any = trainer.lightning_module
        adapted = getattr(module, "lora", None) and module.lora.rank
        rates = f"model.lr, model.{'lora.learning_rate' if adapted else 'plm_lr'}, model.gate_lr"
        good = (
            f"The last good checkpoint is {self.last}; resume from it with --ckpt_path last"
            if self.last.exists()
            else "There is no checkpoint yet; start a new run"
        )
        raise UserError(
            f"The loss, or a weight, is infinite or not a number since batch {batch_idx} of epoch "
            f"{epoch} (batch {first} of the run). Its samples: {'; '.join(samples[:SHOWN])}{more}. "
            f"{good}, with lower rates ({rates}), a longer model.warmup, "
            "a smaller --trainer.gradient_clip_val, or --model.precision fp32."
        )


@contextmanager
def out_of_memory(module: Any = None, data: Any = None, trainer: Any = None) -> Iterator[None]:
    """Turn an out-of-memory error into a UserError that names options which need less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        whole = getattr(data, "loss", None) in WHOLE_IMPRESSIONS
        said = " ".join(str(error).split())
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            words in said for words in ("DefaultCPUAllocator", "out of memory")
        ):
            raise
        raise UserError(
            f"There is too little memory ({said[:160]}). Lower data.batch_size (and raise "
            "--trainer.accumulate_grad_batches by as much for the same steps) or bound the "
            "tokens of a step with data.tokens_per_batch; lower data.max_history, data.max_tokens"
            f"{', data.abstract_tokens' if getattr(data, 'abstract_tokens', 0) else ''} "
            f"or data.{'max_candidates' if whole else 'npratio'}"
            f"{_more_remedies(module, data, trainer)}. `fit --dry_run` estimates what a step needs."
        ) from error


def _recomputes(module: Any) -> bool:
    """Return whether the PLM's family can run its layers again in the backward pass."""
    recommender = getattr(module, "recommender", None)
    return recommender is None or can_recompute(recommender.news_encoder.plm)


def _more_remedies(module: Any, data: Any, trainer: Any) -> str:
    """Return the options that are not set yet, after ``; set``; empty if all are."""
    tuned = module is None or module.tune_layers != 0
    options = []
    if tuned and not getattr(module, "checkpoint_activations", False) and _recomputes(module):
        options.append("--model.checkpoint_activations true")
    if trainer is None or str(trainer.precision) == "32-true":
        options.append("--model.precision bf16")
    if tuned and module is not None and not module.lora.rank:
        options.append("--model.lora.rank 8, which trains few weights")
    if tuned:
        options.append("fewer model.tune_layers")
    if getattr(data, "batches", None) != "user":
        options.append("--data.batches user, which brings fewer news items into a batch")
    if not options:
        return ""
    *first, last = options
    return f"; set {', '.join(first)}{', or ' if first else ''}{last}"

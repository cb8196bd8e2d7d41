"""All uses of Lightning internals, with reasons; a test fails if one changes.

Checked against Lightning 2.6.6; ``pyproject.toml`` allows only 2.6. The uses of the data side are
in ``newsrec/data/lightning_internals.py``.
"""

import inspect
import math
from typing import Any, Union, get_args, get_origin

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, convert_inf
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

__all__ = ["Tqdm", "convert_inf"]
"""The class of the bar and the conversion of an infinite total, both undocumented."""

OVERRIDDEN = ("_dump_config", "_parse_ckpt_path")
"""Methods of ``LightningCLI`` that ``fit`` overrides: the first cannot write enums, the second
would prefer a checkpoint's options to the given ones."""
LOADING = "[_TrainingEpochLoop].train_dataloader_next"
"""The profiler's name for waiting for a batch; it contains the name of a private class."""


def is_logging(trainer: Trainer) -> bool:
    """Return whether this step's values are logged, and may be fetched from the device.

    Lightning counts accumulated batches for this; a copy of the rule here could become outdated.
    """
    return trainer._logger_connector.should_update_logs


def mean_if_logged(module: LightningModule, value: Tensor) -> Tensor:
    """Return the mean of all processes' values if this step is logged, else this process's value.

    ``sync_dist`` would synchronize all processes in every step.
    """
    many = torch.distributed.is_available() and torch.distributed.is_initialized()
    if many and is_logging(module.trainer):
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= module.trainer.world_size
    return value


def total_steps(trainer: Trainer) -> float:
    """Return the run's number of steps; infinity if neither epochs nor steps are limited."""
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        return math.inf  # Lightning converts this infinity to an int, which overflows
    return max(trainer.estimated_stepping_batches, 1)


def clip_unscaled(
    plugin: Any, optimizer: Optimizer, clip_val: float | None, algorithm: str | None
) -> bool:
    """Clip gradients if they are of mixed precision without a scaler; return whether they were.

    Lightning's ``MixedPrecision`` refuses to clip for a fused optimizer, because such an optimizer
    may unscale gradients itself (Lightning #21435). Without a scaler, as under bf16, there is
    nothing to unscale, and clipping by the base class is right.
    """
    unscaled = isinstance(plugin, MixedPrecision) and plugin.scaler is None
    if unscaled:
        kind = GradClipAlgorithmType(algorithm or "norm")
        Precision.clip_gradients(plugin, optimizer, clip_val or 0.0, kind)
    return unscaled


def share_no_signals(trainer: Trainer) -> None:
    """Stop Lightning from broadcasting the first process's signals before every step.

    The broadcast makes the host wait for the device. ``LastCheckpoint`` shares signals without
    waiting.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = lambda: None


def keep_buffers(trainer: Trainer) -> None:
    """Stop DDP from broadcasting the model's buffers before every forward pass.

    They are constants once training has begun. Lightning passes these options to DDP; given ones
    take precedence.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        new = "forward_sync_buffers"  # its older name is deprecated since torch 2.13
        known = inspect.signature(DistributedDataParallel).parameters
        name = new if new in known else "broadcast_buffers"
        if not {"broadcast_buffers", new} & set(strategy._ddp_kwargs):
            strategy._ddp_kwargs[name] = False


def shard_over_all(strategy: ModelParallelStrategy) -> None:
    """Have FSDP2 shard over all processes of all machines, without tensor parallelism.

    Their number is not known when the strategy is made; ``auto`` would shard over machines only.
    """
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
    strategy._tensor_parallel_size = 1


def is_accumulating(trainer: Trainer) -> bool:
    """Return whether the batch that just ended was only accumulated, without an optimizer step."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def is_last_batch(trainer: Trainer) -> bool:
    """Return whether the batch that just ended is the epoch's last."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def validates_next(trainer: Trainer) -> bool:
    """Return whether a validation follows the batch that just ended."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher) and trainer.enable_validation


def batch_number(trainer: Trainer) -> int:
    """Return the number of the current batch, counted from 0 over the run."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def resumes_validation(trainer: Trainer) -> bool:
    """Return whether the run resumes from a checkpoint that was written before a validation."""
    return trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation


def begin_validation(checkpoint: dict[str, Any]) -> None:
    """Mark in a checkpoint that a validation has begun, so that Lightning runs it on resume."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    total = progress["total"]
    total["ready"] = total["started"] = total["completed"] + 1
    total["processed"] = total["completed"]
    progress["current"] = dict.fromkeys(progress["current"], 0)


def end_validation(checkpoint: dict[str, Any]) -> None:
    """Mark in a checkpoint that no validation has begun.

    Lightning does not do this after a validation that was run again on resume.
    """
    total = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    total["ready"] = total["started"] = total["completed"]


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return the number of epochs that a checkpoint's run has done.

    ``epoch`` in the file is one less, since Lightning counts the epoch as completed only later.
    """
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def is_due(bar: TQDMProgressBar, done: int, total: float) -> bool:
    """Return whether the refresh rate of a progress bar has it drawn after ``done`` batches."""
    return bar._should_update(done, total)  # type: ignore[arg-type]


def train_bar(bar: TQDMProgressBar) -> Any:
    """Return the bar of the training steps, or None before it exists; the property would raise."""
    return bar._train_progress_bar


def open_bars(bar: TQDMProgressBar) -> list[Any]:
    """Return the existing bars of training and validation."""
    return [one for one in (bar._val_progress_bar, bar._train_progress_bar) if one is not None]


def known_options(cli: Any, parser: Any) -> list[str]:
    """Return the names of the options of ``fit``, to suggest one for a misspelt option."""
    return [action.dest for action in parser_of_fit(cli, parser)._actions]


def parser_of_fit(cli: Any, parser: Any) -> Any:
    """Return the parser of the options of ``fit``; ``parser`` if there are no subcommands."""
    return getattr(cli, "_subcommand_parsers", {}).get("fit", parser)


def whole_numbers_first() -> None:
    """Let a parser read the 1 of an option of the Trainer as 1 batch and not as 1.0, all batches.

    typing keeps one object for ``Union[int, float]`` and ``Union[float, int]``, so the order in the
    Trainer's annotations depends on what was imported before it.
    """
    annotations = Trainer.__init__.__annotations__
    for name, annotation in annotations.items():
        kinds = list(get_args(annotation))
        if get_origin(annotation) is not Union:
            continue
        if {int, float} <= set(kinds) and kinds.index(float) < kinds.index(int):
            kinds.remove(int)
            kinds.insert(kinds.index(float), int)
        kinds.sort(key=lambda kind: kind is type(None))
        annotations[name] = Union[tuple(kinds)]  # noqa: UP007, the kinds are not known before


def trainer_options(cli: Any) -> Any:
    """Return the Trainer's options before the Trainer is built."""
    return cli._get(cli.config_init, "trainer")

"""What numbers a run is computed in, and what it must not be computed in."""

import logging
from typing import Any

import torch

from newsrec.errors import UserError

log = logging.getLogger(__name__)

HALF = (16, "16", "16-mixed")
"""Precisions that only GPUs train in."""
NO_WEIGHTS_LEFT = ("bf16-true", "16-true")
"""Precisions whose weights are too coarse for small steps, and for scores to the last digit."""


def choose_precision(trainer: Any, model_precision: str) -> Any:
    """Return the Trainer's precision: what its own option says, or else the model's.

    Args:
        trainer: The Trainer's options.
        model_precision: auto, bf16 or fp32.

    Raises:
        UserError: If nothing can be learned in it, or not on this hardware.
    """
    chosen = trainer["precision"]
    if chosen is None:
        if model_precision == "auto":
            model_precision = "bf16" if has_bf16(str(trainer["accelerator"])) else "fp32"
            log.info("precision: %s (model.precision auto)", model_precision)
        chosen = {"bf16": "bf16-mixed", "fp32": "32-true"}[model_precision]
    if chosen in NO_WEIGHTS_LEFT:
        raise UserError(
            f"trainer.precision is {chosen}, which rounds the weights themselves: small steps are "
            "lost. Choose 32-true, bf16-mixed, or 16-mixed on a GPU."
        )
    if chosen in HALF and _is_cpu(trainer["accelerator"]):
        raise UserError(  # Lightning would take bf16-mixed with no more than a warning
            f"trainer.precision is {chosen}, in which a CPU cannot train. Choose 32-true or "
            "bf16-mixed, or a GPU by --trainer.accelerator gpu."
        )
    return chosen


def has_bf16(accelerator: str) -> bool:
    """Return whether the hardware that an accelerator stands for multiplies in bf16 by itself."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator not in ("auto", "cpu") or (
        accelerator == "auto" and torch.backends.mps.is_available()
    ):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _is_cpu(accelerator: Any) -> bool:
    """Return whether the Trainer's option for a device stands for the CPU here."""
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not gpu)

"""Chooses the precision of a run, and refuses precisions that cannot work."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from newsrec.errors import UserError
from newsrec.training.hardware.machine import measurement_key, recall, remember, this_machine
from newsrec.training.hardware.probe import LinearMap, Rates, measure

log = logging.getLogger(__name__)

HALF = (16, "16", "16-mixed")
"""Precisions that only work on GPUs."""
NO_WEIGHTS_LEFT = ("bf16-true", "16-true")
"""Precisions that round the weights, too coarsely for small steps and for exact scores."""
TRAINERS = {"bf16": "bf16-mixed", "fp32": "32-true"}
"""Our names of precisions -> the Trainer's."""
LEAST_GAIN = 1.3
"""bf16 is chosen if it is at least this many times as fast; it rounds more, so ties go to fp32."""


class Choice(NamedTuple):
    """The choice that ``auto`` made."""

    precision: str
    """bf16 or fp32."""
    why: str
    """The reason, as part of a sentence."""


def trainer_precision(trainer: Mapping[str, Any], precision: str) -> Any:
    """Return the Trainer's precision, else the model's; refuse one in which training can't work."""
    chosen = trainer["precision"]
    if chosen is None:
        chosen = TRAINERS[precision]
    if chosen in NO_WEIGHTS_LEFT:
        raise UserError(
            f"trainer.precision is {chosen}, which rounds the weights themselves: small steps are "
            "lost. Choose 32-true, bf16-mixed, or 16-mixed on a GPU."
        )
    device = trainer_device(trainer)
    if chosen in HALF and device is not None and device.type == "cpu":
        raise UserError(  # Lightning would take bf16-mixed with no more than a warning
            f"trainer.precision is {chosen}, in which a CPU cannot train. Choose 32-true or "
            "bf16-mixed, or a GPU by --trainer.accelerator gpu."
        )
    return chosen


def trainer_device(trainer: Mapping[str, Any]) -> torch.device | None:
    """Return the first device that the Trainer's options select; None if unknown or missing."""
    accelerator = str(trainer["accelerator"]).lower()
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        devices = trainer.get("devices")
        first = devices[0] if isinstance(devices, list) and devices else 0
        return torch.device("cuda", int(first))
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu") if accelerator in ("auto", "cpu") else None


def choose_auto(device: torch.device | None, maps: Callable[[], Sequence[LinearMap]]) -> Choice:
    """Choose bf16 or fp32 by their measured speed on the matrix products of the model's ``maps``.

    The measurement is kept for the next run on a machine like this. fp16 is never chosen. Without a
    ``device``, on an accelerator other than CPU and CUDA for example, the choice is fp32.
    """
    if device is None:
        return Choice("fp32", "nothing was measured on this accelerator")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        return Choice("fp32", f"{name} has no native bf16")
    shapes = list(maps())
    found = recall_rates(device, shapes)
    earlier = found is not None
    if found is None:
        try:
            found = measure(shapes, device)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return Choice("fp32", f"{device.type} cannot multiply in bf16: {reason}")
        where, values = this_machine(device).name, found._asdict()
        remember(_key(device, shapes), {"machine": where, "torch": torch.__version__, **values})
    return Choice(decide(found), _describe(found, device, earlier))


def decide(found: Rates) -> str:
    """Return bf16 if it is at least ``LEAST_GAIN`` times as fast, else fp32."""
    return "bf16" if found.ratio >= LEAST_GAIN else "fp32"


def recall_rates(device: torch.device, maps: Sequence[LinearMap]) -> Rates | None:
    """Return an earlier measurement with the same machine, threads and shapes; None if none."""
    found = recall(_key(device, maps), Rates._fields)
    return None if found is None else Rates(**found)


def warn_of_slow_bf16(device: torch.device | None, maps: Callable[[], Sequence[LinearMap]]) -> None:
    """Log a message if bf16 was measured earlier to be slower than fp32."""
    found = None if device is None else recall_rates(device, maps())
    if found is not None and found.ratio < 1:
        log.info(
            "precision: bf16, as requested, but it is slower than fp32 here: matrix products "
            "reached %.4g GFLOP/s in bf16 and %.4g in fp32 (measured earlier).",
            found.bf16 / 1e9,
            found.fp32 / 1e9,
        )


def _key(device: torch.device, maps: Sequence[LinearMap]) -> str:
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    identity = this_machine(device).identity
    return measurement_key("precision", identity, torch.__version__, threads, list(maps))


def _describe(found: Rates, device: torch.device, earlier: bool) -> str:
    where = this_machine(device).name
    if device.type == "cpu":
        threads = torch.get_num_threads()
        where += f", {threads} {'thread' if threads == 1 else 'threads'}"
    asked = f"bf16 is taken if it is at least {LEAST_GAIN:g} times as fast"
    return (
        f"matrix products of this model reach {found.bf16 / 1e9:.4g} GFLOP/s in bf16 and "
        f"{found.fp32 / 1e9:.4g} in fp32, {found.ratio:.2f} times as fast ({where}"
        f"{'; measured earlier' if earlier else ''}), and {asked}"
    )

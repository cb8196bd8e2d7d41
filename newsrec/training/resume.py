"""What a resumed run takes from its checkpoint: steps, threads and precision."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from newsrec.training.checkpoint.read import check_same_options
from newsrec.training.hardware.settle import Kept

LINKS = {
    "data.plm": "model.plm",
    "data.loss": "model.loss",
    "model.max_tokens": "data.max_tokens",
    "model.max_history": "data.max_history",
    "model.abstract_tokens": "data.abstract_tokens",
}
"""Values that data and model share: each first key is filled in from its second key."""

FREE_ON_RESUME = ("root", "num_workers", "prefetch_factor", "pin_memory", "eval_batch_size")
"""Data options that may change when a run is resumed, because they do not affect results."""


class Resumed(NamedTuple):
    """State of a resumed run; the defaults are for a new run."""

    steps: int = 0
    hardware: Kept = Kept()
    precision: str | None = None
    """Precision that ``auto`` chose when the run began; None if the user chose it."""


def resumed(
    checkpoint: Mapping[str, Any],
    path: str | Path,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    threads: int | None = None,
) -> Resumed:
    """Return the state of a run to resume, after refusing options that contradict it.

    Args:
        checkpoint: Result of ``read_checkpoint``.
        path: File of the checkpoint, named in messages.
        model: Options of the model; ``precision`` may differ.
        data: Options of the data; ``FREE_ON_RESUME`` and a seed of None may differ. So may the
            batch size, if another number of processes can have batches as large together.
        threads: Requested threads per process, if any.

    Raises:
        UserError: If an option differs from the checkpoint's.
    """
    fixed = {name: value for name, value in model.items() if name != "precision"}
    free = (*FREE_ON_RESUME, "seed") if data.get("seed") is None else FREE_ON_RESUME
    size, together = data.get("batch_size"), _whole_batch(checkpoint.get("MindDataModule"))
    if size and together and together % size == 0:
        free = (*free, "batch_size")  # the data module compares it with the number of processes
    # A value that both share is named as the option that was given: of these here, data's.
    free = (*free, *(link.removeprefix("data.") for link in LINKS))
    read = {name: value for name, value in data.items() if name not in free}
    check_same_options(dict(checkpoint), {"data": read, "model": fixed}, path)
    began = checkpoint["newsrec"].get("auto_precision")
    precision = began if model["precision"] == "auto" else model["precision"]
    # Another number of threads changes the order of sums, so the last digits may differ.
    kept = checkpoint["newsrec"].get("threads") if threads is None else threads
    by_auto = began is not None and precision == began
    return Resumed(checkpoint["global_step"], Kept(kept, by_auto), began)


def _whole_batch(state: Any) -> int:
    """Return the size of all processes' batches together; 0 if a checkpoint does not say it."""
    names = ("batch_size", "world_size")
    sizes: list[Any] = [state.get(n) for n in names] if isinstance(state, dict) else [0]
    return math.prod(sizes) if all(type(size) is int for size in sizes) else 0

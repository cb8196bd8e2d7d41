"""Finds what would make the host wait for a device, in a run on a CPU.

The model's parameters and the batch stand for what lies on the device, and so does everything that
is computed from them. Reading a value of such a tensor makes the host wait; reading one of a tensor
that the host has made for itself, such as the lengths of texts, does not.
"""

import traceback
from collections import Counter

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS = ("tolist", "numpy", "cpu")
"""Methods that hand a tensor's values to the host, on a CPU without an operation to be seen."""
SHAPED_BY_VALUES = ("nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2")
"""Operations that must read values before they know the shape or the kind of their result."""


class Waits(TorchDispatchMode):
    """Counts the reads of what would lie on a device, by the line of code that does it.

    Args:
        on_device: Tensors that lie there.
    """

    def __init__(self, *on_device: Tensor) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._storages: dict[int, object] = {}  # kept alive, or their places would be used again
        self.mark(on_device)

    def mark(self, values: object) -> None:
        """Say that some tensors, in any nesting, lie on the device."""
        for value in tree_flatten(values)[0]:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self._storages[storage._cdata] = storage

    def is_marked(self, values: object) -> bool:
        """Return whether one of some tensors lies on the device."""
        return any(
            isinstance(value, Tensor) and value.untyped_storage()._cdata in self._storages
            for value in tree_flatten(values)[0]
        )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        marked = self.is_marked((args, kwargs))
        name = func.overloadpacket.__name__
        if marked:
            masks = args[1] if name in ("index", "index_put", "index_put_") else ()
            by_mask = any(m is not None and m.dtype in (torch.bool, torch.uint8) for m in masks)
            sizes = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
            if name in SHAPED_BY_VALUES or by_mask or sizes:
                self.note(name)
        result = func(*args, **(kwargs or {}))
        if marked and name == "_local_scalar_dense":
            self.note(name)
        elif marked:
            self.mark(result)
        return result

    def note(self, name: str) -> None:
        """Count a read, by the nearest line that is neither torch's nor this file's."""
        for frame in reversed(traceback.extract_stack()):
            if "/torch/" not in frame.filename and frame.filename != __file__:
                place = "/".join(frame.filename.split("/")[-2:])
                self.found[f"{name} in {frame.name} ({place}:{frame.lineno})"] += 1
                return


class Reads(TorchFunctionMode):
    """Counts in a ``Waits`` what reads a CPU's tensor without any operation."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in READS and self.waits.is_marked(args):
            self.waits.note(name)
        return func(*args, **(kwargs or {}))

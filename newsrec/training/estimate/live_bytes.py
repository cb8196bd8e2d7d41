"""Counts the bytes that a step allocates and frees, on tensors that have shapes but no values."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from newsrec.model.plm.blocks import blocks_as_on


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live storages, and their peak.

    Every operation of the forward and backward pass is seen here, so the count includes tensors
    that autograd keeps, bf16 copies under autocast, recomputed layers and intermediate gradients.
    Tensors with values, such as lengths that a model reads on the CPU, are computed as usual.

    Uses torch's private ``FakeTensor`` (2.13).
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.kernels = 0
        self._storages: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the storages that it allocates."""
        kwargs = kwargs or {}
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        with_values = given and not any(isinstance(x, FakeTensor) for x in given)
        with unset_fake_temporarily() if with_values else nullcontext():
            result = func(*args, **kwargs)
        made = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        old = {x.untyped_storage()._cdata for x in given}
        for tensor in made:
            if tensor.untyped_storage()._cdata not in old:  # a view of a weight allocates nothing
                self._note(tensor)
        self.kernels += bool(made) and not func.is_view and not with_values
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self.live += size
        self.peak = max(self.peak, self.live)
        self._storages[key] = weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.live -= size
        del self._storages[key]


@contextmanager
def like_cuda(autocast: bool) -> Iterator[None]:
    """Make CPU operations keep the same tensors for the backward pass as CUDA operations.

    - Dropout keeps a mask of one byte per element (``native_dropout``); on a CPU it keeps a factor.
    - Fused attention keeps queries, keys, values, its result and one number per row, with or
      without dropout; on a CPU with dropout it keeps all weights. So attention's dropout is left
      out here.
    - CUDA's autocast computes norms and softmaxes in float32 and keeps their input in float32
      (PyTorch's list of operations that autocast to float32); on a CPU they stay in bfloat16.

    The functions of ``torch.nn.functional`` are replaced inside this context. A
    ``TorchFunctionMode`` would not reach layers that run again in the backward pass.
    """
    attention, layer_norm, softmax = F.scaled_dot_product_attention, F.layer_norm, F.softmax

    def fused(*args: Any, dropout_p: float = 0.0, **kwargs: Any) -> Tensor:
        return attention(*args, **kwargs)

    def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *args, **kwargs: function(x.float(), *args, **kwargs)

    replaced: dict[str, Any] = {"dropout": _dropout, "scaled_dot_product_attention": fused}
    if autocast:
        replaced |= {"layer_norm": in_float32(layer_norm), "softmax": in_float32(softmax)}
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.callback(setattr, F, name, getattr(F, name))
            setattr(F, name, function)
        yield


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p else x


def without_values() -> FakeTensorMode:
    """Create all new tensors without values, so that a model of any size takes no memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def with_values() -> AbstractContextManager[Any]:
    """Create new tensors with values inside ``without_values``."""
    return unset_fake_temporarily()


@contextmanager
def as_on(device: str, autocast: bool) -> Iterator[None]:
    """Compute like ``cuda`` or ``cpu``, in bfloat16 under autocast or in float32."""
    with ExitStack() as stack:
        stack.enter_context(blocks_as_on(device))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=autocast))
        if device == "cuda":
            stack.enter_context(like_cuda(autocast))
        yield

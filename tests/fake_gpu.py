"""A GPU that is not there: its tensors have shapes and types, and no values.

PyTorch's fake tensors on a device of their own, so that this works in a build without CUDA. What
a GPU would refuse is an error here, and so is what would have the host wait for it.
"""

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchgen
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (  # torch 2.13
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)
from warm import WARM

NAME = "gpu"


class Waits(RuntimeError):
    """The host would wait for the device."""


class CpuOnly(RuntimeError):
    """The operation has no kernel for CUDA."""


class _Backend(_DummyBackendModule):
    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@functools.cache
def cuda_kernels() -> tuple[frozenset[str], frozenset[str]]:
    """Return PyTorch's operations, and those of them that CUDA can do, as its own list has them."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = yaml.load(path.read_text(encoding="utf-8"), loader)
    known = {entry["func"].split("(")[0]: entry for entry in entries}

    def has(entry: dict[str, Any]) -> bool:
        keys, delegate = entry.get("dispatch"), entry.get("structured_delegate")
        if delegate is not None:
            return has(known[delegate])
        return keys is None or any("CUDA" in key or "Composite" in key for key in keys)

    return frozenset(known), frozenset(name for name, entry in known.items() if has(entry))


class FakeGpu:
    """Inside ``with``, what runs on the device ``gpu`` is checked and not computed."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.operations: set[str] = set()

    def __enter__(self) -> "FakeGpu":
        self._watch = _Watch(self.mode, self.operations)
        self._watch.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)

    def to(self, value: Any, dtype: torch.dtype | None = None) -> Any:
        """Return tensors, in any nesting, as tensors of the device; floats in ``dtype``."""

        def move(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            kind = dtype if dtype is not None and t.is_floating_point() else t.dtype
            meta = torch.empty_strided(t.shape, t.stride(), dtype=kind, device="meta")
            fake = FakeTensor(self.mode, meta, torch.device(NAME, 0))
            return nn.Parameter(fake, t.requires_grad) if isinstance(t, nn.Parameter) else fake

        return tree_map(move, value)

    def move(self, module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        """Move a module; floats in ``dtype``. Parameters that are shared stay so."""
        moved: dict[int, Any] = {}
        for part in module.modules():
            for values in (part._parameters, part._buffers):
                for name, value in values.items():
                    if value is not None:
                        values[name] = moved.setdefault(id(value), self.to(value, dtype))
                        moved[id(values[name])] = values[name]
        return module


class _Watch(TorchDispatchMode):
    """Lets the CPU's own work be done, and checks what a GPU's tensor has a part in."""

    def __init__(self, mode: FakeTensorMode, operations: set[str]) -> None:
        super().__init__()
        self.mode = mode
        self.operations = operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        kinds = {t.device.type for t in tensors}
        device = kwargs.get("device")
        target = None if device is None else torch.device(device).type
        if NAME not in kinds and target != NAME:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        self.check_kernel(func, name)
        if name in ("_to_copy", "copy_"):
            self.check_copy(name, args, kwargs, tensors, target)
        if name in ("index", "index_put", "index_put_"):
            indices = [t for t in tree_flatten(args[1])[0] if isinstance(t, Tensor)]
            if any(t.device.type == "cpu" for t in indices):
                raise Waits(f"{name} by indices on the CPU")
        with self.mode:  # values of the CPU's tensors are not handed on, but for single numbers
            return func(*tree_map(self.without_values, args), **kwargs)

    def without_values(self, value: Any) -> Any:
        """Return a tensor of the CPU as a fake one, anything else as it is."""
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.mode.from_tensor(value) if real and value.ndim else value

    def check_kernel(self, func: Any, name: str) -> None:
        """Refuse an operation that CUDA has no kernel for."""
        overload = func._schema.overload_name
        full = f"{name}.{overload}" if overload else name
        self.operations.add(full)
        known, able = cuda_kernels()
        if full in known and full not in able:
            raise CpuOnly(full)

    def check_copy(
        self, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], target: Any
    ) -> None:
        """Refuse copies that the host waits for: to the CPU, and from it unless told otherwise."""
        source = tensors[-1].device.type
        goal = tensors[0].device.type if name == "copy_" else (target or source)
        later = kwargs.get("non_blocking") or True in args[2:3]
        if source == NAME and goal == "cpu":
            raise Waits(f"{name} to the CPU")
        if source == "cpu" and goal == NAME and not later:
            raise Waits(f"{name} from the CPU without non_blocking")


def failure_of(check: Callable[..., None], *args: Any) -> str | None:
    """Run a check in a process of its own, since the device cannot be unregistered again.

    It is forked from a server that has never run a backward pass: PyTorch's engine looks once, at
    its first, how many devices there are.

    Args:
        check: A function of a test module.
        args: What it takes, all of which can be pickled.

    Returns:
        The traceback of what was raised there; None if nothing was.
    """
    here, there = WARM.Pipe(duplex=False)
    process = WARM.Process(target=_run, args=(there, check, args))
    process.start()
    there.close()
    try:
        failure: str | None = here.recv()
    except EOFError:
        failure = "the process died"
    process.join()
    return failure


def _run(there: Any, check: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
        check(*args)
        there.send(None)
    except BaseException:
        there.send(traceback.format_exc())

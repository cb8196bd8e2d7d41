"""Compares the weights of a checkpoint or an export with a model that is built without values."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from newsrec.training.checkpoint.kinds import Wrong, shown

PARTS_OF_A_WEIGHT = 8
"""Most modules and parameters of a model per weight; ModernBERT has three."""
SPARE_PARTS = 100
"""Further modules and parameters that a model may have without weights, such as a pooler."""


@contextmanager
def without_values(weights: int) -> Iterator[None]:
    """Build models on the ``meta`` device, and stop a model with too many parts for its weights."""
    parts = PARTS_OF_A_WEIGHT * weights + SPARE_PARTS
    # Initializing weights here must not change the random numbers that a run draws later.
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _at_most(parts):
        yield


def compare(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights whose names, types or shapes differ from the model's."""
    lacking, others = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    for names, what in ((lacking, "lacks"), (others, "has, against its options,")):
        if names:
            raise Wrong(f"{where} {what} {len(names):,} weights, such as {shown(min(names))}")
    for name, weight in weights.items():
        wanted = expected[name]
        if weight.shape != wanted.shape:
            raise Wrong(
                f"{name} has shape {list(weight.shape)}, and should have {list(wanted.shape)}"
            )
        same_kind = weight.is_floating_point() == wanted.is_floating_point()
        if weight.layout != torch.strided or weight.is_quantized or not same_kind:
            raise Wrong(f"{name} holds {weight.dtype} numbers, and should hold {wanted.dtype}")
        # A file of a few bytes can hold one number as a matrix of any size.
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            raise Wrong(f"{name} has {weight.numel():,} numbers, and the file holds fewer")


@contextmanager
def _at_most(parts: int) -> Iterator[None]:
    """Stop a model of more than ``parts`` modules and parameters, which could take hours."""
    made, thread = 0, threading.get_ident()

    def count(module: nn.Module, name: str, part: Any) -> None:
        nonlocal made
        if threading.get_ident() == thread:  # the hooks apply to the whole process
            made += 1
            if made > parts:
                raise Wrong("its options make a model of more parts than there are weights")

    with (  # hooks are context managers that remove themselves
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_module_registration_hook(count),
    ):
        yield

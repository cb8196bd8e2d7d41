"""What one training step of a model needs: memory, operations and kernels, from shapes alone."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch
from newsrec.model.plm.load import build_plm
from newsrec.model.plm.packing import ATTENTION, pack
from newsrec.model.plm.transformers_internals import set_attention
from newsrec.model.recommender import NewsRecommender
from newsrec.training.estimate.live_bytes import as_on, without_values
from newsrec.training.losses import LOSSES
from newsrec.training.progress.throughput import model_flop

WEIGHT = GRADIENT = 4
"""Bytes of a float32 number; weights, gradients and what AdamW keeps are all of that."""
ADAM = 8
"""Bytes that AdamW keeps for a trained weight: two means."""


class Shape(NamedTuple):
    """What a training batch holds, as far as its cost depends on it."""

    lengths: NDArray[np.int64]
    """Word pieces of each distinct text, ascending ``[news]``."""
    users: int
    """Distinct histories."""
    history: int
    """Longest of them."""
    samples: int
    candidates: int
    """Candidates of a sample, the clicked one included."""

    @property
    def tokens(self) -> int:
        """Word pieces of all texts."""
        return int(self.lengths.sum())

    @property
    def squares(self) -> int:
        """Sum of squared lengths, which attention's products grow with."""
        return int((self.lengths**2).sum())

    @property
    def slots(self) -> int:
        """Places of all histories, padded ones included."""
        return self.users * self.history

    @classmethod
    def of(cls, batch: Batch) -> "Shape":
        """Return the shape of a batch."""
        users, history = batch.history.shape
        samples, candidates = batch.candidates.shape
        return cls(batch.token_lengths[FIRST_NEWS:], users, history, samples, candidates)


class StepCost(NamedTuple):
    """What a step needs; bytes where nothing else is said."""

    trained: int
    """Numbers that are trained."""
    frozen: int
    """Numbers that are not."""
    weights: int
    """Weights and buffers."""
    gradients: int
    optimizer: int
    batch: int
    """The batch itself, kept states of frozen layers included."""
    activations: int
    """Kept from the forward pass for the backward pass."""
    peak: int
    """All that is alive at once at most, in the backward pass mostly."""
    kernels: int
    """Operations that a GPU is asked for, forward and backward."""


def step_cost(
    module: Any,
    plm_config: dict[str, Any],
    shape: Shape,
    device: str,
    bf16: bool,
    states: torch.dtype | None,
) -> StepCost:
    """Return what a training step needs, without running one.

    The step is gone through on tensors without values (``LiveBytes``), so nothing is guessed of
    what autograd keeps. Weights take 4 bytes each, and trained ones 4 for the gradient (counted
    where it comes into being) and 8 for AdamW, which updates in place in one kernel.

    Args:
        module: A ``RecommenderModule``, whose options shape the model; its weights are not needed.
        plm_config: The PLM's configuration, cut to the layers that are used.
        shape: The batch.
        device: ``cuda`` or ``cpu``.
        bf16: Whether the step runs in mixed precision.
        states: Kind of the kept states of frozen layers; None if the whole PLM runs.
    """
    packs = packable(plm_config)
    hidden = plm_config["hidden_size"]
    with without_values() as counter:
        recommender = build(module, plm_config, packs)
        batch = batch_of(shape, hidden, states)
        parameters = list(recommender.parameters())
        kept = [*parameters, *recommender.buffers()]
        with counter() as bytes_, as_on(device, bf16):
            loss = LOSSES[module.loss](recommender.encode(batch), batch)
            activations = bytes_.live
            with torch.autocast("cpu", enabled=False):
                loss.backward()
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        weights = sum(x.numel() * x.element_size() for x in kept)
        inputs = sum(x.numel() * x.element_size() for x in batch if isinstance(x, Tensor))
    return StepCost(
        trained=trained,
        frozen=sum(p.numel() for p in parameters) - trained,
        weights=weights,
        gradients=GRADIENT * trained,
        optimizer=ADAM * trained,
        batch=inputs,
        activations=activations,
        peak=weights + ADAM * trained + inputs + bytes_.peak,
        kernels=bytes_.kernels,
    )


def step_flop(module: Any, plm_config: dict[str, Any], shape: Shape, kept_states: bool) -> float:
    """Return the floating-point operations of a step's matrix products: see ``model_flop``."""
    with without_values():
        return model_flop(build(module, plm_config, packs=False), shape, kept_states)


def build(module: Any, plm_config: dict[str, Any], packs: bool) -> NewsRecommender:
    """Build a module's model with random weights, or none where tensors have no values."""
    recommender = NewsRecommender(
        build_plm(plm_config),
        module.dim,
        module.tune_layers,
        module.news,
        module.user,
        module.max_tokens,
        module.max_history,
        module.residual,
        module.checkpoint_activations,
        module.user_encoder,
    )
    if packs:  # what pack() finds out by comparing values
        set_attention(recommender.news_encoder.plm, ATTENTION)
        recommender.news_encoder.cut._packs = True
    return recommender


def packable(plm_config: dict[str, Any]) -> bool:
    """Return whether a PLM's family can run texts without padding; asks a PLM of one layer."""
    try:
        return pack(build_plm(plm_config | {"num_hidden_layers": 1}))
    except (TypeError, ValueError, IndexError):  # a family that lists its layers one by one
        return False


def batch_of(shape: Shape, hidden: int, states: torch.dtype | None) -> Batch:
    """Return a batch of a shape, of zeros but for the lengths."""
    lengths = np.pad(shape.lengths, (FIRST_NEWS, 0))
    longest = int(shape.lengths.max())
    candidates = torch.zeros(shape.samples, shape.candidates, dtype=torch.int64)
    return Batch(
        token_ids=torch.zeros(len(lengths), longest, dtype=torch.int32),
        token_lengths=lengths,
        token_states=None if states is None else torch.zeros(shape.tokens, hidden, dtype=states),
        history=torch.zeros(shape.users, shape.history, dtype=torch.int64),
        user=torch.zeros(shape.samples, dtype=torch.int64),
        candidates=candidates,
        labels=candidates.clone(),
    )

"""Computes the memory, operations and kernels of one training step, from shapes only."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch, SharedClicks
from newsrec.data.samples import SHARING_CLICKS
from newsrec.model.plm.load import build_plm
from newsrec.model.plm.packing import ATTENTION, pack
from newsrec.model.plm.transformers_internals import set_attention
from newsrec.model.recommender import NewsRecommender
from newsrec.plm_source import first_layers
from newsrec.training.estimate.live_bytes import LiveBytes, as_on, with_values, without_values
from newsrec.training.losses import LOSSES
from newsrec.training.options import recommender_options
from newsrec.training.progress.throughput import model_flop

WEIGHT = GRADIENT = 4
"""Bytes of a weight and of a gradient, both float32."""
ADAM = 8
"""Bytes that AdamW keeps per trained weight: two float32 means."""


class Shape(NamedTuple):
    """The sizes of a training batch that its cost depends on."""

    lengths: NDArray[np.int64]
    """Tokens of each distinct text, ascending ``[texts]``."""
    users: int
    """Number of distinct histories."""
    history: int
    """Length of the longest history."""
    samples: int
    candidates: int
    """Candidates of a sample, including the clicked one."""
    titles: int | None = None
    """Number of distinct news items if some have two texts; None if each has one."""
    clicks: int | None = None
    """Clicks of all histories; None if all are as long as the longest."""
    categories: int = 0
    """Number of fields of a news item whose values have learned vectors."""

    @property
    def news(self) -> int:
        """Number of distinct news."""
        return len(self.lengths) if self.titles is None else self.titles

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return int(self.lengths.sum())

    @property
    def squares(self) -> int:
        """Sum of squared lengths, to which attention's products are proportional."""
        return int((self.lengths**2).sum())

    @property
    def read(self) -> int:
        """Clicks of all histories."""
        return self.users * self.history if self.clicks is None else self.clicks

    @classmethod
    def of(cls, batch: Batch) -> "Shape":
        """Return the shape of a batch."""
        users, history = batch.history.shape
        samples, candidates = batch.candidates.shape
        titles = None if batch.views is None else batch.num_news - FIRST_NEWS
        sizes = users, history, samples, candidates
        clicks = int((batch.history > 0).sum())
        fields = 0 if batch.categories is None else batch.categories.shape[1]
        return cls(batch.token_lengths[FIRST_NEWS:], *sizes, titles, clicks, fields)


class StepCost(NamedTuple):
    """Cost of a step, in bytes unless the field says otherwise."""

    trained: int
    """Number of trained parameters."""
    frozen: int
    """Number of frozen parameters."""
    weights: int
    """Weights and buffers."""
    gradients: int
    optimizer: int
    batch: int
    """The batch, including kept states of frozen layers."""
    activations: int
    """Tensors that the forward pass keeps for the backward pass."""
    peak: int
    """Most bytes alive at once, usually in the backward pass."""
    kernels: int
    """Number of GPU kernels, forward and backward."""


def step_cost(
    module: Any,
    plm_config: dict[str, Any],
    shape: Shape,
    device: str,
    bf16: bool,
    states: torch.dtype | None,
) -> StepCost:
    """Return the cost of a training step, without computing one.

    The step runs on tensors without values (``LiveBytes``), so all that autograd keeps is counted,
    not guessed. Each weight takes 4 bytes. A trained weight takes 4 more for the gradient (counted
    when it is created) and 8 for AdamW, which updates in place in one kernel. The options of a
    ``RecommenderModule`` shape the model; ``plm_config`` is cut to the layers that are used.
    ``states`` is the type of the kept states of frozen layers; None if the whole PLM runs.
    """
    packs = packable(plm_config)
    with without_values():
        recommender = build(module, plm_config, packs)
        shared = module.loss in SHARING_CLICKS
        batch = batch_of(shape, plm_config["hidden_size"], states, shared)
        parameters = list(recommender.parameters())
        kept = [*parameters, *recommender.buffers()]
        with LiveBytes() as bytes_, as_on(device, bf16):
            loss = LOSSES[module.loss](recommender.encode(batch), batch)
            activations = bytes_.live
            with torch.autocast("cpu", enabled=False):
                loss.backward()
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        weights = sum(x.numel() * x.element_size() for x in kept)
        given = [x for x in (*batch, *(batch.shared or ())) if isinstance(x, Tensor)]
        inputs = sum(x.numel() * x.element_size() for x in given)
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
    """Build a module's model, with random weights unless tensors have no values."""
    recommender = NewsRecommender(build_plm(plm_config), **recommender_options(module))
    if packs:  # set directly, because pack() would compare values
        set_attention(recommender.news_encoder.plm, ATTENTION)
        recommender.news_encoder.cut._packs = True
    return recommender


def packable(plm_config: dict[str, Any]) -> bool:
    """Return whether a PLM's family can run texts without padding; tries a PLM of one layer."""
    try:
        return pack(build_plm(plm_config | first_layers(plm_config, 1)))
    except (TypeError, ValueError, IndexError):  # families whose config lists every layer
        return False


def batch_of(
    shape: Shape, hidden: int, states: torch.dtype | None, shares_clicks: bool = False
) -> Batch:
    """Return a batch of a given shape; all values but lengths and histories are zeros."""
    lengths = np.pad(shape.lengths, (FIRST_NEWS, 0))
    longest = int(shape.lengths.max())
    candidates = torch.zeros(shape.samples, shape.candidates, dtype=torch.int64)
    excluded = torch.zeros(shape.samples, shape.candidates + shape.history, dtype=torch.int64)
    views = torch.zeros(FIRST_NEWS + shape.news, 2, dtype=torch.int64)
    categories = torch.zeros(FIRST_NEWS + shape.news, shape.categories, dtype=torch.int64)
    news, user = (torch.zeros(shape.samples, dtype=torch.int64) for _ in range(2))
    shared = SharedClicks(news, torch.zeros(shape.samples), user, excluded)
    return Batch(
        token_ids=torch.zeros(len(lengths), longest, dtype=torch.int32),
        token_lengths=lengths,
        token_states=None if states is None else torch.zeros(shape.tokens, hidden, dtype=states),
        history=histories(shape),
        user=torch.zeros(shape.samples, dtype=torch.int64),
        candidates=candidates,
        labels=candidates.clone(),
        shared=shared if shares_clicks else None,
        views=None if shape.titles is None else views,
        categories=categories if shape.categories else None,
    )


def histories(shape: Shape) -> Tensor:
    """Return histories that share the clicks evenly ``[users, history]``.

    They have values, since what real clicks take depends on their number.
    """
    slots = np.arange(shape.users * shape.history).reshape(shape.history, shape.users).T
    with with_values():
        return torch.from_numpy((slots < shape.read).astype(np.int64))

"""Computes news vectors and states of a PLM's frozen layers for the whole catalogue."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Catalogue
from newsrec.data.states import NEWS_PER_PASS, StateStore, TokenStates, distinct_rows
from newsrec.model.fastformer import masked_mean
from newsrec.model.plm.blocks import length_mask
from newsrec.model.plm.cut import CutPlm
from newsrec.model.recommender import NewsRecommender

log = logging.getLogger(__name__)


def news_blocks(catalogue: Catalogue) -> list[Tensor]:
    """Return distinct rows of the catalogue (by tokens), in blocks of similar length."""
    return [block for block in distinct_rows(catalogue).split(NEWS_PER_PASS) if len(block)]


@torch.no_grad()
def encode_catalogue(
    recommender: NewsRecommender,
    catalogue: Catalogue,
    states: TokenStates | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Return the vectors of all news, the same on every process.

    Each process encodes its share of the blocks, and then the vectors are gathered. The blocks do
    not depend on the number of processes, so the vectors do not either.

    Args:
        recommender: The model, in evaluation mode.
        catalogue: Tokens of all news.
        states: States below the PLM's tuned layers, so that the frozen layers need not run.
        rank: Rank of this process.
        world_size: Number of processes.

    Returns:
        Vectors in float32. Row 0 is zeros; row 1, the unknown news item, is the mean over the real
        news ``[news, dim]``.
    """
    device = recommender.news_encoder.project.weight.device
    shape = len(catalogue.first), recommender.dim
    vectors = torch.zeros(shape, device=device, dtype=torch.float32)
    for rows in news_blocks(catalogue)[rank::world_size]:
        vectors[rows] = recommender.news_encoder(*_news(catalogue, rows, states, device)).float()
    if world_size > 1:
        torch.distributed.all_reduce(vectors)  # each row is zeros on all processes except one
    vectors = vectors[catalogue.first.to(device)]
    if len(vectors) > FIRST_NEWS:
        vectors[FIRST_NEWS - 1] = vectors[FIRST_NEWS:].mean(dim=0)
    return vectors


@torch.no_grad()
def mean_states(
    cut: CutPlm,
    catalogue: Catalogue,
    states: TokenStates | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Return the mean of each news item's last states ``[news, hidden]``; zeros for rows 0 and 1.

    As in ``encode_catalogue``, the processes share the work and all get the result.

    Args:
        cut: The PLM, in evaluation mode, on the device to use.
        catalogue: Tokens of all news.
        states: States below the PLM's tuned layers, so that the frozen layers need not run.
        rank: Rank of this process.
        world_size: Number of processes that call this.
    """
    device = cut.plm.device
    own = []
    for rows in news_blocks(catalogue)[rank::world_size]:
        blocks = cut.last_states(*_news(catalogue, rows, states, device))
        own.append(torch.cat([masked_mean(*block) for block in blocks]).float().cpu())
    hidden = cut.plm.config.hidden_size
    return gather_means(own, hidden, catalogue, device, rank, world_size)


def gather_means(
    own: list[Tensor],
    hidden: int,
    catalogue: Catalogue,
    device: torch.device,
    rank: int,
    world_size: int,
) -> Tensor:
    """Gather the means that each process has computed for its share of ``news_blocks``.

    Args:
        own: Means of this process's blocks, in order ``[news, hidden]`` each.
        hidden: Size of a state.
        catalogue: Tokens of all news.
        device: Device on which the processes exchange tensors.
        rank: Rank of this process.
        world_size: Number of processes that call this.

    Returns:
        Means of all news ``[news, hidden]``.
    """
    means = torch.zeros(len(catalogue.first), hidden)
    if own:
        means[torch.cat(news_blocks(catalogue)[rank::world_size])] = torch.cat(own)
    if world_size > 1:
        everywhere = means.to(device)
        torch.distributed.all_reduce(everywhere)  # each row is zeros on all processes except one
        means = everywhere.cpu()
    return means[catalogue.first]


def _news(
    catalogue: Catalogue, rows: Tensor, states: TokenStates | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return tokens, lengths and states of some news of ascending length."""
    lengths = catalogue.token_lengths[rows]
    token_ids = catalogue.token_ids[rows, : int(lengths[-1])].to(device)
    return token_ids, lengths, None if states is None else states.take(rows).to(device)


def frozen_states(
    cut: CutPlm,
    catalogue: Catalogue,
    root: str | Path,
    precision: str,
    ends: Sequence[int] = (),
) -> TokenStates | None:
    """Return the states below a PLM's tuned layers; computed once and then kept beside the data.

    Args:
        cut: The PLM, on the device to use, in evaluation mode.
        catalogue: Tokens of all news.
        root: The data folder.
        precision: bf16 or fp32.
        ends: Row at which the news of each split end. The news of a split are computed without
            those of later splits, because the last bits of a state depend on the news computed
            with it.

    Returns:
        The states; None if the PLM cannot be cut below its tuned layers and must run as a whole.

    Raises:
        UserError: If the disk has too little space.
    """
    plm = cut.plm

    def block(rows: Tensor) -> tuple[Tensor, Tensor]:
        lengths = catalogue.token_lengths[rows]
        tokens = int(lengths.max())
        mask = length_mask(lengths, tokens)
        return catalogue.token_ids[rows, :tokens].to(plm.device), mask.to(plm.device)

    some = distinct_rows(catalogue)[-8:]
    if len(some) and not cut.works(*block(some)):
        log.info(
            "the PLM's family (%s) cannot be continued from its tuned layers: all of it runs in "
            "every step",
            plm.config.model_type,
        )
        return None

    def compute(rows: Tensor) -> Tensor:
        token_ids, mask = block(rows)
        return cut.below(token_ids, mask)[mask]

    store = StateStore(Path(root), cut.key(), plm.config.hidden_size, precision)
    for end in ends:
        store.find_or_compute(catalogue.head(end), compute)
    return store.find_or_compute(catalogue, compute)

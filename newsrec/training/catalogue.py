"""Computes news vectors and states of a PLM's frozen layers for the whole catalogue."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Catalogue
from newsrec.data.states import NEWS_PER_PASS, StateStore, TokenStates, distinct_rows
from newsrec.data.team import ALONE, Team
from newsrec.model.plm.blocks import length_mask
from newsrec.model.plm.cut import CutPlm
from newsrec.model.recommender import NewsRecommender
from newsrec.model.residual import pool_states
from newsrec.shipped import data_folder
from newsrec.training.processes.waiting import wait_for_all

log = logging.getLogger(__name__)


VIEWS_AT_ONCE = 2**15
"""Number of news items whose texts are pooled at once."""


def news_blocks(catalogue: Catalogue) -> list[Tensor]:
    """Return distinct texts of the catalogue (by tokens), in blocks of similar length."""
    return [block for block in distinct_rows(catalogue).split(NEWS_PER_PASS) if len(block)]


@torch.no_grad()
def encode_catalogue(
    recommender: NewsRecommender,
    catalogue: Catalogue,
    states: TokenStates | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Return the vectors of all news in float32, the same on every process ``[news, dim]``.

    Each process encodes its share of the blocks, and then the vectors are gathered. The blocks do
    not depend on the number of processes, so the vectors do not either. With ``states`` below the
    PLM's tuned layers, the frozen layers need not run; None runs them. Row 0 is zeros; row 1, the
    unknown news item, is the mean over the real news.
    """
    device = recommender.news_encoder.project.weight.device
    shape = len(catalogue.first), recommender.dim  # vectors of texts, at first
    vectors = torch.zeros(shape, device=device, dtype=torch.float32)
    for rows in news_blocks(catalogue)[rank::world_size]:
        part = recommender.news_encoder(*_news(catalogue, rows, states, device)).float()
        vectors[rows.to(device, non_blocking=True)] = part
    _keep_step(recommender.news_encoder.cut, catalogue, states, rank, world_size)
    if world_size > 1:
        wait_for_all()
        torch.distributed.all_reduce(vectors)  # each row is zeros on all processes except one
    vectors = vectors[catalogue.first.to(device, non_blocking=True)]
    join = recommender.news_encoder.join
    if catalogue.views is not None:
        blocks = catalogue.views.to(device, non_blocking=True).split(VIEWS_AT_ONCE)
        vectors = torch.cat([join(vectors, block) for block in blocks])
    if catalogue.categories is not None:
        vectors = join(vectors, categories=catalogue.categories.to(device, non_blocking=True))
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
    """Return the mean of each text's last states ``[texts, hidden]``; zeros for rows 0 and 1.

    If ``cut.last_token``, it is the state of the last token instead.
    As in ``encode_catalogue``, the processes share the work and all get the result.
    ``states`` may cover only the first rows; the whole PLM then runs for the others, and for all
    texts if it is None. ``catalogue.of_titles`` selects the means of titles.
    """
    device, hidden = cut.plm.device, cut.plm.config.hidden_size
    known = 0 if states is None else len(states.lengths)
    own = []
    for rows in news_blocks(catalogue)[rank::world_size]:
        means = torch.zeros(len(rows), hidden)
        for here, given in ((rows < known, states), (rows >= known, None)):
            if here.any():
                blocks = cut.last_states(*_news(catalogue, rows[here], given, device))
                pooled = [pool_states(*block, cut.last_token) for block in blocks]
                means[here] = torch.cat(pooled).float().cpu()
        own.append(means)
    _keep_step(cut, catalogue, states, rank, world_size)
    return gather_means(own, hidden, catalogue, device, rank, world_size)


def gather_means(
    own: list[Tensor],
    hidden: int,
    catalogue: Catalogue,
    device: torch.device,
    rank: int,
    world_size: int,
) -> Tensor:
    """Return the means of all texts ``[texts, hidden]``, from the processes' shares.

    ``own`` are the means of this process's blocks of ``news_blocks``, in order; the processes
    exchange tensors on ``device``.
    """
    means = torch.zeros(len(catalogue.first), hidden)
    if own:
        means[torch.cat(news_blocks(catalogue)[rank::world_size])] = torch.cat(own)
    if world_size > 1:
        wait_for_all()
        everywhere = means.to(device)
        torch.distributed.all_reduce(everywhere)  # each row is zeros on all processes except one
        means = everywhere.cpu()
    return means[catalogue.first]


def _keep_step(
    cut: CutPlm, catalogue: Catalogue, states: TokenStates | None, rank: int, world_size: int
) -> None:
    """Run a sharded PLM once more if other processes have one block more than this one.

    They cannot gather its weights without this process. The result is not used.
    """
    blocks = news_blocks(catalogue)
    if cut.in_step and len(blocks[rank::world_size]) < len(blocks[::world_size]):
        for _ in cut.last_states(*_news(catalogue, blocks[0][:1], states, cut.plm.device)):
            pass


def _news(
    catalogue: Catalogue, rows: Tensor, states: TokenStates | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return tokens, lengths and states of some news of ascending length."""
    lengths = catalogue.token_lengths[rows]
    token_ids = catalogue.token_ids[rows, : int(lengths[-1])].to(device, non_blocking=True)
    if states is None:
        return token_ids, lengths, None
    return token_ids, lengths, states.take(rows).to(device, non_blocking=True)


def frozen_states(
    cut: CutPlm,
    catalogue: Catalogue,
    root: str | Path,
    precision: str,
    ends: Sequence[int] = (),
    team: Team = ALONE,
) -> TokenStates | None:
    """Return the states below a PLM's tuned layers; computed once and then kept beside the data.

    ``ends`` are the rows at which the news of each split end. The news of a split are computed
    without those of later splits, because the last bits of a state depend on the news computed with
    it. The processes of ``team`` divide the work. Returns None if the PLM cannot be cut below its
    tuned layers and must run as a whole.
    """
    plm = cut.plm

    def block(rows: Tensor) -> tuple[Tensor, Tensor]:
        lengths = catalogue.token_lengths[rows]
        tokens = int(lengths.max())
        mask = length_mask(lengths, tokens)
        return catalogue.token_ids[rows, :tokens].to(plm.device), mask.to(plm.device)

    some = distinct_rows(catalogue)[-8:]
    with team.failing_together():
        works = team.rank > 0 or not len(some) or cut.works(*block(some))
    if not team.share(works):
        log.info(
            "the PLM's family (%s) cannot be continued from its tuned layers: all of it runs in "
            "every step",
            plm.config.model_type,
        )
        return None

    def compute(rows: Tensor) -> Tensor:
        token_ids, mask = block(rows)
        return cut.below(token_ids, mask)[mask]

    store = StateStore(data_folder(root), cut.key(), plm.config.hidden_size, precision)
    for end in ends:
        store.find_or_compute(catalogue.head(end), compute, team)
    return store.find_or_compute(catalogue, compute, team)

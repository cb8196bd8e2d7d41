"""Work on every story of the catalogue: its vectors, and the states of a frozen PLM."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Catalogue
from newsrec.data.states import TokenStates
from newsrec.model.encoders import length_mask, run_plm
from newsrec.model.recommender import NewsRecommender

STORIES_PER_PASS = 1024


def story_blocks(catalogue: Catalogue) -> list[Tensor]:
    """Return the catalogue's rows, one of each set with equal tokens, in blocks of like length."""
    rows = torch.arange(len(catalogue.first))
    distinct = rows[(catalogue.first == rows) & (rows >= FIRST_NEWS)]
    order = catalogue.token_lengths[distinct].argsort(stable=True)
    return [block for block in distinct[order].split(STORIES_PER_PASS) if len(block)]


@torch.no_grad()
def encode_catalogue(
    recommender: NewsRecommender,
    catalogue: Catalogue,
    states: TokenStates | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Return the vector of every story, the same on every process.

    The blocks are dealt out to the processes before anything is computed and the vectors are
    gathered after, so a story's vector does not depend on who asks for it.

    Args:
        recommender: The model, in evaluation mode.
        catalogue: Every story's tokens.
        states: States of a frozen PLM, to skip the PLM.
        rank: This process.
        world_size: Number of processes.

    Returns:
        Vectors in float32; row 0 is zeros and row 1, the unknown story, the mean of the real
        stories' ``[news, dim]``.
    """
    device = recommender.user_encoder.empty.device
    vectors = torch.zeros(len(catalogue.first), recommender.dim, device=device)
    for rows in story_blocks(catalogue)[rank::world_size]:
        lengths = catalogue.token_lengths[rows]
        token_states = None if states is None else states.take(rows).to(device)
        token_ids = catalogue.token_ids[rows, : int(lengths[-1])].to(device)
        vectors[rows] = recommender.news_encoder(token_ids, lengths, token_states).float()
    if world_size > 1:
        torch.distributed.all_reduce(vectors)  # every row is zeros on all processes but one
    vectors = vectors[catalogue.first.to(device)]
    if len(vectors) > FIRST_NEWS:
        vectors[FIRST_NEWS - 1] = vectors[FIRST_NEWS:].mean(dim=0)
    return vectors


@torch.no_grad()
def compute_states(plm: PreTrainedModel, catalogue: Catalogue) -> TokenStates:
    """Run a PLM, without dropout, over every story once.

    Args:
        plm: The PLM, in evaluation mode, on the device to use.
        catalogue: Every story's tokens.
    """
    states = TokenStates(catalogue.token_lengths, catalogue.first, plm.config.hidden_size)
    for rows in story_blocks(catalogue):
        lengths = catalogue.token_lengths[rows]
        mask = length_mask(lengths, int(lengths[-1]))
        token_ids = catalogue.token_ids[rows, : int(lengths[-1])]
        states.put(rows, run_plm(plm, token_ids.to(plm.device), mask.to(plm.device)))
    return states


def mean_states(states: TokenStates) -> Tensor:
    """Return each story's mean state ``[news, hidden]``; zeros for rows 0 and 1."""
    owner = torch.repeat_interleave(torch.arange(len(states.lengths)), states.lengths)
    total = torch.zeros(len(states.lengths), states.values.shape[1])
    total.index_add_(0, owner, states.values)
    return (total / states.lengths.clamp(min=1)[:, None])[states.first]

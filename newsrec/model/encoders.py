"""Titles to news vectors, clicked news to user vectors."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from newsrec.errors import UserError
from newsrec.model.fastformer import AttentionPooling, Fastformer, FastformerConfig, init_weights


class NewsEncoder(nn.Module):
    """PLM, then Fastformer over its token states, then attention pooling.

    The stack is called ``fastformer`` in state dicts also where it is the softmax twin.

    Args:
        plm: Any ``transformers`` encoder.
        dim: Size of a news vector.
        fastformer: Shape of the stack over tokens: Fastformer, or its softmax twin.
        tune_layers: Top layers of the PLM that are trained: 0 freezes it, -1 trains all of it and
            its embeddings.
        max_tokens: Longest text.
        tokens_per_pass: Padded tokens that go through the PLM at once.
    """

    def __init__(
        self,
        plm: PreTrainedModel,
        dim: int,
        fastformer: FastformerConfig,
        tune_layers: int,
        max_tokens: int,
        tokens_per_pass: int = 16_384,
    ) -> None:
        super().__init__()
        limit = longest_text(plm)
        if limit is not None and max_tokens > limit:
            raise UserError(
                f"data.max_tokens is {max_tokens}, but the PLM reads at most {limit} tokens."
            )
        self.plm = plm
        self.frozen = freeze(plm, tune_layers)
        self.tune_layers = tune_layers
        self.tokens_per_pass = tokens_per_pass
        self.project = nn.Linear(plm.config.hidden_size, dim)
        self.fastformer = Fastformer(dim, fastformer, max_tokens)
        self.pooling = AttentionPooling(dim)
        self.project.apply(init_weights)
        self.pooling.apply(init_weights)
        self.train()  # from_pretrained leaves the PLM in evaluation mode, and a Trainer keeps that

    def forward(
        self, token_ids: Tensor, token_lengths: Tensor, token_states: Tensor | None = None
    ) -> Tensor:
        """Encode stories that are sorted by length and have at least one token.

        Args:
            token_ids: Tokens, padded behind ``[news, tokens]``.
            token_lengths: Real tokens of each story, ascending, on the CPU ``[news]``.
            token_states: The PLM's states, to skip the PLM ``[news, tokens, hidden]``.

        Returns:
            News vectors ``[news, dim]``.
        """
        vectors = []
        for rows, tokens in blocks_by_length(token_lengths, self.tokens_per_pass):
            mask = length_mask(token_lengths[rows], tokens).to(token_ids.device)
            if token_states is None:
                with torch.set_grad_enabled(torch.is_grad_enabled() and self.tune_layers != 0):
                    states = run_plm(self.plm, token_ids[rows, :tokens], mask)
            else:
                states = token_states[rows, :tokens].to(self.project.weight.dtype)
            x = self.fastformer(self.project(states), mask)
            vectors.append(self.pooling(x, mask))
        if not vectors:
            return token_ids.new_zeros((0, self.project.out_features), dtype=torch.float32)
        return torch.cat(vectors)

    def train(self, mode: bool = True) -> "NewsEncoder":
        """Set training mode; frozen parts of the PLM stay in evaluation mode, without dropout."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


class UserEncoder(nn.Module):
    """Fastformer over clicked news, then attention pooling.

    A reader without history gets a learned vector of their own, not zeros: 3 % of MIND's dev
    impressions have none, and they count.

    Args:
        dim: Size of news and user vectors.
        fastformer: Shape of the stack over the history: Fastformer, or its softmax twin. With
            ``positions: recency`` it knows how many clicks ago each story was read.
        max_history: Longest history; only positions need it.
    """

    def __init__(self, dim: int, fastformer: FastformerConfig, max_history: int) -> None:
        super().__init__()
        self.fastformer = Fastformer(dim, fastformer, max_history)
        self.pooling = AttentionPooling(dim)
        self.empty = nn.Parameter(torch.zeros(dim))
        self.pooling.apply(init_weights)

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        """Encode readers.

        Args:
            history: Vectors of clicked news, oldest first ``[users, history, dim]``.
            mask: True where real; a row that is all False is an empty history ``[users, history]``.

        Returns:
            User vectors ``[users, dim]``.
        """
        pooled = self.pooling(self.fastformer(history, mask), mask)
        return torch.where(mask.any(dim=1, keepdim=True), pooled, self.empty.to(pooled.dtype))


def run_plm(plm: PreTrainedModel, token_ids: Tensor, mask: Tensor) -> Tensor:
    """Run a PLM.

    Args:
        plm: Any ``transformers`` encoder.
        token_ids: Tokens ``[news, tokens]``.
        mask: True where real ``[news, tokens]``.

    Returns:
        Last states ``[news, tokens, hidden]``.
    """
    return plm(input_ids=token_ids.long(), attention_mask=mask.long())[0]


def longest_text(plm: PreTrainedModel) -> int | None:
    """Return how many tokens a PLM can read, None where it sets no limit."""
    limit = getattr(plm.config, "max_position_embeddings", None)
    if limit is None or limit < 0:
        return None
    # RoBERTa and its kin count positions from behind the padding's own.
    positions = getattr(getattr(plm, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    return limit if padding is None else limit - padding - 1


def freeze(plm: PreTrainedModel, tune_layers: int) -> list[nn.Module]:
    """Stop gradients to all but the top layers of a PLM.

    Args:
        plm: The PLM.
        tune_layers: How many top layers stay trainable; -1 for everything.

    Returns:
        The modules that are frozen whole.

    Raises:
        UserError: If the PLM has fewer layers, or one set of weights for all of them.
    """
    if tune_layers == -1:
        return []
    plm.requires_grad_(False)
    if tune_layers == 0:
        return [plm]
    depth = plm.config.num_hidden_layers
    if not 0 < tune_layers <= depth:
        raise UserError(
            f"model.tune_layers is {tune_layers}; this PLM has {depth} layers. Choose 0 (frozen), "
            f"1 to {depth}, or -1 (all layers and the embeddings)."
        )
    for owner in plm.modules():  # XLM keeps a layer's parts in several lists, side by side
        lists = [m for m in owner.children() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if lists:
            break
    else:
        raise UserError(
            f"model.tune_layers is {tune_layers}, but the layers of this PLM "
            f"({plm.config.model_type}) cannot be told apart. Choose 0 (frozen) or -1 (all)."
        )
    top = nn.ModuleList(layer for layers in lists for layer in layers[depth - tune_layers :])
    tuned = set(top.requires_grad_(True).modules())
    above = {module for module in plm.modules() if tuned & set(module.modules())}
    return [m for m in plm.modules() if m not in tuned and m not in above]


def length_mask(lengths: Tensor, longest: int) -> Tensor:
    """Return True where a token is real ``[news, longest]``."""
    return torch.arange(longest) < lengths[:, None]


def blocks_by_length(lengths: Tensor, budget: int) -> Iterator[tuple[slice, int]]:
    """Cut sorted rows into blocks of similar length, so that little padding is computed.

    Args:
        lengths: Ascending, on the CPU ``[rows]``.
        budget: Padded tokens of a block at most (one row at least).

    Yields:
        Rows of a block and its longest length.
    """
    sizes = lengths.tolist()
    start = 0
    while start < len(sizes):
        end = start + 1
        # A block ends where its shortest row would be padded by more than a quarter.
        while end < len(sizes) and (
            sizes[end] * (end + 1 - start) <= budget and sizes[end] <= 1.25 * sizes[start] + 2
        ):
            end += 1
        yield slice(start, end), sizes[end - 1]
        start = end

"""Titles to news vectors, clicked news to user vectors."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from newsrec.errors import UserError
from newsrec.model.fastformer import (
    Fastformer,
    FastformerConfig,
    init_weights,
    masked_mean,
    pooling_of,
)
from newsrec.model.plm.cut import TOKENS_PER_PASS, CutPlm, longest_text
from newsrec.model.plm.recompute import recompute_activations
from newsrec.model.residual import SkipPath

StatesHook = Callable[[Tensor, Tensor], None]
START_SCALE = 10.0
"""Of scores on the skip path before training: products of sentence vectors lie within .3 or so."""


class NewsEncoder(nn.Module):
    """PLM, then Fastformer over its token states, then pooling.

    The stack is called ``fastformer`` in state dicts also where it is the softmax twin.

    Args:
        plm: Any ``transformers`` encoder.
        dim: Size of a news vector.
        fastformer: Shape of the stack over tokens: Fastformer, or its softmax twin.
        tune_layers: Top layers of the PLM that are trained: 0 freezes it, -1 trains all of it and
            its embeddings.
        max_tokens: Longest text.
        skip: Whether the PLM's own sentence vector is added: see ``SkipPath``. What is trained then
            starts behind a gate that is closed.
        checkpoint_activations: Whether the tuned layers keep little for the backward pass and run
            twice instead: less memory, more time, the same gradients.
        tokens_per_pass: Padded tokens that go through the PLM at once.
    """

    def __init__(
        self,
        plm: PreTrainedModel,
        dim: int,
        fastformer: FastformerConfig,
        tune_layers: int,
        max_tokens: int,
        skip: bool = False,
        checkpoint_activations: bool = False,
        tokens_per_pass: int = TOKENS_PER_PASS,
    ) -> None:
        super().__init__()
        limit = longest_text(plm)
        if limit is not None and max_tokens > limit:
            raise UserError(
                f"data.max_tokens is {max_tokens}, but the PLM reads at most {limit} tokens. "
                f"Choose up to {limit}, or a PLM for longer texts."
            )
        self.plm = plm
        self.cut = CutPlm(plm, tune_layers)
        if checkpoint_activations:
            recompute_activations(plm)
        self.tokens_per_pass = tokens_per_pass
        self.project = nn.Linear(plm.config.hidden_size, dim)
        self.fastformer = Fastformer(dim, fastformer, max_tokens)
        self.pooling = pooling_of(dim, fastformer)
        self.skip = SkipPath(plm.config.hidden_size, dim) if skip else None
        self.gate = nn.Parameter(torch.zeros(())) if skip else None
        self._states_hooks: OrderedDict[int, StatesHook] = OrderedDict()
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
            token_states: States of the real tokens below the PLM's tuned layers, all stories
                joined, to skip what is frozen ``[tokens, hidden]``.

        Returns:
            News vectors ``[news, dim]``.

        Raises:
            UserError: If the states are of another size than this PLM's.
        """
        vectors = []
        for states, mask in self.cut.last_states(
            token_ids, token_lengths, token_states, self.tokens_per_pass
        ):
            for hook in self._states_hooks.values():
                hook(states, mask)
            vectors.append(self.pool(states, mask))
        if not vectors:
            return token_ids.new_zeros((0, self.project.out_features), dtype=torch.float32)
        return torch.cat(vectors)

    def register_states_hook(self, hook: StatesHook) -> RemovableHandle:
        """Have the PLM's last states handed over as they are made, as PyTorch's own hooks do.

        Args:
            hook: Called with the states of some stories ``[news, tokens, hidden]`` and True where a
                token is real ``[news, tokens]``, in the order in which stories are encoded.

        Returns:
            What removes the hook again, by ``remove()`` or as a context.
        """
        handle = RemovableHandle(self._states_hooks)
        self._states_hooks[handle.id] = hook
        return handle

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """Make one vector of each story's states.

        Args:
            states: The PLM's last states ``[news, tokens, hidden]``.
            mask: True where a token is real ``[news, tokens]``.

        Returns:
            News vectors ``[news, dim]``.
        """
        x = self.pooling(self.fastformer(self.project(states), mask), mask)
        return x if self.skip is None else self.skip(states, mask) + self.gate * x

    def train(self, mode: bool = True) -> "NewsEncoder":
        """Set training mode; frozen parts of the PLM stay in evaluation mode, without dropout."""
        super().train(mode)
        for module in self.cut.frozen:
            module.eval()
        return self


class UserEncoder(nn.Module):
    """Fastformer over clicked news, then pooling.

    A reader without history gets a learned vector of their own, not zeros: 3 % of MIND's dev
    impressions have none, and they count.

    Args:
        dim: Size of news and user vectors.
        fastformer: Shape of the stack over the history: Fastformer, or its softmax twin. With
            ``positions: recency`` it knows how many clicks ago each story was read.
        max_history: Longest history; only positions need it.
        skip: Whether the mean of the history is added; Fastformer then starts behind a gate that is
            closed, and a learned scale makes scores of products of vectors of length 1.
    """

    def __init__(
        self, dim: int, fastformer: FastformerConfig, max_history: int, skip: bool = False
    ) -> None:
        super().__init__()
        self.fastformer = Fastformer(dim, fastformer, max_history)
        self.pooling = pooling_of(dim, fastformer)
        self.empty = nn.Parameter(torch.zeros(dim))
        self.gate = nn.Parameter(torch.zeros(())) if skip else None
        self.log_scale = nn.Parameter(torch.tensor(START_SCALE).log()) if skip else None
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
        if self.gate is not None and self.log_scale is not None:
            mean = masked_mean(history, mask)
            pooled = self.log_scale.exp() * (mean + self.gate * pooled)
        return torch.where(mask.any(dim=1, keepdim=True), pooled, self.empty.to(pooled.dtype))

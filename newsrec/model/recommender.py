"""The whole model, from news and users to scores, without a Trainer."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch, EvalBatch
from newsrec.model.fastformer import Fastformer, FastformerConfig
from newsrec.model.heads import Combine, Matching, head_of
from newsrec.model.matching import Users, match_candidates, match_impressions
from newsrec.model.news_encoder import NewsEncoder
from newsrec.model.plm.lora import LoraConfig
from newsrec.model.user_encoders import USER_ENCODERS


class Encoded(NamedTuple):
    """The vectors of a training batch, from which a loss is computed."""

    news: Tensor
    """News vectors, one per row of ``token_ids`` ``[news, dim]``."""
    users: Users
    """Users, one per row of ``history``; ``users[batch.user]`` are those of the samples, for the
    functions of ``newsrec.model.matching``."""


class NewsRecommender(nn.Module):
    """News encoder, user encoder, and the head that makes scores of their vectors.

    Args:
        plm: Any ``transformers`` encoder.
        dim: Size of news and user vectors.
        tune_layers: Top layers of the PLM that are trained; 0 freezes it, -1 trains all.
        news: Shape of the stack over title tokens: Fastformer, or its softmax twin.
        user: Shape of the stack over the history: Fastformer, or its softmax twin.
        max_tokens: Longest text, in tokens.
        max_history: Longest history, in clicks.
        residual: Whether the PLM's sentence vectors bypass the encoders, which then start behind
            closed gates: an untrained model scores by the centred cosine of these vectors, in
            ``dim`` of their directions.
        checkpoint_activations: Whether the PLM's tuned layers run twice to save memory.
        user_encoder: One of ``USER_ENCODERS``.
        matching: How a score is made: ``dot``, ``late`` or ``interests``; see
            ``newsrec.model.heads``.
        late_clicks: With ``late``, number of the most similar clicks to average.
        interests: With ``interests``, number of vectors per user.
        combine: With ``interests``, ``logsumexp`` or ``max`` of the products.
        lora: Adapters of the PLM's tuned layers, trained in place of the layers' own weights.
        appeal: Whether a learned vector is added to every user vector, so that news that all users
            like is ranked higher for all users, also for those without clicks.
        abstract_tokens: Longest abstract, in tokens, that is read as a text of its own; 0 reads
            none.
        category_names: Values of the fields category and subcategory that have a learned vector,
            which is added to the news vector.
    """

    def __init__(
        self,
        plm: PreTrainedModel,
        dim: int = 256,
        tune_layers: int = 0,
        news: FastformerConfig | dict[str, Any] | None = None,
        user: FastformerConfig | dict[str, Any] = FastformerConfig(positions="recency"),  # noqa: B008
        max_tokens: int = 32,
        max_history: int = 50,
        residual: bool = True,
        checkpoint_activations: bool = False,
        user_encoder: str = "fastformer",
        matching: Matching = "dot",
        late_clicks: int = 5,
        interests: int = 4,
        combine: Combine = "logsumexp",
        appeal: bool = False,
        abstract_tokens: int = 0,
        category_names: dict[str, list[str]] | None = None,
        lora: LoraConfig | dict[str, Any] = LoraConfig(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.dim = dim
        self.news_encoder = NewsEncoder(
            plm,
            dim,
            FastformerConfig.of(news or {}),
            tune_layers,
            max_tokens,
            residual,
            checkpoint_activations,
            lora=LoraConfig.of(lora),
            abstract_tokens=abstract_tokens,
            category_names=category_names,
        )
        vectors = interests if matching == "interests" else None
        self.user_encoder = USER_ENCODERS[user_encoder](
            dim, FastformerConfig.of(user), max_history, residual, vectors
        )
        self.head = head_of(matching, dim, late_clicks, interests, combine, appeal)

    def compile_parts(self) -> None:
        """Compile the PLM's layers and the encoders' stacks with torch.compile.

        One kernel serves all shapes. Everything else stays uncompiled: it is little work and, in
        many PLM families, not traceable.
        """
        stacks = [module for module in self.modules() if isinstance(module, Fastformer)]
        for module in (*self.news_encoder.cut.layers, *stacks):
            module.compile(dynamic=True)

    def encode_news(
        self,
        token_ids: Tensor,
        token_lengths: Tensor,
        token_states: Tensor | None = None,
        views: Tensor | None = None,
        categories: Tensor | None = None,
    ) -> Tensor:
        """Encode a batch's news; rows 0 and 1 have no tokens and get zeros.

        Args:
            token_ids: Tokens of texts; from row 2 on sorted by length ``[texts, tokens]``.
            token_lengths: Number of real tokens, on the CPU ``[texts]``.
            token_states: States of the real tokens below the PLM's tuned layers, so that the frozen
                layers need not run ``[tokens, hidden]``; None runs them.
            views: As in ``NewsEncoder.join``.
            categories: Likewise.

        Returns:
            News vectors ``[news, dim]``.
        """
        vectors = self.news_encoder(
            token_ids[FIRST_NEWS:],
            token_lengths[FIRST_NEWS:],
            token_states,
        )
        vectors = torch.cat([vectors.new_zeros(FIRST_NEWS, self.dim), vectors])
        return self.news_encoder.join(vectors, views, categories)

    def encode_user(self, news_vectors: Tensor, history: Tensor) -> Tensor:
        """Encode users from the news they clicked.

        With ``matching`` ``late``, a score also depends on the clicks: use ``users`` for scores.

        Args:
            news_vectors: News vectors; row 0 is padding ``[news, dim]``.
            history: Rows of ``news_vectors``, oldest first, padded with 0 at the end
                ``[users, history]``.

        Returns:
            User vectors ``[users, interests, dim]``; one interest unless ``matching`` is
            ``interests``.
        """
        return self.user_encoder(news_vectors[history], history > 0)

    def users(self, news_vectors: Tensor, history: Tensor) -> Users:
        """Return all that the functions of ``newsrec.model.matching`` need to score users.

        Args:
            news_vectors: As in ``encode_user``.
            history: As in ``encode_user``.
        """
        return self.users_of(news_vectors[history], history > 0)

    def users_of(self, history: Tensor, mask: Tensor) -> Users:
        """Do the same as ``users`` from the vectors of clicked news.

        Args:
            history: Vectors of clicked news, oldest first ``[users, history, dim]``.
            mask: True where real; an all-False row is an empty history ``[users, history]``.
        """
        vectors = self.user_encoder(history, mask)
        return self.head(vectors, history, mask, self.user_encoder.scale())

    def open_from_zero(self) -> list[nn.Parameter]:
        """Return the vectors that start at zero and, like gates, need a large learning rate."""
        views = self.news_encoder.views
        found = [self.head.appeal, None if views is None else views.query]
        return [parameter for parameter in found if parameter is not None]

    def gates(self) -> dict[str, Tensor]:
        """Return the learned numbers of the residual path and of the head, by name.

        For the appeal it is the length of the vector, for abstracts what is added to their logit,
        and for categories the mean length of their vectors.
        """
        news = self.news_encoder.gate
        gates = {} if news is None else {"news": news, **self.user_encoder.gates()}
        gates |= self.head.numbers()
        if self.head.appeal is not None:
            gates["appeal"] = self.head.appeal.norm()
        if self.news_encoder.views is not None:
            gates["abstract"] = self.news_encoder.views.lean
        if self.news_encoder.categories is not None:
            gates["category"] = self.news_encoder.categories.table.weight[1:].norm(dim=1).mean()
        return {name: value.detach() for name, value in gates.items()}

    def encode(self, batch: Batch) -> Encoded:
        """Encode the news and the users of a training batch."""
        lengths = torch.as_tensor(batch.token_lengths)
        news = self.encode_news(
            batch.token_ids, lengths, batch.token_states, batch.views, batch.categories
        )
        return Encoded(news, self.users(news, batch.history))

    def forward(self, batch: Batch) -> Tensor:
        """Score training candidates.

        Returns:
            Raw scores; undefined where a candidate is padding ``[batch, candidates]``.
        """
        news, users = self.encode(batch)
        return match_candidates(users[batch.user], news[batch.candidates])

    def score(self, news_vectors: Tensor, batch: EvalBatch) -> Tensor:
        """Score whole impressions.

        Args:
            news_vectors: One per catalogue row ``[news, dim]``.
            batch: Impressions whose indices refer to catalogue rows.

        Returns:
            Scores in float32, all impressions joined ``[candidates]``.
        """
        return match_impressions(self.users(news_vectors, batch.history), news_vectors, batch)

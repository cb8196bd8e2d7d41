"""Turns titles into news vectors."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from newsrec.errors import UserError
from newsrec.model.fastformer import (
    Fastformer,
    FastformerConfig,
    init_weights,
    pooling_of,
)
from newsrec.model.plm.cut import CutPlm
from newsrec.model.plm.load import longest_text
from newsrec.model.plm.lora import LoraConfig, add_adapters
from newsrec.model.plm.recompute import recompute_activations
from newsrec.model.residual import ResidualPath, rename_weights
from newsrec.model.sequences import Mask, masked_softmax

StatesHook = Callable[[Tensor, Tensor], None]


class ViewPooling(nn.Module):
    """Attention over a news item's texts: its title and, if it has one, its abstract.

    The query starts at zero, so that title and abstract count alike at first.

    Args:
        dim: Size of the vectors.
    """

    offset: Tensor
    """What to subtract from vectors of abstracts ``[dim]``: with a residual path, the mean of the
    abstracts' residual vectors, from which the mean of the titles is already subtracted."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(dim))
        self.lean = nn.Parameter(torch.zeros(()))
        """What is added to the logit of an abstract."""
        self.register_buffer("offset", torch.zeros(dim))

    def forward(self, texts: Tensor, views: Tensor) -> Tensor:
        """Pool the texts of news, in float32 or better.

        Args:
            texts: Vectors of texts; row 0 is not read ``[texts, dim]``.
            views: Rows of the title and of the abstract, 0 for none ``[news, 2]``.

        Returns:
            News vectors; zeros for a news item without texts ``[news, dim]``.
        """
        with torch.autocast(texts.device.type, enabled=False):
            title, abstract = texts.to(self.offset.dtype)[views].unbind(dim=1)
            pair = torch.stack([title, abstract - self.offset], dim=1)
            lean = torch.stack([torch.zeros_like(self.lean), self.lean])
            weights = masked_softmax(((pair * self.query).sum(dim=2) + lean)[..., None], views > 0)
            return (pair * weights).sum(dim=1)


class CategoryVectors(nn.Module):
    """A learned vector per category and subcategory, which is added to the news vector.

    It is added past the gate of the residual path, since a vector behind a closed gate would get no
    gradient. All vectors start at zero, so that an untrained model scores as without them. Row 0,
    of unknown values, stays zero.

    Args:
        dim: Size of the vectors.
        names: The values that have vectors, of each field; rows are counted over all fields.
    """

    def __init__(self, dim: int, names: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.names = {field: list(values) for field, values in names.items()}
        self.table = nn.Embedding(1 + sum(map(len, names.values())), dim, padding_idx=0)
        nn.init.zeros_(self.table.weight)

    def forward(self, news: Tensor, rows: Tensor) -> Tensor:
        """Add their vectors to news ``[news, dim]``; ``rows`` are of the table ``[news, fields]``.

        Returns:
            News vectors ``[news, dim]``.
        """
        added: Tensor = self.table(rows).sum(dim=1)
        return news + added


class NewsEncoder(nn.Module):
    """PLM, then Fastformer over its token states, then pooling.

    State dicts call the stack ``fastformer`` even if it is the softmax twin.

    Args:
        plm: Any ``transformers`` encoder.
        dim: Size of a news vector.
        fastformer: Shape of the stack over tokens: Fastformer, or its softmax twin.
        tune_layers: Top layers of the PLM that are trained: 0 freezes it, -1 trains all of it and
            its embeddings.
        max_tokens: Longest text, in tokens.
        residual: Whether the PLM's own sentence vector is added: see ``ResidualPath``. The encoder
            then starts behind a closed gate.
        checkpoint_activations: Whether the tuned layers run again in the backward pass instead of
            keeping their activations: less memory, more time, the same gradients.
        tokens_per_pass: Padded tokens that go through the PLM at once; None depends on the device.
        lora: Adapters of the tuned layers, trained in place of the layers' own weights.
        abstract_tokens: Longest abstract, in tokens, if abstracts are encoded as texts of their
            own; 0 if not.
        category_names: Values of the fields category and subcategory that have a learned vector.
    """

    def __init__(
        self,
        plm: PreTrainedModel,
        dim: int,
        fastformer: FastformerConfig,
        tune_layers: int,
        max_tokens: int,
        residual: bool = False,
        checkpoint_activations: bool = False,
        tokens_per_pass: int | None = None,
        lora: LoraConfig = LoraConfig(),  # noqa: B008
        abstract_tokens: int = 0,
        category_names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        limit = longest_text(plm)
        for name, tokens in (("max_tokens", max_tokens), ("abstract_tokens", abstract_tokens)):
            if limit is not None and tokens > limit:
                raise UserError(
                    f"data.{name} is {tokens}, but the PLM reads at most {limit} tokens. "
                    f"Choose up to {limit}, or a PLM for longer texts."
                )
        self.plm = plm
        self.cut, self.lora = CutPlm(plm, tune_layers), lora
        if lora.rank:
            add_adapters(self.cut, lora)
        if checkpoint_activations:
            recompute_activations(plm)
        self.tokens_per_pass = tokens_per_pass
        self.project = nn.Linear(plm.config.hidden_size, dim)
        self.fastformer = Fastformer(dim, fastformer, max(max_tokens, abstract_tokens))
        self.pooling = pooling_of(dim, fastformer)
        hidden, last_token = plm.config.hidden_size, self.cut.last_token
        self.residual = ResidualPath(hidden, dim, last_token) if residual else None
        self.gate = nn.Parameter(torch.zeros(())) if residual else None
        self.views = ViewPooling(dim) if abstract_tokens else None
        self.categories = CategoryVectors(dim, category_names) if category_names else None
        self._states_hooks: OrderedDict[int, StatesHook] = OrderedDict()
        self.register_load_state_dict_pre_hook(_rename_weights)  # type: ignore[no-untyped-call]
        self.project.apply(init_weights)
        self.pooling.apply(init_weights)
        self.train()  # from_pretrained leaves the PLM in evaluation mode, and a Trainer keeps that

    def forward(
        self, token_ids: Tensor, token_lengths: Tensor, token_states: Tensor | None = None
    ) -> Tensor:
        """Encode texts sorted by length, each with at least one token.

        Args:
            token_ids: Tokens, padded at the end ``[texts, tokens]``.
            token_lengths: Number of real tokens, ascending, on the CPU ``[texts]``.
            token_states: States of the real tokens below the PLM's tuned layers, all texts
                joined, so that the frozen layers need not run ``[tokens, hidden]``; None runs them.

        Returns:
            Vectors of the texts ``[texts, dim]``, of which ``join`` makes news vectors.

        Raises:
            UserError: If the size of the states differs from this PLM's.
        """
        vectors = []
        padded = bool(self._states_hooks)
        for states, mask in self.cut.last_states(
            token_ids, token_lengths, token_states, self.tokens_per_pass, padded
        ):
            for hook in self._states_hooks.values():
                assert isinstance(mask, Tensor)
                hook(states, mask)
            vectors.append(self.pool(states, mask))
        if not vectors:
            return token_ids.new_zeros((0, self.project.out_features), dtype=torch.float32)
        return torch.cat(vectors)

    def join(
        self, texts: Tensor, views: Tensor | None = None, categories: Tensor | None = None
    ) -> Tensor:
        """Make news vectors of vectors of texts.

        Args:
            texts: Vectors of texts ``[texts, dim]``.
            views: Rows of the title and the abstract of each news item, 0 for no abstract
                ``[news, 2]``; None if each news item is one text.
            categories: Rows of the vectors of each news item's categories, 0 for an unknown one
                ``[news, fields]``; None adds none.

        Returns:
            News vectors ``[news, dim]``.
        """
        if views is not None:
            assert self.views is not None, "built without abstract_tokens"
            texts = self.views(texts, views)
        if categories is not None:
            assert self.categories is not None, "built without category_names"
            texts = self.categories(texts, categories)
        return texts

    def register_states_hook(self, hook: StatesHook) -> RemovableHandle:
        """Call a hook with the PLM's last states whenever they are computed.

        It gets the states of some news ``[news, tokens, hidden]`` and a mask that is True where a
        token is real ``[news, tokens]``, in the order of encoding. The handle removes it, by
        ``remove()`` or as a context manager.
        """
        handle = RemovableHandle(self._states_hooks)
        self._states_hooks[handle.id] = hook
        return handle

    def pool(self, states: Tensor, mask: Mask) -> Tensor:
        """Pool the PLM's last states ``[news, tokens, hidden]`` into news vectors ``[news, dim]``.

        The mask is True where a token is real ``[news, tokens]``. States may also be joined.
        """
        x = self.pooling(self.fastformer(self.project(states), mask), mask)
        return x if self.residual is None else self.residual(states, mask) + self.gate * x

    @torch.no_grad()
    def fit_residual(self, titles: Tensor, abstracts: Tensor) -> None:
        """Fit the residual path to means of last states ``[titles or abstracts, hidden]``.

        Centre and directions of the path are those of the titles; abstracts also get their own
        centre.
        """
        assert self.residual is not None
        self.residual.fit(titles)
        if self.views is not None and len(abstracts):
            vectors = self.residual.of_means(abstracts.to(self.residual.centre))
            self.views.offset.copy_(vectors.mean(dim=0))

    def train(self, mode: bool = True) -> "NewsEncoder":
        """Set training mode; frozen parts of the PLM stay in evaluation mode, without dropout."""
        super().train(mode)
        for module in self.cut.frozen:
            module.eval()
        return self


def _rename_weights(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    rename_weights(state, prefix)

"""Turns the encoders into graphs that run without our code: ONNX and torch.export's format."""

import logging
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from newsrec.errors import UserError
from newsrec.export.folded import folded
from newsrec.model.heads import DotHead
from newsrec.model.news_encoder import NewsEncoder
from newsrec.model.plm.load import longest_text
from newsrec.model.plm.masks import run_plm
from newsrec.model.plm.transformers_internals import attention_of, set_attention
from newsrec.model.user_encoders import UserEncoder

INSIDE = 1_900_000_000
"""Most bytes of weights inside an ONNX file, since protobuf's limit is 2 GiB; larger weights are
written to a file beside it."""


class Names(NamedTuple):
    """Names of a graph's inputs, outputs and axes."""

    inputs: dict[str, list[str]]
    """The axes of each input that may have any size from 1 on."""
    outputs: list[str]


HISTORY, NEWS, TEXTS = ["batch", "history"], ["news", "tokens"], ["texts", "tokens"]
USER_NAMES = Names({"history": HISTORY, "mask": HISTORY}, ["user_vector"])
NEWS_NAMES = Names({"token_ids": NEWS, "mask": NEWS}, ["news_vector"])
TEXTS_NAMES = Names({"token_ids": TEXTS, "mask": TEXTS, "views": ["news"]}, ["news_vector"])
"""Names of a news encoder's graph that reads titles and abstracts."""
CATEGORIES = {"categories": ["news"]}
"""The further input of a news encoder's graph that adds vectors of categories."""


def news_names(encoder: NewsEncoder) -> Names:
    """Return the names of a news encoder's graph."""
    names = NEWS_NAMES if encoder.views is None else TEXTS_NAMES
    return names if encoder.categories is None else names._replace(inputs=names.inputs | CATEGORIES)


def user_names(head: DotHead) -> Names:
    """Return the names of a user encoder's graph, whose outputs are those of a head."""
    return USER_NAMES._replace(outputs=list(head.outputs))


class ServedUserEncoder(nn.Module):
    """A user encoder that accepts histories of any length and reads their newest clicks.

    Args:
        encoder: The user encoder.
        max_history: Number of newest clicks to read, as in training.
        head: How scores are made of the vectors.
    """

    def __init__(self, encoder: UserEncoder, max_history: int, head: DotHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.max_history = max_history
        self.head = head

    def forward(self, history: Tensor, mask: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Encode users; arguments as in ``UserEncoder``, with padding at the end.

        Returns:
            User vectors ``[batch, dim]``; with a head that needs more, a tuple of these and of
            its further outputs.
        """
        later = mask.sum(dim=1, keepdim=True) - mask.cumsum(dim=1)  # newer clicks of the user
        mask = mask & (later < self.max_history)
        users = self.head(self.encoder(history, mask), history, mask, self.encoder.scale())
        outputs = self.head.exported(users)
        return outputs if len(outputs) > 1 else outputs[0]


class ServedNewsEncoder(nn.Module):
    """A news encoder that accepts padded news in any order.

    Args:
        encoder: The news encoder.
    """

    def __init__(self, encoder: NewsEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, token_ids: Tensor, mask: Tensor, *more: Tensor) -> Tensor:
        """Encode news.

        Args:
            token_ids: Tokens of texts, padded at the end ``[texts, tokens]``.
            mask: True where real; at least one token in each row ``[texts, tokens]``.
            more: As in ``join_numbered``.

        Returns:
            News vectors ``[news, dim]``.
        """
        texts = self.encoder.pool(run_plm(self.encoder.plm, token_ids, mask), mask)
        return join_numbered(self.encoder, texts, *more)


def join_numbered(encoder: NewsEncoder, texts: Tensor, *more: Tensor) -> Tensor:
    """Make news vectors of vectors of texts, as ``NewsEncoder.join`` does.

    Args:
        encoder: The news encoder.
        texts: Vectors of texts ``[texts, dim]``.
        more: If the encoder reads abstracts, the numbers of the title and of the abstract of each
            news item, counted from 1, 0 for no abstract ``[news, 2]``. If it has vectors of
            categories, then their rows, 0 for an unknown one ``[news, fields]``.

    Returns:
        News vectors ``[news, dim]``.
    """
    if encoder.views is None:
        return encoder.join(texts, None, *more)
    return encoder.join(torch.cat([torch.zeros_like(texts[:1]), texts]), *more)


def trace_user_encoder(
    encoder: UserEncoder, max_history: int, head: DotHead | None = None
) -> ExportedProgram:
    """Return the graph of a user encoder; batch and history may have any size from 1 on.

    Args:
        encoder: The user encoder.
        max_history: Number of newest clicks to read, as in training.
        head: How scores are made of the vectors; None is the dot product.
    """
    sizes = {0: Dim("batch"), 1: Dim("history")}
    # Sizes of 2, since torch.export takes a size of 1 for a constant.
    inputs = torch.zeros(2, 2, encoder.dim), torch.ones(2, 2, dtype=torch.bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        served = ServedUserEncoder(folded(encoder), max_history, head or DotHead()).eval()
        return torch.export.export(served, inputs, dynamic_shapes=(sizes, sizes))


def trace_news_encoder(encoder: NewsEncoder) -> ExportedProgram:
    """Return the graph of a news encoder with its PLM; all axes may have any size from 1 on.

    Raises:
        UserError: If the PLM's family cannot be traced.
    """
    texts = {0: Dim("texts"), 1: Dim("tokens", max=longest_text(encoder.plm))}
    ones = torch.ones(2, 2, dtype=torch.int64)
    news = {0: texts[0] if encoder.views is None else Dim("news")}
    more = [] if encoder.views is None else [torch.ones(3, 2, dtype=torch.int64)]
    if encoder.categories is not None:
        rows = 2 if encoder.views is None else 3
        more.append(torch.zeros(rows, len(encoder.categories.names), dtype=torch.int64))
    inputs = ones, ones.bool(), *more
    sizes = (
        texts,
        texts,
        *([(news,) * len(more)] if more else []),
    )  # *more is one argument
    attention = attention_of(encoder.plm)
    if attention not in ("eager", "sdpa"):  # others need packed news, but the graph gets padded
        set_attention(encoder.plm, "sdpa")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            served = ServedNewsEncoder(encoder).eval()
            return torch.export.export(served, inputs, dynamic_shapes=sizes)
    except Exception as error:  # a PLM's code can fail to be traced in many ways
        raise _untraceable(encoder, error) from error
    finally:
        set_attention(encoder.plm, attention)


def write_onnx(graph: ExportedProgram, path: Path, names: Names) -> None:
    """Write a graph as ONNX; weights too large for the file go into a second file beside it."""
    weights = sum(w.numel() * w.element_size() for w in graph.state_dict.values())
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (),
            str(path),
            input_names=list(names.inputs),
            output_names=names.outputs,
            dynamic_shapes=tuple(dict(enumerate(axes)) for axes in names.inputs.values()),  # names
            dynamo=True,
            external_data=weights > INSIDE,
            verbose=False,
        )


def _untraceable(encoder: NewsEncoder, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"The news encoder cannot be exported: PyTorch cannot trace a PLM of the family "
        f"{encoder.plm.config.model_type} ({reason}). Leave it out by --news_encoder false: "
        "users and the news of --data.root are then served, later news is not."
    )

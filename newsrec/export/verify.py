"""Checks that an exported folder gives the model's scores: on random inputs, then on real data."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from newsrec.data.ragged import Ragged, to_offsets
from newsrec.evaluation.results import evaluate_scores
from newsrec.export.graph_runs import (
    Encoder,
    Graph,
    distinct_news,
    encode_news,
    onnx_encoder,
    onnx_graph,
)
from newsrec.export.graphs import join_numbered
from newsrec.export.weights import read_model
from newsrec.metrics import METRICS
from newsrec.model.matching import Users, match_all, match_impressions
from newsrec.model.plm.blocks import length_mask
from newsrec.model.recommender import NewsRecommender
from newsrec.serving import matching as serving
from newsrec.serving.manifest import CONFIG, NEWS_ENCODER, PROGRAM, USER_ENCODER, WEIGHTS
from newsrec.serving.matching import Matching
from newsrec.training.module import RecommenderModule

if TYPE_CHECKING:
    from newsrec.data.batch import Catalogue, EvalBatch
    from newsrec.data.datamodule import MindDataModule

TOLERANCE = 1e-4
"""Largest difference from PyTorch that is allowed, as a share of the largest score or vector, and
as a difference of metrics."""
BATCHES = (2, 9, 256)
"""Batch sizes to test, besides 1."""
SAMPLE = 512
"""Number of real news (about) on which the exported news encoder is tested."""

UserScorer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Scores news from histories ``[users, history, dim]``, their mask and the news vectors."""


@torch.no_grad()
def compare_encoders(module: RecommenderModule, folder: Path) -> dict[str, float]:
    """Compare the scores of every exported form with PyTorch's.

    Tests batches of 1, 2, 9 and 256; histories that are empty, of 1 and 7 clicks, full, and longer
    than in training; news of every length.

    Args:
        module: The model, in evaluation mode.
        folder: Folder with the files exported so far.

    Returns:
        For each file, the largest difference of a score, as a share of the largest score.

    Raises:
        RuntimeError: If a difference is above ``TOLERANCE``.
    """
    recommender, full = module.recommender, module.max_history
    again = read_model(folder / CONFIG, folder / WEIGHTS)
    program: Any = torch.export.load(folder / PROGRAM).module()
    score = ExportedScores(recommender)
    users: dict[str, UserScorer] = {
        USER_ENCODER: partial(score, onnx_graph(folder / USER_ENCODER, "history")),
        PROGRAM: partial(score, lambda *inputs: as_arrays(program(*inputs))),
        WEIGHTS: lambda history, mask, news: match_all(
            again.users_of(*newest(history, mask, full)), news
        ),
    }
    news: dict[str, Encoder] = {WEIGHTS: lambda *padded: sorted_news(again, *padded)}
    if (folder / NEWS_ENCODER).is_file():
        news[NEWS_ENCODER] = onnx_encoder(folder / NEWS_ENCODER, "token_ids")
    made = list(made_texts(module))
    vectors = torch.cat([sorted_news(recommender, *padded) for padded in made])
    others = {
        name: torch.cat([encode(*padded) for padded in made]) for name, encode in news.items()
    }
    worst, largest = dict.fromkeys([*users, *news], 0.0), 0.0
    for rows, mask in made_histories(full, len(vectors)):
        history = vectors[rows] * mask[..., None]
        user = recommender.users_of(*newest(history, mask, full))
        expected = match_all(user, vectors)
        largest = max(largest, float(expected.abs().max()))
        found = [(name, encode(history, mask, vectors)) for name, encode in users.items()]
        found += [(name, match_all(user, encoded)) for name, encoded in others.items()]
        for name, scores in found:
            worst[name] = max(worst[name], float((scores - expected).abs().max()))
    errors = {name: value / largest for name, value in worst.items()}
    for name, error in errors.items():
        require_close(error, f"{name} differs from PyTorch by {error:.1e} of the largest score")
    return errors


def require_close(error: float, found: str) -> None:
    """Check that a difference from PyTorch is allowed.

    Raises:
        RuntimeError: If ``error`` is above ``TOLERANCE`` or NaN; the message begins with ``found``.
    """
    if not error <= TOLERANCE:
        raise RuntimeError(f"{found}; {TOLERANCE:.0e} is allowed. Nothing was written.")


def as_arrays(outputs: Tensor | tuple[Tensor, ...]) -> list[NDArray[Any]]:
    """Return the outputs of a user encoder's program as arrays."""
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


class ExportedScores:
    """Scores of exported user encoders, made in the way that serving makes them.

    Args:
        recommender: The model, in evaluation mode.
    """

    def __init__(self, recommender: NewsRecommender) -> None:
        self.own = recommender.head
        self.served = Matching(self.own.settings())

    def __call__(self, graph: Graph, history: Tensor, mask: Tensor, news: Tensor) -> Tensor:
        """Return the scores of all news for users of these histories ``[users, news]``."""
        users = self.served.users(graph(history, mask))
        return torch.from_numpy(serving.match_all(users, news.numpy()))

    def users(self, graph: Graph, history: Tensor, mask: Tensor) -> Users:
        """Return users for PyTorch's functions, which score impressions faster."""
        found = self.served.users(graph(history, mask))
        real = None if found.mask is None else torch.from_numpy(found.mask)
        return Users(torch.from_numpy(found.vectors), real, self.own.combine)


def made_histories(full: int, num_news: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random histories as rows of news, and their mask, each ``[batch, history]``."""
    kinds = [0, 1, min(7, full), full, full + 11]
    generator = torch.Generator().manual_seed(0)
    batches = [[kind] for kind in kinds]
    batches += [[kinds[-1 - i % len(kinds)] for i in range(size)] for size in BATCHES]
    for lengths in batches:
        mask = torch.arange(max(*lengths, 1)) < torch.tensor(lengths)[:, None]
        yield torch.randint(num_news, mask.shape, generator=generator), mask


def made_texts(module: RecommenderModule) -> Iterator[tuple[Tensor, ...]]:
    """Yield random texts that a model can read, as ``made_news`` does."""
    longest = max(module.max_tokens, module.abstract_tokens)
    vocabulary = module.recommender.news_encoder.plm.config.vocab_size
    categories = module.recommender.news_encoder.categories
    sizes = () if categories is None else tuple(map(len, categories.names.values()))
    return made_news(longest, vocabulary, module.abstract_tokens > 0, sizes)


def made_news(
    max_tokens: int, vocabulary: int, abstracts: bool = False, categories: Sequence[int] = ()
) -> Iterator[tuple[Tensor, ...]]:
    """Yield random tokens of texts of every length, and their mask, each ``[texts, tokens]``.

    With ``abstracts`` also yield ``views``, in which two of three news items have an abstract
    ``[news, 2]``. With ``categories``, the number of values of each field, also yield rows of their
    vectors ``[news, fields]``.
    """
    generator = torch.Generator().manual_seed(0)
    for size in (1, *BATCHES):
        lengths = torch.arange(size) % max_tokens + 1
        mask = length_mask(lengths, int(lengths.max()))
        token_ids = torch.randint(2, vocabulary, mask.shape, generator=generator) * mask
        title = torch.arange(size)
        abstract = torch.where(title % 3 < 2, (7 * title + 1) % size + 1, 0)
        more = [torch.stack([title + 1, abstract], dim=1)] if abstracts else []
        if categories:
            fields = len(categories)
            more.append(torch.randint(1 + sum(categories), (size, fields), generator=generator))
        yield token_ids, mask, *more


def sorted_news(
    recommender: NewsRecommender, token_ids: Tensor, mask: Tensor, *more: Tensor
) -> Tensor:
    """Return PyTorch's vectors of news from padded texts in any order ``[news, dim]``.

    ``more`` as in ``join_numbered``.
    """
    lengths, order = mask.sum(dim=1).sort(stable=True)
    texts = recommender.news_encoder(token_ids[order], lengths)[order.argsort()]
    return join_numbered(recommender.news_encoder, texts, *more)


def newest(history: Tensor, mask: Tensor, max_history: int) -> tuple[Tensor, Tensor]:
    """Cut each history to its newest clicks, as the data module does; return it and its mask."""
    counts = mask.sum(dim=1).tolist()
    cut, real = torch.zeros_like(history), torch.zeros_like(mask)
    for row, clicks in enumerate(counts):
        kept = min(clicks, max_history)
        cut[row, :kept] = history[row, clicks - kept : clicks]
        real[row, :kept] = True
    width = max(1, min(max_history, history.shape[1]))
    return cut[:, :width], real[:, :width]


@torch.no_grad()
def compare_news(vectors: Tensor, catalogue: "Catalogue", path: Path) -> float:
    """Compare the exported news encoder with PyTorch on real news.

    Args:
        vectors: PyTorch's vector for each catalogue row ``[news, dim]``.
        catalogue: Tokens of all news.
        path: The exported news encoder.

    Returns:
        The norm of the largest difference of two vectors, as a share of the longest vector. This
        bounds the difference of scores.

    Raises:
        RuntimeError: If this is above ``TOLERANCE``.
    """
    rows = distinct_news(catalogue)
    rows = rows[:: max(1, len(rows) // SAMPLE)]
    worst = 0.0
    for block, found in encode_news(onnx_encoder(path, "token_ids"), catalogue, rows):
        worst = max(worst, float((found - vectors[block]).norm(dim=1).max()))
    error = worst / max(float(vectors.norm(dim=1).max()), torch.finfo(torch.float32).tiny)
    require_close(error, f"{path.name} differs from PyTorch on real news by {error:.1e}")
    return error


@torch.no_grad()
def evaluate_export(
    recommender: NewsRecommender, data: "MindDataModule", vectors: Tensor, folder: Path
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Score a split with the exported user encoder, and compare the metrics with PyTorch's.

    Args:
        recommender: The model, in evaluation mode, on the CPU.
        data: Data module after ``setup``, whose ``eval_split`` has labels.
        vectors: Vector for each catalogue row, in float32 ``[news, dim]``.
        folder: Folder with the files exported so far.

    Returns:
        Metrics of the exported scores, as in ``metrics.json`` of ``evaluate``; and these scores.

    Raises:
        RuntimeError: If a metric differs by more than ``TOLERANCE``.
    """
    name = data.data.split(data.eval_split).name
    exported = exported_scores(recommender, data, vectors, folder)
    found = evaluate_scores(data.data, name, exported)
    if found["evaluated"]:
        expected = score_split(data, lambda batch: recommender.score(vectors, batch))
        own = evaluate_scores(data.data, name, expected)
        error = max(abs(found[metric] - own[metric]) for metric in METRICS)
        require_close(error, f"On {name} the exported metrics differ by {error:.1e}")
    return found, exported


@torch.no_grad()
def exported_scores(
    recommender: NewsRecommender, data: "MindDataModule", vectors: Tensor, folder: Path
) -> NDArray[np.float32]:
    """Return a split's scores by the exported user encoder; arguments as in ``evaluate_export``."""
    score, graph = ExportedScores(recommender), onnx_graph(folder / USER_ENCODER, "history")

    def scores(batch: "EvalBatch") -> Tensor:
        users = score.users(graph, vectors[batch.history], batch.history > 0)
        return match_impressions(users, vectors, batch)

    return score_split(data, scores)


def score_split(
    data: "MindDataModule", score: Callable[["EvalBatch"], Tensor]
) -> NDArray[np.float32]:
    """Score the impressions of a data module's split, in the order of the file ``[candidates]``."""
    rows, counts, scores = [], [], []
    for batch in data.predict_dataloader():
        scores.append(score(batch).numpy())
        rows.append(batch.row.numpy())
        counts.append(batch.offsets.diff().numpy())
    offsets = to_offsets(np.concatenate(counts))
    order = np.argsort(np.concatenate(rows))
    return Ragged(np.concatenate(scores), offsets).take(order).values

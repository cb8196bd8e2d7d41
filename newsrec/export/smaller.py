"""What smaller exports lose: vectors in float16 or int8, and a news encoder with int8 weights."""

import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from newsrec.data.batch import Catalogue
from newsrec.data.dataset import NewsData
from newsrec.errors import UserError
from newsrec.evaluation.intervals import paired_interval
from newsrec.export.graph_runs import Encoder, distinct_news, encode_all, encode_news, onnx_encoder
from newsrec.export.quantize import quantize_graph
from newsrec.metrics import impression_metrics
from newsrec.serving.manifest import FLOAT32, NEWS_ENCODER, WEIGHTS_BESIDE

log = logging.getLogger(__name__)

MOST_LOSS = 0.001
"""Largest loss of AUC that is allowed."""
LEAST_AGREEMENT = 0.98
"""Smallest mean cosine of the centred vectors of a quantised and the float encoder."""
TIMED = 128
"""Number of news items (about) that measure the speed of an encoder."""


class Smaller(NamedTuple):
    """How an export is made smaller."""

    vectors: str = FLOAT32
    """Type of the news vectors, one of ``newsrec.serving.vectors.TYPES``."""
    quantize: bool = False
    """Whether the weights of the news encoder are rounded to int8."""

    def __bool__(self) -> bool:
        return self.quantize or self.vectors != FLOAT32

    def __str__(self) -> str:
        options = [f"--vectors {self.vectors}"] if self.vectors != FLOAT32 else []
        return " ".join([*options, "--quantize"] if self.quantize else options)


def agreement(exact: Tensor, found: Tensor) -> dict[str, float]:
    """Compare a quantised encoder's vectors with the float encoder's.

    The mean is taken off first, since a direction that all news share says nothing.

    Args:
        exact: Vectors of the float encoder ``[news, dim]``.
        found: Vectors of the quantised encoder ``[news, dim]``.

    Returns:
        Mean and smallest cosine of the vectors of a news item.

    Raises:
        UserError: If the mean is below ``LEAST_AGREEMENT``.
    """
    middle = exact.mean(dim=0)
    cosines = torch.cosine_similarity(exact - middle, found - middle, dim=1)
    cosines = torch.where((exact == found).all(dim=1), torch.ones_like(cosines), cosines)
    mean, least = float(cosines.mean()), float(cosines.min())
    if not mean >= LEAST_AGREEMENT:
        raise UserError(
            f"--quantize: vectors of the quantised news encoder have a mean cosine of {mean:.4f} "
            f"with the exact ones; {LEAST_AGREEMENT} is the least allowed. Nothing was written. "
            "Export without --quantize."
        )
    return {"mean_cosine": mean, "least_cosine": least}


def auc_loss(
    data: NewsData,
    split: str,
    exact: NDArray[np.floating],
    found: NDArray[np.floating],
    smaller: Smaller,
) -> dict[str, Any]:
    """Compare the AUC of a smaller export with that of the whole one, paired by impression.

    Args:
        data: The data.
        split: A split with labels, of which an impression can be evaluated.
        exact: Scores of the whole export, in the order of the file ``[candidates]``.
        found: Scores of the smaller export.
        smaller: How it is smaller, for the message.

    Returns:
        Both AUCs, the loss, and its 95 % interval over users.

    Raises:
        UserError: If the loss is above ``MOST_LOSS``.
    """
    part = data.split(split)
    assert part.labels is not None
    offsets = part.candidates.offsets
    values = [impression_metrics(scores, part.labels, offsets) for scores in (exact, found)]
    valid = values[0].valid
    whole, less = (metrics.of("auc")[valid] for metrics in values)
    users = np.asarray(part.user)[valid]
    loss, low, high = paired_interval(whole, less, users)
    if not loss <= MOST_LOSS:
        raise UserError(
            f"{smaller}: the AUC on {split} is {less.mean():.4f}, and {whole.mean():.4f} without, "
            f"a loss of {loss:.4f} ({low:.4f} to {high:.4f}), where {MOST_LOSS} is allowed. "
            f"Nothing was written. Export without {smaller}."
        )
    return {
        "split": split,
        "auc": float(less.mean()),
        "whole_auc": float(whole.mean()),
        "loss": loss,
        "loss_interval": [low, high],
    }


def quantize(
    folder: Path, dim: int, texts: Catalogue | Iterable[tuple[Tensor, ...]]
) -> tuple[Tensor, dict[str, Any]]:
    """Quantise a folder's news encoder, and compare its vectors with the float encoder's.

    Args:
        folder: Folder with the float encoder, which is replaced.
        dim: Size of the vectors.
        texts: A catalogue, or batches of padded texts to compare the vectors of.

    Returns:
        The vector of each news item by the quantised encoder ``[news, dim]``, and what was lost.

    Raises:
        UserError: If the vectors differ too much.
    """
    path = folder / NEWS_ENCODER
    with TemporaryDirectory() as beside:
        whole = Path(beside) / NEWS_ENCODER
        for name in (NEWS_ENCODER, NEWS_ENCODER + WEIGHTS_BESIDE):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, Path(beside) / name)
        before = sum(part.stat().st_size for part in Path(beside).iterdir())
        quantize_graph(path)
        size = path.stat().st_size
        log.info(
            "quantised: %s has %.1f MiB, and had %.1f", path.name, size / 2**20, before / 2**20
        )
        graphs = [onnx_encoder(encoder, "token_ids") for encoder in (whole, path)]
        if isinstance(texts, Catalogue):
            rows = distinct_news(texts)
            exact, found = (encode_all(graph, texts, dim) for graph in graphs)
            speeds = encoding_speed(texts, graphs)
            log.info("quantised: it encodes %.0f news/s, and did %.0f", speeds[1], speeds[0])
            return found, agreement(exact[rows], found[rows])
        batches = list(texts)
        exact, found = (torch.cat([graph(*batch) for batch in batches]) for graph in graphs)
        return found, agreement(exact, found)


def encoding_speed(catalogue: Catalogue, encoders: Sequence[Encoder]) -> list[float]:
    """Return how many news items a second each encoder encodes, measured in turns."""
    rows = distinct_news(catalogue)
    rows = rows[:: max(1, len(rows) // TIMED)]
    best = [float("inf")] * len(encoders)
    for _ in range(2):
        for place, encode in enumerate(encoders):
            start = time.perf_counter()
            for _ in encode_news(encode, catalogue, rows):
                pass
            best[place] = min(best[place], time.perf_counter() - start)
    return [len(rows) / seconds for seconds in best]


def described(lost: dict[str, Any]) -> str:
    """Return in one sentence what a smaller export loses, for the log and the card."""
    parts = []
    if "mean_cosine" in lost:
        parts.append(
            "vectors of the quantised news encoder have a mean cosine of "
            f"{lost['mean_cosine']:.4f} with the exact ones (least {lost['least_cosine']:.4f})"
        )
    if "loss" in lost:
        low, high = lost["loss_interval"]
        parts.append(
            f"the AUC on {lost['split']} is {lost['auc']:.4f}, and {lost['whole_auc']:.4f} "
            f"without, a loss of {lost['loss']:.4f} (95 % interval {low:.4f} to {high:.4f})"
        )
    text = "; ".join(parts) or "the loss was not measured, for lack of labels"
    return text[0].upper() + text[1:]

"""Writes the vectors of a data folder's news into an export, and scores dev with them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from newsrec.console import counted
from newsrec.data import FIRST_NEWS
from newsrec.data.datamodule import MindDataModule
from newsrec.data.fields import read_texts
from newsrec.evaluation.names import COUNTS
from newsrec.evaluation.results import evaluate_scores
from newsrec.export.smaller import Smaller, auc_loss, quantize
from newsrec.export.verify import compare_news, evaluate_export, exported_scores
from newsrec.metrics import METRICS
from newsrec.serving.folder import NEWS_SCHEMA, StoredNews, write_news
from newsrec.serving.manifest import NEWS_ENCODER, USER_ENCODER
from newsrec.serving.vectors import pack
from newsrec.shipped import data_folder
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.module import RecommenderModule

log = logging.getLogger(__name__)

SPLIT = "dev"
"""The split whose metrics go into the manifest."""


def write_catalogue(
    module: RecommenderModule,
    data: MindDataModule,
    folder: Path,
    smaller: Smaller = Smaller(),  # noqa: B008  # it is immutable
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Write the vectors of a data folder's news, and score dev with them.

    Returns:
        Dev's metrics, named as in ``evaluate``; None if dev is absent or has no labels, or no
        impression can be evaluated. And what a smaller export loses.

    Raises:
        RuntimeError: If the exported model's vectors or metrics differ from PyTorch's.
        UserError: If a smaller export loses too much.
    """
    log.info("encoding %s", counted(len(data.data.news), "news item"))
    vectors = _encode(module, data)
    table = data.data.news.select(["news_id", "title", "category", "subcategory"])
    rows = pa.array(np.arange(FIRST_NEWS, len(vectors)))
    texts = read_texts(
        data.data.news, data.fields, module.abstract_tokens > 0, tuple(module.category_names or ())
    )
    hashes = pa.array(texts.hashes(), pa.string())
    table = table.add_column(0, "row", rows).append_column("text_hash", hashes)
    if (folder / NEWS_ENCODER).is_file():
        error = compare_news(vectors, data.catalogue, folder / NEWS_ENCODER)
        log.info("verified: %s on real news, to %.1e", NEWS_ENCODER, error)
    lost: dict[str, Any] = {}
    found = vectors
    if smaller.quantize:
        found, lost = quantize(folder, module.dim, data.catalogue)
    packed = pack(found.numpy(), smaller.vectors)
    write_news(StoredNews(table.cast(NEWS_SCHEMA), packed), folder)
    split = data.data.splits.get(SPLIT)
    if split is None or split.labels is None:
        return None, lost
    metrics, scores = evaluate_export(module.recommender, data, vectors, folder)
    if not metrics["evaluated"]:
        return None, lost
    log.info("verified: AUC on %s is %.4f through %s", SPLIT, metrics["auc"], USER_ENCODER)
    if smaller:
        stored = torch.from_numpy(np.asarray(packed))
        ours = exported_scores(module.recommender, data, stored, folder)
        lost |= auc_loss(data.data, SPLIT, scores, ours, smaller)
        metrics = evaluate_scores(data.data, SPLIT, ours)
    return reported(metrics, data.root) | {"selected": data.selected_on == SPLIT}, lost


def reported(found: Mapping[str, Any], root: str | Path) -> dict[str, Any]:
    """Return what the manifest says about the metrics of a split."""
    names = ("split", "window", "impressions", "evaluated", *METRICS, "intervals")
    kept = {name: found[name] for name in (*names, "data_fingerprint")}
    kept |= {name: found[name] for name in COUNTS if name in found}
    return kept | {"dataset": data_folder(root).resolve().name}


def _encode(module: RecommenderModule, data: MindDataModule) -> Tensor:
    """Return the vectors of all news, computed on a GPU if there is one ``[news, dim]``."""
    recommender = module.recommender
    recommender.to("cuda" if torch.cuda.is_available() else "cpu")
    vectors = encode_catalogue(recommender, data.catalogue).cpu()
    recommender.to("cpu")
    return vectors

"""Exports a checkpoint as a folder that needs no PyTorch to run."""

import contextlib
import json
import logging
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from torch import Tensor

from newsrec import __version__
from newsrec.data import FIRST_NEWS
from newsrec.data.cache import digest
from newsrec.data.datamodule import MindDataModule
from newsrec.data.fields import read_texts
from newsrec.errors import MissingPackageError
from newsrec.evaluation.names import COUNTS
from newsrec.export.card import model_card
from newsrec.export.contract import input_contract
from newsrec.export.graphs import (
    Names,
    news_names,
    trace_news_encoder,
    trace_user_encoder,
    user_names,
    write_onnx,
)
from newsrec.export.verify import compare_encoders, compare_news, evaluate_export
from newsrec.export.weights import read_model, write_model
from newsrec.files import file_hash, publish, require_empty
from newsrec.metrics import METRICS
from newsrec.serving.folder import NEWS_SCHEMA, StoredNews, write_news
from newsrec.serving.manifest import (
    CARD,
    CONFIG,
    MANIFEST,
    NEWS_ENCODER,
    PROGRAM,
    TOKENIZER,
    USER_ENCODER,
    WEIGHTS,
    format_of,
    settings_hash,
)
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.checkpoint.read import hyper_parameters, weights_hash
from newsrec.training.hardware.threads import choose_threads, set_threads
from newsrec.training.module import RecommenderModule
from newsrec.training.trained_run import TrainedRun

log = logging.getLogger(__name__)

ONNX = ("onnx", "onnxruntime", "onnxscript")
SPLIT = "dev"
"""The split whose metrics go into the manifest."""


def export(
    ckpt_path: str, output: Path, data_root: str | None = None, news_encoder: bool = True
) -> None:
    """Export a checkpoint and verify the result; ``output`` appears only if it is correct.

    Args:
        ckpt_path: Checkpoint that ``fit`` wrote.
        output: Folder to write, absent or empty.
        data_root: Data folder whose news vectors are exported too; its dev split is scored with
            the exported model.
        news_encoder: Whether to write ``news_encoder.onnx``.

    Raises:
        UserError: If a package is missing, or the output, the checkpoint or the data cannot be
            used.
        RuntimeError: If the exported model does not give PyTorch's scores.
    """
    require_empty(output)
    for package in ONNX:
        try:
            version(package)
        except PackageNotFoundError as error:
            raise MissingPackageError.of("export", package, "export") from error
    trained = TrainedRun.open(ckpt_path, data_root, SPLIT)
    # Open the data now, so that a mistake in them is reported before the long work.
    data = None if data_root is None else trained.data
    set_threads(choose_threads(processes=1), say=False)
    module, checkpoint = trained.module, trained.checkpoint
    origin = origin_of(checkpoint, trained.path)

    def build(folder: Path) -> None:
        tokenizer_json = checkpoint["newsrec"]["tokenizer_json"]
        fields = hyper_parameters(checkpoint, "data")["fields"]
        log.info("writing the encoders, and comparing them with PyTorch")
        errors = write_encoders(module, tokenizer_json, folder, news_encoder)
        log.info("verified: scores agree with PyTorch's to %.1e", max(errors.values()))
        metrics = None if data is None else write_catalogue(module, data, folder)
        if metrics is not None:  # dev of another folder did not choose the checkpoint
            same = origin["data_fingerprint"].get(SPLIT) == metrics["data_fingerprint"]
            metrics["selected"] = same and origin["selected_on"] == SPLIT
        more = {"checkpoint": origin, "metrics": metrics, "largest_errors": errors}
        seal(module, describe(module, fields, folder) | more, folder)

    publish(output, build)


def seal(module: RecommenderModule, manifest: dict[str, Any], folder: Path) -> None:
    """Write the card and the manifest, after all other files."""
    manifest["files"] = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    manifest["settings_hash"] = settings_hash(manifest)
    (folder / CARD).write_text(model_card(module, manifest), encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def write_encoders(
    module: RecommenderModule, tokenizer_json: str, folder: Path, news_encoder: bool = True
) -> dict[str, float]:
    """Write the weights, the tokenizer and the encoders, and compare the encoders with PyTorch.

    Args:
        module: The model, in evaluation mode.
        tokenizer_json: Text of the PLM's ``tokenizer.json``.
        folder: Folder to write into.
        news_encoder: Whether to write ``news_encoder.onnx``.

    Returns:
        For each file, the largest difference of a score, as a share of the largest score.

    Raises:
        RuntimeError: If a difference is too large.
        UserError: If the PLM's family cannot be exported.
    """
    recommender = module.recommender.eval()
    write_model(module, folder)
    if module.lora.rank:  # compare the plain PLM in the files with the PLM with adapters
        recommender = read_model(folder / CONFIG, folder / WEIGHTS)
    write_tokenizer(module, tokenizer_json, folder)
    head = recommender.head
    user = trace_user_encoder(recommender.user_encoder, module.max_history, head)
    program = BytesIO()  # if the disk is full, PyTorch's own file writer aborts the process
    torch.export.save(user, program)
    (folder / PROGRAM).write_bytes(program.getvalue())
    write_onnx(user, folder / USER_ENCODER, user_names(head))
    if news_encoder:
        news = trace_news_encoder(recommender.news_encoder)
        write_onnx(news, folder / NEWS_ENCODER, news_names(recommender.news_encoder))
    return compare_encoders(module, folder)


def write_tokenizer(module: RecommenderModule, tokenizer_json: str, folder: Path) -> None:
    """Write the PLM's tokenizer, which cuts texts where the model does."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.enable_truncation(module.max_tokens)
    tokenizer.save(str(folder / TOKENIZER))


def write_catalogue(
    module: RecommenderModule, data: MindDataModule, folder: Path
) -> dict[str, Any] | None:
    """Write the vectors of a data folder's news, and score dev with them.

    Returns:
        Dev's metrics, named as in ``evaluate``; None if dev is absent or has no labels, or no
        impression can be evaluated.

    Raises:
        RuntimeError: If the exported model's vectors or metrics differ from PyTorch's.
    """
    log.info("encoding %s news items", f"{len(data.data.news):,}")
    vectors = _encode(module, data)
    table = data.data.news.select(["news_id", "title", "category", "subcategory"])
    rows = pa.array(np.arange(FIRST_NEWS, len(vectors)))
    texts = read_texts(data.data.news, data.fields, module.abstract_tokens > 0)
    hashes = pa.array(texts.hashes(), pa.string())
    table = table.add_column(0, "row", rows).append_column("text_hash", hashes)
    write_news(StoredNews(table.cast(NEWS_SCHEMA), vectors.numpy()), folder)
    if (folder / NEWS_ENCODER).is_file():
        error = compare_news(vectors, data.catalogue, folder / NEWS_ENCODER)
        log.info("verified: %s on real news, to %.1e", NEWS_ENCODER, error)
    split = data.data.splits.get(SPLIT)
    if split is None or split.labels is None:
        return None
    found = evaluate_export(module.recommender, data, vectors, folder)
    if not found["evaluated"]:
        return None
    log.info("verified: AUC on %s is %.4f through %s", SPLIT, found["auc"], USER_ENCODER)
    return reported(found, data.root) | {"selected": data.selected_on == SPLIT}


def reported(found: Mapping[str, Any], root: str | Path) -> dict[str, Any]:
    """Return what the manifest says about the metrics of a split."""
    names = ("split", "window", "impressions", "evaluated", *METRICS, "intervals")
    kept = {name: found[name] for name in (*names, "data_fingerprint")}
    kept |= {name: found[name] for name in COUNTS if name in found}
    return kept | {"dataset": Path(root).resolve().name}


def describe(module: RecommenderModule, fields: list[str], folder: Path) -> dict[str, Any]:
    """Return the part of ``manifest.json`` on the model: how to use and how to identify it."""
    dim, head = module.dim, module.recommender.head
    settings = head.settings()
    abstracts = {"abstract_tokens": module.abstract_tokens} if module.abstract_tokens else {}

    def describe_graph(names: Names, first: dict[str, Any]) -> dict[str, Any]:
        name, axes = next(iter(names.inputs.items()))
        batch, length = axes
        mask = {"shape": axes, "dtype": "bool"}
        views = {"shape": ["news", 2], "dtype": "int64"}
        described = {name: first | {"shape": [*axes, *first["shape"]]}, "mask": mask}
        vectors: dict[str, Any] = {
            "user_vector": {"shape": [batch, dim], "dtype": "float32"},
            "news_vector": {"shape": ["news", dim], "dtype": "float32"},
            "click_vectors": {"shape": [batch, length, dim], "dtype": "float32"},
            "click_mask": mask,
            "interest_vectors": {"shape": [batch, module.interests, dim], "dtype": "float32"},
        }
        return {
            "inputs": described | ({"views": views} if "views" in names.inputs else {}),
            "outputs": {name: vectors[name] for name in names.outputs},
        }

    user = user_names(head)
    history = {"shape": [dim], "dtype": "float32"}
    token_ids = {"shape": [], "dtype": "int64"}
    encoders = {USER_ENCODER: describe_graph(user, history)}
    if (folder / NEWS_ENCODER).is_file():
        news = news_names(module.recommender.news_encoder)
        encoders[NEWS_ENCODER] = describe_graph(news, token_ids)
    return {
        "format": format_of(settings, abstracts.get("abstract_tokens", 0)),
        "input_contract": input_contract(settings, module.abstract_tokens),
        "matching": settings,
        "encoders": encoders,
        "dim": dim,
        "max_history": module.max_history,
        "max_tokens": module.max_tokens,
        **abstracts,
        "fields": list(fields),
        "model_hash": digest(
            *(file_hash(folder / name) for name in (WEIGHTS, CONFIG, TOKENIZER)), list(fields)
        ),
        "plm": module.plm,
        "plm_sha256": weights_hash(module.recommender.news_encoder.plm.state_dict()),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "newsrec": __version__}
    for package in ("torch", "transformers", "tokenizers", "numpy", *ONNX):
        with contextlib.suppress(PackageNotFoundError):  # ONNX is optional
            found[package] = version(package)
    return found


def _encode(module: RecommenderModule, data: MindDataModule) -> Tensor:
    """Return the vectors of all news, computed on a GPU if there is one ``[news, dim]``."""
    recommender = module.recommender
    recommender.to("cuda" if torch.cuda.is_available() else "cpu")
    vectors = encode_catalogue(recommender, data.catalogue).cpu()
    recommender.to("cpu")
    return vectors


def origin_of(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the part of the manifest on the checkpoint."""
    ours = checkpoint["newsrec"]
    return {
        "sha256": file_hash(path),
        "epoch": checkpoint["epoch"] + 1,
        "step": checkpoint["global_step"],
        "selected_on": ours["selected_on"],
        "selected_news": ours.get("selected_news", "all"),
        "windows": ours.get("windows", {}),
        "metrics": ours["metrics"],
        "data_fingerprint": ours["data_fingerprint"],
        "dataset": Path(hyper_parameters(checkpoint, "data").get("root", "data")).resolve().name,
    }

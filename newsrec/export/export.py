"""Exports a checkpoint as a folder that needs no PyTorch to run."""

import contextlib
import json
import logging
import platform
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from newsrec import __version__
from newsrec.data.cache import digest
from newsrec.errors import MissingPackageError, UserError
from newsrec.export.card import model_card
from newsrec.export.catalogue import SPLIT, write_catalogue
from newsrec.export.contract import input_contract
from newsrec.export.graphs import (
    Names,
    news_names,
    trace_news_encoder,
    trace_user_encoder,
    user_names,
    write_onnx,
)
from newsrec.export.smaller import Smaller, described
from newsrec.export.smaller import quantize as quantized
from newsrec.export.verify import compare_encoders, made_texts
from newsrec.export.weights import read_model, write_model
from newsrec.files import file_hash, publish, require_empty
from newsrec.serving.manifest import (
    CARD,
    CONFIG,
    FLOAT32,
    MANIFEST,
    NEWS_ENCODER,
    PROGRAM,
    TOKENIZER,
    USER_ENCODER,
    WEIGHTS,
    format_of,
    settings_hash,
)
from newsrec.serving.vectors import TYPES
from newsrec.training.checkpoint.read import hyper_parameters, weights_hash
from newsrec.training.hardware.threads import choose_threads, set_threads
from newsrec.training.module import RecommenderModule
from newsrec.training.trained_run import TrainedRun

log = logging.getLogger(__name__)

ONNX = ("onnx", "onnxruntime", "onnxscript")
_DECIDING = {
    False: (WEIGHTS, CONFIG, TOKENIZER),
    True: (WEIGHTS, CONFIG, TOKENIZER, NEWS_ENCODER),
}
"""Files that decide a model's vectors, without and with a quantised news encoder."""


def export(
    ckpt_path: str,
    output: Path,
    data_root: str | None = None,
    news_encoder: bool = True,
    vectors: str = FLOAT32,
    quantize: bool = False,
) -> None:
    """Export a checkpoint and verify the result; ``output`` appears only if it is correct.

    Args:
        ckpt_path: Checkpoint that ``fit`` wrote.
        output: Folder to write, absent or empty.
        data_root: Data folder whose news vectors are exported too; its dev split is scored with
            the exported model.
        news_encoder: Whether to write ``news_encoder.onnx``.
        vectors: Type of the news vectors in the folder, one of ``newsrec.serving.vectors.TYPES``.
        quantize: Whether to round the weights of the news encoder to int8. The news vectors are
            then made by the rounded encoder.

    Raises:
        UserError: If a package is missing, the output, the checkpoint or the data cannot be used,
            or ``vectors`` or ``quantize`` lose too much.
        RuntimeError: If the exported model does not give PyTorch's scores.
    """
    require_empty(output)
    smaller = Smaller(vectors, quantize)
    if vectors not in TYPES:
        raise UserError(f"--vectors is {vectors!r}. Choose one of {', '.join(TYPES)}.")
    if quantize and not news_encoder:
        raise UserError(
            "--quantize rounds the news encoder, and --news_encoder false leaves it out. Give one "
            "of the two."
        )
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
        metrics = None
        lost: dict[str, Any] = {}
        if data is not None:
            metrics, lost = write_catalogue(module, data, folder, smaller)
        elif quantize:
            _, lost = quantized(folder, module.dim, made_texts(module))
        if smaller:
            log.info("%s: %s", smaller, described(lost))
            lost = {"smaller": {"options": str(smaller), **lost}}
        if metrics is not None:  # dev of another folder did not choose the checkpoint
            same = origin["data_fingerprint"].get(SPLIT) == metrics["data_fingerprint"]
            metrics["selected"] = same and origin["selected_on"] == SPLIT
        more = {"checkpoint": origin, "metrics": metrics, "largest_errors": errors, **lost}
        seal(module, describe(module, fields, folder, smaller) | more, folder)

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


def describe(
    module: RecommenderModule,
    fields: list[str],
    folder: Path,
    smaller: Smaller = Smaller(),  # noqa: B008  # it is immutable
) -> dict[str, Any]:
    """Return the part of ``manifest.json`` on the model: how to use and how to identify it."""
    dim, head = module.dim, module.recommender.head
    settings = head.settings()
    later = ("abstract_tokens", "category_names")
    read = {name: getattr(module, name) for name in later if getattr(module, name)}

    def describe_graph(names: Names, first: dict[str, Any]) -> dict[str, Any]:
        name, axes = next(iter(names.inputs.items()))
        batch, length = axes
        mask = {"shape": axes, "dtype": "bool"}
        widths = {"views": 2, "categories": len(module.category_names or ())}
        more = {
            name: {"shape": ["news", width], "dtype": "int64"}
            for name, width in widths.items()
            if name in names.inputs
        }
        described = {name: first | {"shape": [*axes, *first["shape"]]}, "mask": mask}
        vectors: dict[str, Any] = {
            "user_vector": {"shape": [batch, dim], "dtype": "float32"},
            "news_vector": {"shape": ["news", dim], "dtype": "float32"},
            "click_vectors": {"shape": [batch, length, dim], "dtype": "float32"},
            "click_mask": mask,
            "interest_vectors": {"shape": [batch, module.interests, dim], "dtype": "float32"},
        }
        return {
            "inputs": described | more,
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
        "format": format_of({"matching": settings, "vectors": smaller.vectors, **read}),
        "input_contract": input_contract(
            settings, module.abstract_tokens, smaller.vectors, bool(module.category_names)
        ),
        "matching": settings,
        "encoders": encoders,
        "dim": dim,
        "max_history": module.max_history,
        "max_tokens": module.max_tokens,
        **read,
        **({"vectors": smaller.vectors} if smaller.vectors != FLOAT32 else {}),
        "fields": list(fields),
        "model_hash": digest(
            *(file_hash(folder / name) for name in _DECIDING[smaller.quantize]), list(fields)
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

"""What a checkpoint of ours may hold, checked once, before a model is built of it.

A checkpoint may come from a stranger, or be damaged. Its values are checked against the options of
this version, and the model that they describe is built without values first (on PyTorch's ``meta``
device, which takes no memory), to be compared with the weights that are there.
"""

import dataclasses
import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from newsrec.errors import UserError
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.plm.load import build_plm
from newsrec.model.plm.masks import PADDED
from newsrec.model.plm.packing import ATTENTION
from newsrec.model.recommender import NewsRecommender
from newsrec.training.checkpoint.kinds import (
    Wrong,
    check_kind,
    check_known,
    check_table,
    is_of,
    shown,
)

ATTENTIONS = (None, "sdpa", "eager", ATTENTION, *PADDED.values())
"""Kinds of attention that a PLM's configuration may name; others load packages or kernels."""
EXPERTS = (None, "eager", "batched_mm", "grouped_mm")
"""The same for mixtures of experts."""
DROPPED = ("auto_map", "trust_remote_code", "custom_pipelines")
"""Keys that point to Python code. Families that ``transformers`` has do without, so they go."""
REFUSED = (
    *("quantization_config", "compression_config", "use_kernels", "kernel_config"),
    *("backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone"),
)
"""Keys that have packages loaded, or files downloaded, where they are set."""
LARGEST_NUMBER = 2**20
"""Of a number of layers, of tokens of a text and of clicks of a history."""
PARTS_OF_A_WEIGHT = 8
"""Modules and parameters of a model for each of its weights; ModernBERT has three."""
SPARE_PARTS = 100
"""Modules and parameters that a model may have beside its weights, such as a pooler."""
LONGEST_REASON = 200
"""Characters of a library's message that are quoted."""

FROM_THE_FIRST = {
    "hyper_parameters": ("plm", "tune_layers", "dim", "news", "user", "max_tokens", "max_history"),
    "datamodule_hyper_parameters": ("fields", "max_tokens", "max_history", "train", "val"),
}
"""Options that checkpoints of format 1 have always had; later ones have a default."""

EXPORTED = ("tune_layers", "dim", "news", "user", "max_tokens", "max_history", "residual")
"""Options of the model in an export's ``config.json``."""

OURS: dict[str, Any] = {
    "plm_config": dict[str, Any],
    "tokenizer_json": str,
    "selected_on": str | None,
    "metrics": dict[str, float],
    "data_fingerprint": dict[str, str],
}
"""What stands under ``newsrec`` beside ``format``."""
OURS_LATER: dict[str, Any] = {
    "monitor": str | None,
    "windows": dict[str, str],
    "auto_precision": str | None,
    "threads": int | None,
}
"""The same, which may be absent."""
LIGHTNINGS: dict[str, Any] = {"epoch": int, "global_step": int, "state_dict": dict[str, Tensor]}
LIGHTNINGS_LATER: dict[str, Any] = {
    "loops": dict[str, Any],
    "callbacks": dict[str, Any],
    "optimizer_states": list[dict],
    "lr_schedulers": list[dict],
}


def check_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint that no model can be built from, or that asks for code or downloads.

    Keys of the PLM's configuration that point to code are taken out.

    Args:
        checkpoint: What the file holds, of our format.
        path: Named in messages.

    Raises:
        UserError: Naming the file, the place in it and what should stand there.
    """
    with building(path):
        _check_values(checkpoint)
        _check_tokenizer(checkpoint["newsrec"]["tokenizer_json"])
        _check_weights(checkpoint)


def check_exported(config: Any, weights: Mapping[str, Tensor]) -> None:
    """Refuse the configuration of an export that no model can be built from, or that asks for code.

    Keys of the PLM's configuration that point to code are taken out.

    Args:
        config: What ``config.json`` holds.
        weights: What ``model.safetensors`` holds.

    Raises:
        Wrong: Naming the place and what should stand there.
    """
    from newsrec.training.module import RecommenderModule  # here, because it reads checkpoints

    check_kind(config, dict[str, Any], "its content")
    check_table(config, {"model": dict[str, Any], "plm": dict[str, Any]}, {}, "")
    hints = get_type_hints(RecommenderModule.__init__)
    names = [name for name in inspect.signature(NewsRecommender).parameters if name != "plm"]
    options = {name: hints[name] for name in names}
    needed = {name: options.pop(name) for name in EXPORTED}
    check_table(config["model"], needed, options, "model.")
    check_known(config["model"], needed | options, "model")
    _check_sizes(config["model"], "model")
    _check_plm(config["plm"], "plm")
    with _without_values(len(weights)):
        recommender = NewsRecommender(build_plm(config["plm"]), **config["model"])
    _compare(recommender.state_dict(), weights, "the file of weights")


@torch.no_grad()
def try_out(recommender: Any) -> None:
    """Encode a text of three tokens: some values of a PLM's configuration are used only there.

    Args:
        recommender: A ``NewsRecommender`` in evaluation mode, on the CPU.
    """
    size = recommender.news_encoder.plm.config.vocab_size
    token_ids = torch.arange(5, 8, dtype=torch.int32).expand(3, 3) % size
    recommender.encode_news(token_ids, torch.tensor([0, 0, 3]))


@contextmanager
def building(path: str | Path | None) -> Iterator[None]:
    """Turn what is raised while a checkpoint is made into a model into a ``UserError``.

    Args:
        path: The file, if it is known.

    Raises:
        UserError: Naming the file, the place in it and what should stand there.
    """
    try:
        yield
    except Wrong as wrong:
        raise _refusal(path, str(wrong)) from wrong.__cause__
    except UserError as error:  # it names the option, but not the file
        raise _refusal(path, str(error).removesuffix(".")) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever a library does with values that it did not foresee
        raise _refusal(path, f"no model can be built of it ({_reason(error)})") from error


def _refusal(path: str | Path | None, what: str) -> UserError:
    place = "The checkpoint" if path is None else f"--ckpt_path {path}"
    return UserError(
        f"{place} is not as `python -m newsrec fit` wrote it: {what}. Copy the file again, give "
        "another, or train it again."
    )


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."


def _check_values(checkpoint: dict[str, Any]) -> None:
    # Here, because both read checkpoints.
    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.module import RecommenderModule

    check_table(checkpoint, LIGHTNINGS, LIGHTNINGS_LATER, "")
    check_table(checkpoint["newsrec"], OURS, OURS_LATER, "newsrec.")
    for key, owner in (
        ("hyper_parameters", RecommenderModule),
        ("datamodule_hyper_parameters", MindDataModule),
    ):
        hints = get_type_hints(owner.__init__)
        options = {name: hints[name] for name in inspect.signature(owner).parameters}
        needed = {name: options.pop(name) for name in FROM_THE_FIRST[key]}
        if key not in checkpoint:
            raise Wrong(f"{key} is missing")
        given = checkpoint[key]
        check_kind(given, dict[str, Any], key)
        given = {name: value for name, value in given.items() if not name.startswith("_")}
        check_table(given, needed, options, f"{key}.")
        check_known(given, needed | options, key)
    for name in ("epoch", "global_step"):
        if checkpoint[name] < 0:
            raise Wrong(f"{name} is {checkpoint[name]}, and should be 0 or more")
    model, data = checkpoint["hyper_parameters"], checkpoint["datamodule_hyper_parameters"]
    _check_sizes(model, "hyper_parameters")
    for name in ("max_tokens", "max_history"):
        if data[name] > model[name]:
            raise Wrong(
                f"datamodule_hyper_parameters.{name} is {data[name]}, and the model's is "
                f"{model[name]}"
            )
    _check_plm(checkpoint["newsrec"]["plm_config"], "newsrec.plm_config")


def _check_sizes(model: Mapping[str, Any], where: str) -> None:
    """Refuse lengths that a model was not made for, and numbers that memory is asked for by."""
    sizes = {f"{where}.{name}": model[name] for name in ("max_tokens", "max_history", "dim")}
    for part in ("news", "user"):
        shape = dataclasses.asdict(FastformerConfig.of(model[part]))
        sizes[f"{where}.{part}.heads"] = shape["heads"]
        sizes[f"{where}.{part}.ffn"] = shape["ffn"] or 1
        sizes[f"{where}.{part}.layers"] = shape["layers"] + 1  # none is allowed
    for name, size in sizes.items():
        if not 1 <= size <= LARGEST_NUMBER:
            raise Wrong(f"{name} is {shown(size)}, which no model has")


def _check_plm(value: Any, where: str) -> None:
    """Check a PLM's configuration, at any depth; take out what points to code."""
    if isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _check_plm(item, f"{where}[{place}]")
    elif isinstance(value, dict):
        for key in [key for key in value if key in DROPPED]:
            del value[key]
        for key, item in value.items():
            check_kind(key, str, f"a key of {where}")
            inner = f"{where}.{key}"
            if key in REFUSED and item:
                raise Wrong(
                    f"{inner} is {shown(item)}, which would load or download other packages"
                )
            for option, allowed in (
                ("attn_implementation", ATTENTIONS),
                ("experts_implementation", EXPERTS),
            ):
                if key.lstrip("_").startswith(option):
                    _check_implementation(item, allowed, inner)
            if "layers" in key and type(item) is int and item > LARGEST_NUMBER:
                raise Wrong(f"{inner} is {shown(item)}, which no PLM has")
            _check_plm(item, inner)
    elif not (value is None or isinstance(value, str | bool) or is_of(value, float)):
        raise Wrong(f"{where} is {shown(value)}, and should be a plain finite value")


def _check_implementation(value: Any, allowed: tuple[str | None, ...], where: str) -> None:
    for item in value.values() if isinstance(value, dict) else [value]:  # one for each part
        if item not in allowed:
            names = ", ".join(name for name in allowed if name is not None)
            raise Wrong(f"{where} is {shown(item)}, and may be {names}; others load packages")


def _check_tokenizer(text: str) -> None:
    try:
        Tokenizer.from_str(text)
    except BaseException as error:
        # tokenizers is written in Rust, and its panics are no Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise Wrong(f"newsrec.tokenizer_json holds no tokenizer ({_reason(error)})") from error


def _check_weights(checkpoint: dict[str, Any]) -> None:
    """Build the model without values, and compare its weights' names, kinds and shapes."""
    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.checkpoint.read import hyper_parameters
    from newsrec.training.module import RecommenderModule

    MindDataModule(**hyper_parameters(checkpoint, "data"))
    weights = checkpoint["state_dict"]
    with _without_values(len(weights)):
        module = RecommenderModule.without_weights(checkpoint)
    _compare(module.state_dict(), weights, "state_dict")


@contextmanager
def _without_values(weights: int) -> Iterator[None]:
    """Build a model of about so many weights, on the device that gives no memory."""
    parts = PARTS_OF_A_WEIGHT * weights + SPARE_PARTS
    # What is drawn for the weights here must not move what a run draws later.
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _at_most(parts):
        yield


def _compare(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights of other names, kinds or shapes than those of the model."""
    for names, what in (
        (expected.keys() - weights.keys(), "lacks"),
        (weights.keys() - expected.keys(), "has, against its options,"),
    ):
        if names:
            first = min(names)
            raise Wrong(f"{where} {what} {len(names):,} weights, such as {shown(first)}")
    for name, weight in weights.items():
        wanted = expected[name]
        if weight.shape != wanted.shape:
            raise Wrong(
                f"{name} has shape {list(weight.shape)}, and by its options {list(wanted.shape)}"
            )
        same_kind = weight.is_floating_point() == wanted.is_floating_point()
        if weight.layout != torch.strided or weight.is_quantized or not same_kind:
            raise Wrong(f"{name} holds {weight.dtype} numbers, and should {wanted.dtype}")
        # A file of a few bytes can hold one number as a matrix of any size.
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            raise Wrong(f"{name} has {weight.numel():,} numbers, and the file holds fewer")


@contextmanager
def _at_most(parts: int) -> Iterator[None]:
    """Stop a model under construction that gets more modules and parameters than its weights say.

    Without it a configuration of a million layers would be built, and take hours.
    """
    made, thread = 0, threading.get_ident()

    def count(module: nn.Module, name: str, part: Any) -> None:
        nonlocal made
        if threading.get_ident() == thread:  # the hooks are those of the whole process
            made += 1
            if made > parts:
                raise Wrong("its options make a model of more parts than there are weights")

    hooks = [
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

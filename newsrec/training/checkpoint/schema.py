"""Checks the content of a checkpoint before a model is built from it.

A checkpoint may come from a stranger, or be damaged. Its values are checked against the options of
this version. Then the model that they describe is built without values (on PyTorch's ``meta``
device, which takes no memory) and compared with the weights in the file.
"""

import dataclasses
import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import torch
from tokenizers import Tokenizer
from torch import Tensor

from newsrec.errors import MissingPackageError, ModelError, UserError
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.plm.load import build_plm
from newsrec.model.plm.lora import LoraConfig
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
from newsrec.training.checkpoint.shapes import compare, without_values

IMPLEMENTATIONS: dict[str, tuple[str | None, ...]] = {
    "attn_implementation": (None, "sdpa", "eager", ATTENTION, *PADDED.values()),
    "experts_implementation": (None, "eager", "batched_mm", "grouped_mm"),
}
"""Kinds of attention and of mixtures of experts that a PLM's configuration may name; others load
packages or kernels."""
DROPPED = ("auto_map", "trust_remote_code", "custom_pipelines")
"""Keys that point to Python code. They are removed: the families in ``transformers`` need none."""
REFUSED = (
    *("quantization_config", "compression_config", "use_kernels", "kernel_config"),
    *("backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone"),
)
"""Keys that load packages or download files if set."""
LARGEST_NUMBER = 2**20
"""Upper limit of sizes in the options, such as layers, tokens per text and clicks per history."""
LONGEST_REASON = 200
"""Most characters quoted from a library's message."""

FROM_THE_FIRST = {
    "hyper_parameters": ("plm", "tune_layers", "dim", "news", "user", "max_tokens", "max_history"),
    "datamodule_hyper_parameters": ("fields", "max_tokens", "max_history", "train", "val"),
}
"""Options that checkpoints of format 1 have always had; options added later have a default."""

EXPORTED = ("tune_layers", "dim", "news", "user", "max_tokens", "max_history", "residual")
"""Required options of the model in an export's ``config.json``."""
OURS: dict[str, Any] = {
    "plm_config": dict[str, Any],
    "tokenizer_json": str,
    "selected_on": str | None,
    "metrics": dict[str, float],
    "data_fingerprint": dict[str, str],
}
"""Required values under ``newsrec``, besides ``format``."""
OURS_LATER: dict[str, Any] = {
    "monitor": str | None,
    "selected_news": str,
    "windows": dict[str, str],
    "auto_precision": str | None,
    "threads": int | None,
    "category_names": dict[str, list[str]],
}
"""Optional values under ``newsrec``."""
LIGHTNINGS: dict[str, Any] = {"epoch": int, "global_step": int, "state_dict": dict[str, Tensor]}
LIGHTNINGS_LATER: dict[str, Any] = {
    **dict.fromkeys(("loops", "callbacks"), dict[str, Any]),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list[dict]),
}


def check_checkpoint(
    checkpoint: dict[str, Any], path: str | Path, option: str = "--ckpt_path"
) -> None:
    """Refuse a checkpoint that no model can be built from, or that needs code or downloads.

    Keys of the PLM's configuration that point to code are removed. Raises ModelError, which names
    the file, the ``option`` that gave it, the wrong value and what is expected.
    """
    with building(path, option):
        _check_values(checkpoint)
        _check_tokenizer(checkpoint["newsrec"]["tokenizer_json"])
        _check_weights(checkpoint)


def check_exported(config: Any, weights: Mapping[str, Tensor]) -> None:
    """Refuse an export that no model can be built from, or that needs code.

    Takes the content of ``config.json`` and of ``model.safetensors``. Keys of the PLM's
    configuration that point to code are removed. Raises ``Wrong``, which names the value and what
    is expected.
    """
    from newsrec.training.module import RecommenderModule  # here, to avoid a circular import

    check_kind(config, dict[str, Any], "its content")
    check_table(config, {"model": dict[str, Any], "plm": dict[str, Any]}, {}, "")
    hints = get_type_hints(RecommenderModule.__init__)
    names = [name for name in inspect.signature(NewsRecommender).parameters if name != "plm"]
    hints |= OURS_LATER
    _check_options(config["model"], {name: hints[name] for name in names}, EXPORTED, "model")
    _check_sizes(config["model"], "model")
    _check_plm(config["plm"], "plm")
    with without_values(len(weights)):
        recommender = NewsRecommender(build_plm(config["plm"]), **config["model"])
    compare(recommender.state_dict(), weights, "the file of weights")


@torch.no_grad()
def try_out(recommender: Any) -> None:
    """Encode a text of three tokens, since some values of a PLM's config are used only then.

    Takes a ``NewsRecommender`` in evaluation mode, on the CPU.
    """
    size = recommender.news_encoder.plm.config.vocab_size
    token_ids = torch.arange(5, 8, dtype=torch.int32).expand(3, 3) % size
    recommender.encode_news(token_ids, torch.tensor([0, 0, 3]))


@contextmanager
def building(path: str | Path | None, option: str = "--ckpt_path") -> Iterator[None]:
    """Turn any error from building a checkpoint's model, except MemoryError, into a UserError.

    The UserError names the file, if ``path`` is known, its ``option``, and what is wrong. An error
    for a missing package passes unchanged, since the file is not wrong.
    """
    place = "The checkpoint" if path is None else f"{option} {path}"
    try:
        yield
    except Wrong as wrong:
        raise _refusal(place, str(wrong)) from wrong.__cause__
    except MissingPackageError:
        raise
    except UserError as error:  # its message names the option, but not the file
        raise _refusal(place, str(error).removesuffix(".")) from error
    except MemoryError:
        raise
    except Exception as error:  # libraries may raise anything on unexpected values
        raise _refusal(place, f"no model can be built from it ({_reason(error)})") from error


def _refusal(place: str, what: str) -> ModelError:
    return ModelError(
        f"{place} is not as `python -m newsrec fit` wrote it: {what}. Copy the file again, give "
        "another one, or train again."
    )


def _reason(error: BaseException) -> str:
    reason = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."


def _check_values(checkpoint: dict[str, Any]) -> None:
    # Here, to avoid circular imports.
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
        if key not in checkpoint:
            raise Wrong(f"{key} is missing")
        check_kind(checkpoint[key], dict[str, Any], key)
        given = {n: value for n, value in checkpoint[key].items() if not n.startswith("_")}
        _check_options(given, options, FROM_THE_FIRST[key], key)
    for name in ("epoch", "global_step"):
        if checkpoint[name] < 0:
            raise Wrong(f"{name} is {checkpoint[name]}, and should be 0 or more")
    model, data = checkpoint["hyper_parameters"], checkpoint["datamodule_hyper_parameters"]
    _check_sizes(model, "hyper_parameters")
    for name in ("max_tokens", "max_history", "abstract_tokens"):
        read, own = data.get(name, 0), model.get(name, 0)
        if read > own or bool(read) != bool(own):
            raise Wrong(f"datamodule_hyper_parameters.{name} is {read}, and the model's is {own}")
    _check_plm(checkpoint["newsrec"]["plm_config"], "newsrec.plm_config")


def _check_options(
    given: Mapping[str, Any], kinds: Mapping[str, Any], needed: Collection[str], where: str
) -> None:
    required = {name: kinds[name] for name in needed}
    others = {name: kind for name, kind in kinds.items() if name not in required}
    check_table(given, required, others, f"{where}.")
    check_known(given, kinds, where)


def _check_sizes(model: Mapping[str, Any], where: str) -> None:
    """Refuse sizes below 1 or above ``LARGEST_NUMBER``, which would take too much memory."""
    sizes = {f"{where}.{name}": model[name] for name in ("max_tokens", "max_history", "dim")}
    sizes |= {f"{where}.{n}": model[n] for n in ("late_clicks", "interests") if n in model}
    may_be_0 = {f"{where}.abstract_tokens": model.get("abstract_tokens", 0)}
    for part in ("news", "user"):
        shape = dataclasses.asdict(FastformerConfig.of(model[part]))
        sizes[f"{where}.{part}.heads"] = shape["heads"]
        sizes[f"{where}.{part}.ffn"] = shape["ffn"] or 1
        may_be_0[f"{where}.{part}.layers"] = shape["layers"]
    may_be_0[f"{where}.lora.rank"] = LoraConfig.of(model.get("lora", {})).rank
    for name, size in (sizes | may_be_0).items():
        if not (name not in may_be_0) <= size <= LARGEST_NUMBER:
            raise Wrong(f"{name} is {shown(size)}, which no model has")


def _check_plm(value: Any, where: str) -> None:
    """Check a PLM's configuration, at any depth; remove keys that point to code."""
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
            for option, allowed in IMPLEMENTATIONS.items():
                if key.lstrip("_").startswith(option):
                    _check_implementation(item, allowed, inner)
            if "layers" in key and type(item) is int and item > LARGEST_NUMBER:
                raise Wrong(f"{inner} is {shown(item)}, which no PLM has")
            _check_plm(item, inner)
    elif not (value is None or isinstance(value, str | bool) or is_of(value, float)):
        raise Wrong(f"{where} is {shown(value)}, and should be a plain finite value")


def _check_implementation(value: Any, allowed: tuple[str | None, ...], where: str) -> None:
    for item in value.values() if isinstance(value, dict) else [value]:  # one per part of the PLM
        if item not in allowed:
            names = ", ".join(name for name in allowed if name is not None)
            raise Wrong(f"{where} is {shown(item)}, and may be {names}; others load packages")


def _check_tokenizer(text: str) -> None:
    try:
        Tokenizer.from_str(text)
    except BaseException as error:
        # tokenizers is written in Rust, and its panics do not derive from Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise Wrong(f"newsrec.tokenizer_json holds no tokenizer ({_reason(error)})") from error


def _check_weights(checkpoint: dict[str, Any]) -> None:
    """Build the model without values, and compare names, types and shapes of its weights."""
    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.checkpoint.read import hyper_parameters
    from newsrec.training.module import RecommenderModule

    MindDataModule(**hyper_parameters(checkpoint, "data"))
    weights = checkpoint["state_dict"]
    with without_values(len(weights)):
        module = RecommenderModule.without_weights(checkpoint)
    compare(module.state_dict(), weights, "state_dict")

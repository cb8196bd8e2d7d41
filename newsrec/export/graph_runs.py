"""Runs exported graphs on padded tensors, and the news encoder on the news of a catalogue."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from newsrec.data import FIRST_NEWS
from newsrec.model.plm.blocks import length_mask
from newsrec.serving.folder import with_unknown

if TYPE_CHECKING:
    from newsrec.data.batch import Catalogue

Encoder = Callable[..., Tensor]
"""Encodes padded token ids, their mask and the further inputs of ``graphs.ServedNewsEncoder`` as
news vectors ``[news, dim]``."""
Graph = Callable[..., list[NDArray[Any]]]
"""Returns a graph's outputs from a padded array, its mask and any further inputs."""


def onnx_encoder(path: Path, name: str) -> Encoder:
    """Return the encoder in an ONNX file, whose first input is called ``name``."""
    graph = onnx_graph(path, name)
    return lambda *inputs: torch.from_numpy(graph(*inputs)[0])


def onnx_graph(path: Path, name: str) -> Graph:
    """Return the graph in an ONNX file, whose first input is called ``name``."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = name, "mask", *(node.name for node in session.get_inputs()[2:])

    def run(*inputs: Tensor) -> list[NDArray[Any]]:
        feed = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        return [np.asarray(output) for output in session.run(None, feed)]

    return run


def distinct_news(catalogue: "Catalogue") -> Tensor:
    """Return the rows of real news; if each is one text, equal texts are left out but the first."""
    if catalogue.views is None and catalogue.categories is None:
        return catalogue.first.unique()[FIRST_NEWS:]
    return torch.arange(FIRST_NEWS, catalogue.num_news)


def encode_news(
    encode: Encoder, catalogue: "Catalogue", rows: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Encode news of a catalogue; yield rows of a block, and their vectors ``[block, dim]``."""
    for block in rows[catalogue.news_lengths[rows].argsort()].split(64):
        texts, more = block, []
        if catalogue.views is not None:
            pairs = catalogue.views[block]
            texts = pairs[pairs > 0]
            more = [(pairs > 0).flatten().cumsum(0).view_as(pairs) * (pairs > 0)]
        if catalogue.categories is not None:
            more.append(catalogue.categories[block])
        lengths = catalogue.token_lengths[texts]
        tokens = int(lengths.max())
        token_ids = catalogue.token_ids[texts, :tokens].long()
        yield block, encode(token_ids, length_mask(lengths, tokens), *more)


def encode_all(encode: Encoder, catalogue: "Catalogue", dim: int) -> Tensor:
    """Return the vector of each catalogue row by an exported news encoder ``[news, dim]``."""
    vectors = torch.zeros(catalogue.num_news, dim)
    for block, found in encode_news(encode, catalogue, distinct_news(catalogue)):
        vectors[block] = found
    if catalogue.views is None and catalogue.categories is None:
        vectors = vectors[catalogue.first]
    return torch.from_numpy(np.asarray(with_unknown(vectors[FIRST_NEWS:].numpy())))

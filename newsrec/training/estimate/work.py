"""The amount of data and the batches of an epoch, for estimates.

Both come from the data folder if it exists, else from MIND's published statistics.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data import mind_statistics as mind
from newsrec.data.datamodule import MindDataModule
from newsrec.data.fields import CATEGORIES
from newsrec.data.samplers import BatchKey
from newsrec.data.samples import WHOLE_IMPRESSIONS
from newsrec.data.states import distinct_rows
from newsrec.shipped import data_folder
from newsrec.training.checkpoint.contradictions import categories_of
from newsrec.training.estimate.step_memory import Shape

LARGEST = 4.5
"""Standard deviations above the mean at which the largest batch of an epoch is assumed."""
LOOKED_AT = 200
"""Number of batches of a data folder that are sampled."""


class Work(NamedTuple):
    """Amount of data and sizes of batches to train on."""

    source: str
    """Description of where the figures come from."""
    samples: int
    steps: int
    """Batches of an epoch on each process."""
    usual: Shape
    """A batch of usual size; determines the time."""
    largest: Shape
    """The largest batch; determines the memory."""
    tokens: int
    """Tokens of all distinct texts."""
    arrays: int
    """Bytes of the compiled data."""


def published_work(data: MindDataModule, processes: int, size: mind.Published) -> Work:
    """Return the work of training on one of MIND's versions, before it is downloaded."""
    whole = data.loss in WHOLE_IMPRESSIONS
    candidates = min(data.max_candidates, round(mind.CANDIDATES)) if whole else 1 + data.npratio
    samples = data.batch_size
    bound = data.tokens_per_batch
    abstract = data.abstract_tokens

    def lengths_of(news: int) -> NDArray[np.int64]:
        titles = mind.text_lengths(data.fields, data.max_tokens, news)
        if not abstract:
            return titles
        return np.sort(np.concatenate([titles, mind.abstract_lengths(abstract, news)]))

    mean = float(lengths_of(1000).sum()) / 1000  # tokens of a news item
    if bound is not None:  # each sample counts with all of its news
        one = mind.mentions(1, data.max_history, candidates, "random").distinct
        samples = max(int(bound / (one * mean)), 1)
    together = "random" if whole and data.batches == "impression" else data.batches
    batch = mind.mentions(samples, data.max_history, candidates, together)
    most = samples * (data.max_history + candidates)

    def shape(news: float) -> Shape:
        titles = int(min(news, most))
        sizes = int(batch.users), data.max_history, samples, candidates
        texts = lengths_of(titles), *sizes, titles if abstract else None
        return Shape(*texts, int(batch.read), len(CATEGORIES[data.categories]))

    total = size.train if whole else int(size.train * size.clicks)
    largest = batch.distinct * (1 + LARGEST * batch.spread)
    if bound is not None:
        largest = min(largest, bound / mean)
    return Work(
        f"none in {data.root}, so the published sizes of {size.name}",
        total,
        -(-(total // processes) // samples),
        shape(batch.distinct),
        shape(largest),
        int(mean * size.news),
        mind.array_bytes(size, data.max_tokens, abstract),
    )


def work_of_folder(data: MindDataModule, processes: int) -> Work:
    """Return the work of training on the data folder, from a sample of its batches."""
    data.prepare_data()
    data.setup("fit")
    data.category_names = categories_of(data)
    loader = data.train_dataloader()
    sampler: Any = loader.sampler
    chosen = np.linspace(0, len(sampler) - 1, min(LOOKED_AT, len(sampler))).astype(int)
    order = sampler.order(0)
    cuts = sampler.cuts(order)
    keys = (BatchKey(0, order[cuts[place] : cuts[place + 1]]) for place in chosen)
    shapes = [Shape.of(loader.dataset[key]) for key in keys]
    shapes.sort(key=lambda shape: shape.tokens)
    catalogue = data.catalogue
    tokens = catalogue.token_lengths[distinct_rows(catalogue)]
    arrays = sum(int(array.nbytes) for array in data.data.arrays.values())
    return Work(
        f"{data.root}, {len(shapes)} batches of {len(sampler):,}, "
        f"{catalogue.num_news - FIRST_NEWS:,} news",
        len(data.index.click),
        -(-len(sampler) // processes),
        shapes[len(shapes) // 2],
        shapes[-1],
        int(tokens.sum()),
        arrays + catalogue.token_ids.numel() * 4,
    )


def names_of_categories(data: MindDataModule) -> dict[str, list[str]] | None:
    """Return the values that get a learned vector, by field; None if ``data.categories`` is none.

    Without the data folder, the values are made up, as many as MIND has.
    """
    if data_folder(data.root).exists():
        return categories_of(data)
    made_up = {
        name: list(map(str, range(mind.NAMES[name]))) for name in CATEGORIES[data.categories]
    }
    return made_up or None

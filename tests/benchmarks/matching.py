"""How fast each way to make scores ranks impressions, and recommends from a catalogue.

    python tests/benchmarks/matching.py

Prints one JSON object. Vectors are random, users have full histories, and impressions have about as
many candidates as MIND's. ``impressions_per_s`` is what evaluation does with vectors of news: users
are encoded, once per distinct history, and impressions scored, in batches of 512. The ways take
turns, and the best of five turns counts. ``recommend_ms`` is the exact search for the ten best news
of the catalogue for one encoded user, with numpy alone. A part of the scores is compared with
numpy's. Set OMP_NUM_THREADS for the number of threads.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from newsrec.data.batch import EvalBatch
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.heads import Matching, head_of
from newsrec.model.matching import Users, match_impressions
from newsrec.model.user_encoders import UserEncoder
from newsrec.serving import matching as serving
from newsrec.serving.search import search

DIM, HISTORY, IMPRESSIONS_AT_ONCE, TURNS = 256, 50, 512, 5
USERS_PER_IMPRESSION = 0.7
"""Distinct histories per impression; MIND-small's dev has 50,000 for 73,152."""
MATCHINGS: tuple[Matching, ...] = ("dot", "late", "interests")


class Model:
    """An untrained user encoder and its head.

    Args:
        matching: One of ``MATCHINGS``.
    """

    def __init__(self, matching: Matching) -> None:
        torch.manual_seed(0)
        shape = FastformerConfig(positions="recency")
        interests = 4 if matching == "interests" else None
        self.encoder = UserEncoder(DIM, shape, HISTORY, residual=True, interests=interests).eval()
        self.head = head_of(matching, DIM, 5, 4, "logsumexp").eval()

    def users(self, history: Tensor, mask: Tensor) -> Users:
        """Return users of these clicked news."""
        return self.head(self.encoder(history, mask), history, mask, self.encoder.scale())


def made_batches(number: int, num_news: int) -> list[EvalBatch]:
    """Return impressions with random candidates and histories."""
    rng = np.random.default_rng(0)
    batches = []
    for start in range(0, number, IMPRESSIONS_AT_ONCE):
        size = min(IMPRESSIONS_AT_ONCE, number - start)
        users = max(1, int(size * USERS_PER_IMPRESSION))
        counts = np.clip(rng.lognormal(np.log(25), 0.94, size), 2, 300).astype(np.int64)
        made = {
            "history": rng.integers(2, num_news, (users, HISTORY)),
            "user": rng.integers(0, users, size),
            "candidates": rng.integers(2, num_news, counts.sum()),
            "offsets": np.concatenate([[0], counts.cumsum()]),
            "row": np.arange(start, start + size),
        }
        tensors = {name: torch.from_numpy(values) for name, values in made.items()}
        batches.append(EvalBatch(**tensors, labels=None))
    return batches


@torch.no_grad()
def score(model: Model, news: Tensor, batch: EvalBatch) -> Tensor:
    """Score a batch as evaluation does."""
    users = model.users(news[batch.history], batch.history > 0)
    return match_impressions(users, news, batch)


@torch.no_grad()
def check(model: Model, news: Tensor, batch: EvalBatch, users: serving.Users) -> None:
    """Compare the scores of some impressions with numpy's."""
    found, vectors = score(model, news, batch).numpy(), news.numpy()
    for row in range(min(20, len(batch.user))):
        part = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        user = int(batch.user[row])
        expected = serving.match_all(users[user : user + 1], vectors[batch.candidates[part]])[0]
        np.testing.assert_allclose(found[part], expected, atol=1e-4 * np.abs(found).max())


def measure(number: int, num_news: int, catalogue: int, calls: int) -> dict[str, Any]:
    """Measure all ways."""
    generator = torch.Generator().manual_seed(0)
    news = torch.randn(max(num_news, catalogue), DIM, generator=generator) / DIM**0.5
    news, vectors = news[:num_news], news[:catalogue].numpy()
    batches = made_batches(number, num_news)
    models = {matching: Model(matching) for matching in MATCHINGS}
    seconds: dict[str, list[float]] = {matching: [] for matching in MATCHINGS}
    searches: dict[str, list[float]] = {matching: [] for matching in MATCHINGS}
    for model in models.values():
        score(model, news, batches[0])  # first calls are not measured
    for _ in range(TURNS):
        for matching, model in models.items():
            start = time.perf_counter()
            for batch in batches:
                score(model, news, batch)
            seconds[matching].append(time.perf_counter() - start)
    for matching, model in models.items():
        with torch.no_grad():
            users = model.users(news[batches[0].history], batches[0].history > 0)
            outputs = [output.numpy() for output in model.head.exported(users)]
        served = serving.Matching(model.head.settings()).users(outputs)
        check(model, news, batches[0], served)
        for call in range(calls):
            start = time.perf_counter()
            list(search(served[call % len(served) : call % len(served) + 1], vectors, 10))
            searches[matching].append(time.perf_counter() - start)
    dot = min(seconds["dot"])
    return {
        matching: {
            "impressions_per_s": round(number / min(seconds[matching])),
            "times_dot": round(min(seconds[matching]) / dot, 2),
            "recommend_ms": round(1000 * float(np.median(searches[matching])), 2),
        }
        for matching in MATCHINGS
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--impressions", type=int, default=4096)
    parser.add_argument("--news", type=int, default=20_000)
    parser.add_argument("--catalogue", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=20)
    args = parser.parse_args()
    sizes = {"impressions": args.impressions, "catalogue": args.catalogue, "dim": DIM}
    sizes |= {"history": HISTORY, "threads": torch.get_num_threads()}
    found = measure(args.impressions, args.news, args.catalogue, args.calls)
    print(json.dumps(sizes | found, indent=1))


if __name__ == "__main__":
    main()

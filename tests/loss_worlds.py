"""Small models without a PLM and batches for them, to test losses on one and two processes."""

from typing import NamedTuple

import numpy as np
import torch
from torch import distributed

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch, SharedClicks
from newsrec.model.recommender import Encoded
from newsrec.training.losses import in_batch


class Sample(NamedTuple):
    """A sample or whole impression, by catalogue rows."""

    history: list[int]
    clicks: list[int]
    """The sample's own click first, then the impression's others."""
    skips: list[int]
    user: int | None = None
    """Number of the user; None for a user of no other sample."""

    def is_of_user_of(self, other):
        return self is other or (self.user is not None and self.user == other.user)


class World(NamedTuple):
    """Parameters of a model without a PLM: vectors of news and how users are made of them."""

    table: torch.Tensor
    bias: torch.Tensor
    maps: torch.Tensor
    """One per interest ``[interests, dim, dim]``."""

    def user(self, history):
        return (self.bias + self.table[history].sum(dim=0)) @ self.maps  # [interests, dim]

    def score(self, sample, news):
        # In float64, since loops sum the exponentials of scores, and e^89 is no float32.
        return (self.user(sample.history) @ self.table[news]).max().double()


def made_world(rng, num_news, interests=1, dim=3):
    shapes = (num_news, dim), (dim,), (interests, dim, dim)
    tensors = (torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in shapes)
    return World(*(t.requires_grad_() for t in tensors))


def made_samples(rng, number, num_news):
    """Samples whose clicks and histories overlap; some lack skipped news, some have no history."""
    samples = []
    for _ in range(number):
        shown = rng.permutation(np.arange(FIRST_NEWS, num_news)).tolist()
        clicks = shown[: rng.integers(1, 4)]
        skips = shown[len(clicks) :][: rng.integers(1, 4)]
        history = rng.integers(FIRST_NEWS, num_news, rng.integers(0, 4)).tolist()
        samples.append(Sample(history, clicks, skips, int(rng.integers(0, 5))))
    return samples


def made_share(rng, num_news):
    counts = rng.integers(1, 9, num_news) * (np.arange(num_news) >= FIRST_NEWS)
    return (counts / counts.sum()).astype(np.float32)


def padded(rows):
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]).long()


def encoded_batch(world, samples, share=None, whole=False, largest=0, everyone=None):
    """Number the news of a batch anew, encode them and the users; return both.

    ``everyone`` has all training samples, from which a user's clicks come.
    """
    mentioned = {n for s in samples for n in (*s.history, *s.clicks, *s.skips)}
    rows = [0, 1, *sorted(mentioned, key=lambda n: (7 * n) % 11)]
    number = {row: i for i, row in enumerate(rows)}
    used = [s.clicks if whole else s.clicks[:1] for s in samples]
    shown = [[*clicks, *s.skips] for clicks, s in zip(used, samples, strict=True)]
    labels = [[1] * len(clicks) for clicks in used]
    shared = None
    if share is not None:
        excluded = [[*c, *s.clicks, *s.history] for c, s in zip(shown, samples, strict=True)]
        for row, one in zip(excluded, samples, strict=True):
            others = (s for s in everyone or samples if s.is_of_user_of(one))
            row += [s.clicks[0] for s in others]
        alone = range(1000, 1000 + len(samples))  # numbers of users with one sample
        user = [s.user if s.user is not None else n for s, n in zip(samples, alone, strict=True)]
        click = np.array([s.clicks[0] for s in samples])
        padding = (0, max(largest - len(click), 0))
        shared = SharedClicks(
            torch.from_numpy(np.pad(click, padding)),
            torch.from_numpy(np.pad(share[click], padding)),
            torch.from_numpy(np.pad(user, padding)),
            padded(excluded).sort(dim=1).values,
        )
    width = max(map(len, shown))
    batch = Batch(
        token_ids=torch.zeros(len(rows), 1),
        token_lengths=np.zeros(len(rows), np.int64),
        token_states=None,
        history=padded([[number[n] for n in s.history] for s in samples]),
        user=torch.arange(len(samples)),
        candidates=padded([[number[n] for n in row] for row in shown]),
        labels=torch.nn.functional.pad(padded(labels), (0, width - max(map(len, labels)))),
        shared=shared,
    )
    news = torch.cat([torch.zeros(2, world.table.shape[1]), world.table[rows[2:]]])
    return Encoded(news, torch.stack([world.user(s.history) for s in samples])), batch


def gradients_of_other(says, store, part):
    """Be the second process, and send what it finds."""
    says.send([value.numpy() for value in gradients_of_process(1, store, part)])


def gradients_of_process(rank, store, part):
    """Join another process; return the mean loss and the mean gradients, as DDP makes them."""
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    rng = np.random.default_rng(5)
    world, share, samples = made_world(rng, 14, 2), made_share(rng, 14), made_samples(rng, 8, 14)
    largest = max(part, len(samples) - part)
    own = samples[:part] if rank == 0 else samples[part:]
    loss = in_batch(*encoded_batch(world, own, share, largest=largest, everyone=samples))
    weight = 2 * len(own) / len(samples)  # 1 where batches are equally large
    found = [loss.detach() * weight, *torch.autograd.grad(loss * weight, world)]
    for value in found:
        distributed.all_reduce(value)
    distributed.destroy_process_group()
    return [value / 2 for value in found]

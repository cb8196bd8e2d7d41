"""A DataLoader for training that can resume in the middle of an epoch."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lightning import Trainer
from torch.utils.data import DataLoader

from newsrec.data.batch import Batch
from newsrec.data.lightning_internals import batches_done
from newsrec.data.samplers import TrainBatches
from newsrec.errors import UserError

T = TypeVar("T")


class TrainLoader(DataLoader[Batch]):
    """Loads training batches, starting after those done when the checkpoint was written.

    When a run resumes within an epoch, Lightning shortens the epoch by the number of batches done,
    but would drop the last batches instead of the first. So this loader skips the first ones.
    ``trained_on`` is the number of processes that wrote the checkpoint.

    With ``ahead``, a thread makes the next batch during a step. This helps on a GPU, whose steps
    leave the CPU free; on a CPU the thread would slow down the step. Workers are ahead anyway.
    """

    sampler: TrainBatches

    def __init__(
        self,
        *args: Any,
        trainer: Trainer | None = None,
        trained_on: int | None = None,
        ahead: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.trainer = trainer
        self.trained_on = trained_on
        self.ahead = ahead

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        sampler: TrainBatches = getattr(self.sampler, "batches", self.sampler)  # of SameBatches
        # Lightning makes an iterator before it reads the checkpoint, but takes no batch from it.
        sampler.start = 0
        if self.trainer is not None and self.trainer.training:
            sampler.start = batches_done(self.trainer)
        if sampler.start and self.trained_on not in (None, sampler.world_size):
            raise UserError(
                f"The checkpoint was written in the middle of an epoch by {self.trained_on} "
                f"processes, whose batches {sampler.world_size} cannot resume. Use "
                f"{self.trained_on}, or a checkpoint from the end of an epoch."
            )
        batches = super().__iter__()
        yield from one_ahead(batches) if self.ahead and not self.num_workers else batches

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict; Lightning sees by this method that the loader can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing, since ``state_dict`` is empty."""


def check_batch_size(state: Mapping[str, int], size: int, processes: int) -> None:
    """Refuse to resume with another batch size, unless all processes' batches together keep theirs.

    ``state`` is a data module's, from a checkpoint; older ones do not have the batch size.
    """
    then, before = state.get("batch_size", size), state["world_size"]
    if then != size and then * before != size * processes:
        raise UserError(
            f"data.batch_size is {size} per process, and the number of processes is {processes}; "
            f"the checkpoint was trained with {then} and {before}. Leave data.batch_size out, or "
            "give one that keeps the product of both numbers."
        )


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield items in order while a thread makes the next one, and one more if there is time.

    If making an item fails, the error is raised in its place. The thread also ends when the caller
    stops early.
    """
    end: Any = object()
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, "next-batch")
    try:
        made = deque(pool.submit(next, iterator, end) for _ in range(2))
        while (item := made.popleft().result()) is not end:
            made.append(pool.submit(next, iterator, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)

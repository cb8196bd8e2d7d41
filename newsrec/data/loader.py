"""A DataLoader for training that can resume in the middle of an epoch."""

import queue
import threading
from collections.abc import Iterable, Iterator
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

    Args:
        trainer: The Trainer of the run, if there is one.
        trained_on: Number of processes of the run that wrote the checkpoint, if there is one.
        ahead: Whether a thread makes the next batch during a step. This helps on a GPU, whose steps
            leave the CPU free. It is ignored with workers, which work ahead anyway; on a CPU the
            thread would slow down the step.
        options: Options of ``DataLoader``.
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
        # Lightning makes an iterator before it reads the checkpoint, but takes no batch from it.
        self.sampler.start = 0
        if self.trainer is not None and self.trainer.training:
            self.sampler.start = batches_done(self.trainer)
        if self.sampler.start and self.trained_on not in (None, self.sampler.world_size):
            raise UserError(
                f"The checkpoint was written in the middle of an epoch by {self.trained_on} "
                f"processes, whose batches {self.sampler.world_size} cannot resume. Use "
                f"{self.trained_on}, or a checkpoint from the end of an epoch."
            )
        batches = super().__iter__()
        yield from one_ahead(batches) if self.ahead and not self.num_workers else batches

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict; having this method tells Lightning that the loader can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing, since ``state_dict`` is empty."""


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield items in order while a thread makes the next one.

    If making an item fails, the error is raised in its place. The thread also ends when the caller
    stops early.

    Args:
        items: Iterated only on the thread.
    """
    made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
    wanted = threading.Event()
    wanted.set()
    end = object()

    def put(item: Any, error: BaseException | None = None) -> None:
        while wanted.is_set():
            try:
                return made.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item)
                if not wanted.is_set():
                    return
        except BaseException as error:
            put(None, error)
        put(end)

    thread = threading.Thread(target=make, daemon=True, name="next-batch")
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        wanted.clear()
        thread.join()

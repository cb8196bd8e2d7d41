"""A DataLoader that a run resumed in the middle of an epoch goes on with."""

from collections.abc import Iterator
from typing import Any

from lightning import Trainer
from torch.utils.data import DataLoader

from newsrec.data.batch import Batch
from newsrec.data.samplers import TrainBatches
from newsrec.errors import UserError


class TrainLoader(DataLoader[Batch]):
    """Training batches that go on where a checkpoint was written, also in the middle of an epoch.

    Lightning shortens such an epoch by the batches that are done, but leaves out the last ones.
    """

    sampler: TrainBatches
    trainer: Trainer | None = None
    trained_on: int | None = None
    """Processes of the run that wrote the checkpoint, if there is one."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Lightning asks for an iterator before it reads the checkpoint, but for no batch.
        self.sampler.start = 0
        if self.trainer is not None and self.trainer.training:
            self.sampler.start = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.sampler.start and self.trained_on not in (None, self.sampler.world_size):
            raise UserError(
                f"The checkpoint was written in the middle of an epoch by {self.trained_on} "
                f"processes, whose batches {self.sampler.world_size} cannot go on with. Use "
                f"{self.trained_on}, or a checkpoint from the end of an epoch."
            )
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: Lightning's own count is enough, but it takes this for "resumable"."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""

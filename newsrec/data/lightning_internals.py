"""Internals of Lightning that the data side reads (checked in Lightning 2.6.6).

Those that training reads are in ``newsrec/training/lightning_internals.py``; this is a file of its
own because the data side does not import from training.
"""

from typing import Any

from lightning import Trainer


def batches_done(trainer: Trainer) -> int:
    """Return the number of batches done in this epoch, also after a resume.

    The Trainer's public attributes give steps and epochs, but not this number.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def replaces_samplers(trainer: Trainer) -> bool:
    """Return the Trainer's option ``use_distributed_sampler``, which has no public attribute."""
    connector: Any = trainer._accelerator_connector
    return bool(connector.use_distributed_sampler)

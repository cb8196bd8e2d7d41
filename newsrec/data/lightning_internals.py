"""What the data side reads of Lightning's insides; as ``newsrec/training/lightning_internals.py``.

Apart from that file because the data side imports nothing of training. Read in Lightning 2.6.6.
"""

from typing import Any

from lightning import Trainer


def batches_done(trainer: Trainer) -> int:
    """Return the batches of this epoch that are done, also after a resume.

    The Trainer tells steps and epochs, but not the batch.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def replaces_samplers(trainer: Trainer) -> bool:
    """Return whether the Trainer has ``use_distributed_sampler``, an option that it hides."""
    connector: Any = trainer._accelerator_connector
    return bool(connector.use_distributed_sampler)

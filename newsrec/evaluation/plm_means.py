"""Mean states of the PLM before any training, from which the baseline ``cosine`` is made."""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from newsrec.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from newsrec.data.datamodule import MindDataModule
    from newsrec.data.states import TokenStates
    from newsrec.training.module import RecommenderModule

log = logging.getLogger(__name__)


def plm_vectors(
    datamodule: "MindDataModule", states: "TokenStates | None" = None
) -> NDArray[np.float32]:
    """Return the mean PLM state of every story, for the baseline ``cosine`` ``[news, hidden]``.

    Args:
        datamodule: The data folder.
        states: The PLM's last states, if they are known.
    """
    from newsrec.model.tuning import CutPlm
    from newsrec.plm import load_plm
    from newsrec.training.catalogue import mean_states

    cut = CutPlm(load_plm(datamodule.plm).eval(), tune_layers=0)
    return mean_states(cut, datamodule.catalogue, states).numpy()


@contextlib.contextmanager
def note_means(module: "RecommenderModule") -> Iterator[list["Tensor"]]:
    """Note the mean last state of each story that the model encodes, in the order it does.

    What has been through the PLM need not go through it again for a baseline.

    Yields:
        Means of one block of stories after the other ``[stories, hidden]``.
    """
    from newsrec.model.fastformer import masked_mean

    cut: Any = module.recommender.news_encoder.cut
    means: list[Tensor] = []
    read = cut.last_states

    def read_and_note(*args: Any) -> Iterator[tuple["Tensor", "Tensor"]]:
        for states, mask in read(*args):
            means.append(masked_mean(states, mask).float().cpu())
            yield states, mask

    cut.last_states = read_and_note  # of this object alone
    try:
        yield means
    finally:
        del cut.last_states


def vectors_before_training(
    module: "RecommenderModule", datamodule: "MindDataModule", noted: list["Tensor"], device: Any
) -> NDArray[np.float32] | None:
    """Return a trained model's mean PLM states as they were before; None if they are not at hand.

    A frozen PLM is in the checkpoint as it was. The first weights of a tuned one are looked up by
    name.

    Args:
        module: The model.
        datamodule: The data folder.
        noted: What ``note_means`` noted while the model encoded the catalogue; what it encoded on
            another process, or in another precision than float32, is computed again.
        device: Where to compute.
    """
    import torch

    from newsrec.training.catalogue import mean_states, story_blocks

    if module.tune_layers == 0:
        catalogue = datamodule.catalogue
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *story_blocks(catalogue)])
        if noted and sum(map(len, noted)) == len(rows):
            means = torch.zeros(len(catalogue.first), noted[0].shape[1])
            means[rows] = torch.cat(noted)
            return means[catalogue.first].numpy()
        return mean_states(module.recommender.news_encoder.to(device).cut, catalogue).numpy()
    try:
        return plm_vectors(datamodule)
    except UserError as error:
        log.info("baseline cosine left out, for want of the PLM before it was tuned: %s", error)
        return None

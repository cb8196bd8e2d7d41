"""Mean PLM states of news before any training, the news vectors of the baseline ``cosine``."""

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
    from newsrec.model.plm.cut import CutPlm
    from newsrec.training.module import RecommenderModule

log = logging.getLogger(__name__)


def plm_vectors(datamodule: "MindDataModule", device: Any = "cpu") -> NDArray[np.float32]:
    """Return the mean PLM state of every news item, before any training ``[news, hidden]``.

    If abstracts are texts of their own, only titles are read.
    """
    from newsrec.training.catalogue import mean_states

    catalogue = datamodule.catalogue
    means = mean_states(first_plm(datamodule, device), catalogue)
    return catalogue.of_titles(means).numpy()


def first_plm(
    datamodule: "MindDataModule", device: Any, layers: int | None = None, tune_layers: int = 0
) -> "CutPlm":
    """Return the PLM before any training, in float32.

    Args:
        datamodule: The data folder, which names the PLM.
        device: Where to run the PLM.
        layers: Number of first layers to use; None uses all.
        tune_layers: Top layers above the cut.
    """
    from newsrec.model.plm.cut import CutPlm
    from newsrec.model.plm.load import load_plm

    return CutPlm(load_plm(datamodule.plm, layers).eval().to(device), tune_layers)


@contextlib.contextmanager
def record_means(module: "RecommenderModule") -> Iterator[list["Tensor"]]:
    """Give a list that gets the mean last states of each block of news that the model encodes.

    The means are ``[news, hidden]``. With them the baseline ``cosine`` needs no second pass through
    the PLM.
    """
    from newsrec.model.residual import pool_states

    means: list[Tensor] = []
    last_token = module.recommender.news_encoder.cut.last_token

    def note(states: "Tensor", mask: "Tensor") -> None:
        means.append(pool_states(states, mask, last_token).float().cpu())

    with module.recommender.news_encoder.register_states_hook(note):
        yield means


def vectors_before_training(
    module: "RecommenderModule",
    datamodule: "MindDataModule",
    noted: list["Tensor"],
    device: Any,
    rank: int = 0,
    world_size: int = 1,
) -> NDArray[np.float32] | None:
    """Return the mean states of a model's PLM before training, or None if it cannot be loaded.

    A frozen PLM has not changed, so the model has it. A tuned PLM is loaded again by its name; its
    frozen layers do not run for news whose states are kept in float32. All processes of a run call
    this and share the work, each on its own device, in float32. ``noted`` are the means that
    ``record_means`` gave while the model encoded the catalogue in float32; empty after another
    precision, to compute them again.
    """
    from newsrec.training.catalogue import gather_means, mean_states, news_blocks

    catalogue = datamodule.catalogue
    if module.tune_layers == 0:
        cut = module.recommender.news_encoder.cut
        own = sum(map(len, news_blocks(catalogue)[rank::world_size]))
        if noted and sum(map(len, noted)) == own:
            hidden = cut.plm.config.hidden_size
            means = gather_means(noted, hidden, catalogue, device, rank, world_size)
            return catalogue.of_titles(means).numpy()
        cut.plm.to(device).eval()
        return catalogue.of_titles(mean_states(cut, catalogue, None, rank, world_size)).numpy()
    first, said = None, ""
    try:
        first = first_plm(datamodule, device, module.plm_layers, max(module.tune_layers, 0))
    except UserError as error:
        said = str(error)
    if not _everywhere(first is not None, device, world_size):  # else some would wait for others
        log.info("baseline cosine left out, because its PLM cannot be loaded: %s", said)
        return None
    assert first is not None
    states = _kept_states(module, datamodule, first)
    return catalogue.of_titles(mean_states(first, catalogue, states, rank, world_size)).numpy()


def _kept_states(
    module: "RecommenderModule", datamodule: "MindDataModule", first: "CutPlm"
) -> "TokenStates | None":
    """Return the run's states of the frozen layers if they replace those of ``first``."""
    states = datamodule.states
    if states is None or not states.exact:
        return None
    # The PLM's files may have changed since the run started.
    same = first.key() == module.recommender.news_encoder.cut.key()
    return states if same else None


def _everywhere(mine: bool, device: Any, world_size: int) -> bool:
    import torch

    from newsrec.training.processes.waiting import wait_for_all

    if world_size == 1:
        return mine
    wait_for_all()  # another machine may still be downloading the PLM
    found = torch.tensor(int(mine), device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
    return bool(found)

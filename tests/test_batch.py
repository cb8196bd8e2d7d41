import numpy as np
import torch
from lightning.pytorch.utilities import move_data_to_device
from torch.distributed.utils import _to_kwargs
from torch.utils.data._utils.pin_memory import pin_memory

from newsrec.data.batch import Batch, EvalBatch, SharedClicks
from newsrec.data.datamodule import MindDataModule


def made_batch(token_states=None):
    return Batch(
        token_ids=torch.tensor([[0, 0], [0, 0], [7, 0], [8, 9]]),
        token_lengths=torch.tensor([0, 0, 1, 2]),
        token_states=token_states,
        history=torch.tensor([[2, 3]]),
        user=torch.tensor([0]),
        candidates=torch.tensor([[3, 2]]),
        labels=torch.tensor([[1, 0]]),
    )


def made_eval_batch(labels=None):
    empty = torch.zeros(0, dtype=torch.int64)
    return EvalBatch(torch.zeros(0, 0), empty, empty, torch.tensor([0]), labels, empty)


def devices(batch):
    return {name: t.device.type for name, t in batch._asdict().items() if t is not None}


def test_a_batch_moves_as_a_whole_but_for_its_lengths():
    shared = SharedClicks(*[torch.ones(1)] * 3, torch.ones(1, 2))
    more = {"views": torch.zeros(3, 2), "categories": torch.zeros(3, 1)}
    made = made_batch(torch.zeros(4, 2, 3))._replace(shared=shared, **more)
    moved = made.to("meta", non_blocking=True)
    assert isinstance(moved, Batch)
    assert set(devices(moved.shared).values()) == {"meta"}
    found = devices(moved._replace(shared=moved.user))
    assert found.pop("token_lengths") == "cpu"
    assert found == dict.fromkeys(set(Batch._fields) - {"token_lengths"}, "meta")
    assert made_batch().to(torch.device("meta")).token_states is None


def test_lightning_moves_both_kinds_of_batch():
    moved = move_data_to_device(made_batch(), torch.device("meta"))
    assert moved.token_lengths.tolist() == [0, 0, 1, 2]
    assert set(devices(moved).values()) == {"meta", "cpu"}
    moved = move_data_to_device(made_eval_batch(), torch.device("meta"))
    assert isinstance(moved, EvalBatch)
    assert set(devices(moved).values()) == {"meta"}
    assert moved.labels is None


def test_both_kinds_of_batch_can_be_pinned(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t, *device: t + 1)
    pinned = pin_memory(made_batch())
    assert isinstance(pinned, Batch)
    assert pinned.user.tolist() == [1]
    assert pinned.token_states is None
    assert isinstance(pin_memory(made_eval_batch()), EvalBatch)


def test_nobody_waits_for_copies_from_pinned_memory(monkeypatch):
    asked = []

    def to(tensor, device, non_blocking):
        asked.append(non_blocking)
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    move_data_to_device(made_batch(), torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    move_data_to_device(made_batch(), torch.device("cuda"))
    assert asked == [False] * 5 + [True] * 5


def test_ddp_leaves_the_lengths_where_they_are():
    """It moves what a step is called with once more, and looks into named tuples for tensors."""
    batch = made_batch()._replace(token_lengths=np.array([0, 0, 1, 2]))
    ((moved, number),), _ = _to_kwargs((batch, 3), {}, torch.device("meta"), True)
    assert number == 3
    assert moved.token_lengths is batch.token_lengths
    others = moved._replace(token_lengths=torch.zeros(0, device="meta"))
    assert set(devices(others).values()) == {"meta"}
    ((tensor, _),), _ = _to_kwargs((made_batch(), 3), {}, torch.device("meta"), True)
    assert tensor.token_lengths.is_meta  # as it was with a tensor: each length a wait


def test_a_loaders_batch_keeps_its_lengths_from_every_mover(mind_dir, plm_dir, monkeypatch):
    data = MindDataModule(root=str(mind_dir), plm=str(plm_dir), max_tokens=12, batch_size=4, seed=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    lengths = batch.token_lengths.copy()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t, *device: t.clone())
    device = torch.device("meta")
    for moved in (pin_memory(batch), move_data_to_device(batch, device), batch.to(device),
                  _to_kwargs((batch,), {}, device, True)[0][0][0]):  # fmt: skip
        assert isinstance(moved.token_lengths, np.ndarray)
        assert (moved.token_lengths == lengths).all()

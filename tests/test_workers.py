"""Loader workers outlive signals that are meant for the run, and end with it."""

import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from forks import started
from torch.utils.data import DataLoader, Dataset

from newsrec.data.workers import keep_working


class Slow(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        time.sleep(0.05)
        return torch.tensor([index, os.getpid()])


def kill(_, pid, number):
    os.kill(pid, number)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_go_on_through_a_signal_of_a_stranger_and_end_when_asked(context, number):
    if context not in torch.multiprocessing.get_all_start_methods():
        context = "spawn"
    loader = DataLoader(
        Slow(), num_workers=1, multiprocessing_context=context, worker_init_fn=keep_working
    )
    found, worker = [], None
    batches = iter(loader)
    for batch in batches:
        index, pid = batch[0].tolist()
        found.append(index)
        if worker is None:
            worker = pid
            stranger, _ = started(kill, pid, number)
            stranger.join()
            assert stranger.exitcode == 0
    assert found == list(range(12))
    assert pid == worker
    batches._workers[0].terminate()  # what PyTorch does with one that does not end by itself
    batches._workers[0].join(10)
    assert not batches._workers[0].is_alive()


@pytest.mark.slow
def test_workers_started_by_spawn_bring_the_batches_of_none(mind_dir, plm_dir, monkeypatch):
    """As on macOS and Windows, where nothing is forked."""
    from newsrec.data.datamodule import MindDataModule

    monkeypatch.setattr(sys, "platform", "darwin")
    batches = {}
    for workers in (0, 2):
        data = MindDataModule(str(mind_dir), plm=str(plm_dir), batch_size=8, num_workers=workers)
        data.setup("fit")
        loader = data.train_dataloader()
        if workers:
            loader.multiprocessing_context = "spawn"
        batches[workers] = list(loader)
    assert len(batches[0]) == len(batches[2]) > 1
    for one, other in zip(batches[0], batches[2], strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None and b is None) or np.array_equal(a, b)


class Busy(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            time.sleep(600)  # looks at nothing meanwhile
        return os.getpid()


def load(says):
    loader = DataLoader(
        Busy(), batch_size=None, num_workers=1, multiprocessing_context="fork",
        worker_init_fn=keep_working,
    )  # fmt: skip
    batches = iter(loader)
    says.send(next(batches))
    next(batches)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_ends_with_its_parent_in_the_middle_of_a_batch():
    process, hears = started(load)
    worker = hears.recv()
    time.sleep(0.3)
    assert os.path.exists(f"/proc/{worker}")
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(worker)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

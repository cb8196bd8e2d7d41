"""A run that is killed where a test says, and two checkpoints compared bit for bit."""

import pytest
import torch
from lightning import Callback

from newsrec.__main__ import main

NOT_THE_RUN = {
    "best_model_path",
    "best_k_models",
    "dirpath",
    "kth_best_model_path",
    "last_model_path",
    "current_score",  # Lightning stores it and does not read it back
}
"""Parts of a checkpoint that say where it lies, or nothing of what comes."""


class Killed(BaseException):
    """Stands for kill -9: nothing in newsrec or Lightning saves on it."""


class KillAt(Callback):
    """Dies in a hook, at the ``count``-th call of it."""

    def __init__(self, hook, count):
        self.left = count
        setattr(self, hook, self._hook)

    def _hook(self, trainer, *args, **kwargs):
        self.left -= not trainer.sanity_checking
        if self.left == 0:
            raise Killed


def run_killed(given, kill):
    """Run a command that dies at the ``kill = (hook, count)``-th call of a callback's hook."""
    with pytest.raises(Killed):
        main(given, [KillAt(*kill)])


def last(output):
    return torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(a, b, place=""):
    """Compare everything in two checkpoints, tensors bit for bit."""
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            if key not in NOT_THE_RUN:
                assert_same(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{place}/{i}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, place
        assert torch.equal(a, b), place
    else:
        assert a == b, place

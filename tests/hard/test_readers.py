"""``last.ckpt``, read again and again while several processes write it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hard import TIMES

READS = 100 * TIMES
WRITE = """
import sys, torch
from newsrec.training.checkpoint.saving import AtomicCheckpointIO
io, number = AtomicCheckpointIO(), int(sys.argv[2])
while True:
    content = {"number": number, "weights": torch.full((100_000,), float(number))}
    io.save_checkpoint(content, sys.argv[1])
    assert io.failed is None, io.failed
    number += 2
"""


@pytest.mark.slow
def test_a_reader_of_the_last_checkpoint_always_finds_a_whole_one(tmp_path):
    path = tmp_path / "last.ckpt"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(path), str(n)], env=env) for n in (0, 1)
    ]
    wrong, seen = [], set()
    try:
        deadline = time.monotonic() + 120
        while not path.is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        for read in range(READS):
            try:
                found = torch.load(path, weights_only=True)
            except Exception as error:
                wrong.append((read, repr(error)))
                continue
            seen.add(found["number"])
            if not bool((found["weights"] == found["number"]).all()):
                wrong.append((read, "two checkpoints in one"))
        assert [writer.poll() for writer in writers] == [None, None]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert not wrong
    assert len(seen) > READS / 20  # else it was not written meanwhile

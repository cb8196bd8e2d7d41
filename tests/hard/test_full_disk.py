"""Disks of many sizes, all too small at some moment: what was written is whole or absent."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import checkpoints
import numpy as np
import pytest

from hard import TIMES

REPOSITORY = Path(__file__).parent.parent.parent
SIZES = {"compile": 12, "save": 12, "evaluate": 12, "simulate": 2, "export": 2}
"""How many sizes are tried in small."""
LARGEST = {"compile": 5_000, "save": 400_000, "evaluate": 200_000, "simulate": 20_000_000,
           "export": 4_000_000}  # fmt: skip
"""Bytes: no file of that kind is larger."""


@pytest.fixture(scope="module")
def trained(plm_dir, tmp_path_factory):
    """A checkpoint, with its data folder beside it."""
    return checkpoints.train(tmp_path_factory.mktemp("full"), plm_dir)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIZES)
def test_on_a_full_disk_all_is_whole_or_absent_and_said(kind, trained):
    number = SIZES[kind] * TIMES
    sizes = np.unique(np.geomspace(1, LARGEST[kind], number).astype(int)).tolist()
    done = subprocess.run(
        [sys.executable, "-m", "hard.full_disk", str(trained.parent), str(trained), kind,
         *map(str, [0, *sizes])],
        capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
    )  # fmt: skip
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    assert [*found] == [0, *sizes], done.stderr[-2000:]
    assert not {size: said for size, said in found.items() if said not in ("whole", "said")}
    assert set(Counter(found.values())) == {"whole", "said"}  # else the sizes would be no test
